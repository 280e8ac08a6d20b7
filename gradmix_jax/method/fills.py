"""Fills: what replaces the masked part of an image, and how much of the image is kept.

A mask is boolean, or float in [0, 1] for a soft border: `mixed = mask * content + (1 - mask) * image`, of which a
boolean mask is the special case.

Letters: B batch (views included), H W image, C image channels.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gradmix_jax.fields import check_choice
from gradmix_jax.method.checks import check_images


@dataclasses.dataclass(frozen=True)
class Fill:
    """An entry of FILLS.

    Attributes:
      content: (key, images_BxHxWxC, partners_BxHxWxC or None, mask_BxHxW) -> what fills the masked part, [B, H, W, C]
        or of a shape that broadcasts to it.
      needs_partner: whether it uses another image.
    """

    content: Callable[..., jax.Array]
    needs_partner: bool = False


def kept_share(mask_BxHxW: jax.Array) -> jax.Array:
    """Mean share of the image that stays, weight_B float32 in [0, 1], measured on the mask itself."""
    return 1.0 - jnp.mean(mask_BxHxW.astype(jnp.float32), axis=(1, 2))


def blend(mask_BxHxW: jax.Array, content: jax.Array, images_BxHxWxC: jax.Array) -> jax.Array:
    """The images with the masked part replaced; shape and dtype of the images.

    Args:
      mask_BxHxW: bool (True: replaced) or float in [0, 1] (the share that is replaced).
      content: what replaces it, of a shape that broadcasts to the images'.
      images_BxHxWxC: the images.
    """
    mask_BxHxWx1 = mask_BxHxW[..., None]
    if mask_BxHxW.dtype == bool:
        return jnp.where(mask_BxHxWx1, content, images_BxHxWxC)
    mixed = mask_BxHxWx1 * content + (1.0 - mask_BxHxWx1) * images_BxHxWxC
    return mixed.astype(images_BxHxWxC.dtype)


def fill_masked(
    key: jax.Array, images_BxHxWxC: jax.Array, mask_BxHxW: jax.Array, fill: str, *, partner_B: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Replace the masked part of each image.

    Args:
      key: randomness of the content.
      images_BxHxWxC: images, float in [0, 1].
      mask_BxHxW: bool, or float in [0, 1].
      fill: a name of FILLS.
      partner_B: int32, the partner of each row; needed by fills that use one, and ignored by the others.

    Returns:
      mixed images (shape and dtype of the input), weight_B (the mean kept share), and partner_B: each row's own index
      if the fill has no partner, so that area-weighted labels are right.

    Raises:
      ValueError: an unknown fill, or images that are not float in [0, 1] (of traced ones the type is checked).
    """
    check_images(images_BxHxWxC)
    check_choice("fill", fill, FILLS)
    entry = FILLS[fill]
    partners_BxHxWxC = images_BxHxWxC[partner_B] if entry.needs_partner else None
    content = entry.content(key, images_BxHxWxC, partners_BxHxWxC, mask_BxHxW)
    own_B = jnp.arange(images_BxHxWxC.shape[0], dtype=jnp.int32)
    mixed = blend(mask_BxHxW, content, images_BxHxWxC)
    return mixed, kept_share(mask_BxHxW), partner_B if entry.needs_partner else own_B


def _resize_into_box(image_HxWxC, mask_HxW):
    """The whole image, shrunk (bilinear, antialiased) onto the bounding box of the mask; zeros elsewhere."""

    def extent(occupied):
        # Not the number of occupied rows, because a thresholded mask has gaps.
        first, after_last = jnp.argmax(occupied), occupied.shape[0] - jnp.argmax(occupied[::-1])
        return first.astype(jnp.float32), (after_last - first).astype(jnp.float32)

    masked_HxW = mask_HxW > 0
    top, box_height = extent(jnp.any(masked_HxW, axis=1))
    left, box_width = extent(jnp.any(masked_HxW, axis=0))
    height, width, _ = image_HxWxC.shape
    resized = jax.image.scale_and_translate(
        image_HxWxC,
        image_HxWxC.shape,
        (0, 1),
        scale=jnp.stack([box_height / height, box_width / width]),
        translation=jnp.stack([top, left]),
        method="linear",
    )
    return jnp.clip(resized, 0, 1)  # the weights of the resizing sum to 1 only up to rounding


def _noise(key, images_BxHxWxC, partners_BxHxWxC, mask_BxHxW):
    return jax.random.uniform(key, images_BxHxWxC.shape, images_BxHxWxC.dtype)


def _resized(key, images_BxHxWxC, partners_BxHxWxC, mask_BxHxW):
    return jax.vmap(_resize_into_box)(partners_BxHxWxC, mask_BxHxW)


FILLS = {
    # The partner's pixels at the same place.
    "partner": Fill(lambda key, images, partners, mask: partners, needs_partner=True),
    # The whole partner, resized to the mask's bounding box.
    "partner_resized": Fill(_resized, needs_partner=True),
    "noise": Fill(_noise),
    # The image's own mean color.
    "mean": Fill(lambda key, images, partners, mask: jnp.mean(images, axis=(1, 2), keepdims=True)),
    "zeros": Fill(lambda key, images, partners, mask: jnp.zeros_like(images)),
    "ones": Fill(lambda key, images, partners, mask: jnp.ones_like(images)),
}
