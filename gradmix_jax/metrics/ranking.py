"""Open set recognition metrics from scores, exact and in O(n log n).

Convention of every function: a **higher score means "known"**, scores are floats of any range, ties count
one half, a NaN raises. `ORIENTATION` holds the line to print beside each number, because published values
differ by exactly these conventions.

How: one jitted stable sort of all scores with integer cumulative counts; the host divides once, in float64.
Integer counts keep a million scores exact (float32 sums of pair counts up to 1e12 would not be).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradmix_jax.metrics import padding

ORIENTATION = {
    "accuracy": "higher is better; top-1 share of known test images, no rejection",
    "auroc": "higher is better; P(known scores above unknown), ties one half",
    "oscr": "higher is better; share of (known, unknown) pairs with a correct known above, ties one half",
    "oscr_compat": "higher is better; OSCR as in the function ARPL and Vaze et al. share (off by one)",
    "fpr95_unknown_positive": "lower is better; known rejected when 95 % of unknown are caught (OpenOOD)",
    "fpr95_known_positive": "lower is better; unknown accepted when 95 % of known are kept (ARPL)",
    "average_precision_known": "higher is better; average precision (step), known is the positive class",
    "average_precision_unknown": "higher is better; average precision (step), unknown is the positive class",
    "ccr_at_fpr": "higher is better; known accepted and correct, at the named share of unknown accepted",
    "macro_f1": "higher is better; unweighted mean F1 over the known classes and 'unknown'",
    "openness": "higher is more open; a property of the split, not of a model",
    "mce": "lower is better; mean corruption error, divided by the reference model's where one is named",
    "ece": "lower is better; gap between confidence and accuracy, equal-width bins",
    "nll": "lower is better; mean negative log-likelihood in nats",
    "brier": "lower is better; squared distance of probabilities to the one-hot label, 0 to 2",
}


class Points(NamedTuple):
    """Operating points "accept if score >= threshold", one per distinct score, strictest first.

    Attributes:
      thresholds_T: descending.
      known_T, unknown_T, correct_T: int64 numbers of accepted known, accepted unknown, and accepted known
        images whose class is right; the last entry of each is the total.
    """

    thresholds_T: np.ndarray
    known_T: np.ndarray
    unknown_T: np.ndarray
    correct_T: np.ndarray

    # The metrics of the same names below, for a caller who wants several of them from one sort.

    def auroc(self) -> float:
        """P(known scores above unknown), ties one half, in [0, 1]; see `auroc` of the module."""
        return _pairs_won(self.known_T, self.unknown_T) / self._pairs

    def oscr(self) -> float:
        """Share of (known, unknown) pairs with a correct known above, ties one half, in [0, accuracy]; see `oscr`."""
        return _pairs_won(self.correct_T, self.unknown_T) / self._pairs

    def fpr_at(self, *, tpr=0.95, positive="unknown") -> float:
        """Share of the other side wrongly taken for `positive`, in [0, 1], where the share `tpr` of it is found.

        See `fpr_at` of the module. Raises ValueError for a tpr outside (0, 1] or another `positive`.
        """
        if not 0 < tpr <= 1:
            raise ValueError(f"tpr must be in (0, 1], got {tpr}")
        found_T, false_T = _found_and_false(self, positive)
        at = np.argmax(found_T / found_T[-1] >= tpr)
        return float(false_T[at] / false_T[-1])

    def average_precision(self, *, positive="known", interpolation="step") -> float:
        """Area under precision against recall, in [0, 1]; see `average_precision` of the module.

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
        """Share of known accepted and classified right, at most the share `fpr` of unknown accepted; in [0, accuracy].

        Raises ValueError for an fpr outside [0, 1].
        """
        if not 0 <= fpr <= 1:
            raise ValueError(f"fpr must be in [0, 1], got {fpr}")
        allowed_T = self.unknown_T / self.unknown_T[-1] <= fpr
        return float(np.max(self.correct_T, where=allowed_T, initial=0) / self.known_T[-1])

    @property
    def _pairs(self) -> int:
        return int(self.known_T[-1]) * int(self.unknown_T[-1])


def _as_scores(name, values):
    """1-D float32 or float64; narrower floats are widened, everything else becomes float64."""
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} scores must be a non-empty vector, got shape {array.shape}")
    narrow = array.dtype.itemsize <= 4 and jnp.issubdtype(array.dtype, jnp.floating)
    array = array.astype(np.float32 if narrow else np.float64)
    if np.isnan(array).any():
        raise ValueError(f"{name} scores must be numbers, got NaN for {np.isnan(array).sum()} of {array.size}")
    return array


