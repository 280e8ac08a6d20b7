"""Features of a run, cached per checkpoint in features.npz."""

import dataclasses
import json
import sys
from collections.abc import Mapping

import numpy as np

from gradmix_jax import data as data_lib
from gradmix_jax import stored
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.data.source import hash_of
from gradmix_jax.evaluation.features import ROWS, Features
from gradmix_jax.evaluation.spec import Setup

# The string attributes of `Features`.
_TEXTS = ("checkpoint", "dataset")


def key_of(checkpoint: str, setup: Setup, sources: Mapping[str, data_lib.Source]) -> str:
    """Everything that the features depend on: model, dataset, size, normalization, images and labels of each part."""
    sizes = {
        part: [len(source), hash_of(source.indices, source.labels), source.records.fingerprint(source.indices)]
        for part, source in sources.items()
    }
    sections = {name: dataclasses.asdict(getattr(setup, name)) for name in ("dataset", "normalization")}
    perturbation = [] if setup.evaluate.perturbation is None else [setup.evaluate.perturbation]
    return json.dumps([checkpoint, sections, setup.evaluate.stages, sizes, *perturbation], sort_keys=True)


def save(workdir: str, parts: Mapping[str, Features], key: str) -> None:
    """Write features.npz atomically: keys "<part>/<name of an output, of ROWS, "checkpoint" or "dataset">"."""
    arrays = {"key": np.array(key)}
    for part, features in parts.items():
        rows = {name: getattr(features, name) for name in ROWS}
        texts = {name: np.array(getattr(features, name)) for name in _TEXTS}
        arrays |= {f"{part}/{name}": x for name, x in (features.outputs | rows | texts).items()}
    with workdir_lib.replacing(workdir_lib.path(workdir, workdir_lib.FEATURES), "wb") as file:
        np.savez(file, **arrays)


def load(workdir: str, key: str | None = None) -> dict[str, Features] | None:
    """The parts that `save` wrote; None if there is no such file, it has another key, or it is damaged.

    A damaged file costs no more than time: a warning says so, and the features are computed again. Files written
    before datasets had an entry of their own have dataset "" and classes "dataset/class".
    """
    path = workdir_lib.path(workdir, workdir_lib.FEATURES)
    try:
        file = stored.arrays(workdir, workdir_lib.FEATURES)
        if file is None or (key is not None and str(file["key"]) != key):
            return None
        parts: dict[str, dict[str, np.ndarray]] = {}
        for name in file:
            part, _, what = name.rpartition("/")
            if name != "key":
                parts.setdefault(part, {})[what] = file[name]
        for part, values in parts.items():
            absent = [name for name in ROWS if name not in values]
            if absent:
                raise ValueError(f"{path} is damaged: it has no array {part}/{absent[0]}.")
    except ValueError as error:
        print(f"warning: {str(error).rstrip('.')}; its features are computed again.", file=sys.stderr)
        return None
    return {part: _features(part, values) for part, values in parts.items()}


def _features(part: str, values: dict[str, np.ndarray]) -> Features:
    rows = {name: values.pop(name) for name in ROWS}
    texts = {name: str(values.pop(name, "")) for name in _TEXTS}
    return Features(part=part, outputs=values, **rows, **texts)
