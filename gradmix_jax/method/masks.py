"""Masks: map_BxHxW and the share of each image to keep in, mask_BxHxW out (True = masked out).

Fills also take soft masks, float in [0, 1]; see `fills`. `soften` makes a soft mask from a boolean one.

Letters: B batch, H W image, P pixels of an image (H * W), h w cells of a grid, F frequencies along W that a real image
needs.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradmix_jax.method import maps

# Bilinear upsampling leaves plateaus; values this close to the maximum, as a share of the map's range, count as ties.
TIE = 1e-6


@dataclasses.dataclass(frozen=True)
class Mask:
    """An entry of MASKS: `entry(map_BxHxW, keep_B, patch_size=)` is mask_BxHxW, bool.

    Attributes:
      function: (map_BxHxW, keep_B) -> mask_BxHxW; one that is aligned also takes `patch_size`.
      aligned: whether the mask consists of whole patches of `patch_size` pixels a side.
    """

    function: Callable[..., jax.Array]
    aligned: bool = False

    def __call__(self, map_BxHxW: jax.Array, keep_B: jax.Array, *, patch_size: int = 0) -> jax.Array:
        given = {"patch_size": patch_size} if self.aligned else {}
        return self.function(map_BxHxW, keep_B, **given)


def box(map_BxHxW: jax.Array, keep_B: jax.Array) -> jax.Array:
    """A box of sides round(H * sqrt(1 - keep)) x round(W * sqrt(1 - keep)), centered on the peak, clipped.

    The peak is the centroid of all pixels that share the maximum: an upsampled map has a plateau at the border, and
    its first pixel would pull every such box into the corner. A side of s pixels around row r covers rows
    r - s // 2 ... r - s // 2 + s - 1, as far as they lie inside the image. The true masked area may therefore be
    smaller than 1 - keep: take the weight from the mask (`fills.kept_share`), not from `keep`.

    Args:
      map_BxHxW: maps of any finite range.
      keep_B: share of pixels to keep, in [0, 1], one per image.

    Returns:
      mask_BxHxW, bool.
    """
    _, height, width = map_BxHxW.shape
    map_BxHxW = map_BxHxW.astype(jnp.float32)
    peak_Bx1x1 = jnp.max(map_BxHxW, axis=(1, 2), keepdims=True)
    range_Bx1x1 = peak_Bx1x1 - jnp.min(map_BxHxW, axis=(1, 2), keepdims=True)
    ties_BxHxW = (map_BxHxW >= peak_Bx1x1 - TIE * range_Bx1x1).astype(jnp.float32)
    # Three sums of the same shape, instead of first over rows and then over columns: a GPU takes them in one pass.
    total = lambda position: jnp.sum(ties_BxHxW * position.astype(jnp.float32), axis=(1, 2))
    row_B, column_B = (total(lax.broadcasted_iota(jnp.int32, (1, height, width), axis)) for axis in (1, 2))
    count_B = jnp.sum(ties_BxHxW, axis=(1, 2))
    return box_at(row_B / count_B, column_B / count_B, keep_B, image_size=(height, width))


def box_at(row_B: jax.Array, column_B: jax.Array, keep_B: jax.Array, *, image_size: tuple[int, int]) -> jax.Array:
    """The box of `box` around given centers (in pixels, rounded to whole ones); mask_BxHxW, bool."""
    rows_BxH, columns_BxW = _spans(row_B, keep_B, image_size[0]), _spans(column_B, keep_B, image_size[1])
    return rows_BxH[:, :, None] & columns_BxW[:, None, :]


def _spans(center_B: jax.Array, keep_B: jax.Array, size: int) -> jax.Array:
    """The pixels along one side that a box around a center covers, [B, size], bool."""
    side_B = jnp.round(size * jnp.sqrt(jnp.clip(1.0 - jnp.asarray(keep_B, jnp.float32), 0.0, 1.0)))
    start_B = jnp.round(center_B) - jnp.floor(side_B / 2)
    positions_1xS = jnp.arange(size, dtype=jnp.float32)[None]
    return (positions_1xS >= start_B[:, None]) & (positions_1xS < (start_B + side_B)[:, None])


def threshold(map_BxHxW: jax.Array, keep_B: jax.Array) -> jax.Array:
    """The round((1 - keep) * H * W) pixels with the largest map values, exactly that many in every image.

    Exact selection without a sort: the integer that orders float32 values is found four bits at a time for the k-th
    largest; of the pixels that tie with it, the first in row-major order are taken. O(P) work, no sort of P log P.

    Args:
      map_BxHxW: maps of any finite range.
      keep_B: share of pixels to keep, in [0, 1], one per image.

    Returns:
      mask_BxHxW, bool.
    """
    batch, height, width = map_BxHxW.shape
    order_BxP = _ordered_bits(map_BxHxW.reshape(batch, height * width))
    count_B = jnp.round((1.0 - jnp.asarray(keep_B, jnp.float32)) * (height * width)).astype(jnp.int32)
    kth_B = _kth_largest(order_BxP, count_B)
    above_BxP = order_BxP > kth_B[:, None]
    tied_BxP = order_BxP == kth_B[:, None]
    missing_B = count_B - jnp.sum(above_BxP, axis=1, dtype=jnp.int32)
    rank_BxP = jnp.cumsum(tied_BxP, axis=1, dtype=jnp.int32)
    mask_BxP = above_BxP | (tied_BxP & (rank_BxP <= missing_B[:, None]))
    return mask_BxP.reshape(batch, height, width)


def cells(map_BxHxW: jax.Array, keep_B: jax.Array, *, grid_hxw: tuple[int, int]) -> jax.Array:
    """The round((1 - keep) * h * w) whole cells of a grid with the largest mean of the map.

    Pixel r of H lies in row r * h // H of the grid, so that the grid need not divide the image.

    Args:
      map_BxHxW: maps of any finite range.
      keep_B: share of cells to keep, in [0, 1], one per image.
      grid_hxw: number of rows and columns of cells, at most those of pixels.

    Returns:
      mask_BxHxW, bool.

    Raises:
      ValueError: more cells along a side than pixels.
    """
    image_size = map_BxHxW.shape[1:]
    if any(number > size for number, size in zip(grid_hxw, image_size, strict=True)):
        raise ValueError(f"a grid of {grid_hxw} cells does not fit images of {image_size} pixels; use a smaller one.")
    return expand_cells(threshold(cell_means(map_BxHxW, grid_hxw), keep_B), image_size)


def patches(map_BxHxW: jax.Array, keep_B: jax.Array, *, patch_size: int) -> jax.Array:
    """`cells` of `patch_size` x `patch_size` pixels: every token of a transformer is masked entirely or not at all.

    Raises:
      ValueError: the patches do not divide the image.
    """
    return cells(map_BxHxW, keep_B, grid_hxw=patch_grid(map_BxHxW.shape[1:], patch_size))


def patch_grid(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """(h, w) of the patches of an image. Raises ValueError where they do not divide it."""
    height, width = image_size
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise ValueError(f"patch_size must divide images of {height} x {width} pixels, got {patch_size}.")
    return height // patch_size, width // patch_size


def cell_means(map_BxHxW: jax.Array, grid_hxw: tuple[int, int]) -> jax.Array:
    """The mean of a map over each cell of a grid (see `cells`); mean_Bxhxw, float32."""
    rows_hxH, columns_wxW = (
        (_cell_of(number, size)[None] == np.arange(number)[:, None]).astype(np.float32)
        for number, size in zip(grid_hxw, map_BxHxW.shape[1:], strict=True)
    )
    rows_hxH, columns_wxW = (x / x.sum(axis=1, keepdims=True) for x in (rows_hxH, columns_wxW))
    map_BxHxW = map_BxHxW.astype(jnp.float32)
    return jnp.einsum("hH,BHW,wW->Bhw", rows_hxH, map_BxHxW, columns_wxW, precision="highest")


def expand_cells(values_Bxhxw: jax.Array, image_size: tuple[int, int]) -> jax.Array:
    """The value of the cell that each pixel lies in (see `cells`); [B, H, W], of any dtype."""
    row_H, column_W = map(_cell_of, values_Bxhxw.shape[1:], image_size)
    return values_Bxhxw[:, row_H][:, :, column_W]


def _cell_of(number: int, size: int) -> np.ndarray:
    """The cell, of `number`, that each of `size` pixels lies in."""
    return np.arange(size) * number // size


def soften(mask_BxHxW: jax.Array, border: int) -> jax.Array:
    """A mask that fades over `border` pixels on each side of its border: its mean over squares of 2 * border + 1.

    At the edge of the image the mean is over the part inside.

    Args:
      mask_BxHxW: bool, or float in [0, 1].
      border: pixels, 0 or more; 0 leaves the mask as it is.

    Returns:
      mask_BxHxW, float32 in [0, 1]; the mask itself for a border of 0.
    """
    if border == 0:
        return mask_BxHxW
    return jnp.clip(maps.smooth(mask_BxHxW.astype(jnp.float32), window=2 * border + 1), 0.0, 1.0)


def covered_by_boxes(map_BxHxW: jax.Array, keep_B: jax.Array) -> jax.Array:
    """Sum of the map inside the box of `box_at` around each pixel: [B, H, W], float32."""
    _, height, width = map_BxHxW.shape
    inside = lambda size: jax.vmap(lambda keep: _spans(jnp.arange(size), jnp.full(size, keep), size))(keep_B)
    options = dict(precision="highest", preferred_element_type=jnp.float32)
    return jnp.einsum(
        "BrH,BHW,BcW->Brc",
        inside(height).astype(jnp.float32),
        map_BxHxW.astype(jnp.float32),
        inside(width).astype(jnp.float32),
        **options,
    )


def smallest(values_BxP: jax.Array, *, count: int) -> jax.Array:
    """Where a row's value is at most its `count`-th smallest: at least `count` of them, more on ties; bool."""
    order_BxP = _ordered_bits(-values_BxP)
    kth_B = _kth_largest(order_BxP, jnp.full(values_BxP.shape[0], count, jnp.int32))
    return order_BxP >= kth_B[:, None]


