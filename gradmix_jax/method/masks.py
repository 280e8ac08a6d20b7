"""Masks: map_BxHxW and the share of each image to keep in, mask_BxHxW out (True = masked out).

What fills them also takes soft masks, float in [0, 1]; see `fills`.

Letters: B batch, H W image, P pixels of an image (H * W), F frequencies along W that a real image needs.
"""

import jax
import jax.numpy as jnp
from jax import lax

# Bilinear upsampling leaves plateaus; values this close to the maximum, as a share of the map's range, count as ties.
TIE = 1e-6


def box(map_BxHxW: jax.Array, keep_B: jax.Array) -> jax.Array:
    """A box of sides round(H * sqrt(1 - keep)) x round(W * sqrt(1 - keep)), centered on the peak, clipped.

    The peak is the centroid of all pixels that share the maximum: an upsampled map has a plateau at the border, and
    its first pixel would pull every such box into the corner. A side of s pixels around row r covers rows
    r - s // 2 ... r - s // 2 + s - 1, as far as they lie inside the image, so that the true masked area may be
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
    # Three sums of the same shape, and not first over rows and then over columns: a GPU takes them in one pass.
    total = lambda position: jnp.sum(ties_BxHxW * position.astype(jnp.float32), axis=(1, 2))
    row_B, column_B = (total(lax.broadcasted_iota(jnp.int32, (1, height, width), axis)) for axis in (1, 2))
    count_B = jnp.sum(ties_BxHxW, axis=(1, 2))
    return box_at(row_B / count_B, column_B / count_B, keep_B, image_size=(height, width))


def box_at(row_B: jax.Array, column_B: jax.Array, keep_B: jax.Array, *, image_size: tuple[int, int]) -> jax.Array:
    """The box of `box` around given centers (in pixels, rounded to whole ones); mask_BxHxW, bool."""
    side_share_B = jnp.sqrt(jnp.clip(1.0 - jnp.asarray(keep_B, jnp.float32), 0.0, 1.0))

    def inside(center_B, size):
        positions_1xS = jnp.arange(size, dtype=jnp.float32)[None]
        side_B = jnp.round(size * side_share_B)
        start_B = jnp.round(center_B) - jnp.floor(side_B / 2)
        return (positions_1xS >= start_B[:, None]) & (positions_1xS < (start_B + side_B)[:, None])

    rows_BxH, columns_BxW = inside(row_B, image_size[0]), inside(column_B, image_size[1])
    return rows_BxH[:, :, None] & columns_BxW[:, None, :]


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
        # The larger the candidate, the fewer values reach it: the digit is the number of candidates that enough reach.
        digit_B = jnp.sum(at_least_BxD >= count_B[:, None], axis=1, dtype=jnp.uint32)
        kth_B |= digit_B << shift
    return kth_B


MASKS = {"box": box, "threshold": threshold}
