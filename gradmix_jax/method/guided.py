"""Mixing guided by attribution maps: GradMix, BackMix, Attentive CutMix, saliency-guarded Cutout.

All of them use the maps of the network in training, at every step. Common arguments, result and errors:
see `boxes`; here `maps_BxHxW` are maps in [0, 1], larger where the network relies on a pixel more.

Letters: B batch (views included), H W image, C image channels, h w cells of a grid.
"""

import jax
import jax.numpy as jnp

from gradmix_jax.fields import check_choice
from gradmix_jax.method import masks
from gradmix_jax.method.draws import draw, fill_hole

Mixed = tuple[jax.Array, jax.Array, jax.Array]


def gradmix(
    key: jax.Array,
    images_BxHxWxC: jax.Array,
    maps_BxHxW: jax.Array,
    *,
    keep_range: tuple[float, float] = (0.5, 0.9),
    mask: str = "threshold",
    fill: str = "partner",
    views: int = 1,
    keep_B: jax.Array | None = None,
    border: int = 0,
    patch_size: int = 0,
) -> Mixed:
    """Mask each image where its map is largest, and fill the hole.

    Source: Xu, Kao, Keuper 2025, "Informed Mixing", arXiv 2505.12803 (`box` with `partner_resized` is the paper's;
    `threshold` with `partner` goes with input-gradient maps; `patches` with `partner` and maps on tokens is for
    transformers: no token sees pixels of both images).

    Args:
      key: randomness of partners, keep shares and noise.
      images_BxHxWxC: images in [0, 1]; B = views * images, view-major. A single image is its own partner.
      maps_BxHxW: attribution maps.
      keep_range: lowest and highest share of pixels to keep, each in [0, 1]; drawn once per row.
      mask: `threshold`, `box` or `patches`, see `masks`.
      fill: `partner` (its pixels at the same place), `partner_resized` (the whole partner, resized to the mask's
        bounding box), `noise` (uniform in [0, 1]), `mean` (the image's own mean color), `zeros` or `ones`.
      views: number of views V in B.
      keep_B: keep shares, to use in place of a draw.
      border: pixels over which the mask fades on each side, see `masks.soften`; 0 is a sharp border.
      patch_size: side of a patch in pixels, for the mask `patches`.

    Returns:
      mixed images (shape and dtype of the input), weight_B and partner_B.

    Raises:
      ValueError: B is not a multiple of `views`, an unknown mask or fill, or patches that do not divide the image.
    """
    check_choice("mask", mask, masks.MASKS)
    drawn = draw(key, images_BxHxWxC.shape[0], views=views, keep_range=keep_range, keep_B=keep_B)
    mask_BxHxW = masks.MASKS[mask](maps_BxHxW, drawn.keep_B, patch_size=patch_size)
    return fill_hole(drawn, images_BxHxWxC, mask_BxHxW, fill=fill, border=border)


def backmix(
    key: jax.Array,
    images_BxHxWxC: jax.Array,
    maps_BxHxW: jax.Array,
    *,
    keep_range: tuple[float, float],
    mask: str,
    fill: str,
    views: int,
    keep_B: jax.Array | None = None,
    border: int = 0,
    patch_size: int = 0,
) -> Mixed:
    """Exchange backgrounds: where the maps of both the image and its partner are smallest, the partner's pixels.

    The image keeps its label: `partner_B` is each row's own index, and `weight_B` its kept share.

    Source: BackMix, Wang et al. 2025, arXiv 2503.17717. Its released code pastes one square of the partner, whose
    foreground (the top quarter of a running average of class activation maps) is blackened, at a random place; here all
    of the background that both images share is replaced, and the maps are those of the step.

    Arguments, result and errors: as for `gradmix`.
    """
    check_choice("mask", mask, masks.MASKS)
    drawn = draw(key, images_BxHxWxC.shape[0], views=views, keep_range=keep_range, keep_B=keep_B)
    background_BxHxW = masks.MASKS[mask](-maps_BxHxW, drawn.keep_B, patch_size=patch_size)
    # The partner's foreground is not background, so the image is unchanged there.
    both_BxHxW = background_BxHxW & background_BxHxW[drawn.partner_B]
    mixed, weight_B, _ = fill_hole(drawn, images_BxHxWxC, both_BxHxW, fill=fill, border=border)
    return mixed, weight_B, jnp.arange(len(weight_B), dtype=jnp.int32)


def attentive_cutmix(
    key: jax.Array,
    images_BxHxWxC: jax.Array,
    maps_BxHxW: jax.Array,
    *,
    fill: str,
    views: int,
    grid: int,
    cells: int,
    border: int = 0,
) -> Mixed:
    """The partner's most attended cells of a grid, pasted at the same place.

    Source: Attentive CutMix, Walawalkar et al. 2020, arXiv 2003.13048, section 3 (6 cells of a grid of 7 x 7), with
    the maps of the step in place of those of a second, pretrained network.

    Args:
      grid: cells along a side of the image, at most its pixels; sides need not be multiples of it.
      cells: number of cells that are pasted.
    """
    drawn = draw(key, images_BxHxWxC.shape[0], views=views, keep_range=(0.0, 0.0))
    keep_B = jnp.full(drawn.partner_B.shape, 1.0 - min(cells, grid**2) / grid**2)
    mask_BxHxW = masks.cells(maps_BxHxW[drawn.partner_B], keep_B, grid_hxw=(grid, grid))
    return fill_hole(drawn, images_BxHxWxC, mask_BxHxW, fill=fill, border=border)


def keep_cutout(
    key: jax.Array,
    images_BxHxWxC: jax.Array,
    maps_BxHxW: jax.Array,
    *,
    keep_range: tuple[float, float],
    fill: str,
    views: int,
    quantile: float,
    keep_B: jax.Array | None = None,
    border: int = 0,
) -> Mixed:
    """A box at a random position among those that cover little of the map: Cutout that spares the evidence.

    The position is uniform over those whose box covers at most the given quantile of what the boxes at all positions
    cover. This equals drawing positions until one is unimportant enough, without the loop.

    Source: KeepAugment, Gong et al. 2021, arXiv 2011.11778, section 3 (selective cut), with the maps of the step.

    Args:
      quantile: above 0, at most 1: the share of positions that are unimportant enough; 1 is plain Cutout.
    """
    batch, height, width, _ = images_BxHxWxC.shape
    drawn = draw(key, batch, views=views, keep_range=keep_range, keep_B=keep_B, more=1)
    covered_BxP = masks.covered_by_boxes(maps_BxHxW, drawn.keep_B).reshape(batch, height * width)
    allowed_BxP = masks.smallest(covered_BxP, count=max(1, round(quantile * height * width)))
    lots_BxP = jax.random.uniform(drawn.keys[0], (batch, height * width))
    place_B = jnp.argmax(jnp.where(allowed_BxP, lots_BxP, -1.0), axis=1)
    mask_BxHxW = masks.box_at(place_B // width, place_B % width, drawn.keep_B, image_size=(height, width))
    return fill_hole(drawn, images_BxHxWxC, mask_BxHxW, fill=fill, border=border)
