"""Phases of training, one after the other, each with a length and weights of the objectives."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gradmix_jax import objectives
from gradmix_jax.fields import check_choice, check_number

KEYS = ("name", "epochs")  # keys of an entry of `phases`; all others are weights


@dataclasses.dataclass(frozen=True)
class Phase:
    """One entry of `phases`; `weights` is {objective: weight above 0}.

    Raises:
      ValueError: a weight or a number of epochs below 0, an unknown objective, or epochs without an objective.
    """

    name: str
    epochs: int
    weights: Mapping[str, float] = dataclasses.field(hash=False)

    def __post_init__(self):
        check_number(f"phases: epochs of {self.name!r}", self.epochs, least=0, whole=True)
        for name, weight in self.weights.items():
            check_choice(f"phases: the objective of {self.name!r}", name, objectives.OBJECTIVES)
            check_number(f"phases: {name} of {self.name!r}", weight, least=0)
        object.__setattr__(self, "weights", {name: weight for name, weight in self.weights.items() if weight})
        if self.epochs and not self.weights:
            raise ValueError(f"phases: {self.name!r} has no objective; give one of them a weight above 0.")


def from_entry(entry: Mapping[str, Any], ssl: str) -> Phase:
    """The phase of a config entry, where the weight "ssl" belongs to the objective `ssl`."""
    weights = {name: weight for name, weight in entry.items() if name not in KEYS}
    alias = weights.pop(objectives.ALIAS, 0.0)
    check_number(f"phases: {objectives.ALIAS} of {entry['name']!r}", alias, least=0)
    if alias:
        check_number(f"phases: {ssl} of {entry['name']!r}", weights.get(ssl, 0.0), least=0)
        weights[ssl] = weights.get(ssl, 0.0) + alias
    return Phase(entry["name"], entry["epochs"], weights)


def total_steps(phases: tuple[Phase, ...], steps_per_epoch: int) -> int:
    """Number of steps of a whole run, all phases together."""
    return sum(phase.epochs for phase in phases) * steps_per_epoch


def weights_at(phases: tuple[Phase, ...], steps_per_epoch: int, step: jax.Array) -> dict[str, jax.Array]:
    """{objective: its weight at a (traced) step}, so that one program serves every phase."""
    ends = jnp.cumsum(jnp.array([phase.epochs * steps_per_epoch for phase in phases]))
    index = jnp.minimum(jnp.searchsorted(ends, step, side="right"), len(phases) - 1)
    weight_of = lambda name: jnp.array([phase.weights.get(name, 0.0) for phase in phases], jnp.float32)[index]
    return {name: weight_of(name) for name in objectives.OBJECTIVES if any(name in phase.weights for phase in phases)}
