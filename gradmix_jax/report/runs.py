"""Finished runs: read once, grouped by method, and the conditions that their numbers belong to."""

import dataclasses
import functools
from typing import Any

import numpy as np

from gradmix_jax import config as config_lib
from gradmix_jax import metrics, stored
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.config import RECIPES, flatten
from gradmix_jax.stored import Arrays

# What may differ between runs that are averaged.
AVERAGED_OVER = ("dataset.trial", "seed")
# What may not differ between methods that are compared.
SHARED = tuple(f"dataset.{key}" for key in ("name", "unknown_name", "benchmark", "known", "unknown"))
MOST_CLASSES = 40


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
        """scores.npz; None where there is none. `features` and `gallery` likewise."""
        return self._arrays(workdir_lib.SCORES)

    @functools.cached_property
    def features(self) -> Arrays | None:
        return self._arrays(workdir_lib.FEATURES)

    @functools.cached_property
    def gallery(self) -> Arrays | None:
        return self._arrays(workdir_lib.GALLERY)

    @functools.cached_property
    def headline(self) -> dict[str, np.ndarray] | None:
        """known_scores and unknown_scores of the headline score, and what there is of predictions and classes; or None.

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
        return stored.arrays(self.workdir, name)


def read(workdir: str) -> Run:
    """The run in a workdir; what an older version did not write has a default.

    Raises:
      ValueError: config.json or results.json is missing or damaged.
    """
    config, results = config_lib.read(workdir), stored.results(workdir)
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


def load(workdirs: list[str]) -> list[Method]:
    """Read runs and group them by the recipe that they follow, in the order in which the recipes first come.

    Raises:
      ValueError: no directories, one without results, runs of one method that differ in more than trial and seed, the
        same trial and seed twice, or methods on different data.
    """
    everything = _read_all(workdirs)
    _check_same("the runs of a report", everything, SHARED)
    return _methods(everything)


def load_groups(workdirs: list[str]) -> list[Group]:
    """Read runs and group them by data, then as `load` does, in the order in which the data first come.

    Raises:
      ValueError: as `load`, but for methods on different data.
    """
    by_data: dict[str, list[Run]] = {}
    for run in _read_all(workdirs):
        flat = flatten(run.config)
        by_data.setdefault(repr([flat.get(key) for key in SHARED]), []).append(run)
    firsts = [flatten(runs[0].config) for runs in by_data.values()]
    differing = [key for key in SHARED[1:] if len({repr(flat.get(key)) for flat in firsts}) > 1]
    names = [flat["dataset.name"] for flat in firsts]
    labels = []
    for name, flat in zip(names, firsts):
        # Only what tells data of the same name apart.
        more = [f"{key.removeprefix('dataset.')} {_said(flat.get(key))}" for key in differing if names.count(name) > 1]
        labels.append(", ".join([name, *more]))
    return [Group(label, tuple(_methods(runs))) for label, runs in zip(labels, by_data.values())]


def _said(value: Any) -> str:
    return _listed(value) if isinstance(value, (list, tuple)) else str(value)


def _read_all(workdirs: list[str]) -> list[Run]:
    if not workdirs:
        raise ValueError("report got no directories; give the workdirs of evaluated runs.")
    return [read(workdir) for workdir in workdirs]


def _methods(everything: list[Run]) -> list[Method]:
    groups: dict[str, list[Run]] = {}
    for run in everything:
        groups.setdefault(_method(run), []).append(run)
    for label, runs in groups.items():
        _check_distinct(label, runs)
    return [Method(label, tuple(sorted(runs, key=lambda run: run.key))) for label, runs in groups.items()]


def _method(run: Run) -> str:
    """The name that a config has, or the recipe that it follows; "untrained" at step 0."""
    if run.config["name"]:
        return run.config["name"]
    if run.results["step"] == 0:
        return "untrained"
    flat = flatten(run.config)
    wanted = {name: flatten(recipe) for name, recipe in RECIPES.items()}
    matching = [name for name, keys in wanted.items() if all(flat.get(key) == value for key, value in keys.items())]
    # The recipe that says most about the config: `released` has all keys of `layer` and more.
    return max(matching, key=lambda name: len(wanted[name]), default=f"{flat['mix.method']}, other keys")


def _check_distinct(label: str, runs: list[Run]) -> None:
    keys = dict.fromkeys(key for run in runs for key in flatten(run.config))
    _check_same(f"runs of {label!r}", runs, [key for key in keys if key not in AVERAGED_OVER])
    if len({run.key for run in runs}) < len(runs):
        raise ValueError(f"two runs of {label!r} have the same trial and seed; give each run once.")


def _check_same(what: str, runs: list[Run], keys) -> None:
    first, *others = (flatten(run.config) for run in runs)
    for flat in others:
        for key in keys:
            if flat.get(key) != first.get(key):
                values = f"{first.get(key)!r} and {flat.get(key)!r}"
                raise ValueError(f"{what} differ in {key} ({values}); report them apart.")


def conditions(methods: list[Method]) -> list[str]:
    """Data, score, steps, hardware, versions and commits that the numbers belong to, a line each."""
    runs = [run for method in methods for run in method.runs]
    unique = lambda values: ", ".join(dict.fromkeys(map(str, values)))
    results = [run.results for run in runs]
    environments = [result["environment"] for result in results]
    trials, seeds = (sorted({run.key[place] for run in runs}) for place in (0, 1))
    return [
        f"data: {unique(run.config['dataset']['name'] for run in runs)}; "
        f"trials {unique(trials)}; seeds {unique(seeds)}",
        f"score: {unique(result['score'] for result in results)}",
        f"steps: {unique(_or_unknown(result['step']) for result in results)}; "
        f"hardware: {unique(map(_hardware, environments))}; "
        f"{unique(map(_versions, environments))}; commit: {unique(map(_commit, environments))}",
    ]


def _or_unknown(value: Any) -> Any:
    return "unknown" if value is None else value


def _hardware(environment: dict[str, Any]) -> str:
    devices = environment.get("devices") or ["unknown"]
    return f"{len(devices)} x {devices[0]} ({environment.get('cpu_count', 'unknown number of')} CPU cores)"


def _versions(environment: dict[str, Any]) -> str:
    packages = environment.get("packages", {})
    return ", ".join(f"{name} {packages.get(name, 'unknown')}" for name in ("jax", "flax"))


def _commit(environment: dict[str, Any]) -> str:
    commit = environment.get("commit", "")[:12] or "unknown"
    return commit + (" with changes" if environment.get("uncommitted_changes") else "")


def details(methods: list[Method]) -> list[str]:
    """More conditions, for a whole report: classes, numbers of images, duplicates, thresholds, what failed."""
    results = [run.results for method in methods for run in method.runs]
    sizes = {"training": "num_train", "known test": "num_known", "unknown test": "num_unknown"}
    ranges = {name: _range([result[key] for result in results]) for name, key in sizes.items()}
    lines = ["images: " + ", ".join(f"{count} {name}" for name, count in ranges.items())]
    duplicates = [result["duplicates"] for result in results if result["duplicates"]]
    if duplicates:
        sides = ("known", "unknown", "validation")
        known, unknown, validation = (_range([each.get(side, 0) for each in duplicates]) for side in sides)
        lines.append(
            f"images left out because training or another part has them too: {known} known, {unknown} unknown, "
            f"{validation} for validation"
        )
    rules = dict.fromkeys(result["threshold_rule"] for result in results if result["threshold_rule"])
    lines += [f"threshold of macro-F1 and of the confusion matrix: {rule}" for rule in rules]
    classes = {run.key[0]: run.results["known_classes"] for method in methods for run in method.runs}
    lines += [f"known classes of trial {trial}: {_listed(names)}" for trial, names in sorted(classes.items()) if names]
    every = [(f"{method.label}, {run.name}", run.results) for method in methods for run in method.runs]
    failed = [f"{of}: {part} ({why})" for of, result in every for part, why in result["failed"].items()]
    pending = [f"{of}: {part} (interrupted)" for of, result in every for part in result.get("pending", ())]
    lines += [f"not evaluated: {each}" for each in failed + pending]
    return lines + [f"scores left out, {names}: {why}" for why, names in _left_out(results).items()]


def _left_out(results: list[dict[str, Any]]) -> dict[str, str]:
    """{reason: the scores that were left out for it, by feature}."""
    grouped: dict[str, dict[str, dict[str, None]]] = {}
    for result in results:
        for feature, scores in result["left_out"].items():
            for score, why in scores.items():
                reason = why.removeprefix(f"{score} ").rstrip(".")
                grouped.setdefault(reason, {}).setdefault(feature, {})[score] = None
    return {
        reason: "; ".join(f"{', '.join(scores)} of {feature}" for feature, scores in by_feature.items())
        for reason, by_feature in grouped.items()
    }


def _listed(names) -> str:
    more = f" and {len(names) - MOST_CLASSES} more" if len(names) > MOST_CLASSES else ""
    return ", ".join(names[:MOST_CLASSES]) + more


def _range(values: list[int | None]) -> str:
    values = [value for value in values if value is not None]
    if not values:
        return "unknown number of"
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
