"""Finished runs: read once, grouped by method, and the conditions that their numbers belong to."""

import dataclasses
import functools
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from gradmix_jax import config as config_lib
from gradmix_jax import metrics, stored
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.config import RECIPES, flatten, may_change
from gradmix_jax.data.spec import PUBLISHED, same_data, unknown_data_of
from gradmix_jax.stored import Arrays

# Keys that may differ between averaged runs.
AVERAGED_OVER = ("dataset.trial", "seed")
# Keys that must not differ between compared methods.
SHARED = tuple(f"dataset.{key}" for key in ("name", "unknown_name", "benchmark", "known", "unknown"))
# Keys that may change what is tested, with the values that do not.
TESTED = {"dataset.num_known": 0, "dataset.negative": [], "dataset.num_negative": 0}
MOST_CLASSES = 40
# Longest label that lists the differing keys.
MOST_LETTERS = 60


@dataclasses.dataclass(frozen=True)
class Run:
    """One workdir: its config.json and results.json; its other files are read when they are asked for, once."""

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

    @functools.cached_property
    def scores(self) -> Arrays | None:
        """scores.npz; None if there is none. `features` and `gallery` likewise."""
        return self._arrays(workdir_lib.SCORES)

    @functools.cached_property
    def features(self) -> Arrays | None:
        return self._arrays(workdir_lib.FEATURES)

    @functools.cached_property
    def gallery(self) -> Arrays | None:
        return self._arrays(workdir_lib.GALLERY)

    @functools.cached_property
    def headline(self) -> dict[str, np.ndarray] | None:
        """known_scores and unknown_scores of the headline score, with predictions and classes if available; or None.

        Predictions of unknown images and their classes are missing in runs of older versions.
        """
        names = ("known_scores", "unknown_scores", "predicted", "labels", "predicted_unknown", "unknown_classes")
        if self.scores is None or not all(name in self.scores for name in names[:2]):
            return None
        return {name: self.scores[name] for name in names if name in self.scores}

    @property
    def has_labels(self) -> bool:
        """Whether it is known which predictions of known images are right."""
        return self.headline is not None and {"predicted", "labels"} <= self.headline.keys()

    @functools.cached_property
    def points(self) -> metrics.Points | None:
        """All thresholds of the headline score; without labels, every known image counts as correct."""
        if self.headline is None:
            return None
        correct = self.headline["predicted"] == self.headline["labels"] if self.has_labels else None
        return metrics.points(self.headline["known_scores"], self.headline["unknown_scores"], correct)

    @functools.cached_property
    def log(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return stored.metrics(self.workdir)

    def check(self) -> None:
        """Raises ValueError, one line, if one of the files is damaged, as far as their headers tell."""
        for name in (workdir_lib.SCORES, workdir_lib.FEATURES, workdir_lib.GALLERY):
            self._arrays(name)

    def _arrays(self, name: str) -> Arrays | None:
        recorded = self.results["sha256"]
        if recorded and name != workdir_lib.FEATURES and name not in recorded:
            return None  # of an earlier evaluation, which had a part that these results lack
        return stored.arrays(self.workdir, name, sha256=recorded.get(name))


def read(workdir: str) -> Run:
    """The run in a workdir, with defaults for what an older version did not write.

    Raises:
      ValueError: config.json or results.json is missing, damaged or of another run.
    """
    config, results = config_lib.read(workdir), stored.results(workdir)
    stored.check_same_run(results, config, workdir)
    if results["confusion"]:  # a thousand classes are a million numbers
        results["confusion"]["counts"] = np.array(results["confusion"]["counts"], np.int32)
    return Run(workdir, config, results)


@dataclasses.dataclass(frozen=True)
class Group:
    """Methods on the same data, which tables may compare: `label` names the data."""

    label: str
    methods: tuple["Method", ...]


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


def load(workdirs: list[str], names: dict[str, str] | None = None) -> list[Method]:
    """Read runs and group them by the recipe that they follow, in the order in which the recipes first come.

    Args:
      workdirs: directories of runs.
      names: names of their methods by directory, if not those of their configs.

    Raises:
      ValueError: no directories, one without results, runs of one method that differ in more than trial and seed, the
        same trial and seed twice, or methods on different data.
    """
    everything = _read_all(workdirs)
    if names:
        everything = [dataclasses.replace(run, config=run.config | {"name": names[run.workdir]}) for run in everything]
    _check_same("the runs of a report", everything, SHARED, "use gradmix compare")
    return _methods(everything)


def load_groups(workdirs: list[str], *, apart: bool = False) -> list[Group]:
    """Read runs and group them by data, then as `load` does, in the order in which the data first come.

    Args:
      workdirs: directories of runs.
      apart: whether runs of one recipe that cannot be averaged become methods of their own, named by what tells them
        apart, instead of an error.

    Raises:
      ValueError: as `load`, but for methods on different data.
    """
    by_data: dict[str, list[Run]] = {}
    for run in _read_all(workdirs):
        by_data.setdefault(repr(_tested(run)), []).append(run)
    firsts = [_tested(runs[0]) for runs in by_data.values()]
    differing = [key for key in SHARED[1:] if len({repr(flat[key]) for flat in firsts}) > 1]
    names = [flat["dataset.name"] for flat in firsts]
    labels = []
    for name, flat in zip(names, firsts):
        # Only what distinguishes datasets of the same name.
        alike = [other for other in firsts if all(other[key] == flat[key] for key in SHARED)]
        keys = [*differing, *(key for key in TESTED if any(other[key] != flat[key] for other in alike))]
        more = [f"{key.removeprefix('dataset.')} {_said(flat[key])}" for key in keys if names.count(name) > 1]
        labels.append(", ".join([name, *more]))
    return [Group(label, tuple(_methods(runs, apart))) for label, runs in zip(labels, by_data.values())]


def _tested(run: Run) -> dict[str, Any]:
    """What a run is tested on: the keys of SHARED, and those of TESTED as far as they matter for it."""
    flat = flatten(run.config)
    shared = {key: flat.get(key) for key in SHARED}
    name, unknown, benchmark = (shared[f"dataset.{key}"] for key in ("name", "unknown_name", "benchmark"))
    # Negative classes of the benchmark, or of another dataset than the unknown ones, would not be tested anyway.
    removes = same_data(name, unknown_data_of(name, unknown, benchmark))
    removes = removes and list(flat.get("dataset.negative") or ()) != [PUBLISHED]
    matters = {"dataset.num_known": benchmark == "random", "dataset.negative": removes, "dataset.num_negative": removes}
    return shared | {key: flat.get(key, value) if matters[key] else value for key, value in TESTED.items()}


def _said(value: Any) -> str:
    return listed(value) if isinstance(value, (list, tuple)) else str(value)


def listed(names) -> str:
    """Names of classes, MOST_CLASSES at most."""
    more = f" and {len(names) - MOST_CLASSES} more" if len(names) > MOST_CLASSES else ""
    return ", ".join(map(str, names[:MOST_CLASSES])) + more


def _read_all(workdirs: list[str]) -> list[Run]:
    if not workdirs:
        raise ValueError("report got no directories; give the workdirs of evaluated runs.")
    return [read(workdir) for workdir in workdirs]


def _methods(everything: list[Run], apart: bool = False) -> list[Method]:
    groups: dict[str, list[Run]] = {}
    for run in everything:
        groups.setdefault(_method(run), []).append(run)
    if apart:
        groups = {name: runs for label, of in groups.items() for name, runs in _apart(label, of).items()}
    for label, runs in groups.items():
        _check_distinct(label, runs)
    return [Method(label, tuple(sorted(runs, key=lambda run: run.key))) for label, runs in groups.items()]


def _apart(label: str, runs: list[Run]) -> dict[str, list[Run]]:
    """Runs of one recipe, grouped by the keys that differ, and by directory if a run occurs twice."""
    flats = [flatten(run.config) for run in runs]
    keys = _telling_apart(runs)
    differing = [key for key in keys if len({repr(flat.get(key)) for flat in flats}) > 1]
    sorts: dict[str, list[list[Run]]] = {}
    for run, flat in zip(runs, flats):
        same = sorts.setdefault(repr([flat.get(key) for key in differing]), [])
        free = next((group for group in same if all(run.key != other.key for other in group)), None)
        if free is None:
            same.append(free := [])
        free.append(run)
    groups = [group for same in sorts.values() for group in same]
    said = [", ".join(f"{key}={flatten(group[0].config).get(key)}" for key in differing) for group in groups]
    if len(set(said)) < len(groups) or max(map(len, said)) > MOST_LETTERS:
        paths = [os.path.abspath(group[0].workdir) for group in groups]
        said = [os.path.relpath(path, os.path.commonpath(paths)) for path in paths]
    return {f"{label} ({how})" if len(groups) > 1 else label: group for how, group in zip(said, groups)}


def _method(run: Run) -> str:
    """The name of a config, or the recipe that it follows; "untrained" at step 0."""
    if run.config["name"]:
        return run.config["name"]
    if run.results["step"] == 0:
        return "untrained"
    flat = flatten(run.config)
    wanted = {name: flatten(recipe) for name, recipe in RECIPES.items()}
    matching = [name for name, keys in wanted.items() if all(flat.get(key) == value for key, value in keys.items())]
    # The most specific recipe: `released` has all keys of `layer` and more.
    return max(matching, key=lambda name: len(wanted[name]), default=f"{flat['mix.method']}, other keys")


def _telling_apart(runs: list[Run]) -> list[str]:
    """The keys that must not differ between averaged runs: not those that a resumed run may change, such as paths."""
    keys = dict.fromkeys(key for run in runs for key in flatten(run.config))
    free = may_change()
    return [key for key in keys if key not in AVERAGED_OVER and key not in free]


def _check_distinct(label: str, runs: list[Run]) -> None:
    _check_same(
        f"runs of {label!r}", runs, _telling_apart(runs), "set --config.name of each method, or use gradmix compare"
    )
    if len({run.key for run in runs}) < len(runs):
        raise ValueError(f"two runs of {label!r} have the same trial and seed; give each run once.")


def _check_same(what: str, runs: list[Run], keys: Iterable[str], advice: str) -> None:
    first, *others = (flatten(run.config) for run in runs)
    for flat in others:
        for key in keys:
            if flat.get(key) != first.get(key):
                values = f"{first.get(key)!r} and {flat.get(key)!r}"
                raise ValueError(f"{what} differ in {key} ({values}); {advice}.")