def _sort_words(scores_N):
    """Arrays whose lexicographic order is the order of the scores, without needing float64 on the device."""
    signed, unsigned = (np.int32, np.uint32) if scores_N.dtype == np.float32 else (np.int64, np.uint64)
    # IEEE 754: flip the sign bit of positives, every bit of negatives, and unsigned order is float order. float32 too
    # is sorted so: XLA on a CPU takes all floats below 1.2e-38 for zero.
    bits_N = (scores_N + scores_N.dtype.type(0)).view(signed)  # + 0 merges the two zeros
    ordered_N = np.where(bits_N < 0, ~bits_N, bits_N ^ np.iinfo(signed).min).view(unsigned)
    if unsigned == np.uint32:
        return (ordered_N,)
    return (ordered_N >> np.uint64(32)).astype(np.uint32), ordered_N.astype(np.uint32)


@jax.jit
def _sort_and_count(words, known_N, correct_N):
    """Ascending stable sort -> (order, is the first of its ties, how many known, correct from here on)."""
    order_N = jnp.arange(known_N.size, dtype=jnp.int32)
    *words, order_N = jax.lax.sort((*words, order_N), num_keys=len(words), is_stable=True)
    differs = jnp.stack([word[1:] != word[:-1] for word in words]).any(axis=0)
    starts_N = jnp.concatenate([jnp.ones(1, bool), differs])
    from_here = lambda flags_N: jnp.cumsum(flags_N[order_N][::-1], dtype=jnp.int32)[::-1]
    return order_N, starts_N, from_here(known_N), from_here(correct_N)


def _sorted_counts(known, unknown, correct):
    """Checks the arguments and sorts; known come before unknown, so that ties keep known first."""
    known, unknown = _as_scores("known", known), _as_scores("unknown", unknown)
    correct = np.ones(known.size, bool) if correct is None else np.asarray(correct)
    if correct.shape != known.shape:
        raise ValueError(f"correct must have one entry per known score, got {correct.shape} for {known.shape}")
    scores_N = np.concatenate([known, unknown])
    known_N = np.arange(scores_N.size) < known.size
    correct_N = np.concatenate([correct.astype(bool), np.zeros(unknown.size, bool)])
    # Padding comes last, behind any score, and counts for nothing.
    missing = padding.padded_size(scores_N.size) - scores_N.size
    pad = lambda array_N, value: np.pad(array_N, (0, missing), constant_values=value)
    words = [pad(word_N, np.iinfo(np.uint32).max) for word_N in _sort_words(scores_N)]
    counts = _sort_and_count(words, pad(known_N, False), pad(correct_N, False))
    return scores_N, known_N, correct_N, *(np.asarray(count)[: scores_N.size] for count in counts)


def points(known, unknown, correct=None):
    """All operating points of known scores, unknown scores and whether each known image is classified right.

    Raises ValueError for an empty or NaN input, or if `correct` does not match `known`.
    """
    return _points(*_sorted_counts(known, unknown, correct))


def points_and_oscr_compat(known, unknown, correct):
    """(`points`, the value of `oscr` with compat=True), both from one sort. Raises ValueError as they do."""
    counts = _sorted_counts(known, unknown, correct)
    return _points(*counts), _oscr_compat(*counts)


def _points(scores_N, known_N, correct_N, order_N, starts_N, known_from_N, correct_from_N):
    starts_T = np.flatnonzero(starts_N)[::-1]
    known_T, correct_T = (counts_N[starts_T].astype(np.int64) for counts_N in (known_from_N, correct_from_N))
    return Points(scores_N[order_N[starts_T]], known_T, scores_N.size - starts_T - known_T, correct_T)


