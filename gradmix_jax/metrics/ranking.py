"""Open set recognition metrics from scores: exact, O(n log n), on the host.

Every function follows one convention: a **higher score means "known"**, scores are floats of any range, ties count one
half, and NaN raises. `ORIENTATION` has the line to print next to each number, because published values differ by these
conventions.

Everything here runs on the host, in NumPy: scores are one number per image and already there, and NumPy's vectorized
sort is faster than XLA's on a CPU. Each group (correct known, wrong known, unknown) is sorted separately and the sorted
runs are merged. Counts are integers, divided once, in float64, so a million scores lose nothing to rounding.
"""

from typing import NamedTuple

import numpy as np

from gradmix_jax.metrics import checks

ORIENTATION = {
    "accuracy": "higher is better; top-1 share of known test images, no rejection",
    "auroc": "higher is better; P(known scores above unknown), ties one half",
    "oscr": "higher is better; share of (known, unknown) pairs with a correct known above, ties one half",
    "oscr_compat": "higher is better; OSCR as computed by the code of ARPL and Vaze et al. (off by one)",
    "fpr95_unknown_positive": "lower is better; known rejected when at least 95 % of unknown are rejected (OpenOOD)",
    "fpr95_known_positive": "lower is better; unknown accepted when at least 95 % of known are accepted (standard)",
    "average_precision_known": "higher is better; average precision (step), known is the positive class",
    "average_precision_unknown": "higher is better; average precision (step), unknown is the positive class",
    "ccr_at_fpr": "higher is better; known accepted and classified correctly, at the named FPR of unknown",
    "macro_f1": "higher is better; unweighted mean F1 over the known classes and 'unknown'",
    "openness": "higher is more open; a property of the split, not of the model",
    "mce": "lower is better; mean corruption error, relative to the reference model if one is named",
    "ece": "lower is better; gap between confidence and accuracy, equal-width bins",
    "nll": "lower is better; mean negative log-likelihood in nats",
    "brier": "lower is better; squared distance from the probabilities to the one-hot label, 0 to 2",
}


class Points(NamedTuple):
    """Operating points "accept if score >= threshold", one per distinct score, strictest first.

    Its methods compute several metrics from one sort; each returns the value of the module's function of that name.

    Attributes:
      thresholds_T: descending.
      known_T, unknown_T, correct_T: int64 counts of accepted known images, accepted unknown images, and accepted known
        images that are classified correctly; the last entry of each is the total.
    """

    thresholds_T: np.ndarray
    known_T: np.ndarray
    unknown_T: np.ndarray
    correct_T: np.ndarray

    def auroc(self) -> float:
        """P(known scores above unknown), ties one half, in [0, 1]; see `auroc` of the module."""
        return _pairs_won(self.known_T, self.unknown_T) / self._pairs

    def oscr(self) -> float:
        """Share of (known, unknown) pairs with a correct known above, ties one half, in [0, accuracy]; see `oscr`."""
        return _pairs_won(self.correct_T, self.unknown_T) / self._pairs

    def fpr_at(self, *, tpr=0.95, positive="unknown") -> float:
        """False positive rate at the strictest threshold with true positive rate >= `tpr`, in [0, 1]; see `fpr_at`.

        Raises ValueError for a tpr outside (0, 1] or another `positive`.
        """
        if not 0 < tpr <= 1:
            raise ValueError(f"tpr must be in (0, 1], got {tpr}")
        found_T, false_T = _found_and_false(self, positive)
        at = np.argmax(found_T / found_T[-1] >= tpr)
        return float(false_T[at] / false_T[-1])

    def average_precision(self, *, positive="known", interpolation="step") -> float:
        """Area under the precision-recall curve, in [0, 1]; see `average_precision` of the module.

        Raises ValueError for another `positive` or `interpolation`.
        """
        found_T, false_T = _found_and_false(self, positive)
        precision_T = found_T / (found_T + false_T)
        recall_step_T = np.diff(found_T, prepend=0) / found_T[-1]
        if interpolation == "step":
            return float(np.sum(recall_step_T * precision_T))
        if interpolation == "trapezoid":
            return float(np.sum(recall_step_T * (precision_T + np.concatenate([[1.0], precision_T[:-1]])) / 2))
        raise ValueError(f"interpolation must be 'step' or 'trapezoid', got {interpolation!r}")

    def ccr_at_fpr(self, *, fpr) -> float:
        """Correct classification rate while the false positive rate is at most `fpr`, in [0, accuracy].

        Raises ValueError for an fpr outside [0, 1].
        """
        if not 0 <= fpr <= 1:
            raise ValueError(f"fpr must be in [0, 1], got {fpr}")
        allowed_T = self.unknown_T / self.unknown_T[-1] <= fpr
        return float(np.max(self.correct_T, where=allowed_T, initial=0) / self.known_T[-1])

    @property
    def _pairs(self) -> int:
        return int(self.known_T[-1]) * int(self.unknown_T[-1])


