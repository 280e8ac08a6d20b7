"""Paired tests of two models on the same test images.

Letters: N known test images, M unknown ones.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from gradmix_jax import metrics


class Comparison(NamedTuple):
    """difference: first minus second; p_value: two-sided, 1 if nothing differs; test: its name."""

    difference: float
    p_value: float
    test: str


def auroc(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> Comparison:
    """DeLong's test of two AUROCs on the same images (DeLong et al. 1988; DeLong 1988 eq. 5 by ranks).

    Args:
      first, second: (known_N, unknown_M) scores; higher means known; the images are in the same order.

    Raises:
      ValueError: different numbers of images, or fewer than two on a side.
    """
    if any(len(a) != len(b) or len(a) < 2 for a, b in zip(first, second)):
        raise ValueError("DeLong's test needs the same known and unknown images twice, two or more of each.")
    known_2xN, unknown_2xM = (np.array(side) for side in zip(_placements(*first), _placements(*second)))
    # Of the mean over known and over unknown images of the share of pairs won.
    covariance = np.cov(known_2xN) / known_2xN.shape[1] + np.cov(unknown_2xM) / unknown_2xM.shape[1]
    areas = known_2xN.mean(axis=1)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    difference = float(areas[0] - areas[1])
    if variance <= 1e-18:
        return Comparison(difference, 1.0 if abs(difference) < 1e-12 else 0.0, "DeLong")
    return Comparison(difference, float(2 * stats.norm.sf(abs(difference) / math.sqrt(variance))), "DeLong")


def accuracy(first_N: np.ndarray, second_N: np.ndarray) -> Comparison:
    """McNemar's exact test of two models' correct_N on the same known images (McNemar 1947, binomial)."""
    first_N, second_N = np.asarray(first_N, bool), np.asarray(second_N, bool)
    if first_N.shape != second_N.shape or not first_N.size:
        raise ValueError(f"McNemar's test needs the same images twice, got {first_N.shape} and {second_N.shape}.")
    only_first, only_second = int((first_N & ~second_N).sum()), int((second_N & ~first_N).sum())
    discordant = only_first + only_second
    p_value = stats.binomtest(only_first, discordant).pvalue if discordant else 1.0
    return Comparison((only_first - only_second) / first_N.size, float(p_value), "exact McNemar")


def _placements(known_N: np.ndarray, unknown_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of unknown images below each known one, and of known ones above each unknown one; ties count half."""
    below_N, up_to_N = metrics.unknown_below(known_N, unknown_M)
    below_M, up_to_M = metrics.unknown_below(unknown_M, known_N)
    return (below_N + up_to_N) / (2 * len(unknown_M)), 1 - (below_M + up_to_M) / (2 * len(known_N))
