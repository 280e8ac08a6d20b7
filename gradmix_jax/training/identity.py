"""What a checkpoint is of: facts about its run, recorded beside it and compared when it is opened."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from gradmix_jax import data as data_lib
from gradmix_jax.stored.schema import shown


def identity(
    dataset: data_lib.Spec, seed: int | None, class_names: Sequence[str], negative_names: Sequence[str]
) -> dict[str, Any]:
    """The facts, which JSON can hold.

    Args:
      dataset: the `dataset` section.
      seed: seed of the training; None: not compared.
      class_names: names of the known classes in label order.
      negative_names: names of the negative classes, in any order. They are trained on, so they cannot be unknown.
    """
    of = {"dataset": dataset.name, "trial": dataset.trial, "classes": len(class_names)}
    of |= {"known classes": list(class_names), "negative classes": sorted(negative_names)}
    return of | ({} if seed is None else {"seed": seed})


def difference(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first fact that differs, as "trial 0, not 1"; "" if none does. Older checkpoints record fewer facts."""
    for name, value in wanted.items():
        found = recorded.get(name, value)
        if found != value:
            if isinstance(found, list) and isinstance(value, list):
                found, value = next(pair for pair in itertools.zip_longest(found, value) if pair[0] != pair[1])
            return f"{name} {shown(found)}, not {shown(value)}"
    return ""
