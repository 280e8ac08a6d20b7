"""Random keys: every use of randomness has a domain of its own, so that no two uses share a key.

A key is a function of (seed, domain, place), and nothing else: not of the number of devices, of what was computed
before, or of JAX's default generator, which `jax_default_prng_impl` may change.
"""

import jax

# What randomness is used for, and the number that its keys are folded with. Numbers are never given twice: a run
# resumed by later code must draw as it did before.
DOMAINS = {
    "initialization": 0,  # parameters, and states that objectives carry
    "order": 1,  # of the training images, by epoch
    "views": 2,  # augmentation, by step
    "map": 3,  # random maps, by step
    "mix": 4,  # partners, kept shares, masks and fills, by step
    "objective": 5,  # what losses draw, by step
}


def key_of(seed: jax.Array | int, domain: str, place: jax.Array | int = 0) -> jax.Array:
    """The typed key of a domain at a place.

    Args:
      seed: of the run; may be traced.
      domain: one of DOMAINS.
      place: the step, the epoch or whatever else the domain goes through, 0 or more; may be traced.
    """
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(key, DOMAINS[domain]), place)
