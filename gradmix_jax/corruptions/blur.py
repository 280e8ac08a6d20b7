"""Blur: defocus, glass, motion, zoom. Lengths in the tables are pixels of the published sets; see `length_scale`."""

import jax
import jax.numpy as jnp
import numpy as np

from gradmix_jax.corruptions import filters
from gradmix_jax.corruptions.published import CIFAR10_C, TINY_IMAGENET_C, length_scale, published_set

# Radius, sigma of its antialiasing.
DEFOCUS = {
    CIFAR10_C: ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    TINY_IMAGENET_C: ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
}
# Sigma, distance of the neighbors, rounds.
GLASS = {
    CIFAR10_C: ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    TINY_IMAGENET_C: ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
}
GLASS_TRUNCATE = 4  # sigmas
# Radius, sigma.
MOTION = {
    CIFAR10_C: ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    TINY_IMAGENET_C: ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
}
MOTION_DEGREES = 45  # the angle to the x axis is uniform in +- this
ZOOM_STOP = (1.06, 1.11, 1.16, 1.21, 1.26)  # exclusive end of the zoom factors from 1 in steps of 0.01


def defocus_blur_constants(severity, image_size):
    scale = length_scale(image_size)
    # The antialiasing has 3x3 taps, 5x5 for a radius above 8.
    levels = DEFOCUS[published_set(image_size)]
    reach = [1 if scale * radius <= 8 else 2 for radius, _ in levels]
    half = max(int(scale * radius) + taps for (radius, _), taps in zip(levels, reach))
    (radius, sigma), reach = levels[severity - 1], reach[severity - 1]
    offset = np.arange(-half, half + 1)
    disk = offset[:, None] ** 2 + offset[None, :] ** 2 <= (scale * radius) ** 2
    distance = np.abs(offset[:, None] - offset[None, :])
    smooth = np.exp(-0.5 * (distance / (scale * sigma)) ** 2) * (distance <= reach)
    kernel = smooth @ disk @ smooth
    return (np.float32(kernel / kernel.sum()),)


def defocus_blur(key, image_HxWxC, kernel_KxK):
    """Correlate with an antialiased disk; mirrored at the border."""
    return filters.correlate(image_HxWxC, kernel_KxK, mode="reflect")


def glass_blur_constants(severity, image_size):
    scale = length_scale(image_size)
    levels = GLASS[published_set(image_size)]
    half = max(int(GLASS_TRUNCATE * scale * sigma + 0.5) for sigma, _, _ in levels)
    sigma, distance, rounds = levels[severity - 1]
    taps_K = filters.gaussian_taps(scale * sigma, truncate=GLASS_TRUNCATE, half=half)
    return taps_K, np.int32(round(scale * distance)), np.int32(rounds)


def glass_blur(key, image_HxWxC, taps_K, reach, rounds):
    """Gaussian blur, then one or two rounds that replace pixels by close neighbors, then the same blur.

    The authors' script intends to swap each pixel, last to first, with one up to `reach` pixels away (offsets from
    -reach to reach - 1, a border of about `reach` pixels left alone). Its two array rows are views, so it copies the
    other pixel and never writes back. With reach 1, as in CIFAR-10-C, the other one lies above or to the left,
    where no pixel has been touched yet, so all copies of a round are independent, and one gather is exactly that
    script. With reach 2 or more some pixels there come from an already copied neighbor; here they never do.
    """
    height, width, _ = image_HxWxC.shape
    y_HxW, x_HxW = jnp.mgrid[:height, :width]
    inside_HxW = (y_HxW > reach) & (x_HxW > reach) & (y_HxW <= height - reach) & (x_HxW <= width - reach)

    def take_neighbors(index, image):
        offsets = jax.random.randint(jax.random.fold_in(key, index), (2, height, width), -reach, reach)
        offsets = jnp.where(inside_HxW[None], offsets, 0)
        return image[y_HxW + offsets[0], x_HxW + offsets[1]]

    image = filters.truncated(filters.gaussian(image_HxWxC, taps_K, mode="edge")) / 255
    image = jax.lax.fori_loop(0, rounds, take_neighbors, image)
    return filters.gaussian(image, taps_K, mode="edge")


def motion_blur_constants(severity, image_size):
    scale = length_scale(image_size)
    levels = MOTION[published_set(image_size)]
    length = max(2 * int(np.ceil(scale * radius)) + 1 for radius, _ in levels)
    radius, sigma = levels[severity - 1]
    return filters.line_taps(scale * radius, scale * sigma, length=length)


def motion_blur(key, image_HxWxC, weights_T, count):
    """Blur along a line of random direction; see `filters.line_blur`."""
    limit = np.deg2rad(MOTION_DEGREES)
    return filters.line_blur(image_HxWxC, weights_T, count, jax.random.uniform(key, minval=-limit, maxval=limit))


def zoom_blur_constants(severity, image_size):
    # Rounding in np.arange decides whether the end is included, here as in the authors' script.
    factors = [np.arange(1, stop, 0.01) for stop in ZOOM_STOP]
    longest, factors = max(map(len, factors)), factors[severity - 1]
    low, fraction = zip(*(filters.zoom_positions(factor, image_size) for factor in factors))
    missing = ((0, longest - len(factors)), (0, 0))
    return np.pad(low, missing), np.pad(fraction, missing), np.int32(len(factors))


def zoom_blur(key, image_HxWxC, low_ZxH, fraction_ZxH, count):
    """Mean of the image and of its central zooms by 1, 1.01, 1.02, ..."""
    add = lambda index, total: total + filters.zoom(image_HxWxC, low_ZxH[index], fraction_ZxH[index])
    return jax.lax.fori_loop(0, count, add, image_HxWxC) / (count + 1)
