"""Shared by the corruptions: truncation, blurs along taps, zoom, fractal noise. All take one image in [0, 1].

Sums over taps are loops of multiply-adds, not convolutions or matrix products, whose rounding, and so the
gray level after truncation, would depend on the batch size.
"""

import jax
import jax.numpy as jnp
import numpy as np

NEGLIGIBLE = 1e-7  # weight below which a tap is left out


def truncated(image):
    """Whole gray levels 0 .. 255 (as floats) of an image in [0, 1], clipped and rounded down."""
    # float32 must not turn 99.99999 into 99: this offset is above its rounding error and below any visible step.
    return jnp.floor(jnp.clip(image, 0, 1) * 255 + 1e-3)


def correlate(image_HxWxC, kernel_PxQ, *, mode):
    """Sum over the taps of a kernel of odd height and width; `mode` is jnp.pad's at the border."""
    height, width, channels = image_HxWxC.shape
    rows, columns = kernel_PxQ.shape
    padded = jnp.pad(image_HxWxC, ((rows // 2, rows // 2), (columns // 2, columns // 2), (0, 0)), mode=mode)

    def add_tap(tap, total):
        row, column = tap // columns, tap % columns
        shifted = jax.lax.dynamic_slice(padded, (row, column, 0), (height, width, channels))
        return total + kernel_PxQ[row, column] * shifted

    return jax.lax.fori_loop(0, rows * columns, add_tap, jnp.zeros_like(image_HxWxC))


def gaussian_taps(sigma, *, truncate, half):
    """float32 [2 * half + 1] that sum to 1; zero beyond int(truncate * sigma + 0.5) pixels from the center."""
    offset = np.arange(-half, half + 1)
    weights = np.exp(-0.5 * (offset / max(sigma, 1e-3)) ** 2)
    weights = np.where(np.abs(offset) <= int(truncate * sigma + 0.5), weights, 0)
    return np.float32(weights / weights.sum())


def gaussian(image_HxWxC, taps_K, *, mode):
    """Separable blur with the taps of `gaussian_taps`."""
    return correlate(correlate(image_HxWxC, taps_K[:, None], mode=mode), taps_K[None, :], mode=mode)


def line_taps(radius, sigma, *, length):
    """(weights_T, count): one half of a Gaussian, of 2 * ceil(radius) + 1 taps, padded with zeros to `length`."""
    tap = np.arange(length)
    weights = np.exp(-0.5 * (tap / sigma) ** 2) * (tap <= 2 * np.ceil(radius))
    weights = np.float32(weights / weights.sum())
    return weights, np.int32(np.count_nonzero(weights > NEGLIGIBLE))


def line_blur(image_HxWxC, weights_T, count, radians):
    """One-sided blur along a line: tap t is the pixel nearest to t pixels away; the edge extends outward.

    The authors call ImageMagick's motion blur; this has its taps, weights and border, in float32. The angle
    is clockwise from the x axis, on screen.
    """
    reach = weights_T.shape[0] - 1
    padded = jnp.pad(image_HxWxC, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    direction = jnp.stack([jnp.sin(radians), jnp.cos(radians)])

    def add_tap(tap, total):
        y, x = reach + jnp.ceil(tap * direction - 0.5).astype(jnp.int32)
        return total + weights_T[tap] * jax.lax.dynamic_slice(padded, (y, x, 0), image_HxWxC.shape)

    return jax.lax.fori_loop(0, count, add_tap, jnp.zeros_like(image_HxWxC))


def zoom_positions(factor, image_size):
    """(low_H, fraction_H) of the source pixels of a central zoom by `factor` >= 1, the same for both axes.

    The smallest central crop that fills the image, resized so that its corner pixels stay corner pixels, and
    trimmed to the image's size: the geometry of scipy.ndimage.zoom with order=1.
    """
    crop = int(np.ceil(image_size / factor))
    zoomed = round(crop * factor)
    trim = (zoomed - image_size) // 2
    position = (trim + np.arange(image_size)) * (crop - 1) / (zoomed - 1)
    low = np.minimum(np.floor(position), crop - 2)
    return np.int32((image_size - crop) // 2 + low), np.float32(position - low)


def zoom(image_HxWxC, low_H, fraction_H):
    """Bilinear resampling of both axes at the positions of `zoom_positions`."""
    for fraction, axis in ((fraction_H[:, None, None], 0), (fraction_H[None, :, None], 1)):
        below, above = (jnp.take(image_HxWxC, low_H + step, axis=axis) for step in (0, 1))
        image_HxWxC = below * (1 - fraction) + above * fraction
    return image_HxWxC


def plasma(key, image_size, decay):
    """Fractal noise [H, W] from 0 to 1 by the diamond-square algorithm on a torus.

    Each level halves the grid and adds noise decay**2 times weaker than the level before: in the authors'
    script, the amplitude multiplies a draw from +- itself. Sizes other than powers of two are cropped.
    """
    levels = (image_size - 1).bit_length()
    draws = jax.random.uniform(key, (4**levels - 1,), minval=-1, maxval=1)
    heights, amplitude = jnp.zeros((1, 1)), jnp.ones(())
    for level in range(levels):
        side = 2**level
        noise_3xSxS = amplitude * draws[side**2 - 1 : 4 * side**2 - 1].reshape(3, side, side)
        pairs = heights + jnp.roll(heights, -1, axis=0)
        centers = (pairs + jnp.roll(pairs, -1, axis=1)) / 4 + noise_3xSxS[0]
        right = (centers + jnp.roll(centers, 1, axis=0) + heights + jnp.roll(heights, -1, axis=1)) / 4 + noise_3xSxS[1]
        below = (centers + jnp.roll(centers, 1, axis=1) + heights + jnp.roll(heights, -1, axis=0)) / 4 + noise_3xSxS[2]
        rows = [jnp.stack([heights, right], axis=-1), jnp.stack([below, centers], axis=-1)]
        heights = jnp.stack(rows, axis=1).reshape(2 * side, 2 * side)
        amplitude = amplitude / decay**2
    low, high = jnp.min(heights), jnp.max(heights)
    return ((heights - low) / (high - low))[:image_size, :image_size]
