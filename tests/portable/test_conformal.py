"""Split-conformal p-values: the finite-sample bound, by simulation, and the matching threshold."""

import math

import numpy as np
import pytest

from gradmix_jax.portable import conformal


@pytest.mark.parametrize("keep, size", [(0.95, 19), (0.95, 72), (0.8, 4), (0.9, 200)])
def test_at_most_the_chosen_share_of_known_images_is_rejected(keep, size):
    """1,000 resplits of one set of known scores into calibration and test; ties included."""
    random = np.random.default_rng(0)
    scores = np.round(random.gamma(2, size=2 * size + 300), 2)
    rejected = []
    for _ in range(1000):
        random.shuffle(scores)
        calibration_V, test_N = scores[:size], scores[size:]
        rejected.append(np.mean(test_N < conformal.threshold(calibration_V, keep=keep)))
    error = np.std(rejected) / math.sqrt(1000)
    assert np.mean(rejected) <= 1 - keep + 3 * error
    # The bound is not met by rejecting nothing: it is tight up to 1 / (V + 1) and ties.
    assert np.mean(rejected) >= 1 - keep - 1 / (size + 1) - 0.01 - 3 * error


@pytest.mark.parametrize("keep", [0.5, 0.8, 0.9, 0.95, 0.99, 1.0])
@pytest.mark.parametrize("size", [1, 4, 9, 19, 20, 59, 99, 100])
def test_the_threshold_accepts_what_the_p_value_does(keep, size):
    calibration_V = np.random.default_rng(size).permutation(size).astype(np.float32)
    asked_N = np.arange(-1, size + 1, 0.5)
    # In units of 1 / (V + 1), in which integers are compared.
    counts_N = np.rint(conformal.p_values(calibration_V, asked_N) * (size + 1))
    accepted_N = counts_N > round((1 - keep) * (size + 1), 6)
    np.testing.assert_array_equal(asked_N >= conformal.threshold(calibration_V, keep=keep), accepted_N)


def test_p_values_are_ranks():
    p_N = conformal.p_values(np.array([3.0, 1.0, 2.0, 2.0]), np.array([0.5, 1.0, 2.0, 2.5, 9.0]))
    np.testing.assert_allclose(p_N, np.array([1, 2, 4, 4, 5]) / 5)


@pytest.mark.parametrize("keep", [0.5, 0.8, 0.9, 0.95, 0.99, 0.9999])
def test_the_fewest_calibration_images(keep):
    fewest = conformal.fewest(keep)
    assert conformal.threshold(np.arange(fewest), keep=keep) == 0
    assert conformal.threshold(np.arange(fewest - 1), keep=keep) == -math.inf


@pytest.mark.parametrize("size", [1, 2, 9, 10, 18, 19, 20, 99, 100, 1000])
def test_the_largest_share_with_which_something_is_rejected(size):
    most = conformal.most(size)
    assert conformal.threshold(np.arange(size), keep=most) > -math.inf
    assert conformal.threshold(np.arange(size), keep=min(1.0, most + 0.01)) == -math.inf


@pytest.mark.parametrize("keep", [0, -0.1, 1.1])
def test_keep_out_of_range(keep):
    with pytest.raises(ValueError, match=r"keep must be above 0 and at most 1, got"):
        conformal.threshold(np.arange(9), keep=keep)
