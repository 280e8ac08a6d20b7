"""Numbers of many runs: mean, sample standard deviation, interval, and which methods are as good as the best."""

import dataclasses
import math
import statistics

from gradmix_jax.metrics import significance
from gradmix_jax.report.runs import Method

CONFIDENCE = 0.95
LEVEL = 0.05
SIGN_FLIP = "exact sign-flip permutation"
# The sign-flip test goes through all 2^n signs; past this many pairs the paired t-test takes its place.
MOST_PAIRS = 20


@dataclasses.dataclass(frozen=True)
class Value:
    """One number of one method.

    Attributes:
      mean: over n runs.
      std: sample standard deviation; None for one run.
      n: number of runs.
      interval: of the mean, (low, high); None where there is none.
      best: whether its mean is the best of those that it is compared with.
      tied: whether it is not significantly different from the best.
    """

    mean: float
    std: float | None
    n: int
    interval: tuple[float, float] | None = None
    best: bool = False
    tied: bool = False


def series(method: Method, pick) -> dict[tuple[int, int], float]:
    """{(trial, seed): number} of the runs for which `pick(results)` is a finite number."""
    values = {run.key: pick(run.results) for run in method.runs}
    return {key: value for key, value in values.items() if value is not None and math.isfinite(value)}


def value(numbers: dict[tuple[int, int], float], bootstrap: tuple[float, float] | None = None) -> Value | None:
    """Mean, deviation and interval of a series; None for an empty one.

    Args:
      numbers: of each (trial, seed).
      bootstrap: the interval to use for a single run.
    """
    n = len(numbers)
    if n == 0:
        return None
    mean = statistics.fmean(numbers.values())
    if n == 1:
        return Value(mean, None, 1, tuple(bootstrap) if bootstrap else None)
    std = statistics.stdev(numbers.values())
    half = t_quantile(n - 1) * std / math.sqrt(n)
    return Value(mean, std, n, (mean - half, mean + half))


def t_quantile(degrees: int) -> float:
    """Quantile of Student's t that leaves (1 - CONFIDENCE) / 2 above it."""
    import scipy.special

    return float(scipy.special.stdtrit(degrees, (1 + CONFIDENCE) / 2))


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Which of several series is best, which are tied with it, which could not be tested, and the tests (name, n).

    `same_runs`: whether all series are of the same trials and seeds.
    """

    best: list[bool]
    tied: list[bool]
    untested: list[bool]
    tests: set[tuple[str, int]]
    same_runs: bool


def rank(all_numbers: list[dict[tuple[int, int], float]], *, higher_is_better: bool) -> Ranking:
    """Compare series, each {(trial, seed): number}, with the one whose mean is best.

    A series is tied where the two-sided paired test over the trials and seeds that both have leaves p above LEVEL, or
    where it is the better one there: the best mean may owe its place to trials that the other lacks. With fewer than
    two in common there is no test and no tie. Fewer than two series are not compared.
    """
    count = len(all_numbers)
    means = [statistics.fmean(numbers.values()) if numbers else None for numbers in all_numbers]
    present = [mean for mean in means if mean is not None]
    same_runs = len({frozenset(numbers) for numbers in all_numbers if numbers}) <= 1
    if len(present) < 2:
        return Ranking([False] * count, [False] * count, [False] * count, set(), same_runs)
    top = max(present) if higher_is_better else min(present)
    best = [mean == top for mean in means]
    reference = all_numbers[best.index(True)]
    tied, untested, tests = [False] * count, [False] * count, set()
    for index, numbers in enumerate(all_numbers):
        common = sorted(numbers.keys() & reference.keys())
        if best[index] or not numbers:
            continue
        if len(common) < 2:
            untested[index] = True
            continue
        test = SIGN_FLIP if len(common) <= MOST_PAIRS else "paired t"
        own, others = [numbers[key] for key in common], [reference[key] for key in common]
        outcome = significance.paired(own, others, test=test)
        tests.add((outcome.test, outcome.n))
        better = (sum(own) > sum(others)) == higher_is_better
        tied[index] = outcome.p_value > LEVEL or better
    return Ranking(best, tied, untested, tests, same_runs)


def notes(rankings: list[Ranking]) -> list[str]:
    """What the marks of a table mean, in sentences."""
    tests = set().union(*(ranking.tests for ranking in rankings))
    if not any(any(ranking.best) for ranking in rankings):
        return []
    if not tests:
        return ["Bold: the best mean; not tested, for want of two trials or seeds in common."]
    names = sorted({name for name, _ in tests})
    sizes = sorted({n for _, n in tests})
    lines = [
        f"Bold: the best mean. Dagger: not significantly worse than the best (p > {LEVEL:g}, two-sided "
        f"{' or '.join(names)} test, paired over the trials and seeds that both have, "
        f"n = {', '.join(map(str, sizes))}; seeds of one trial count as independent; not corrected for the number of "
        "comparisons)."
    ]
    smallest = {n: 2 / 2**n for name, n in tests if name == SIGN_FLIP}
    lines += [
        f"With n = {n} the smallest possible p of the sign-flip test is {p:.4g}"
        + (", so that it cannot tell any two rows apart." if p > LEVEL else ".")
        for n, p in sorted(smallest.items())
        if n <= 6
    ]
    if not all(ranking.same_runs for ranking in rankings):
        lines.append("Not all rows have the same trials and seeds: means compare only where n and they are the same.")
    if any(any(ranking.untested) for ranking in rankings):
        lines.append("Not tested, and so without a dagger: rows with fewer than two runs in common with the best.")
    return lines
