"""How sure a number is: bootstrap intervals over test images, paired tests between methods over trials."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradmix_jax import metrics


class Interval(NamedTuple):
    estimate: float
    low: float
    high: float
    confidence: float
    resamples: int


@functools.partial(jax.jit, static_argnames=("num_ranks", "resamples"))
def _resampled(key, known_rank_N, unknown_rank_M, correct_N, *, num_ranks, resamples):
    """Accuracy, AUROC and OSCR of bootstrap samples, [resamples, 3]; ranks are sorted once, never the samples."""

    def one_sample(key):
        known_key, unknown_key = jax.random.split(key)
        known_N = jax.random.randint(known_key, known_rank_N.shape, 0, known_rank_N.size)
        unknown_M = jax.random.randint(unknown_key, unknown_rank_M.shape, 0, unknown_rank_M.size)
        drawn_N, right_N = known_rank_N[known_N], correct_N[known_N]
        unknown_T = jnp.bincount(unknown_rank_M[unknown_M], length=num_ranks)

        def pairs_won(weights_N):
            # Share of drawn known images above each rank, ties one half; shares keep float32 exact enough.
            won_T = jnp.zeros(num_ranks, jnp.int32).at[drawn_N].add(weights_N)
            doubled_T = 2 * jnp.cumsum(won_T[::-1])[::-1] - won_T
            return (unknown_T / unknown_rank_M.size * (doubled_T / (2 * known_rank_N.size))).sum()

        everyone_N = jnp.ones_like(drawn_N)
        return jnp.stack([right_N.mean(), pairs_won(everyone_N), pairs_won(right_N.astype(jnp.int32))])

    return jax.lax.map(one_sample, jax.random.split(key, resamples))


def bootstrap(key, known, unknown, correct, *, resamples=1000, confidence=0.95):
    """Percentile bootstrap intervals of accuracy, AUROC and OSCR over test images (Efron & Tibshirani 1993, ch. 13).

    Known and unknown images are drawn apart, with replacement, as many as there are. The interval covers the
    choice of test images only: not the training seed, not the class split.

    Args:
      key: jax random key; equal keys give equal intervals.
      known, unknown, correct: as for `metrics.oscr`.

    Returns {"accuracy", "auroc", "oscr"} -> `Interval`. Raises ValueError as `metrics.oscr` and for a confidence
    outside (0, 1) or fewer than one resample.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    correct = np.asarray(correct, bool)
    estimates = {
        "accuracy": float(correct.mean()),
        "auroc": metrics.auroc(known, unknown),
        "oscr": metrics.oscr(known, unknown, correct),
    }
    known, unknown = np.asarray(known), np.asarray(unknown)
    distinct, rank_N = np.unique(np.concatenate([known, unknown]), return_inverse=True)
    ranks = np.split(rank_N.astype(np.int32), [len(known)])
    samples_Sx3 = _resampled(key, *ranks, correct, num_ranks=len(distinct), resamples=resamples)
    tail = (1 - confidence) / 2
    low_3, high_3 = np.quantile(np.asarray(samples_Sx3, np.float64), [tail, 1 - tail], axis=0)
    return {
        name: Interval(estimate, float(low), float(high), confidence, resamples)
        for (name, estimate), low, high in zip(estimates.items(), low_3, high_3)
    }


class PairedTest(NamedTuple):
    test: str
    n: int
    p_value: float


def _paired_t(difference_N):
    import scipy.stats

    return scipy.stats.ttest_1samp(difference_N, 0.0).pvalue


def _sign_flip(difference_N):
    """Share of all 2^n sign patterns whose |sum| is at least the observed one."""
    if difference_N.size > 20:
        raise ValueError(f"the sign-flip test goes through all 2^n signs, n <= 20, got n = {difference_N.size}")
    sums = np.zeros(1)
    for difference in difference_N:
        sums = np.concatenate([sums + difference, sums - difference])
    rounding = 1e-9 * np.abs(difference_N).sum()
    return np.mean(np.abs(sums) >= abs(difference_N.sum()) - rounding)


# Name as printed -> two-sided p-value of "no difference" from the paired differences.
TESTS = {
    "paired t": _paired_t,
    "exact sign-flip permutation": _sign_flip,
}


def paired(first, second, *, test="exact sign-flip permutation"):
    """Two-sided paired test of one metric of two methods over the same trials (splits or seeds), first - second.

    The sign-flip test cannot go below p = 2 / 2^n: 0.0625 with the usual five splits. The t-test can, at the price of
    assuming normal differences. Report the name and n with p.

    Returns a `PairedTest`. Raises ValueError for fewer than two trials, lengths that differ, NaN, an unknown test, or
    more than 20 trials for the sign-flip test.
    """
    if test not in TESTS:
        raise ValueError(f"test must be one of {', '.join(TESTS)}, got {test!r}")
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.ndim != 1 or first.shape != second.shape or first.size < 2:
        shapes = f"{first.shape} and {second.shape}"
        raise ValueError(f"a paired test needs the same two or more trials of both methods, got {shapes}")
    difference_N = first - second
    if np.isnan(difference_N).any():
        raise ValueError(f"trial results must be numbers, got NaN for {np.isnan(difference_N).sum()} trials")
    p_value = float(TESTS[test](difference_N)) if difference_N.any() else 1.0
    return PairedTest(test, first.size, p_value)
