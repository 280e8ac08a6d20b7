"""Numbers of many runs: mean, standard deviation, interval, and which methods are as good as the best.

The unit is the class split: seeds of a split share its classes and images, so their mean is one number of the split.
"""

import dataclasses
import math
import statistics

from gradmix_jax.metrics import significance
from gradmix_jax.report.runs import Method

CONFIDENCE = 0.95
LEVEL = 0.05
SIGN_FLIP = "exact sign-flip permutation"
# The smallest p of the sign-flip test over n splits is 2 / 2^n: with fewer than 6 it cannot fall below LEVEL.
FEWEST_SPLITS = 6
# The sign-flip test goes through all 2^n signs; past this many splits the paired t-test takes its place.
MOST_SPLITS = 20

# {(trial, seed): number}
Series = dict[tuple[int, int], float]


@dataclasses.dataclass(frozen=True)
class Value:
    """One number of one method.

    Attributes:
      mean: over the splits, of each split's mean over its seeds.
      std: sample standard deviation of the splits' means; of the seeds where there is one split; None for one run.
      splits, runs: how many of each.
      interval: confidence interval of the mean, (low, high); None where there is none.
      best: whether its mean is the best of those that it is compared with.
      tied: whether it was tested and is not significantly worse than the best.
    """

    mean: float
    std: float | None
    splits: int
    runs: int
    interval: tuple[float, float] | None = None
    best: bool = False
    tied: bool = False


def series(method: Method, pick) -> Series:
    """The runs for which `pick(results)` is a finite number."""
    values = {run.key: pick(run.results) for run in method.runs}
    is_number = lambda value: isinstance(value, (int, float)) and math.isfinite(value)
    return {key: value for key, value in values.items() if is_number(value)}


def by_split(numbers: Series) -> dict[int, float]:
    """{trial: mean over its seeds}."""
    seeds: dict[int, list[float]] = {}
    for (trial, _), number in numbers.items():
        seeds.setdefault(trial, []).append(number)
    return {trial: statistics.fmean(values) for trial, values in seeds.items()}


def value(numbers: Series, bootstrap: tuple[float, float] | None = None) -> Value | None:
    """Mean, deviation and interval of a series; None for an empty one.

    Args:
      numbers: of each run.
      bootstrap: the interval to use for a single run.
    """
    means = list(by_split(numbers).values())
    splits, runs = len(means), len(numbers)
    if runs == 0:
        return None
    if runs == 1:
        return Value(means[0], None, 1, 1, tuple(bootstrap) if bootstrap else None)
    if splits == 1:
        return Value(means[0], statistics.stdev(numbers.values()), 1, runs)
    mean, std = statistics.fmean(means), statistics.stdev(means)
    half = t_quantile(splits - 1) * std / math.sqrt(splits)
    return Value(mean, std, splits, runs, (mean - half, mean + half))


def t_quantile(degrees: int) -> float:
    """Quantile of Student's t that leaves (1 - CONFIDENCE) / 2 above it."""
    import scipy.special

    return float(scipy.special.stdtrit(degrees, (1 + CONFIDENCE) / 2))


@dataclasses.dataclass(frozen=True)
class Ranking:
    """How several series compare.

    Attributes:
      best: which have the best mean.
      tied: which were tested and are not significantly worse.
      splits: how many splits each has in common with the best; None for the best itself and for empty ones.
      tests: names of the tests that were made.
      same_runs: whether all series are of the same trials and seeds.
    """

    best: list[bool]
    tied: list[bool]
    splits: list[int | None]
    tests: set[str]
    same_runs: bool


def rank(all_numbers: list[Series], *, higher_is_better: bool) -> Ranking:
    """Compare series with the one whose mean is best.

    The two-sided test is paired over splits: the runs that both series have, averaged over the seeds of each split.
    A series is tied where p is above LEVEL, or where it is the better one on the splits that both have: the best mean
    may owe its place to splits that the other lacks. With fewer than FEWEST_SPLITS in common there is no test, and
    no tie. Fewer than two series are not compared.
    """
    count = len(all_numbers)
    means = [statistics.fmean(by_split(numbers).values()) if numbers else None for numbers in all_numbers]
    present = [mean for mean in means if mean is not None]
    same_runs = len({frozenset(numbers) for numbers in all_numbers if numbers}) <= 1
    tied, splits, tests = [False] * count, [None] * count, set()
    if len(present) < 2:
        return Ranking([False] * count, tied, splits, tests, same_runs)
    top = max(present) if higher_is_better else min(present)
    best = [mean == top for mean in means]
    reference = all_numbers[best.index(True)]
    for index, numbers in enumerate(all_numbers):
        if best[index] or not numbers:
            continue
        common = numbers.keys() & reference.keys()
        own, others = (by_split({key: each[key] for key in sorted(common)}) for each in (numbers, reference))
        splits[index] = len(own)
        if len(own) < FEWEST_SPLITS:
            continue
        test = SIGN_FLIP if len(own) <= MOST_SPLITS else "paired t"
        outcome = significance.paired([*own.values()], [*others.values()], test=test)
        tests.add(outcome.test)
        better = (sum(own.values()) > sum(others.values())) == higher_is_better
        tied[index] = outcome.p_value > LEVEL or better
    return Ranking(best, tied, splits, tests, same_runs)


def notes(rankings: list[Ranking]) -> list[str]:
    """What the marks of a table mean, in sentences."""
    if not any(any(ranking.best) for ranking in rankings):
        return []
    tests = sorted(set().union(*(ranking.tests for ranking in rankings)))
    compared = {n for ranking in rankings for n in ranking.splits if n is not None}
    tested = sorted(n for n in compared if n >= FEWEST_SPLITS)
    lines = ["Bold: the best mean."]
    if tests:
        lines = [
            f"Bold: the best mean. Dagger: not significantly worse than the best (p > {LEVEL:g}, two-sided "
            f"{' or '.join(tests)} test, paired over the splits that both have, seeds averaged first, "
            f"n = {', '.join(map(str, tested))} splits; not corrected for the number of comparisons)."
        ]
    lines += [
        f"With {n} splits the smallest possible p of the sign-flip test is {2 / 2**n:.4g}."
        for n in tested
        if n == FEWEST_SPLITS
    ]
    few = sorted(n for n in compared if n < FEWEST_SPLITS)
    if few:
        lines.append(_too_few(few, some_tested=bool(tests)))
    if not all(ranking.same_runs for ranking in rankings):
        lines.append("Not all rows have the same trials and seeds: compare means only where splits and runs agree.")
    return lines


def _too_few(few: list[int], *, some_tested: bool) -> str:
    """Why rows with this many splits in common with the best have no dagger."""
    most = few[-1]
    if some_tested:
        return f"Rows with fewer than {FEWEST_SPLITS} splits in common with the best are not tested and have no dagger."
    if most < 2:
        return f"{'One split' if most else 'No common split'}: nothing is tested; seeds of a split are not independent."
    return (
        f"{most} splits cannot show significance at {LEVEL * 100:g} % (the smallest possible p of the exact sign-flip "
        f"test is {2 / 2**most:.4g}; seeds of a split are not independent): no row is marked."
    )
