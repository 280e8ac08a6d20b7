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


def samples(key, known, unknown, correct, resamples):
    return significance._resampled(key, significance._ranked(known, unknown, correct), resamples)


def test_resamples_are_metrics_of_drawn_images():
    """Replay the draws of some resamples and compare with the plain metrics."""
    known, unknown, correct = toy(40)
    ranked = significance._ranked(known, unknown, correct)
    order = np.lexsort([known, ~correct])  # correct ones first, each ascending
    random, replayed = np.random.default_rng(1), np.random.default_rng(1)
    for _ in range(20):
        drawn = order[replayed.integers(0, len(known), len(known))]
        foreign = np.sort(unknown)[replayed.integers(0, len(unknown), len(unknown))]
        sides = known[drawn], foreign
        expected = correct[drawn].mean(), metrics.auroc(*sides), metrics.oscr(*sides, correct[drawn])
        assert significance._resample(random, ranked) == pytest.approx(expected, abs=1e-15)


def test_images_are_drawn_with_equal_chances():
    """Distributions of resampled metrics, against resampling images and sorting each sample."""
    known, unknown, correct = toy(60)
    random, expected = np.random.default_rng(5), []
    for _ in range(1000):
        drawn = random.choice(len(known), len(known))
        sides = known[drawn], random.choice(unknown, len(unknown))
        expected.append([correct[drawn].mean(), metrics.auroc(*sides), metrics.oscr(*sides, correct[drawn])])
    found = samples(2, known, unknown, correct, 1000)
    assert found.shape == (1000, 3)
    for ours, theirs in zip(found.T, np.transpose(expected)):
        assert scipy.stats.ks_2samp(ours, theirs).pvalue > 0.01
    np.testing.assert_allclose(np.corrcoef(found.T), np.corrcoef(np.transpose(expected)), atol=0.1)


def test_resamples_depend_on_the_seed_and_not_on_threads(monkeypatch):
    given = toy()
    serial = samples(0, *given, 130)
    assert len(np.unique(serial, axis=0)) > 120  # streams differ
    np.testing.assert_array_equal(samples(0, *given, 60), serial[:60])
    monkeypatch.setattr(significance, "_THREADED", 0)
    for workers in (1, 3):
        monkeypatch.setattr(significance.os, "cpu_count", lambda workers=workers: workers)
        np.testing.assert_array_equal(samples(0, *given, 130), serial)
    assert not np.array_equal(samples(1, *given, 130), serial)


def test_an_integer_seed_is_the_key_of_that_seed():
    given = toy(40)
    for seed in (0, 7, np.int64(8)):
        expected = samples(jax.random.key(int(seed)), *given, 30)
        np.testing.assert_array_equal(samples(seed, *given, 30), expected)
        np.testing.assert_array_equal(samples(jax.random.PRNGKey(int(seed)), *given, 30), expected)
    assert not np.array_equal(samples(7 << 32, *given, 30), samples(0, *given, 30))


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
    # The middle 95 % of the resamples, for each metric separately.
    for interval, sample in zip(intervals.values(), samples(key, known, unknown, correct, 800).T):
        assert (interval.low, interval.high) == pytest.approx(np.quantile(sample, [0.025, 0.975]), abs=1e-12)
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
    # Five differences of one sign give the smallest p-value of five trials.
    assert significance.paired([0.2, 0.3, 0.4, 0.5, 0.6], [0.1] * 5).p_value == 2 / 32


def test_random_sign_flips_agree_with_enumeration_and_with_scipy():
    random, test = np.random.default_rng(3), "random sign-flip permutation"
    for shift in (0.0, 0.4, 1.0):
        difference, zeros = random.normal(shift, 1, 16), np.zeros(16)
        exact = significance.paired(difference, zeros).p_value
        found = significance.paired(difference, zeros, test=test).p_value
        assert found == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / significance.PATTERNS) + 1e-5)
        theirs = scipy.stats.permutation_test(
            (difference,), lambda x, axis: x.sum(axis), permutation_type="samples", n_resamples=99_999, vectorized=True
        )
        assert exact == pytest.approx(theirs.pvalue, abs=1e-12)
    # More trials than can be enumerated; the least that so many patterns can show.
    assert significance.paired(np.full(40, 0.1), np.zeros(40), test=test).p_value == 1e-5


def test_holm_against_its_definition():
    p_values = [0.04, 0.001, 0.03, 0.013, 0.9, 0.0125]
    adjusted = significance.holm(p_values)
    for level in (0.005, 0.01, 0.04, 0.05, 0.07, 0.2, 0.95):
        rejected, ascending = set(), sorted(range(6), key=lambda place: p_values[place])
        for step, place in enumerate(ascending):
            if p_values[place] > level / (6 - step):
                break
            rejected.add(place)
        assert {place for place in range(6) if adjusted[place] <= level} == rejected
    assert significance.holm([0.4]) == [0.4] and significance.holm([0.6, 0.7]) == [1.0, 1.0]


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
        (lambda: significance.holm([0.1, 1.2]), r"p-values in \[0, 1\], got \[0.1, 1.2\]"),
        (lambda: significance.bootstrap(None, *toy(), confidence=1), r"confidence must be in \(0, 1\)"),
        (lambda: significance.bootstrap(None, *toy(), resamples=0), "resamples must be at least 1"),
        (lambda: significance.bootstrap(None, [np.nan], [0.1], [True]), "NaN"),
        (lambda: significance.bootstrap(None, *toy()), r"key must be one jax random key .* got object of shape \(\)"),
        (lambda: significance.bootstrap(jax.random.split(jax.random.key(0)), *toy()), r"shape \(2, 2\)"),
        (lambda: significance.bootstrap([0.5, 1.0], *toy()), r"got float64 of shape \(2,\)"),
    ],
)
def test_bad_input_raises_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
