"""Precision-recall and risk-coverage curves of operating points; higher scores mean known."""

import numpy as np

from gradmix_jax.metrics.ranking import Points


def precision_recall(points: Points, *, positive: str = "unknown") -> tuple[np.ndarray, np.ndarray]:
    """(recall_T, precision_T) in [0, 1], recall ascending, from the strictest point to recall 1.

    Their step-wise area is `Points.average_precision`.

    Args:
      points: from `ranking.points`.
      positive: "unknown" (an image is found if its score is at most a threshold) or "known" (at least).

    Raises:
      ValueError: another `positive`.
    """
    if positive not in ("known", "unknown"):
        raise ValueError(f"positive must be 'known' or 'unknown', got {positive!r}")
    found_T, false_T = points.known_T, points.unknown_T
    if positive == "unknown":  # all but what the next stricter threshold accepts
        rejected = lambda n_T: (n_T[-1] - np.concatenate([[0], n_T[:-1]]))[::-1]
        found_T, false_T = rejected(points.unknown_T), rejected(points.known_T)
    return found_T / found_T[-1], found_T / (found_T + false_T)


def risk_coverage(points: Points, *, unknown: bool) -> tuple[np.ndarray, np.ndarray]:
    """(coverage_T, risk_T) in [0, 1], coverage ascending to 1: the share of wrong images among the accepted ones.

    El-Yaniv and Wiener 2010, "On the Foundations of Noise-free Selective Classification". With unknown images,
    every accepted one of them is wrong.

    Args:
      points: from `ranking.points`, with the flags of correct known images.
      unknown: whether unknown images are among those to accept or reject.
    """
    wrong_T, accepted_T = points.known_T - points.correct_T, points.known_T
    if unknown:
        wrong_T, accepted_T = wrong_T + points.unknown_T, accepted_T + points.unknown_T
    some = accepted_T > 0
    return accepted_T[some] / accepted_T[-1], wrong_T[some] / accepted_T[some]