def _checked(known, unknown, correct):
    """Scores and flags as arrays; `correct` None counts every known image as correct."""
    known, unknown = checks.as_scores("known", known), checks.as_scores("unknown", unknown)
    correct = np.ones(known.size, bool) if correct is None else np.asarray(correct).astype(bool, copy=False)
    if correct.shape != known.shape:
        raise ValueError(f"correct must have one entry per known score, got {correct.shape} for {known.shape}")
    return known, unknown, correct


def points(known, unknown, correct=None):
    """All operating points of known scores, unknown scores, and whether each known image is classified correctly.

    Args:
      known, unknown: scores [N] and [M], higher = known.
      correct: bool [N]; None = all.

    Returns:
      `Points`.

    Raises:
      ValueError: empty or NaN scores, or a `correct` of another length.
    """
    return _points(*_checked(known, unknown, correct))


def points_and_oscr_compat(known, unknown, correct):
    """(`points`, `oscr` with compat=True) from one sort. Raises ValueError as they do."""
    checked = _checked(known, unknown, correct)
    curve = _points(*checked)
    return curve, _oscr_compat(curve, *checked)


def _points(known, unknown, correct):
    runs = [np.sort(known[correct]), np.sort(known[~correct]), np.sort(unknown)]
    scores_N = np.concatenate(runs)
    # The stable sort is a timsort: it merges sorted runs in linear time, an eighth of the time of sorting.
    order_N = np.argsort(scores_N, kind="stable")
    scores_N = scores_N[order_N]
    starts_T = np.flatnonzero(np.concatenate([[True], scores_N[1:] != scores_N[:-1]]))[::-1]  # of each tie
    accepted_known_T = known.size - _count_before(order_N < known.size, starts_T)
    accepted_correct_T = runs[0].size - _count_before(order_N < runs[0].size, starts_T)
    accepted_unknown_T = scores_N.size - starts_T - accepted_known_T
    return Points(scores_N[starts_T], accepted_known_T, accepted_unknown_T, accepted_correct_T)


def _count_before(flags_N, places_T):
    """How many flags are set before each place."""
    return np.concatenate([[0], np.cumsum(flags_N, dtype=np.int64)])[places_T]


def _oscr_compat(curve, known, unknown, correct):
    known_at_T, unknown_at_T, correct_at_T = (
        np.diff(counts_T, prepend=0) for counts_T in (curve.known_T, curve.unknown_T, curve.correct_T)
    )
    # Equal scores: known before unknown, in the order given. So the next image above the last unknown one of a score is
    # the first known one of the next score, if that has any.
    first_correct_T = correct_at_T > 0
    mixed_T = first_correct_T & (correct_at_T < known_at_T)
    if mixed_T.any():
        values = curve.thresholds_T[mixed_T][::-1]
        place_N = np.minimum(np.searchsorted(values, known), values.size - 1)
        found = np.flatnonzero(values[place_N] == known)[::-1]  # the first is written last
        first_correct = np.empty(values.size, bool)
        first_correct[place_N[found]] = correct[found]
        first_correct_T[mixed_T] = first_correct[::-1]
    half_won = np.count_nonzero(first_correct_T[:-1] & (unknown_at_T[1:] > 0))
    doubled = 2 * int(np.sum(unknown_at_T * _before(curve.correct_T))) - half_won
    return doubled / 2 / (known.size * unknown.size)


def _before(counts_T):
    """Counts of the next stricter operating point; nothing is accepted before the first."""
    return np.concatenate([[0], counts_T[:-1]])


def _pairs_won(winners_T, losers_T):
    """Number of (winner, loser) pairs with the winner's score above, ties one half."""
    doubled = np.sum((losers_T - _before(losers_T)) * (winners_T + _before(winners_T)))
    return int(doubled) / 2


def _found_and_false(curve, positive):
    """Cumulative (true positives, false positives) with either side as the class to find."""
    if positive == "known":
        return curve.known_T, curve.unknown_T
    if positive == "unknown":  # "reject if score <= threshold": all but what the stricter point accepts
        return tuple((n_T[-1] - _before(n_T))[::-1] for n_T in (curve.unknown_T, curve.known_T))
    raise ValueError(f"positive must be 'known' or 'unknown', got {positive!r}")


def auroc(known, unknown):
    """Area under the ROC curve: P(s_known > s_unknown) + P(s_known = s_unknown) / 2, in [0, 1].

    Args:
      known, unknown: scores [N] and [M], higher = known.

    Raises:
      ValueError: one of them is empty or has NaN.
    """
    return points(known, unknown).auroc()


def unknown_below(known, unknown):
    """(below_N, up_to_N): int64 numbers of unknown scores below each known score, and below or equal to it.

    Args:
      known, unknown: scores [N] and [M], in any order; sorted known scores are looked up several times faster.

    Raises:
      ValueError: empty or NaN scores.
    """
    known, unknown, _ = _checked(known, unknown, None)
    ascending_M = np.sort(unknown)
    return tuple(np.searchsorted(ascending_M, known, side) for side in ("left", "right"))


