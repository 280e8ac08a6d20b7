"""Attribution maps: activations and gradients in, one map per image out.

Every function takes existing arrays (the train step gets them from one `jax.vjp`), works on a whole
batch, computes in float32 and returns `map_BxHxW` in [0, 1]. Larger means "the network relies on this pixel more".
No gradient flows through a map: callers pass values, and `min_max`, the last step of every map, stops gradients.

Letters: B batch, H W image, h w feature map, C image channels, F feature channels.
"""

import jax
import jax.numpy as jnp
from jax import lax

from gradmix_jax.fields import check_choice

NORMS = ("image", "batch")


def min_max(maps_BxHxW: jax.Array, *, norm: str = "image", axis_name: str | None = None) -> jax.Array:
    """Scale maps to [0, 1] by their minimum and maximum; a constant map becomes all zeros.

    Args:
      maps_BxHxW: maps of any range.
      norm: `image` uses each image's own extremes; `batch` those of the whole batch.
      axis_name: with `norm="batch"`, the mapped axis over which the batch is spread.

    Returns:
      float32 array of the same shape in [0, 1], without a gradient.

    Raises:
      ValueError: an unknown norm.
    """
    check_choice("norm", norm, NORMS)
    # Stopped here rather than on the result, because pmin and pmax cannot be differentiated at all.
    maps_BxHxW = lax.stop_gradient(maps_BxHxW.astype(jnp.float32))
    axes = (1, 2) if norm == "image" else (0, 1, 2)
    low = jnp.min(maps_BxHxW, axis=axes, keepdims=True)
    high = jnp.max(maps_BxHxW, axis=axes, keepdims=True)
    if norm == "batch" and axis_name is not None:
        low, high = lax.pmin(low, axis_name), lax.pmax(high, axis_name)
    span = high - low
    # Gradients of a nearly solved batch are tiny (1e-12 is common): divide by the span itself, not by span + epsilon.
    return jnp.where(span > 0, (maps_BxHxW - low) / jnp.where(span > 0, span, 1.0), 0.0)


def upsampled(raw_Bxhxw, image_size, norm, axis_name, method="bilinear"):
    """A raw map, scaled to [0, 1] by `min_max` and then resized to the image."""
    raw_Bxhxw = min_max(raw_Bxhxw, norm=norm, axis_name=axis_name)
    size_HxW = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    shape_BxHxW = (raw_Bxhxw.shape[0], *size_HxW)
    return jax.image.resize(raw_Bxhxw, shape_BxHxW, method)


def layer_cam(
    activations_BxhxwxF: jax.Array,
    gradients_BxhxwxF: jax.Array,
    *,
    image_size: int | tuple[int, int],
    sign: int = 1,
    norm: str = "image",
    axis_name: str | None = None,
) -> jax.Array:
    """LayerCAM with the loss as target: sum over channels of A * relu(sign * dL/dA).

    Source: Jiang et al. 2021, "LayerCAM", equation 6, as GradMix uses it (arXiv 2505.12803).

    Args:
      activations_BxhxwxF: activations of one stage.
      gradients_BxhxwxF: gradient of the attribution loss with respect to them.
      image_size: H, or (H, W), of the map returned.
      sign: +1 where more activation raises the loss, -1 where it lowers the loss.
      norm: `image` or `batch`, see `min_max`.
      axis_name: see `min_max`.

    Returns:
      map_BxHxW, float32 in [0, 1], bilinearly upsampled.
    """
    raw_Bxhxw = layer_cam_raw(activations_BxhxwxF, gradients_BxhxwxF, sign=sign)
    return upsampled(raw_Bxhxw, image_size, norm, axis_name)


def layer_cam_raw(activations_BxhxwxF: jax.Array, gradients_BxhxwxF: jax.Array, *, sign: int = 1) -> jax.Array:
    """The sum inside `layer_cam` before it is normalized and upsampled; raw_Bxhxw, float32 of any range."""
    gradients_BxhxwxF = gradients_BxhxwxF.astype(jnp.float32)
    return jnp.sum(activations_BxhxwxF.astype(jnp.float32) * jax.nn.relu(sign * gradients_BxhxwxF), axis=-1)


def grad_cam(
    activations_BxhxwxF: jax.Array,
    gradients_BxhxwxF: jax.Array,
    *,
    image_size: int | tuple[int, int],
    sign: int = 1,
    norm: str = "image",
    axis_name: str | None = None,
) -> jax.Array:
    """Grad-CAM: relu of the sum over channels of A times the spatial mean of sign * dL/dA.

    Source: Selvaraju et al. 2017, "Grad-CAM", equations 1 and 2. Arguments and result as in `layer_cam`.
    """
    raw_Bxhxw = grad_cam_raw(activations_BxhxwxF, gradients_BxhxwxF, sign=sign)
    return upsampled(raw_Bxhxw, image_size, norm, axis_name)


