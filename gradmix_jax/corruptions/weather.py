"""Weather: snow, frost, fog, brightness. Lengths in the tables are pixels of the published sets; see `length_scale`."""

import jax
import jax.numpy as jnp
import numpy as np

from gradmix_jax import augment
from gradmix_jax.corruptions import filters
from gradmix_jax.corruptions.published import CIFAR10_C, TINY_IMAGENET_C, length_scale, published_set

# Mean and std of the flakes' noise, its zoom, threshold; radius and sigma of their fall; weight of the image.
SNOW = {
    CIFAR10_C: (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    TINY_IMAGENET_C: (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
    ),
}
SNOW_DEGREES = (-135, -45)
# Weights of the image and of the frost.
FROST = {
    CIFAR10_C: ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    TINY_IMAGENET_C: ((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
}
FROST_DECAYS = (1.8, 1.5, 1.3)  # of the fractal noise of rime, coarse and fine needles
FROST_TINT = (0.85, 0.95, 1.0)  # red, green, blue; inverse exponents of the thickness
# Weight of the fog, decay of its finer structure.
FOG = {
    CIFAR10_C: ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    TINY_IMAGENET_C: ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
}
BRIGHTNESS = {CIFAR10_C: (0.05, 0.1, 0.15, 0.2, 0.3), TINY_IMAGENET_C: (0.1, 0.2, 0.3, 0.4, 0.5)}  # of the range


def snow_constants(severity, image_size):
    scale = length_scale(image_size)
    rows = SNOW[published_set(image_size)]
    mean, std, zoom, threshold, radius, sigma, keep = rows[severity - 1]
    length = max(2 * int(np.ceil(scale * row[4])) + 1 for row in rows)
    levels = tuple(map(np.float32, (mean, std, threshold, keep)))
    fall = filters.line_taps(scale * radius, scale * sigma, length=length)
    return levels, filters.zoom_positions(zoom, image_size), fall


def snow(key, image_HxWxC, levels, flake_size, fall):
    """A whitened image plus falling flakes: bright points of zoomed noise, blurred along a steep line, and
    the same turned by 180 degrees."""
    mean, std, threshold, keep = levels
    noise_key, angle_key = jax.random.split(key)
    flakes_HxWx1 = mean + std * jax.random.normal(noise_key, (*image_HxWxC.shape[:2], 1))
    flakes_HxWx1 = filters.zoom(flakes_HxWx1, *flake_size)
    flakes_HxWx1 = jnp.where(flakes_HxWx1 < threshold, 0, jnp.clip(flakes_HxWx1, 0, 1))
    low, high = np.deg2rad(SNOW_DEGREES)
    flakes_HxWx1 = filters.line_blur(flakes_HxWx1, *fall, jax.random.uniform(angle_key, minval=low, maxval=high))
    white_HxWx1 = 1.5 * augment.gray(image_HxWxC)[..., None] + 0.5
    image = keep * image_HxWxC + (1 - keep) * jnp.maximum(image_HxWxC, white_HxWx1)
    return image + flakes_HxWx1 + flakes_HxWx1[::-1, ::-1]


def frost_constants(severity, image_size):
    return tuple(map(np.float32, FROST[published_set(image_size)][severity - 1]))


def frost(key, image_HxWxC, keep, weight):
    """A substitute: the authors' weights, but a texture in place of their photographs of frosted windows.

    They add a random crop of one of five photographs, which are not part of this project. Here it is drawn:
    needles of ice (the ridges of fractal noise, coarse and fine) that are brighter where the rime is thick.
    """
    fields = jax.vmap(lambda key, decay: filters.plasma(key, image_HxWxC.shape[0], decay))
    rime_HxW, *fractals = fields(jax.random.split(key, 3), jnp.array(FROST_DECAYS))
    coarse_HxW, fine_HxW = (1 - jnp.abs(2 * fractal_HxW - 1) for fractal_HxW in fractals)
    ice_HxW = jnp.clip(0.1 + 0.5 * rime_HxW + (0.2 + 0.5 * rime_HxW) * (coarse_HxW**4 + 0.5 * fine_HxW**4), 0, 1)
    # White where the ice is thick, bluish where it is thin.
    tint_C = (1,) if image_HxWxC.shape[-1] == 1 else FROST_TINT
    ice_HxWxC = jnp.stack([ice_HxW ** (1 / tint) for tint in tint_C], axis=-1)
    return keep * image_HxWxC + weight * ice_HxWxC


def fog_constants(severity, image_size):
    return tuple(map(np.float32, FOG[published_set(image_size)][severity - 1]))


def fog(key, image_HxWxC, weight, decay):
    """Add fractal noise, then scale so that the brightest possible value is the image's own maximum."""
    fog_HxWx1 = filters.plasma(key, image_HxWxC.shape[0], decay)[..., None]
    brightest = jnp.max(image_HxWxC)
    return (image_HxWxC + weight * fog_HxWx1) * brightest / (brightest + weight)


def brightness_constants(severity, image_size):
    return (np.float32(BRIGHTNESS[published_set(image_size)][severity - 1]),)


def brightness(key, image_HxWxC, shift):
    """Shift the value of HSV, keeping hue and saturation; of a gray image, shift the gray level."""
    # Hue and saturation are ratios of the channels, so a common factor keeps them; black has neither.
    value_HxWx1 = jnp.max(image_HxWxC, axis=-1, keepdims=True)
    shifted_HxWx1 = jnp.clip(value_HxWx1 + shift, 0, 1)
    factor_HxWx1 = shifted_HxWx1 / jnp.where(value_HxWx1 > 0, value_HxWx1, 1)
    return jnp.where(value_HxWx1 > 0, image_HxWxC * factor_HxWx1, shifted_HxWx1)
