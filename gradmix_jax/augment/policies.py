"""RandAugment and AugMix: random operations of `operations.py`; each function takes a key and one image.

Both use RandAugment's scale of strength, 0 to 30 (`MAX_MAGNITUDE`), of which 3 equal one unit of AugMix's severity.
Of the JAX libraries, dm_pix and augmax have neither policy; imax, last released in 2024, has RandAugment with one
branch per operation.
"""

import jax
import jax.numpy as jnp
from jax import lax

from gradmix_jax.augment import operations

MAX_MAGNITUDE = 30
# torchvision's RandAugment, where 150 / 331 is the published 150 pixels of images of 331.
RANDAUGMENT = operations.Ranges(translate=150 / 331, bits=8, bits_rounding=0.5)
# The authors' augmentations.py.
AUGMIX = operations.Ranges(translate=1 / 3, bits=4, bits_rounding=0.0)
# Without ENHANCE, which the paper leaves out (section 3) because AugMix is tested on such corruptions.
AUGMIX_OPERATIONS = (*operations.IDENTITY, *operations.TONE, *operations.GEOMETRY)
WIDTH, MAX_DEPTH = 3, 3  # of AugMix's chains


def _below(uniform, count):
    """Integers 0 ... count - 1 from uniform draws in [0, 1)."""
    return jnp.floor(uniform * count).astype(jnp.int32)


def _sign(uniform):
    return jnp.where(uniform < 0.5, 1.0, -1.0)


def _one_after_the_other(image_HxWxC, numbers_N, strengths_N, signs_N, *, names, ranges):
    """Apply N operations in sequence."""

    def step(image, drawn):
        return operations.apply(image, *drawn, names=names, ranges=ranges), None

    # If unrolled, XLA:CPU would recompute an operation for each of the pixels that the next one fetches.
    return lax.scan(step, image_HxWxC, (numbers_N, strengths_N, signs_N))[0]


def randaugment(key, image_HxWxC, *, num_ops, magnitude):
    """`num_ops` of 14 operations, drawn uniformly, with one strength (Cubuk et al. 2019, arXiv 1909.13719, fig. 2).

    Args:
      key: randomness of operations and signs.
      image_HxWxC: float32 in [0, 1], C = 1 or 3.
      num_ops: N of the paper, at least 1.
      magnitude: M of the paper, in [0, 30]; ranges as in torchvision's RandAugment, interpolated bilinearly.

    Returns:
      the image, of the same shape and range.
    """
    uniform_Nx2 = jax.random.uniform(key, (num_ops, 2))
    numbers_N = _below(uniform_Nx2[:, 0], len(operations.OPERATIONS))
    strengths_N = jnp.full(num_ops, magnitude / MAX_MAGNITUDE)
    options = dict(names=operations.OPERATIONS, ranges=RANDAUGMENT)
    return _one_after_the_other(image_HxWxC, numbers_N, strengths_N, _sign(uniform_Nx2[:, 1]), **options)


def augmix(key, image_HxWxC, *, magnitude):
    """m * image + (1 - m) * sum_i w_i * chain_i(image) (Hendrycks et al. 2020, arXiv 1912.02781, algorithm 1).

    Three chains of one to three operations; w ~ Dirichlet(1, 1, 1), m ~ Beta(1, 1), and every operation's strength is
    uniform from 0 to `magnitude`. The paper's Jensen-Shannon loss is not implemented.

    Args:
      key: randomness of everything above.
      image_HxWxC: float32 in [0, 1], C = 1 or 3.
      magnitude: largest strength, in [0, 30]; 9 is the paper's severity of 3.

    Returns:
      the image, of the same shape and range.
    """
    shape = (WIDTH, MAX_DEPTH)
    # One call for all draws: each call is a kernel.
    number, strength, sign, rest = jnp.split(jax.random.uniform(key, (4 * WIDTH * MAX_DEPTH,)), 4)
    depth_K = 1 + _below(rest[:WIDTH], MAX_DEPTH)
    used_KxD = jnp.arange(MAX_DEPTH)[None] < depth_K[:, None]
    # Number 0 is the identity, used after the end of a chain.
    number_KxD = jnp.where(used_KxD, 1 + _below(number.reshape(shape), len(AUGMIX_OPERATIONS) - 1), 0)
    strength_KxD = strength.reshape(shape) * (magnitude / MAX_MAGNITUDE)
    sign_KxD = _sign(sign.reshape(shape))

    # Exponential draws divided by their sum are Dirichlet(1, 1, 1); Beta(1, 1) is uniform.
    exponential_K = -jnp.log1p(-rest[WIDTH : 2 * WIDTH])
    weight_K = exponential_K / jnp.sum(exponential_K)

    def add_chain(total, drawn):
        weight, *drawn_D = drawn
        chain = _one_after_the_other(image_HxWxC, *drawn_D, names=AUGMIX_OPERATIONS, ranges=AUGMIX)
        return total + weight * chain, None

    # Chain by chain instead of mapped, which takes a third of the memory.
    chains, _ = lax.scan(add_chain, jnp.zeros_like(image_HxWxC), (weight_K, number_KxD, strength_KxD, sign_KxD))
    own = rest[2 * WIDTH]
    mixed = own * image_HxWxC + (1 - own) * chains
    return jnp.clip(mixed, 0, 1)  # the weights sum to 1 only up to rounding