def fourier_noise(key: jax.Array, batch: int, *, image_size: tuple[int, int], decay: float) -> jax.Array:
    """Smooth random maps: Gaussian noise whose amplitude falls as 1 / frequency ** decay.

    Source: FMix, Harris et al. 2020, arXiv 2002.12047, section 4.1. Frequencies are in turns per pixel; the mean and
    whatever is slower than one turn over the longer side count as one turn.

    Args:
      key: randomness of all maps.
      batch: number of maps B.
      image_size: (H, W).
      decay: 0 is white noise; the larger, the larger the patches.

    Returns:
      map_BxHxW, float32, of no particular range.
    """
    height, width = image_size
    frequency_HxF = jnp.hypot(jnp.fft.fftfreq(height)[:, None], jnp.fft.rfftfreq(width)[None])
    amplitude_HxF = jnp.maximum(frequency_HxF, 1 / max(height, width)) ** -decay
    normal = jax.random.normal(key, (2, batch, *amplitude_HxF.shape))
    spectrum_BxHxF = lax.complex(normal[0], normal[1]) * amplitude_HxF[None]
    return jnp.fft.irfft2(spectrum_BxHxF, s=image_size)


def _ordered_bits(values: jax.Array) -> jax.Array:
    """uint32 that sorts as the float32 values do (sign bit flipped; negative numbers inverted)."""
    bits = lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    # -0.0 equals 0.0 and must tie with it (values + 0.0 would not do: compiled, the addition is dropped).
    bits = jnp.where(bits == sign, jnp.uint32(0), bits)
    return jnp.where(bits & sign != 0, ~bits, bits | sign)


def _kth_largest(order_BxP: jax.Array, count_B: jax.Array) -> jax.Array:
    """The largest uint32 t with at least `count_B` values >= t, built from its highest four bits down.

    One bit at a time would compare less and start four times as many kernels on a GPU, where the comparisons are free.
    """
    kth_B = jnp.zeros(count_B.shape, jnp.uint32)
    digits_1xD = jnp.arange(1, 16, dtype=jnp.uint32)[None]
    for shift in range(28, -1, -4):
        candidates_BxD = kth_B[:, None] | (digits_1xD << shift)
        at_least_BxD = jnp.sum(order_BxP[:, None] >= candidates_BxD[:, :, None], axis=2, dtype=jnp.int32)
        # The larger the candidate, the fewer values reach it: the digit counts the candidates that enough values reach.
        digit_B = jnp.sum(at_least_BxD >= count_B[:, None], axis=1, dtype=jnp.uint32)
        kth_B |= digit_B << shift
    return kth_B


MASKS = {"box": Mask(box), "threshold": Mask(threshold), "patches": Mask(patches, aligned=True)}
