"""Mixing by boxes and patches that need no map: CutMix, ResizeMix, SaliencyMix, FMix.

Common arguments: `key` (all randomness), `images_BxHxWxC` in [0, 1] (B = views * images, view-major), `maps_BxHxW`
(ignored), `keep_range` and `keep_B` (see `draws.draw`), `fill` (a name of `fills.FILLS`), `views`,
and `border` (pixels over which the mask fades on each side, see `masks.soften`). All return mixed images (shape and
dtype of the input), weight_B and partner_B, and raise ValueError for an unknown fill. The published share to keep is
uniform in [0, 1] for CutMix, SaliencyMix and FMix, and fixed for Cutout; here it is GradMix's unless configured.

Letters: B batch (views included), H W image, C image channels.
"""

import jax
import jax.numpy as jnp

from gradmix_jax.method import attribution, masks
from gradmix_jax.method.draws import Drawn, draw, fill_hole

Mixed = tuple[jax.Array, jax.Array, jax.Array]


def cutmix(
    key: jax.Array,
    images_BxHxWxC: jax.Array,
    maps_BxHxW: jax.Array | None,
    *,
    keep_range: tuple[float, float],
    fill: str,
    views: int,
    keep_B: jax.Array | None = None,
    border: int = 0,
) -> Mixed:
    """A box at a uniformly random place. Arguments, result and errors: see the module.

    Source: CutMix, Yun et al. 2019, arXiv 1905.04899, section 3.1. With a fill that has no partner it is Cutout
    (DeVries and Taylor 2017, arXiv 1708.04552).
    """
    del maps_BxHxW
    drawn, mask_BxHxW = random_box(key, images_BxHxWxC.shape, views=views, keep_range=keep_range, keep_B=keep_B)
    return fill_hole(drawn, images_BxHxWxC, mask_BxHxW, fill=fill, border=border)


def random_box(
    key: jax.Array,
    shape_BxHxWxC: tuple[int, ...],
    *,
    views: int,
    keep_range: tuple[float, float],
    keep_B: jax.Array | None = None,
) -> tuple[Drawn, jax.Array]:
    """(drawn, mask_BxHxW) of a box around a uniformly random pixel of each image of that shape."""
    batch, height, width, _ = shape_BxHxWxC
    drawn = draw(key, batch, views=views, keep_range=keep_range, keep_B=keep_B, more=2)
    row_B = jax.random.randint(drawn.keys[0], (batch,), 0, height)
    column_B = jax.random.randint(drawn.keys[1], (batch,), 0, width)
    return drawn, masks.box_at(row_B, column_B, drawn.keep_B, image_size=(height, width))


def resizemix(
    key: jax.Array,
    images_BxHxWxC: jax.Array,
    maps_BxHxW: jax.Array | None,
    *,
    scale: tuple[float, float],
    fill: str,
    views: int,
    border: int = 0,
) -> Mixed:
    """The whole partner, resized to a share `scale` of the sides, at a random place inside the image.

    Source: ResizeMix, Qin et al. 2020, arXiv 2012.11101, section 3.3, with the fill `partner_resized`. The weight is
    the true kept area. Other arguments, result and errors: see the module.

    Args:
      scale: lowest and highest side of the box as a share of the image's; drawn uniformly, one per row.
    """
    del maps_BxHxW
    batch, height, width, _ = images_BxHxWxC.shape
    drawn = draw(key, batch, views=views, keep_range=scale, more=2)
    scale_B = drawn.keep_B

    def inside(key, size):
        side_B = jnp.maximum(jnp.round(scale_B * size), 1.0)
        # Uniform over the size - side + 1 positions inside.
        start_B = jnp.floor(jax.random.uniform(key, (batch,)) * (size - side_B + 1))
        positions_1xS = jnp.arange(size, dtype=jnp.float32)[None]
        return (positions_1xS >= start_B[:, None]) & (positions_1xS < (start_B + side_B)[:, None])

    rows_BxH, columns_BxW = inside(drawn.keys[0], height), inside(drawn.keys[1], width)
    mask_BxHxW = rows_BxH[:, :, None] & columns_BxW[:, None, :]
    return fill_hole(drawn, images_BxHxWxC, mask_BxHxW, fill=fill, border=border)


def saliencymix(
    key: jax.Array,
    images_BxHxWxC: jax.Array,
    maps_BxHxW: jax.Array | None,
    *,
    keep_range: tuple[float, float],
    fill: str,
    views: int,
    keep_B: jax.Array | None = None,
    border: int = 0,
) -> Mixed:
    """A box around the most salient point of the partner. Arguments, result and errors: see the module.

    Source: SaliencyMix, Uddin et al. 2021, arXiv 2006.01791, section 3.2, with `attribution.spectral_residual` as the
    saliency.
    """
    del maps_BxHxW
    drawn = draw(key, images_BxHxWxC.shape[0], views=views, keep_range=keep_range, keep_B=keep_B)
    saliency_BxHxW = attribution.spectral_residual(images_BxHxWxC)
    mask_BxHxW = masks.box(saliency_BxHxW[drawn.partner_B], drawn.keep_B)
    return fill_hole(drawn, images_BxHxWxC, mask_BxHxW, fill=fill, border=border)


def fmix(
    key: jax.Array,
    images_BxHxWxC: jax.Array,
    maps_BxHxW: jax.Array | None,
    *,
    keep_range: tuple[float, float],
    fill: str,
    views: int,
    decay: float,
    keep_B: jax.Array | None = None,
    border: int = 0,
) -> Mixed:
    """Patches of any shape, where smooth noise is largest.

    Source: FMix, Harris et al. 2020, arXiv 2002.12047, section 4.1. Other arguments, result and errors: see the module.

    Args:
      decay: of the noise's amplitude with frequency, see `masks.fourier_noise`; 0 or more.
    """
    del maps_BxHxW
    batch, height, width, _ = images_BxHxWxC.shape
    drawn = draw(key, batch, views=views, keep_range=keep_range, keep_B=keep_B, more=1)
    noise_BxHxW = masks.fourier_noise(drawn.keys[0], batch, image_size=(height, width), decay=decay)
    mask_BxHxW = masks.threshold(noise_BxHxW, drawn.keep_B)
    return fill_hole(drawn, images_BxHxWxC, mask_BxHxW, fill=fill, border=border)
