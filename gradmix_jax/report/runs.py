"""Finished runs, read and grouped by method, and the conditions that their numbers belong to."""

import dataclasses
import os
from typing import Any

import numpy as np

from gradmix_jax import config as config_lib
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.config import RECIPES, flatten

# What may differ between runs that are averaged.
AVERAGED_OVER = ("dataset.trial", "seed")
# What may not differ between methods that are compared.
SHARED = ("dataset.name", "dataset.unknown_name", "dataset.benchmark")


@dataclasses.dataclass(frozen=True)
class Run:
    """One workdir: its config.json and results.json."""

    workdir: str
    config: dict[str, Any]
    results: dict[str, Any]

    @property
    def key(self) -> tuple[int, int]:
        """(trial, seed): runs of two methods with the same key are a pair."""
        return self.config["dataset"]["trial"], self.config["seed"]

    @property
    def name(self) -> str:
        return f"trial {self.key[0]}, seed {self.key[1]}"

    def arrays(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays of an .npz file of the workdir; None where there is none."""
        path = workdir_lib.path(self.workdir, name)
        if not os.path.exists(path):
            return None
        with np.load(path, allow_pickle=False) as file:
            return dict(file)


@dataclasses.dataclass(frozen=True)
class Method:
    """Runs that differ in trial and seed only, in the order of (trial, seed).

    What cannot be averaged, such as pictures, is shown of `example`: the first trial and seed.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def example(self) -> Run:
        return self.runs[0]


def load(workdirs: list[str]) -> list[Method]:
    """Read runs and group them by the recipe that they follow, in the order in which the recipes first come.

    Raises:
      ValueError: no directories, one without results, runs of one method that differ in more than trial and seed, the
        same trial and seed twice, or methods on different data.
    """
    if not workdirs:
        raise ValueError("report got no directories; allowed: workdirs of runs that have been evaluated.")
    groups: dict[str, list[Run]] = {}
    for workdir in workdirs:
        run = Run(workdir, config_lib.read(workdir), workdir_lib.read_json(workdir, workdir_lib.RESULTS))
        groups.setdefault(_method(run), []).append(run)
    for label, runs in groups.items():
        _check_distinct(label, runs)
    everything = [run for runs in groups.values() for run in runs]
    _check_same("the runs of a report", everything, SHARED)
    return [Method(label, tuple(sorted(runs, key=lambda run: run.key))) for label, runs in groups.items()]


def _method(run: Run) -> str:
    """The name that a config has, or the recipe that it follows; "untrained" at step 0."""
    if run.config["name"]:
        return run.config["name"]
    if run.results["step"] == 0:
        return "untrained"
    flat = flatten(run.config)
    wanted = {name: flatten(recipe) for name, recipe in RECIPES.items()}
    matching = [name for name, keys in wanted.items() if all(flat[key] == value for key, value in keys.items())]
    # The recipe that says most about the config: `released` has all keys of `layer` and more.
    return max(matching, key=lambda name: len(wanted[name]), default=f"{flat['mix.method']}, other keys")


def _check_distinct(label: str, runs: list[Run]) -> None:
    keys = dict.fromkeys(key for run in runs for key in flatten(run.config))
    _check_same(f"runs of {label!r}", runs, [key for key in keys if key not in AVERAGED_OVER])
    if len({run.key for run in runs}) < len(runs):
        raise ValueError(f"two runs of {label!r} have the same trial and seed; allowed: each once.")


def _check_same(what: str, runs: list[Run], keys) -> None:
    first, *others = (flatten(run.config) for run in runs)
    for flat in others:
        for key in keys:
            if flat.get(key) != first.get(key):
                values = f"{first.get(key)!r} and {flat.get(key)!r}"
                raise ValueError(f"{what} differ in {key} ({values}); allowed: one table for each.")


def conditions(methods: list[Method]) -> list[str]:
    """Distinct values of everything that the numbers have to be read with, a sentence each."""
    runs = [run for method in methods for run in method.runs]
    unique = lambda values: ", ".join(dict.fromkeys(map(str, values)))
    results = [run.results for run in runs]
    environments = [result["environment"] for result in results]
    devices = [f"{len(e['devices'])} x {e['devices'][0]} ({e['cpu_count']} CPU cores)" for e in environments]
    versions = ["jax " + e["packages"]["jax"] + ", flax " + e["packages"]["flax"] for e in environments]
    commits = [e["commit"][:12] + (" with changes" if e["uncommitted_changes"] else "") for e in environments]
    trials, seeds = (sorted({run.key[place] for run in runs}) for place in (0, 1))
    return [
        f"data: {unique(run.config['dataset']['name'] for run in runs)}; "
        f"trials {unique(trials)}; seeds {unique(seeds)}",
        f"score: {unique(result['score'] for result in results)}",
        f"steps: {unique(result['step'] for result in results)}; hardware: {unique(devices)}; {unique(versions)}; "
        f"commit: {unique(commits)}",
    ]


def details(methods: list[Method]) -> list[str]:
    """More conditions, for a whole report: classes, numbers of images, duplicates, thresholds."""
    results = [run.results for method in methods for run in method.runs]
    ranges = {
        name: _range([result[key] for result in results])
        for name, key in {"training": "num_train", "known test": "num_known", "unknown test": "num_unknown"}.items()
    }
    lines = ["images: " + ", ".join(f"{count} {name}" for name, count in ranges.items())]
    duplicates = [result["duplicates"] for result in results if result.get("duplicates")]
    if duplicates:
        sides = ("known", "unknown", "validation")
        known, unknown, validation = (_range([each.get(side, 0) for each in duplicates]) for side in sides)
        lines.append(
            f"images left out, as training or another part has them too: {known} known, {unknown} unknown, "
            f"{validation} for validation"
        )
    rules = dict.fromkeys(result["threshold_rule"] for result in results if result.get("threshold_rule"))
    lines += [f"threshold of macro-F1 and of the confusion matrix: {rule}" for rule in rules]
    classes = {run.key[0]: run.results["known_classes"] for method in methods for run in method.runs}
    lines += [f"known classes of trial {trial}: {', '.join(names)}" for trial, names in sorted(classes.items())]
    return lines


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
