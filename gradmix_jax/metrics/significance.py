"""Bootstrap intervals over test images, and paired tests between methods over trials. NumPy on the host.

Images are ranked once and a resample is drawn as counts of them, so none is sorted. Large sets use several cores.
Letters: N known images, M unknown images, S resamples.
"""

import concurrent.futures
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradmix_jax.metrics import ranking

# Resamples per random stream: results depend on it, and not on the number of threads.
_STREAM = 25
# Threads pay off from this many images: below, Python holds the interpreter lock for most of a resample. `bincount`, a
# third of the time of a large one, holds it too, so more threads would only take memory.
_THREADED, _MAX_THREADS = 50_000, 4


class Interval(NamedTuple):
    """A metric on all test images, the limits of its interval, their confidence in (0, 1), the number of resamples."""

    estimate: float
    low: float
    high: float
    confidence: float
    resamples: int


class _Ranked(NamedTuple):
    """Known images in two ascending runs, correct ones first, as numbers of unknown images below and up to each."""

    below_N: np.ndarray
    up_to_N: np.ndarray
    num_correct: int
    num_unknown: int


def _ranked(known, unknown, correct):
    runs = np.concatenate([np.sort(known[correct]), np.sort(known[~correct])])
    return _Ranked(*ranking.unknown_below(runs, unknown), np.count_nonzero(correct), unknown.size)


def _resample(random, ranked):
    """Accuracy, AUROC and OSCR of one bootstrap sample: known and unknown drawn separately."""
    num_known, num_unknown, right = ranked.below_N.size, ranked.num_unknown, ranked.num_correct
    drawn = lambda size: np.bincount(random.integers(0, size, size), minlength=size)
    known_N, unknown_M = drawn(num_known), drawn(num_unknown)
    before_M = np.zeros(num_unknown + 1, np.int64)
    np.cumsum(unknown_M, out=before_M[1:])
    doubled_N = before_M[ranked.below_N]
    doubled_N += before_M[ranked.up_to_N]
    won_right, won_wrong = known_N[:right] @ doubled_N[:right], known_N[right:] @ doubled_N[right:]
    pairs = 2 * num_known * num_unknown
    return known_N[:right].sum() / num_known, (won_right + won_wrong) / pairs, won_right / pairs


def _resampled(key, ranked, resamples):
    """Metrics of all resamples, [S, 3]; see `_resample`."""
    seeds = np.random.SeedSequence(_words(key)).spawn(-(-resamples // _STREAM))
    sizes = [min(_STREAM, resamples - start) for start in range(0, resamples, _STREAM)]

    def stream(seed, size):
        random = np.random.default_rng(seed)
        return [_resample(random, ranked) for _ in range(size)]

    if ranked.below_N.size + ranked.num_unknown < _THREADED:
        found = map(stream, seeds, sizes)
    else:
        with concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS)) as pool:
            found = list(pool.map(stream, seeds, sizes))
    return np.array([sample for samples in found for sample in samples])


def _words(key):
    """32-bit words that seed the resamples: a key's data; of an integer, those of `jax.random.key` (threefry)."""
    if isinstance(key, (int, np.integer)):
        return [int(key) >> 32 & 0xFFFFFFFF, int(key) & 0xFFFFFFFF]
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    words = np.asarray(key)
    if words.ndim != 1 or words.dtype != np.uint32:
        raise ValueError(f"key must be one jax random key or an integer, got {words.dtype} of shape {words.shape}")
    return words.tolist()


