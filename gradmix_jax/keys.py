"""Random keys: every use of randomness has its own domain, so that no two uses share a key.

A key is a function of (seed, domain, place) only, not of the number of devices, of earlier computations, or of JAX's
default generator, which `jax_default_prng_impl` may change.
"""

import jax

# The uses of randomness, with the number that their keys are folded with. Numbers are never reused, because a run
# resumed by later code must draw as before.
DOMAINS = {
    "initialization": 0,  # parameters, and states that objectives carry
    "order": 1,  # of the training images, by epoch
    "views": 2,  # augmentation, by step
    "map": 3,  # random maps, by step
    "mix": 4,  # partners, kept shares, masks and fills, by step
    "objective": 5,  # draws of losses, by step
}


def key_of(seed: jax.Array | int, domain: str, place: jax.Array | int = 0) -> jax.Array:
    """The typed key of a domain at a place.

    Args:
      seed: seed of the run; may be traced.
      domain: one of DOMAINS.
      place: the step, the epoch or another counter of the domain, 0 or more; may be traced.
    """
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(key, DOMAINS[domain]), place)
