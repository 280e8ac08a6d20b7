"""The runs of results/plan.md: data, methods, order, and the settings that its pilot chose."""

import math
import os
import pathlib
import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from gradmix_jax import sweep
from gradmix_jax.cli import config_file

from .raw import Key, Row

ROOT = str(pathlib.Path(__file__).parents[2])


class Data(NamedTuple):
    """A dataset of the plan: its experiment file, numbers of splits, seeds per split, and further config keys."""

    config: str
    splits: int
    longer: int  # splits of longer training
    factorial: int  # splits of the factorial sweep
    seeds: tuple[int, ...]
    width: int
    epochs: int
    keys: dict[str, object]

    @property
    def title(self) -> str:
        return {"fashion_mnist_osr": "Fashion-MNIST", "digits_osr": "Digits"}[self.config]


# Width and epochs are those of the pilot, the numbers of splits those of deviations (both in results/plan.md).
DATA = {
    "fashion_mnist": Data(
        "fashion_mnist_osr",
        splits=20,
        longer=5,
        factorial=2,
        seeds=(0,),
        width=8,
        epochs=5,
        keys={
            "dataset.name": "idx:/usr/share/datasets/fashion-mnist",
            "dataset.image_size": 16,
            "model.name": "small_cnn",
            "model.hidden": 128,
            "train.batch_size": 128,
        },
    ),
    "digits": Data("digits_osr", splits=20, longer=10, factorial=5, seeds=(0, 1), width=8, epochs=60, keys={}),
}
ALL_SPLITS = range(max(data.splits for data in DATA.values()))
# Keys that both share. Only the headline and the diversity are evaluated, no other scores, features or probes.
SHARED = {
    "dataset.benchmark": "random",
    "evaluate.scores": (),
    "evaluate.stages": (),
    "evaluate.parts": ("diversity",),
    "train.trackers": (),
    "train.keep_checkpoints": 1,
}
METHODS = ("none", "cutmix", "random", "input", "layer")
OBJECTIVES = ("contrastive", "cross-entropy")
LEADING = range(20)  # splits that choose the leaders
KEPT = ((0.3, 0.7), (0.5, 0.9), (0.7, 0.95))
TEMPERATURES = (0.05, 0.1)
# Only input maps have smoothing, and only layer maps have a sign.
FACTORS = {"input": ("attribution.smoothing", (1, 3)), "layer": ("attribution.sign", (1, -1))}
PARTS = ("main", "longer", "factorial")


class Job(NamedTuple):
    """One run: its key in the raw file, its row of the sweep `map`, and further config keys."""

    key: Key
    of: str
    keys: dict[str, object]

    def config(self) -> ConfigDict:
        """The experiment."""
        config = sweep.config_of(base(self.key.dataset), self.of, sweep.MAP[self.of])
        for key, value in self.keys.items():
            config_path.set_value(key, config, value)
        config.name, config.dataset.trial, config.seed = self.key.variant, self.key.trial, self.key.seed
        return config

    def directory(self, workdir: str) -> str:
        """The workdir of the run."""
        folder = sweep.folder_of(self.key.variant)
        return os.path.join(workdir, self.key.dataset, folder, f"trial{self.key.trial}_seed{self.key.seed}")


def base(dataset: str) -> ConfigDict:
    """The experiment of a dataset without a method."""
    data = DATA[dataset]
    config = config_file.load(os.path.join(ROOT, "configs", f"{data.config}.py"))
    for key, value in (SHARED | data.keys).items():
        config_path.set_value(key, config, value)
    config.model.width = data.width
    config.phases[0].epochs = data.epochs
    return config


def label(method: str, objective: str) -> str:
    """The name in the sweep `map`."""
    return f"{method}, {objective}"


def twice(method: str, objective: str) -> str:
    """The variant of a method at twice the epochs."""
    return f"{label(method, objective)}, twice the epochs"


def equal_cost(objective: str) -> str:
    """The variant of no mixing at the FLOPs of `input`."""
    return f"{label('none', objective)}, FLOPs of input"


def jobs_of(dataset: str, part: str, variant: str, of: str, trial: int, keys: dict[str, object]) -> list[Job]:
    """A variant on a split, one job per seed: the row `of` of the sweep `map`, with further keys."""
    return [Job(Key(dataset, part, variant, trial, seed), of, keys) for seed in DATA[dataset].seeds]


