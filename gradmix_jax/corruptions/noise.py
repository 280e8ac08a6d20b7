"""Noise: Gaussian, shot (Poisson), impulse (salt and pepper). Independent for every pixel and channel."""

import jax
import jax.numpy as jnp
import numpy as np

from gradmix_jax.corruptions.published import CIFAR10_C, TINY_IMAGENET_C, published_set

# Of the range.
GAUSSIAN_STD = {
    CIFAR10_C: (0.04, 0.06, 0.08, 0.09, 0.10),
    TINY_IMAGENET_C: (0.04, 0.08, 0.12, 0.15, 0.18),
}
SHOT_RATE = {CIFAR10_C: (500, 250, 100, 75, 50), TINY_IMAGENET_C: (250, 100, 50, 30, 15)}  # photons of a white pixel
# Of the values.
IMPULSE_SHARE = {
    CIFAR10_C: (0.01, 0.02, 0.03, 0.05, 0.07),
    TINY_IMAGENET_C: (0.01, 0.02, 0.05, 0.08, 0.14),
}


def gaussian_noise_constants(severity, image_size):
    return (np.float32(GAUSSIAN_STD[published_set(image_size)][severity - 1]),)


def gaussian_noise(key, image_HxWxC, std):
    """Add normal noise."""
    return image_HxWxC + std * jax.random.normal(key, image_HxWxC.shape)


def shot_noise_constants(severity, image_size):
    return (np.float32(SHOT_RATE[published_set(image_size)][severity - 1]),)


def shot_noise(key, image_HxWxC, rate):
    """Poisson counts of mean `rate` times the value, divided by `rate`."""
    return jax.random.poisson(key, rate * image_HxWxC) / rate


def impulse_noise_constants(severity, image_size):
    return (np.float32(IMPULSE_SHARE[published_set(image_size)][severity - 1]),)


def impulse_noise(key, image_HxWxC, share):
    """Replace a share of the values by 0 or 1, equally often."""
    uniform = jax.random.uniform(key, image_HxWxC.shape)
    return jnp.where(uniform < share, (uniform < share / 2).astype(jnp.float32), image_HxWxC)