def bootstrap(key, known, unknown, correct, *, resamples=1000, confidence=0.95):
    """Percentile bootstrap intervals of accuracy, AUROC and OSCR over test images (Efron & Tibshirani 1993, ch. 13).

    Each resample draws known and unknown images separately, with replacement, as many as there are. The interval covers
    the choice of test images only: not the training seed, not the class split.

    Args:
      key: jax random key, or an integer seed; equal keys give equal intervals, on any number of CPU cores.
      known, unknown, correct: as for `metrics.oscr`.
      resamples: number of resamples, 1 or more; memory barely grows with it.
      confidence: share of the resamples inside the interval, in (0, 1).

    Returns:
      {"accuracy", "auroc", "oscr"} -> `Interval`.

    Raises:
      ValueError: as `metrics.oscr`; a confidence outside (0, 1), fewer than one resample, or a key that is neither
        one jax random key nor an integer.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    known, unknown, correct = np.asarray(known), np.asarray(unknown), np.asarray(correct, bool)
    curve = ranking.points(known, unknown, correct)
    estimates = {"accuracy": float(correct.mean()), "auroc": curve.auroc(), "oscr": curve.oscr()}
    samples_Sx3 = _resampled(key, _ranked(known, unknown, correct), resamples)
    tail = (1 - confidence) / 2
    low_3, high_3 = np.quantile(samples_Sx3, [tail, 1 - tail], axis=0)
    return {
        name: Interval(estimate, float(low), float(high), confidence, resamples)
        for (name, estimate), low, high in zip(estimates.items(), low_3, high_3)
    }


class PairedTest(NamedTuple):
    """Name of the test, number of trials, two-sided p-value."""

    test: str
    n: int
    p_value: float


def _paired_t(difference_N):
    import scipy.stats

    return scipy.stats.ttest_1samp(difference_N, 0.0).pvalue


def _sign_flip(difference_N):
    """Share of all 2^n sign patterns whose |sum| is at least the observed one."""
    if difference_N.size > 20:
        said = f"needs n <= 20, got n = {difference_N.size}; use the random one"
        raise ValueError(f"the exact sign-flip test enumerates 2^n signs and {said}")
    sums = np.zeros(1)
    for difference in difference_N:
        sums = np.concatenate([sums + difference, sums - difference])
    rounding = 1e-9 * np.abs(difference_N).sum()
    return np.mean(np.abs(sums) >= abs(difference_N.sum()) - rounding)


# Of the random sign-flip test: patterns besides the observed one, how many at a time, and their seed.
PATTERNS, _AT_ONCE, _SEED = 99_999, 10_000, 0


def _random_sign_flip(difference_N):
    """Share of the observed and PATTERNS random sign patterns whose |sum| is at least the observed one.

    The observed pattern counts as one of them, so that p is never 0 and the test keeps its level (Phipson & Smyth 2010,
    "Permutation p-values should never be zero").
    """
    random = np.random.default_rng(_SEED)
    observed, rounding = abs(difference_N.sum()), 1e-9 * np.abs(difference_N).sum()
    count = 1
    for start in range(0, PATTERNS, _AT_ONCE):
        shape = min(_AT_ONCE, PATTERNS - start), difference_N.size
        signs = 2.0 * random.integers(0, 2, shape, np.int8) - 1
        count += np.count_nonzero(np.abs(signs @ difference_N) >= observed - rounding)
    return count / (PATTERNS + 1)


# Name as printed -> two-sided p-value of the null hypothesis of no difference, from the paired differences.
TESTS = {
    "paired t": _paired_t,
    "exact sign-flip permutation": _sign_flip,
    "random sign-flip permutation": _random_sign_flip,
}


def paired(first, second, *, test="exact sign-flip permutation"):
    """Two-sided paired test of one metric of two methods over the same trials (splits or seeds).

    The exact sign-flip test cannot go below p = 2 / 2^n: 0.0625 with the usual five splits. The t-test can, but assumes
    normal differences. The random sign-flip test draws 99,999 patterns, always the same, for more trials than can be
    enumerated. Report the test and n with p.

    Returns a `PairedTest`. Raises ValueError for fewer than two trials, lengths that differ, NaN, an unknown test, or
    more than 20 trials for the exact sign-flip test.
    """
    if test not in TESTS:
        raise ValueError(f"test must be one of {', '.join(TESTS)}, got {test!r}")
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.ndim != 1 or first.shape != second.shape or first.size < 2:
        shapes = f"{first.shape} and {second.shape}"
        raise ValueError(f"a paired test needs the same two or more trials of both methods, got shapes {shapes}")
    difference_N = first - second
    if np.isnan(difference_N).any():
        raise ValueError(f"trial results must be numbers, got NaN for {np.isnan(difference_N).sum()} trials")
    p_value = float(TESTS[test](difference_N)) if difference_N.any() else 1.0
    return PairedTest(test, first.size, p_value)


def holm(p_values):
    """Adjusted p-values of a family of tests, in their order: each at most the level, where Holm's procedure rejects.

    The family-wise error is controlled whatever the dependence between the tests (Holm 1979, "A simple sequentially
    rejective multiple test procedure").

    Args:
      p_values: numbers in [0, 1].

    Raises:
      ValueError: none, or one that is not in [0, 1].
    """
    p_M = np.asarray(p_values, np.float64)
    if p_M.ndim != 1 or not p_M.size or not ((p_M >= 0) & (p_M <= 1)).all():
        raise ValueError(f"holm needs one or more p-values in [0, 1], got {p_values}")
    order_M = np.argsort(p_M, kind="stable")
    adjusted_M = np.empty_like(p_M)
    scaled_M = p_M[order_M] * np.arange(p_M.size, 0, -1)
    adjusted_M[order_M] = np.minimum(np.maximum.accumulate(scaled_M), 1)
    return adjusted_M.tolist()