def main(dataset: str, splits: Sequence[int]) -> Iterator[Job]:
    """All methods under both objectives, split by split."""
    for trial in splits:
        for objective in OBJECTIVES:
            for method in METHODS:
                name = label(method, objective)
                yield from jobs_of(dataset, "main", name, name, trial, {})


def split_means(rows: Sequence[Row], dataset: str, variant: str, measure: str = "auroc") -> dict[int, float]:
    """{split: mean over its seeds} of a variant's successful runs; splits without all seeds are left out."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if (row.key.dataset, row.key.variant) == (dataset, variant) and row.ok and getattr(row, measure) is not None:
            found.setdefault(row.key.trial, []).append(getattr(row, measure))
    whole = len(DATA[dataset].seeds)
    return {trial: statistics.fmean(values) for trial, values in sorted(found.items()) if len(values) == whole}


def leaders(rows: Sequence[Row], dataset: str, objective: str, methods: Sequence[str] = METHODS) -> list[str]:
    """The methods by mean AUROC on the splits of LEADING, the best first; [] until all runs are there.

    A failed run excludes its split from all means.
    """
    tried = {row.key for row in rows if row.key.dataset == dataset and row.key.part == "main"}
    means = {method: split_means(rows, dataset, label(method, objective)) for method in methods}
    for method in methods:
        for trial in LEADING:
            for seed in DATA[dataset].seeds:
                if Key(dataset, "main", label(method, objective), trial, seed) not in tried:
                    return []
    common = [trial for trial in LEADING if all(trial in found for found in means.values())]
    if not common:
        return []
    average = {method: statistics.fmean(found[trial] for trial in common) for method, found in means.items()}
    return sorted(methods, key=lambda method: -average[method])


def epochs_of_equal_cost(rows: Sequence[Row], dataset: str, objective: str) -> int:
    """Epochs after which no mixing has used as many FLOPs as `input`."""
    flops = {row.key.variant: row.flops for row in rows if row.key.dataset == dataset and row.ok and row.flops}
    ratio = flops[label("input", objective)] / flops[label("none", objective)]
    return math.floor(ratio * DATA[dataset].epochs + 0.5)


def longer(rows: Sequence[Row], splits: Sequence[int]) -> Iterator[Job]:
    """The two best methods at twice the epochs, and no mixing at the FLOPs of `input`, once the leaders are known."""
    for dataset, data in DATA.items():
        for trial in [trial for trial in range(data.longer) if trial in splits]:
            for objective in OBJECTIVES:
                best = leaders(rows, dataset, objective)[:2]
                more = {twice(method, objective): (method, 2 * data.epochs) for method in best}
                if best:
                    more[equal_cost(objective)] = ("none", epochs_of_equal_cost(rows, dataset, objective))
                for name, (method, epochs) in more.items():
                    keys = {"phases[0].epochs": epochs}
                    yield from jobs_of(dataset, "longer", name, label(method, objective), trial, keys)


def cells(method: str) -> dict[str, dict[str, object]]:
    """{name: keys} of the factorial sweep of `input` or `layer`."""
    key, levels = FACTORS[method]
    return {
        f"keep {low:g} to {high:g}, {key.rpartition('.')[2]} {level}, temperature {temperature:g}": {
            "mix.keep_range": (low, high),
            key: level,
            "objective.temperature": temperature,
        }
        for low, high in KEPT
        for level in levels
        for temperature in TEMPERATURES
    }


def factorial(rows: Sequence[Row], splits: Sequence[int]) -> Iterator[Job]:
    """The cells of the better of `input` and `layer` under the contrastive objective, once it is known."""
    for dataset, data in DATA.items():
        best = leaders(rows, dataset, "contrastive", ("input", "layer"))[:1]
        for trial in [trial for trial in range(data.factorial) if trial in splits]:
            for method in best:
                of = label(method, "contrastive")
                for name, keys in cells(method).items():
                    yield from jobs_of(dataset, "factorial", f"{of}, {name}", of, trial, keys)


def all_jobs(rows: Sequence[Row], only: str, splits: Sequence[int]) -> list[Job]:
    """The runs of the plan in order: those of one dataset or part, or ("") all that can be decided so far."""
    found: list[Job] = []
    for dataset, data in DATA.items():
        if only in ("", dataset):
            found += main(dataset, [trial for trial in range(data.splits) if trial in splits])
    if only in ("", "longer"):
        found += longer(rows, splits)
    if only in ("", "factorial"):
        found += factorial(rows, splits)
    return found