def _oscr_compat(scores_N, known_N, correct_N, order_N, starts_N, known_from_N, correct_from_N):
    unknown_N = ~known_N[order_N]
    next_correct_N = np.append(correct_N[order_N][1:], False)
    # An unknown image is no correct known one, so counting from it on equals counting after it.
    doubled = int(2 * correct_from_N[unknown_N].sum(dtype=np.int64)) - int(next_correct_N[unknown_N].sum())
    return doubled / 2 / (int(known_N.sum()) * int(unknown_N.sum()))


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

    Args: known_N, unknown_M: scores, higher = known. Raises ValueError if one is empty or holds NaN.
    """
    return points(known, unknown).auroc()


def oscr(known, unknown, correct, compat=False):
    """Open set classification rate: the area under correct classification rate against FPR, in [0, accuracy].

    1/(n_k n_u) * sum over correct known k and unknown u of [s_k > s_u] + [s_k = s_u]/2 (Dhamija et al. 2018,
    "Reducing Network Agnostophobia"). `compat=True` gives the value of the function shared by the code of
    ARPL (Chen et al. 2021) and Vaze et al. 2022: its trapezoids take the correct known *after* a cut-off
    against the unknown from it on, so a correct known image directly above an unknown one counts one half,
    and ties count nothing (known sort first among equals; the original leaves that order to its sort).

    Args: known_N, unknown_M: scores, higher = known. correct_N: bool, is the predicted class right.
    Raises ValueError for empty or NaN scores, or a `correct` of another length.
    """
    if compat:
        return _oscr_compat(*_sorted_counts(known, unknown, correct))
    return points(known, unknown, correct).oscr()


def fpr_at(known, unknown, *, tpr=0.95, positive="unknown"):
    """False positive rate at the strictest threshold that finds at least the share `tpr` of the positives.

    positive="unknown" (OpenOOD): share of known wrongly rejected. positive="known" (ARPL): share of unknown
    wrongly accepted. Images at the threshold count as found. Raises ValueError for a tpr outside (0, 1].
    """
    return points(known, unknown).fpr_at(tpr=tpr, positive=positive)


def average_precision(known, unknown, *, positive="known", interpolation="step"):
    """Area under precision against recall.

    interpolation="step": sum of (R_t - R_{t-1}) P_t, scikit-learn's `average_precision_score`.
    interpolation="trapezoid": straight lines between the points, starting at recall 0 and precision 1, as
    OpenOOD reports it; optimistic (Davis & Goadrich 2006).
    """
    return points(known, unknown).average_precision(positive=positive, interpolation=interpolation)


def ccr_at_fpr(known, unknown, correct, *, fpr):
    """Share of known accepted and classified right, while at most the share `fpr` of unknown is accepted."""
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


def known_threshold(validation_known, *, keep=0.95):
    """Largest threshold t such that at least the share `keep` of validation known images has score >= t.

    The rejection rule of the open macro-F1: chosen on known validation images only, never on test images.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be in (0, 1], got {keep}")
    descending_N = np.sort(_as_scores("validation known", validation_known))[::-1]
    kept_N = np.arange(1, descending_N.size + 1) / descending_N.size
    return float(descending_N[np.argmax(kept_N >= keep)])


def _as_classes(name, values):
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must be a non-empty integer vector, got {array.dtype} of shape {array.shape}")
    return array


def macro_f1(predicted, labels, *, num_classes):
    """Unweighted mean over classes of F1 = 2 TP / (2 TP + FP + FN), in [0, 1].

    Args:
      predicted, labels: integers [N]; 0 .. num_classes - 1 are the known classes, `num_classes` (or -1, as
        data sources label it) is "unknown", the last class of the mean.
      num_classes: number of known classes.
    Classes that neither occur nor are predicted are left out of the mean, as scikit-learn's `f1_score` does.
    Raises ValueError for a class outside -1 .. num_classes.
    """
    predicted, labels = _as_classes("predicted", predicted), _as_classes("labels", labels)
    if predicted.shape != labels.shape:
        raise ValueError(f"predicted and labels must have one length, got {predicted.shape} and {labels.shape}")
    for name, classes_N in (("predicted", predicted), ("labels", labels)):
        if classes_N.min() < -1 or classes_N.max() > num_classes:
            raise ValueError(f"{name} must be in -1 .. {num_classes}, got {classes_N.min()} .. {classes_N.max()}")
    predicted, labels = (np.where(classes == -1, num_classes, classes) for classes in (predicted, labels))
    count = lambda classes: np.bincount(classes, minlength=num_classes + 1)
    hits_K, occurrences_K = count(labels[predicted == labels]), count(predicted) + count(labels)
    seen_K = occurrences_K > 0
    return float(np.mean(2 * hits_K[seen_K] / occurrences_K[seen_K]))


def openness(num_train, num_test, num_target):
    """1 - sqrt(2 n_train / (n_test + n_target)), numbers of classes (Scheirer et al. 2013); 0 = closed."""
    return float(1 - np.sqrt(2 * num_train / (num_test + num_target)))


def mean_corruption_error(errors_CxS, reference_CxS=None):
    """Mean over C corruptions of sum over S severities of the error, divided by the reference model's sum.

    Hendrycks & Dietterich 2019. Without a reference the divisor is that of a model that is always wrong, S,
    which leaves the plain mean error that CIFAR-10-C results quote as "mCE" (AugMix, 2020).

    Args: errors_CxS, reference_CxS: error rates in [0, 1]. Raises ValueError if the shapes differ.
    """
    errors_CxS = np.asarray(errors_CxS, np.float64)
    if reference_CxS is None:
        reference_CxS = np.ones_like(errors_CxS)
    reference_CxS = np.asarray(reference_CxS, np.float64)
    if errors_CxS.ndim != 2 or errors_CxS.shape != reference_CxS.shape:
        shapes = f"{errors_CxS.shape} and {reference_CxS.shape}"
        raise ValueError(f"errors and reference must share one shape [C, S], got {shapes}")
    return float(np.mean(errors_CxS.sum(axis=1) / reference_CxS.sum(axis=1)))
