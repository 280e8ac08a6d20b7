"""Temperature schedules: a factor that changes by epoch and multiplies the temperature of every loss."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gradmix_jax.fields import Key


@dataclasses.dataclass(frozen=True)
class Schedule:
    """An entry of SCHEDULES.

    Attributes:
      function: (epoch, epochs, **options) -> factor; the epoch counts from 0 and may be traced. None: always 1.
      options: {option: Key}, the config keys `objective.schedules.NAME.OPTION`.
    """

    function: Callable[..., jax.Array] | None = None
    options: Mapping[str, Key] = dataclasses.field(default_factory=dict)


def negative_cosine(epoch: jax.Array, epochs: int, *, ratio: float, period: float, shift: float) -> jax.Array:
    """Factor between 1 and `ratio`: low at first, then up and down in cosines, high at the end.

    Kundu, Patil & Jaja 2026, "Boosting Open Set Recognition Performance through Modulated Representation Learning",
    arXiv 2505.18137, the negative cosine schedule (NegCosSch) with lowest temperature 1. As in the released code the
    last `shift` half periods stay at the top.

    Args:
      epoch: from 0 on.
      epochs: E, of the whole run.
      ratio: highest temperature / lowest one; 4 is published (0.1 to 0.4 of SupCon, 0.5 to 2 of cross-entropy).
      period: of the cosine, as a share of E; 1/3 is published (200 of 600 epochs).
      shift: in half periods; 1 starts at the lowest temperature, 0 at the highest.
    """
    length = period * epochs
    offset = shift * length / 2
    wave = (1 + jnp.cos(2 * math.pi * (epoch - offset) / length)) / 2
    return 1 + (ratio - 1) * jnp.where(epoch < epochs - offset, wave, 1.0)


SCHEDULES = {
    "constant": Schedule(),
    "negative_cosine": Schedule(
        negative_cosine,
        {
            "ratio": Key(4.0, "highest temperature / lowest one, which is the configured one", least=1),
            "period": Key(1 / 3, "period of the cosine, as a share of the run", above=0),
            "shift": Key(
                1.0, "shift in half periods: 1 starts at the lowest temperature, 0 at the highest", least=0, most=1
            ),
        },
    ),
}


def temperature_factor(spec: Any, epoch: jax.Array, epochs: int) -> jax.Array | float:
    """The factor of the `objective` section's schedule at an epoch of a run of `epochs`; the number 1.0 for none."""
    entry = SCHEDULES[spec.temperature_schedule]
    if entry.function is None or not epochs:
        return 1.0
    return entry.function(epoch, epochs, **spec.schedules[spec.temperature_schedule])
