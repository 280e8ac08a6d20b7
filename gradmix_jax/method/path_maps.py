"""Attribution maps from gradients at several images: integrated gradients and SmoothGrad, in a few steps.

Both cost a forward and a backward pass for every image on the path or with noise. The passes are unrolled instead of
looped: they need the memory of one, and XLA counts the FLOPs of all.

As in `maps`: float32, `map_BxHxW` in [0, 1], no gradient.

Letters: B batch, H W image, C image channels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gradmix_jax.fields import check_choice
from gradmix_jax.method.maps import input_gradient, min_max, smooth

Gradient = Callable[[jax.Array], jax.Array]
BASELINES = ("zeros", "mean")


def path_attributions(gradient: Gradient, images_BxHxWxC: jax.Array, *, steps: int, baseline: str) -> jax.Array:
    """(x - x0) times the mean gradient at the midpoints of `steps` equal parts of the line from x0 to x.

    They sum to L(x) - L(x0), up to the error of the midpoint rule. All images of a batch move together, because the
    loss may couple them.

    Source: Sundararajan et al. 2017, "Axiomatic attribution for deep networks", arXiv 1703.01365, equation 3.

    Args:
      gradient: images -> gradient of the loss, both [B, H, W, C].
      images_BxHxWxC: images in [0, 1].
      steps: number of gradients.
      baseline: x0: `zeros` or `mean` (each image's own mean color).

    Returns:
      attributions_BxHxWxC, float32 of either sign.

    Raises:
      ValueError: an unknown baseline.
    """
    check_choice("baseline", baseline, BASELINES)
    images_BxHxWxC = jax.lax.stop_gradient(images_BxHxWxC)
    start = jnp.zeros_like(images_BxHxWxC)
    if baseline == "mean":
        start = jnp.broadcast_to(jnp.mean(images_BxHxWxC, axis=(1, 2), keepdims=True), images_BxHxWxC.shape)
    way = images_BxHxWxC - start
    total = sum(gradient(start + (step + 0.5) / steps * way).astype(jnp.float32) for step in range(steps))
    return way.astype(jnp.float32) * total / steps


def integrated_gradients(
    gradient: Gradient,
    images_BxHxWxC: jax.Array,
    *,
    steps: int = 4,
    baseline: str = "zeros",
    smoothing: int = 1,
    norm: str = "image",
    axis_name: str | None = None,
) -> jax.Array:
    """Absolute value of the sum over channels of `path_attributions`; map_BxHxW in [0, 1].

    `smoothing` and `norm` are those of `input_gradient`.
    """
    attributions = path_attributions(gradient, images_BxHxWxC, steps=steps, baseline=baseline)
    raw_BxHxW = jnp.abs(jnp.sum(attributions, axis=-1))
    return min_max(smooth(raw_BxHxW, window=smoothing), norm=norm, axis_name=axis_name)


def smoothgrad(
    keys_B: jax.Array,
    gradient: Gradient,
    images_BxHxWxC: jax.Array,
    *,
    samples: int = 4,
    noise: float = 0.15,
    smoothing: int = 1,
    norm: str = "image",
    axis_name: str | None = None,
) -> jax.Array:
    """`input_gradient` of the mean gradient over noisy images.

    Source: Smilkov et al. 2017, "SmoothGrad", arXiv 1706.03825, section 3 (noise of 10 to 20 % of the range).

    Args:
      keys_B: one key for each image.
      gradient: images -> gradient of the loss, both [B, H, W, C].
      images_BxHxWxC: images in [0, 1]; noisy ones are not clipped.
      samples: number of gradients.
      noise: standard deviation of the Gaussian noise.
      smoothing, norm, axis_name: as in `input_gradient`.

    Returns:
      map_BxHxW, float32 in [0, 1].
    """
    images_BxHxWxC = jax.lax.stop_gradient(images_BxHxWxC)
    draw = jax.vmap(lambda key: jax.random.normal(key, (samples, *images_BxHxWxC.shape[1:]), images_BxHxWxC.dtype))
    noise_BxSxHxWxC = noise * draw(keys_B)
    each = (gradient(images_BxHxWxC + noise_BxSxHxWxC[:, sample]) for sample in range(samples))
    mean_BxHxWxC = sum(one.astype(jnp.float32) for one in each) / samples
    return input_gradient(mean_BxHxWxC, norm=norm, smoothing=smoothing, axis_name=axis_name)
