"""Metrics of decisions against scikit-learn and values worked out by hand."""

import numpy as np
import pytest
from sklearn import metrics as sk

from gradmix_jax import metrics


def test_known_threshold_keeps_the_share():
    scores = np.random.default_rng(0).permutation(100) / 10
    assert metrics.known_threshold(scores) == 0.5  # 0.5 .. 9.9 are 95 of 100
    assert metrics.known_threshold(scores, keep=1.0) == 0.0
    assert metrics.known_threshold([3.0, 1.0, 1.0, 1.0], keep=0.3) == 1.0


def test_macro_f1():
    rng = np.random.default_rng(0)
    predicted, labels = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    expected = sk.f1_score(labels, predicted, average="macro")
    assert metrics.macro_f1(predicted, labels, num_classes=4) == pytest.approx(expected)
    # Sources label unknown images -1; they form the class after the known ones.
    minus = np.where(labels == 4, -1, labels)
    assert metrics.macro_f1(predicted, minus, num_classes=4) == pytest.approx(expected)
    # A class that never occurs is left out; a class that is only predicted counts as 0.
    assert metrics.macro_f1([0, 0, 1], [0, 0, 1], num_classes=5) == 1.0
    assert metrics.macro_f1([0, 0, 2], [0, 0, 1], num_classes=5) == pytest.approx(1 / 3)


def test_openness():
    assert metrics.openness(6, 10, 6) == pytest.approx(0.1340, abs=5e-5)
    assert metrics.openness(20, 200, 20) == pytest.approx(0.5736, abs=5e-5)


def test_mean_corruption_error():
    errors, reference = [[0.1, 0.3], [0.2, 0.6]], [[0.2, 0.6], [0.4, 0.4]]
    assert metrics.mean_corruption_error(errors) == pytest.approx(0.3)
    assert metrics.mean_corruption_error(errors, reference) == pytest.approx((0.5 + 1.0) / 2)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: metrics.known_threshold([0.1], keep=0), "keep must be in"),
        (lambda: metrics.known_threshold([np.nan]), "NaN"),
        (lambda: metrics.macro_f1([0, 1], [0], num_classes=2), "one length"),
        (lambda: metrics.macro_f1([], [], num_classes=2), "non-empty integer"),
        (lambda: metrics.macro_f1([0.5], [0.5], num_classes=2), "integer"),
        (lambda: metrics.macro_f1([0, 3], [0, 1], num_classes=2), "predicted must be in -1 .. 2"),
        (lambda: metrics.mean_corruption_error([[0.1]], [[0.1, 0.2]]), r"one shape \[C, S\]"),
    ],
)
def test_bad_input_raises_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
