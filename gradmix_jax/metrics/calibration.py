"""Calibration of a classifier: expected calibration error, negative log-likelihood, Brier score.

All take logits [N, K] of known test images and their labels [N]. The softmax is jitted and runs on the device in
float32; the host averages over images in float64.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Reliability(NamedTuple):
    """Images by confidence, in bins of equal width, for a reliability diagram.

    Attributes:
      count_M: int64 numbers of images; bin m holds confidences in (m/M, (m+1)/M].
      confidence_M, accuracy_M: means of the bin, in [0, 1]; NaN if it is empty.
    """

    count_M: np.ndarray
    confidence_M: np.ndarray
    accuracy_M: np.ndarray


@jax.jit
def _per_image(logits_NxK, labels_N):
    """(confidence_N, correct_N, log-likelihood_N, Brier term_N)."""
    log_p_NxK = jax.nn.log_softmax(logits_NxK, axis=1)
    truth_NxK = jax.nn.one_hot(labels_N, logits_NxK.shape[1])
    p_NxK = jnp.exp(log_p_NxK)
    correct_N = logits_NxK.argmax(axis=1) == labels_N
    log_likelihood_N = jnp.take_along_axis(log_p_NxK, labels_N[:, None], axis=1)[:, 0]
    return p_NxK.max(axis=1), correct_N, log_likelihood_N, jnp.square(p_NxK - truth_NxK).sum(axis=1)


def _checked(logits_NxK, labels_N):
    logits_NxK, labels_N = np.asarray(logits_NxK, np.float32), np.asarray(labels_N)
    if logits_NxK.ndim != 2 or logits_NxK.size == 0 or labels_N.shape != logits_NxK.shape[:1]:
        raise ValueError(f"logits must be [N, K] and labels [N], got {logits_NxK.shape} and {labels_N.shape}")
    bad_NxK = np.isnan(logits_NxK) | (logits_NxK == np.inf)  # softmax of +inf is undefined; -inf is probability 0
    if bad_NxK.any():
        raise ValueError(f"logits must be less than infinity, got inf or NaN for {bad_NxK.sum()} of {logits_NxK.size}")
    if labels_N.min() < 0 or labels_N.max() >= logits_NxK.shape[1]:
        spread = f"{labels_N.min()} .. {labels_N.max()}"
        raise ValueError(f"labels must be in 0 .. {logits_NxK.shape[1] - 1} (known classes), got {spread}")
    return [np.asarray(values, np.float64) for values in _per_image(logits_NxK, labels_N.astype(np.int32))]


def reliability(logits_NxK, labels_N, *, num_bins=15):
    """`Reliability` of the softmax (Guo et al. 2017, fig. 1). Raises ValueError as `ece`."""
    return _reliability(*_checked(logits_NxK, labels_N)[:2], num_bins)


def all_of(logits_NxK, labels_N, *, num_bins=15):
    """(`reliability`, `nll`, `brier`) with a single pass over the logits. Raises ValueError as `ece`."""
    confidence_N, correct_N, log_likelihood_N, brier_N = _checked(logits_NxK, labels_N)
    return _reliability(confidence_N, correct_N, num_bins), float(-log_likelihood_N.mean()), float(brier_N.mean())


def _reliability(confidence_N, correct_N, num_bins):
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    bin_N = np.clip(np.ceil(confidence_N * num_bins).astype(int) - 1, 0, num_bins - 1)
    count_M = np.bincount(bin_N, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(bin_N, weights=each, minlength=num_bins) / count_M for each in (confidence_N, correct_N)]
    return Reliability(count_M, *means)


def ece(logits_NxK, labels_N, *, num_bins=15):
    """Expected calibration error in [0, 1]: sum over equal-width bins of share * |accuracy - mean confidence|.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3, bins (m/M, (m+1)/M].
    Raises ValueError for logits that are NaN or inf, labels outside the known classes or num_bins < 1.
    """
    return expected_error(reliability(logits_NxK, labels_N, num_bins=num_bins))


def expected_error(bins):
    """The expected calibration error of a `Reliability`."""
    gap_M = np.nan_to_num(bins.accuracy_M - bins.confidence_M)
    return float(np.sum(bins.count_M * np.abs(gap_M)) / bins.count_M.sum())


def nll(logits_NxK, labels_N):
    """Mean negative log-likelihood of the label in nats, >= 0. Raises ValueError as `ece`."""
    return float(-_checked(logits_NxK, labels_N)[2].mean())


def brier(logits_NxK, labels_N):
    """Mean squared distance from the softmax to the one-hot label, in [0, 2] (Brier 1950). Raises as `ece`."""
    return float(_checked(logits_NxK, labels_N)[3].mean())