def auroc_per_class(known, unknown, known_class_N, unknown_class_M):
    """AUROC of each known class against all unknown images, and of all known images against each unknown class.

    All from one ranking of each side, and equal to `auroc` of the class's images alone.

    Args:
      known, unknown: scores [N] and [M], higher = known.
      known_class_N, unknown_class_M: class numbers, 0 or more; the two sides are numbered separately.

    Returns:
      (auroc_K, auroc_U), indexed by class number, in [0, 1]; NaN for a number that no image has.

    Raises:
      ValueError: empty or NaN scores, class numbers that are negative, not integers, or not one per score.
    """
    known, unknown, _ = _checked(known, unknown, None)
    below_N, up_to_N = unknown_below(known, unknown)
    known_below_M, known_up_to_M = unknown_below(unknown, known)
    return (
        _mean_per_class("known", below_N + up_to_N, known_class_N, unknown.size),
        _mean_per_class("unknown", 2 * known.size - known_below_M - known_up_to_M, unknown_class_M, known.size),
    )


def _mean_per_class(name, doubled_N, class_N, opponents):
    """Pairs won in each class over pairs there are, from twice the number that each image wins (or loses)."""
    class_N = checks.as_classes(f"{name} classes", class_N)
    if class_N.shape != doubled_N.shape or class_N.min() < 0:
        given = f"{class_N.size} from {class_N.min()} up, for {doubled_N.size} scores"
        raise ValueError(f"{name} classes must be one number >= 0 per score, got {given}")
    doubled_K = np.zeros(class_N.max() + 1, np.int64)
    np.add.at(doubled_K, class_N, doubled_N)  # exact, unlike the float64 sums of a weighted bincount
    pairs_K = np.bincount(class_N) * opponents
    return np.divide(doubled_K / 2, pairs_K, out=np.full(pairs_K.size, np.nan), where=pairs_K > 0)


def oscr(known, unknown, correct, compat=False):
    """Open set classification rate: area under correct classification rate against FPR, in [0, accuracy].

    1/(n_k n_u) * sum over correct known k and unknown u of [s_k > s_u] + [s_k = s_u]/2 (Dhamija et al. 2018,
    "Reducing Network Agnostophobia"). `compat=True` gives the value of the function shared by the code of ARPL (Chen
    et al. 2021) and Vaze et al. 2022: its trapezoids pair the correct known images after a cutoff with the unknown
    images from it on, so a correct known image directly above an unknown one counts one half, and ties count zero
    (known sort first among equals; the original leaves their order to its sort).

    Args:
      known, unknown: scores [N] and [M], higher = known.
      correct: bool [N], whether the predicted class is right.
      compat: see above.

    Raises:
      ValueError: empty or NaN scores, or a `correct` of another length.
    """
    if compat:
        return points_and_oscr_compat(known, unknown, correct)[1]
    return points(known, unknown, correct).oscr()


def fpr_at(known, unknown, *, tpr=0.95, positive="unknown"):
    """False positive rate at the strictest threshold whose true positive rate is at least `tpr`, in [0, 1].

    positive="unknown", as in OpenOOD: share of known rejected. positive="known", the standard definition: share of
    unknown accepted. (ARPL's code takes the point whose true positive rate is nearest to 95 %, above or below.)
    Images at the threshold count as positives. Raises ValueError for a tpr outside (0, 1].
    """
    return points(known, unknown).fpr_at(tpr=tpr, positive=positive)


def average_precision(known, unknown, *, positive="known", interpolation="step"):
    """Area under the precision-recall curve, in [0, 1].

    interpolation="step": sum of (R_t - R_{t-1}) P_t, scikit-learn's `average_precision_score`.
    interpolation="trapezoid": straight lines between the points, from recall 0 and precision 1 on, as reported by
    OpenOOD; optimistic (Davis & Goadrich 2006).
    """
    return points(known, unknown).average_precision(positive=positive, interpolation=interpolation)


def ccr_at_fpr(known, unknown, correct, *, fpr):
    """Share of known images accepted and classified correctly while at most the share `fpr` of unknown is accepted."""
    return points(known, unknown, correct).ccr_at_fpr(fpr=fpr)


def roc_curve(known, unknown):
    """(false_positive_rate_T, true_positive_rate_T, thresholds_T), known positive, from (0, 0) to (1, 1)."""
    return _rates(points(known, unknown), "known_T")


def oscr_curve(known, unknown, correct):
    """(false_positive_rate_T, correct_classification_rate_T, thresholds_T), from (0, 0) to (1, accuracy)."""
    return _rates(points(known, unknown, correct), "correct_T")


def _rates(curve, accepted):
    rates = curve.unknown_T / curve.unknown_T[-1], getattr(curve, accepted) / curve.known_T[-1]
    return *(np.concatenate([[0.0], rate_T]) for rate_T in rates), np.concatenate([[np.inf], curve.thresholds_T])
