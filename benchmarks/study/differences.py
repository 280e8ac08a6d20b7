"""The tests of results/plan.md: paired differences over splits, and the verdict on the first hypothesis."""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from gradmix_jax.metrics import significance
from gradmix_jax.report import comparison

from .plan import DATA, METHODS, OBJECTIVES, label, split_means
from .raw import Row

# (first, second) in the order of the plan; every family (one objective on one dataset) has all six.
COMPARISONS = tuple((first, second) for first in ("input", "layer") for second in ("random", "cutmix", "none"))
TEST = "random sign-flip permutation"
LEVEL = 0.05
# The smallest gain in AUROC that matters in practice.
RELEVANT = 0.005
MEASURES = ("auroc", "oscr", "accuracy")
PRIMARY, REPLICATION = DATA
FEWEST = 2  # splits that a test needs


class Difference(NamedTuple):
    """A paired comparison.

    Attributes:
      first, second: methods or variants.
      by_split: {split: first - second}, seeds averaged.
      mean: mean over splits; None without splits.
      interval: Student's 95 % interval; None for fewer than two splits.
      positive: number of splits with a positive difference.
      p, adjusted: p-value of the sign-flip test, and the same by Holm's procedure; None for fewer than two splits.
    """

    first: str
    second: str
    by_split: dict[int, float]
    mean: float | None
    interval: tuple[float, float] | None
    positive: int
    p: float | None = None
    adjusted: float | None = None


def difference(rows: Sequence[Row], dataset: str, objective: str, pair: tuple[str, str], measure: str) -> Difference:
    """The first method minus the second on the splits that both have, not yet tested."""
    of = between(rows, dataset, *(label(method, objective) for method in pair), measure)
    return of._replace(first=pair[0], second=pair[1])


def between(
    rows: Sequence[Row],
    dataset: str,
    first: str,
    second: str,
    measure: str = "auroc",
    splits: Collection[int] | None = None,
) -> Difference:
    """The first variant minus the second on those of `splits` (None: all) that both have, not tested."""
    ours, others = (split_means(rows, dataset, name, measure) for name in (first, second))
    if splits is not None:
        ours = {trial: value for trial, value in ours.items() if trial in splits}
    return paired(first, second, ours, others)


def paired(first: str, second: str, ours: dict[int, float], others: dict[int, float]) -> Difference:
    """The difference of two measures {split: value} with these names on the splits that both have, not tested."""
    by_split = {trial: ours[trial] - others[trial] for trial in ours if trial in others}
    found = comparison.value({(trial, 0): each for trial, each in by_split.items()})
    positive = sum(each > 0 for each in by_split.values())
    return Difference(first, second, by_split, found and found.mean, found and found.interval, positive)


def family(rows: Sequence[Row], dataset: str, objective: str) -> list[Difference]:
    """The six comparisons of AUROC, tested and corrected."""
    found = [difference(rows, dataset, objective, pair, "auroc") for pair in COMPARISONS]
    tested = [each for each in found if len(each.by_split) >= FEWEST]
    values = [[*each.by_split.values()] for each in tested]
    p_values = [significance.paired(each, np.zeros(len(each)), test=TEST).p_value for each in values]
    # Those that cannot be tested yet count as members of the family.
    adjusted = significance.holm(p_values + [1.0] * (len(found) - len(tested)))
    outcomes = {(each.first, each.second): pair for each, pair in zip(tested, zip(p_values, adjusted))}
    return [each._replace(**dict(zip(("p", "adjusted"), outcomes.get(each[:2], (None, None))))) for each in found]


def verdict(primary: Difference, replication: Difference) -> str:
    """The verdict on the plan's hypothesis 1 (input against random maps) under an objective.

    "refuted": the interval on the primary dataset lies below RELEVANT, so the map gains less than half a point. This is
    checked first, because a difference can be significant but irrelevant. "supported": Holm's test rejects with a
    positive mean, and the mean on the replication is positive. Otherwise "undecided".
    """
    if primary.interval is None or primary.mean is None or primary.adjusted is None:
        return "undecided"
    if primary.interval[1] < RELEVANT:
        return "refuted"
    rejected = primary.adjusted <= LEVEL and primary.mean > 0
    return "supported" if rejected and replication.mean is not None and replication.mean > 0 else "undecided"


def whole_splits(rows: Sequence[Row], dataset: str) -> int:
    """Number of splits with a row, whether with results or failed, for every method, objective and seed."""
    there = {row.key[2:] for row in rows if row.key.dataset == dataset and row.key.part == "main"}
    names = [label(method, objective) for objective in OBJECTIVES for method in METHODS]
    seeds = DATA[dataset].seeds
    whole = lambda trial: all((name, trial, seed) in there for name in names for seed in seeds)
    return sum(map(whole, range(DATA[dataset].splits)))


def correlations(rows: Sequence[Row], dataset: str, objective: str, measure: str) -> list[float]:
    """Spearman's rank correlation of a measure with AUROC over the runs of each split, seeds averaged.

    Runs of all parts count. Splits with fewer than three runs, or with a constant measure, are left out.
    """
    names = sorted({r.key.variant for r in rows if r.key.dataset == dataset and f", {objective}" in r.key.variant})
    means = [(split_means(rows, dataset, name), split_means(rows, dataset, name, measure)) for name in names]
    found = []
    for trial in sorted({trial for auroc, _ in means for trial in auroc}):
        pairs = [(auroc[trial], other[trial]) for auroc, other in means if trial in auroc and trial in other]
        if len(pairs) < 3 or min(map(len, map(set, zip(*pairs)))) < 2:
            continue
        found.append(float(scipy.stats.spearmanr(*zip(*pairs)).statistic))
    return [each for each in found if math.isfinite(each)]
