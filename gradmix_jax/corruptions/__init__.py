"""The 15 common corruptions of Hendrycks & Dietterich 2019 (arXiv 1903.12261) at 5 severities, made on the device.

    corrupted = corruptions.corrupt(key, images, name="fog", severity=3)

The constants are those with which the authors made CIFAR-10-C, for images below 64x64, and TinyImageNet-C, from
64x64 on; `published_set(image_size)` says which. Lengths in pixels (radius and sigma of blurs, displacement of glass)
grow with the image for images larger than the set's; smaller ones get them unscaled, because a blur within one pixel
would have no effect. Lengths of the elastic transform are shares of the image at any size. As in the authors' scripts,
values between two gray levels are truncated, not rounded.

Besides the random numbers, two things differ from the authors' images: the frost photographs are replaced by a
texture (`weather.frost`), and blurs and warps are computed in float32 throughout, without the fixed-point
steps of image libraries in between. Results on these images are close to those on the published ones, not equal.

A new corruption is a function of one image, a function for its constants and one entry of `CORRUPTIONS`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradmix_jax.corruptions import blur, digital, filters, noise, weather
from gradmix_jax.corruptions.published import CIFAR10_C, published_set
from gradmix_jax.fields import check_choice, check_number
from gradmix_jax.method.checks import check_images

__all__ = ["CIFAR10_C", "CORRUPTIONS", "NAMES", "SEVERITIES", "Corruption", "corrupt", "published_set"]

SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 8  # pixels; the embedded digits


class Corruption(NamedTuple):
    """A corruption.

    Attributes:
      apply: (key, image_HxWxC, *constants) -> image, in [0, 1]; on the host, (images_BxHxWxC, *constants) -> images,
        both uint8 NumPy arrays.
      constants: (severity, image_size) -> arrays, of the same shapes at every severity, so that a corruption is
        compiled once.
      on_host: whether it runs on the host, where it may not be random.
    """

    apply: Callable
    constants: Callable
    on_host: bool = False


CORRUPTIONS = {
    "gaussian_noise": Corruption(noise.gaussian_noise, noise.gaussian_noise_constants),
    "shot_noise": Corruption(noise.shot_noise, noise.shot_noise_constants),
    "impulse_noise": Corruption(noise.impulse_noise, noise.impulse_noise_constants),
    "defocus_blur": Corruption(blur.defocus_blur, blur.defocus_blur_constants),
    "glass_blur": Corruption(blur.glass_blur, blur.glass_blur_constants),
    "motion_blur": Corruption(blur.motion_blur, blur.motion_blur_constants),
    "zoom_blur": Corruption(blur.zoom_blur, blur.zoom_blur_constants),
    "snow": Corruption(weather.snow, weather.snow_constants),
    "frost": Corruption(weather.frost, weather.frost_constants),
    "fog": Corruption(weather.fog, weather.fog_constants),
    "brightness": Corruption(weather.brightness, weather.brightness_constants),
    "contrast": Corruption(digital.contrast, digital.contrast_constants),
    "elastic_transform": Corruption(digital.elastic_transform, digital.elastic_transform_constants),
    "pixelate": Corruption(digital.pixelate, digital.pixelate_constants),
    "jpeg_compression": Corruption(digital.jpeg_compression, digital.jpeg_compression_constants, on_host=True),
}
NAMES = tuple(CORRUPTIONS)


def corrupt(key, images_BxHxWxC, *, name, severity, first=0):
    """The images with one corruption.

    Image i depends only on itself, `fold_in(key, first + i)`, name and severity, not on the other images or
    the size of the batch. So a dataset gives the same images in batches of any size if `first` is
    the place of the batch's first image in it. Severities share their draws: the same grains, only stronger.
    (This holds for JAX's default threefry keys; `shot_noise` takes no others.)

    One program per name, batch size and image size serves the five severities. `jpeg_compression` runs on
    the host, so it cannot be used inside `jax.jit`.

    Args:
      key: one typed JAX key, of shape ().
      images_BxHxWxC: float in [0, 1], as everywhere in the library, or uint8; square, at least 8x8, C = 1 or 3.
      name: key of `CORRUPTIONS`.
      severity: one of `SEVERITIES`.
      first: place of the batch's first image in its dataset, at least 0.

    Returns:
      [B, H, W, C] on the device, with the 256 gray levels of an image file: uint8 for uint8 images, else float32 in
      [0, 1]. (`jpeg_compression` compresses the nearest uint8 images.)

    Raises:
      ValueError: invalid name, severity or first, or images or a key of the wrong type or shape.
    """
    _check(key, images_BxHxWxC, name, severity, first)
    corruption = CORRUPTIONS[name]
    constants = corruption.constants(severity, images_BxHxWxC.shape[1])
    if corruption.on_host:
        images = jax.device_get(images_BxHxWxC)
        in_bytes = images.dtype == np.uint8
        images = corruption.apply(images if in_bytes else np.round(255 * images).astype(np.uint8), *constants)
        return jax.device_put(images if in_bytes else images.astype(np.float32) / np.float32(255))
    images, first, constants = jax.device_put((images_BxHxWxC, np.uint32(first), constants))
    return _corrupt(key, images, first, constants, apply=corruption.apply)


@partial(jax.jit, static_argnames="apply")
def _corrupt(key, images_BxHxWxC, first, constants, *, apply):
    in_bytes = images_BxHxWxC.dtype == jnp.uint8

    def one(index, image_HxWxC):
        image = image_HxWxC.astype(jnp.float32) / 255 if in_bytes else image_HxWxC.astype(jnp.float32)
        levels = filters.truncated(apply(jax.random.fold_in(key, index), image, *constants))
        return levels.astype(jnp.uint8) if in_bytes else levels / 255

    indices_B = first + jnp.arange(images_BxHxWxC.shape[0], dtype=jnp.uint32)
    return jax.vmap(one)(indices_B, images_BxHxWxC)


def _check(key, images, name, severity, first):
    check_choice("name of a corruption", name, CORRUPTIONS)
    check_number("severity of a corruption", severity, least=SEVERITIES[0], most=SEVERITIES[-1], whole=True)
    check_number("first", first, least=0, whole=True)
    if images.dtype != jnp.uint8:
        check_images(images)
    shape = images.shape
    if len(shape) != 4 or shape[-1] not in (1, 3) or shape[1] != shape[2] or shape[1] < SMALLEST:
        raise ValueError(f"corrupt takes square images [B,H,W,C] of 8x8 or more with C = 1 or 3, got {shape}.")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape != ():
        raise ValueError(f"corrupt takes one typed JAX key of shape (), got {key.dtype} {key.shape}.")
