"""Images of pure noise, `noise:uniform` and `noise:gaussian`: as far out of distribution as images get."""

import numpy as np

from gradmix_jax.data.source import ArrayRecords, DataSet

NUM_IMAGES = 1000
KINDS = {
    "uniform": lambda random, shape: random.integers(0, 256, shape, dtype=np.uint8),
    # Around mid-gray, with most values within the range.
    "gaussian": lambda random, shape: random.normal(127.5, 64, shape).clip(0, 255).astype(np.uint8),
}


def load(kind: str, *, image_size: int, channels: int) -> DataSet:
    """NUM_IMAGES test images of one class, the same at every call; pixels and channels are independent.

    Args:
      kind: a key of `KINDS`.
      image_size: height and width in pixels.
      channels: 1 or 3.
    """
    images = KINDS[kind](np.random.default_rng(0), (NUM_IMAGES, image_size, image_size, channels))
    images = images if channels == 3 else images[..., 0]
    records = ArrayRecords(images, np.zeros(NUM_IMAGES, np.int32), f"noise:{kind}")
    return DataSet((f"{kind} noise",), None, records)
