"""The check of images shared by the library's functions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_images(images_BxHxWxC: Any) -> None:
    """Check that images are float [B, H, W, C] in [0, 1]; inside a traced function, only type and shape.

    Raises:
      ValueError: integers, a wrong number of axes, or values outside [0, 1].
    """
    if not jnp.issubdtype(images_BxHxWxC.dtype, jnp.floating):
        hint = " divide by 255." if images_BxHxWxC.dtype == jnp.uint8 else ""
        raise ValueError(f"images must be float in [0, 1], got {images_BxHxWxC.dtype};{hint or ' convert them.'}")
    if images_BxHxWxC.ndim != 4:
        raise ValueError(f"images must have the axes [B, H, W, C], got the shape {images_BxHxWxC.shape}.")
    if isinstance(images_BxHxWxC, jax.core.Tracer) or not images_BxHxWxC.size:
        return
    values = np.asarray(
        images_BxHxWxC
    )  # with NumPy, because JAX would trace this inside a traced caller even for constant images
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images must be in [0, 1], got values from {low:g} to {high:g}; normalize inside the model.")
