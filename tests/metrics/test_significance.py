"""Bootstrap intervals against theory and NumPy resampling; paired tests against SciPy and enumeration."""

import itertools

import jax
import numpy as np
import pytest
import scipy.stats

from gradmix_jax import metrics
from gradmix_jax.metrics import significance


def toy(size=150):
    rng = np.random.default_rng(0)
    known, unknown = rng.normal(1, 1, size).round(1), rng.normal(0, 1, size - 30).round(1)
    return known, unknown, rng.random(size) < 0.8


def test_resamples_are_metrics_of_drawn_images(key):
    """Replays the draws of two resamples and gives them to the plain metrics."""
    known, unknown, correct = toy(40)
    _, rank = np.unique(np.concatenate([known, unknown]), return_inverse=True)
    ranks = rank[:40].astype(np.int32), rank[40:].astype(np.int32)
    samples = significance._resampled(key, *ranks, correct, num_ranks=rank.max() + 1, resamples=2)
    for sample_key, sample in zip(jax.random.split(key, 2), np.asarray(samples)):
        known_key, unknown_key = jax.random.split(sample_key)
        drawn = np.asarray(jax.random.randint(known_key, known.shape, 0, len(known)))
        drawn_unknown = np.asarray(jax.random.randint(unknown_key, unknown.shape, 0, len(unknown)))
        known_s, unknown_s, correct_s = known[drawn], unknown[drawn_unknown], correct[drawn]
        expected = correct_s.mean(), metrics.auroc(known_s, unknown_s), metrics.oscr(known_s, unknown_s, correct_s)
        np.testing.assert_allclose(sample, expected, atol=1e-6)


def test_bootstrap_matches_theory_and_is_seeded(key):
    known, unknown, correct = toy()
    intervals = significance.bootstrap(key, known, unknown, correct, resamples=800)
    estimates = [interval.estimate for interval in intervals.values()]
    oscr = metrics.oscr(known, unknown, correct)
    assert estimates == [correct.mean(), metrics.auroc(known, unknown), oscr]
    assert list(intervals) == ["accuracy", "auroc", "oscr"]
    for interval in intervals.values():
        assert interval.low < interval.estimate < interval.high
        assert (interval.confidence, interval.resamples) == (0.95, 800)
    # The middle 95 % of the resamples of each metric by itself.
    _, rank = np.unique(np.concatenate([known, unknown]), return_inverse=True)
    ranks = np.split(rank.astype(np.int32), [len(known)])
    samples = np.asarray(significance._resampled(key, *ranks, correct, num_ranks=rank.max() + 1, resamples=800))
    for interval, sample in zip(intervals.values(), samples.T):
        assert (interval.low, interval.high) == pytest.approx(np.quantile(sample, [0.025, 0.975]), abs=1e-6)
    accuracy = intervals["accuracy"]
    half_width = 1.96 * np.sqrt(accuracy.estimate * (1 - accuracy.estimate) / len(correct))
    assert (accuracy.high - accuracy.low) / 2 == pytest.approx(half_width, rel=0.12)
    again = significance.bootstrap(key, known, unknown, correct, resamples=800)
    other = significance.bootstrap(jax.random.key(1), known, unknown, correct, resamples=800)
    assert again == intervals and other != intervals
    narrow = significance.bootstrap(key, known, unknown, correct, resamples=800, confidence=0.5)["auroc"]
    assert intervals["auroc"].low < narrow.low < narrow.high < intervals["auroc"].high


FIRST, SECOND = [0.91, 0.88, 0.93, 0.90, 0.95], [0.90, 0.85, 0.91, 0.91, 0.90]


def test_paired_t_is_scipys():
    result = significance.paired(FIRST, SECOND, test="paired t")
    assert result.p_value == pytest.approx(scipy.stats.ttest_rel(FIRST, SECOND).pvalue)
    assert (result.test, result.n) == ("paired t", 5)


def test_sign_flip_by_enumeration():
    difference = np.subtract(FIRST, SECOND)
    sums = [abs(np.dot(signs, difference)) for signs in itertools.product((-1, 1), repeat=5)]
    expected = np.mean(np.array(sums) >= abs(difference.sum()) - 1e-12)
    assert significance.paired(FIRST, SECOND).p_value == expected
    assert significance.paired(SECOND, FIRST).p_value == expected
    # All five on one side is the least that five trials can show.
    assert significance.paired([0.2, 0.3, 0.4, 0.5, 0.6], [0.1] * 5).p_value == 2 / 32


@pytest.mark.parametrize("test", list(significance.TESTS))
def test_equal_methods_do_not_differ(test):
    assert significance.paired(FIRST, FIRST, test=test).p_value == 1.0


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: significance.paired(FIRST, SECOND, test="t"), "test must be one of paired t, .*, got 't'"),
        (lambda: significance.paired([0.1], [0.2]), "two or more trials"),
        (lambda: significance.paired(FIRST, SECOND[:-1]), "two or more trials"),
        (lambda: significance.paired([0.1, np.nan], [0.2, 0.1]), "NaN for 1 trials"),
        (lambda: significance.paired(np.arange(21.0), np.zeros(21)), "n <= 20, got n = 21"),
        (lambda: significance.bootstrap(None, *toy(), confidence=1), r"confidence must be in \(0, 1\)"),
        (lambda: significance.bootstrap(None, *toy(), resamples=0), "resamples must be at least 1"),
        (lambda: significance.bootstrap(None, [np.nan], [0.1], [True]), "NaN"),
    ],
)
def test_bad_input_raises_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
