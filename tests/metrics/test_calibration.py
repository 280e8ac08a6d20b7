"""Calibration measures against float64 NumPy and hand-computed values."""

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from gradmix_jax.metrics import calibration


def toy(seed, size=200, classes=4):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(size, classes)).astype(np.float32) * 2
    labels = np.where(rng.random(size) < 0.6, logits.argmax(axis=1), rng.integers(0, classes, size))
    p = np.exp(logits.astype(np.float64))
    return logits, labels, p / p.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("num_bins", [1, 15])
def test_ece(num_bins):
    logits, labels, p = toy(0)
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == labels
    expected = 0.0
    for low in np.arange(num_bins) / num_bins:
        inside = (confidence > low) & (confidence <= low + 1 / num_bins)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert calibration.ece(logits, labels, num_bins=num_bins) == pytest.approx(expected, abs=1e-6)


def test_reliability_against_scikit_learn():
    logits, labels, p = toy(3)
    bins = calibration.reliability(logits, labels, num_bins=10)
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == labels
    accuracy, mean = calibration_curve(correct, confidence, n_bins=10)
    full = bins.count_M > 0
    np.testing.assert_allclose(bins.accuracy_M[full], accuracy)
    np.testing.assert_allclose(bins.confidence_M[full], mean, atol=1e-6)
    assert bins.count_M.sum() == len(labels) and np.isnan(bins.accuracy_M[~full]).all() and not full.all()


def test_nll_and_brier():
    logits, labels, p = toy(1)
    assert calibration.nll(logits, labels) == pytest.approx(sk.log_loss(labels, p), rel=1e-6)
    expected = np.mean(((p - np.eye(4)[labels]) ** 2).sum(axis=1))
    assert calibration.brier(logits, labels) == pytest.approx(expected, rel=1e-6)
    bins, nll, brier = calibration.all_of(logits, labels)
    assert calibration.expected_error(bins) == calibration.ece(logits, labels)
    assert (nll, brier) == (calibration.nll(logits, labels), calibration.brier(logits, labels))


def test_certain_images():
    logits = np.float32([[100, 0], [100, 0]])
    assert [f(logits, [0, 0]) for f in (calibration.ece, calibration.nll, calibration.brier)] == [0, 0, 0]
    assert [f(logits, [1, 1]) for f in (calibration.ece, calibration.nll, calibration.brier)] == [1, 100, 2]
    # Fully confident but right only half of the time: the gap is one half.
    assert calibration.ece(logits, [0, 1]) == 0.5


@pytest.mark.parametrize("function", [calibration.ece, calibration.nll, calibration.brier])
@pytest.mark.parametrize(
    "logits, labels, words",
    [
        ([[0.0, np.nan]], [0], "NaN for 1 of 2"),
        ([[0.0, np.inf]], [1], "inf or NaN for 1 of 2"),
        ([[0.0, 1.0]], [2], "0 .. 1 .* got 2 .. 2"),
        ([[0.0, 1.0]], [-1], "got -1"),
        ([0.0, 1.0], [0, 1], r"\[N, K\]"),
        ([[0.0, 1.0]], [0, 1], r"labels \[N\]"),
    ],
)
def test_bad_input_raises_one_sentence(function, logits, labels, words):
    with pytest.raises(ValueError, match=words):
        function(np.float32(logits), np.array(labels))


def test_number_of_bins_is_checked():
    with pytest.raises(ValueError, match="num_bins must be at least 1, got 0"):
        calibration.ece(np.zeros((1, 2)), [0], num_bins=0)