def grad_cam_raw(activations_BxhxwxF: jax.Array, gradients_BxhxwxF: jax.Array, *, sign: int = 1) -> jax.Array:
    """The relu inside `grad_cam` before it is normalized and upsampled; raw_Bxhxw, float32, at least 0."""
    weights_Bx1x1xF = jnp.mean(gradients_BxhxwxF.astype(jnp.float32), axis=(1, 2), keepdims=True)
    return jax.nn.relu(sign * jnp.sum(activations_BxhxwxF.astype(jnp.float32) * weights_Bx1x1xF, axis=-1))


def smooth(maps_BxHxW: jax.Array, *, window: int) -> jax.Array:
    """Mean over a `window` x `window` neighborhood (odd), at the border over the part inside the image; float32."""
    maps_BxHxW = maps_BxHxW.astype(jnp.float32)
    if window == 1:
        return maps_BxHxW
    # Without its minimum, a constant map is all zeros; otherwise `min_max` would turn rounding in the sums into noise.
    low_Bx1x1 = jnp.min(maps_BxHxW, axis=(1, 2), keepdims=True)
    pool = lambda x: lax.reduce_window(x, 0.0, lax.add, (1, window, window), (1, 1, 1), "SAME")
    counts_1xHxW = pool(jnp.ones((1, *maps_BxHxW.shape[1:]), maps_BxHxW.dtype))
    return low_Bx1x1 + pool(maps_BxHxW - low_Bx1x1) / counts_1xHxW


def input_gradient(
    gradients_BxHxWxC: jax.Array,
    *,
    norm: str = "image",
    images_BxHxWxC: jax.Array | None = None,
    smoothing: int = 1,
    axis_name: str | None = None,
) -> jax.Array:
    """Saliency: |dL/dx| summed over channels, or |x * dL/dx| where `images_BxHxWxC` is given.

    Source: Simonyan et al. 2014, "Deep inside convolutional networks", section 3 (sum in place of their maximum);
    gradient x input: Shrikumar et al. 2016.

    Args:
      gradients_BxHxWxC: gradient of the attribution loss with respect to the input images.
      norm: `image` or `batch`, see `min_max`.
      images_BxHxWxC: the input images, for gradient x input.
      smoothing: odd side of the averaging window in pixels; 1 leaves the map as it is.
      axis_name: see `min_max`.

    Returns:
      map_BxHxW, float32 in [0, 1].
    """
    gradients_BxHxWxC = gradients_BxHxWxC.astype(jnp.float32)
    if images_BxHxWxC is not None:
        gradients_BxHxWxC = gradients_BxHxWxC * images_BxHxWxC.astype(jnp.float32)
    raw_BxHxW = smooth(jnp.sum(jnp.abs(gradients_BxHxWxC), axis=-1), window=smoothing)
    return min_max(raw_BxHxW, norm=norm, axis_name=axis_name)


def random_map(keys_B: jax.Array, *, image_size: tuple[int, int], grid: int = 4) -> jax.Array:
    """Control: uniform noise on a `grid` x `grid` lattice, upsampled like a feature map; map_BxHxW in [0, 1]."""
    raw_Bxhxw = jax.vmap(lambda key: jax.random.uniform(key, (grid, grid)))(keys_B)
    return upsampled(raw_Bxhxw, image_size, "image", None)


def spectral_residual(images_BxHxWxC: jax.Array) -> jax.Array:
    """Saliency without a network: what the smoothed log spectrum of an image does not explain.

    Source: Hou and Zhang 2007, "Saliency detection: a spectral residual approach", equations 6 to 10, on the gray image
    at its own size, smoothed over 3 x 3 pixels in place of their Gaussian.

    Args:
      images_BxHxWxC: images of any range.

    Returns:
      map_BxHxW, float32 in [0, 1].
    """
    spectrum_BxHxW = jnp.fft.fft2(jnp.mean(images_BxHxWxC.astype(jnp.float32), axis=-1))
    # A flat image has one amplitude and zeros: the logarithm needs a floor.
    amplitude_BxHxW = jnp.maximum(jnp.abs(spectrum_BxHxW), 1e-6)
    log_amplitude_BxHxW = jnp.log(amplitude_BxHxW)
    residual_BxHxW = log_amplitude_BxHxW - smooth(log_amplitude_BxHxW, window=3)
    back_BxHxW = jnp.fft.ifft2(jnp.exp(residual_BxHxW) * spectrum_BxHxW / amplitude_BxHxW)
    return min_max(smooth(jnp.abs(back_BxHxW) ** 2, window=3))


def average(maps: list[jax.Array]) -> jax.Array:
    """Mean of one map per stage; each map_BxHxW is in [0, 1], so all stages weigh the same."""
    return sum(maps) / len(maps)
