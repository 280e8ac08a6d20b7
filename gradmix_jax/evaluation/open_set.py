"""The numbers of an open set evaluation, from scores and predictions; pure functions of arrays.

Letters: N known test images, M unknown test images, V validation images, K known classes.
"""

from typing import Any

import numpy as np

from gradmix_jax import metrics
from gradmix_jax.metrics import calibration, significance

KEEP = 0.95
_MEANS = ("confidence", "accuracy")
RULE = f"keeps {100 * KEEP:g} % of the validation images of the known classes"


def rejection_metrics(known_N: np.ndarray, unknown_M: np.ndarray) -> dict[str, float]:
    """The metrics that need scores alone; higher scores mean "known"."""
    return _rejection_metrics(metrics.points(known_N, unknown_M))


def _rejection_metrics(points: metrics.Points) -> dict[str, float]:
    return {
        "auroc": points.auroc(),
        "fpr95_unknown_positive": points.fpr_at(positive="unknown"),
        "fpr95_known_positive": points.fpr_at(positive="known"),
        "average_precision_known": points.average_precision(positive="known"),
        "average_precision_unknown": points.average_precision(positive="unknown"),
    }


def threshold_free_metrics(
    known_N: np.ndarray, unknown_M: np.ndarray, predicted_N: np.ndarray, labels_N: np.ndarray
) -> dict[str, float]:
    """All metrics that need no threshold; higher scores mean "known"."""
    correct_N = predicted_N == labels_N
    points, oscr_compat = metrics.points_and_oscr_compat(known_N, unknown_M, correct_N)
    return {
        "accuracy": float(np.mean(correct_N)),
        **_rejection_metrics(points),
        "oscr": points.oscr(),
        "oscr_compat": oscr_compat,
        "ccr_at_fpr_01": points.ccr_at_fpr(fpr=0.01),
        "ccr_at_fpr_10": points.ccr_at_fpr(fpr=0.1),
    }


def threshold_metrics(
    known_N: np.ndarray,
    unknown_M: np.ndarray,
    predicted_N: np.ndarray,
    predicted_M: np.ndarray,
    labels_N: np.ndarray,
    *,
    validation_V: np.ndarray | None,
    num_classes: int,
) -> dict[str, Any]:
    """Macro-F1 over the known classes and "unknown", at the threshold that keeps 95 % of the validation images.

    None for both if there are no validation images, because no other images may choose a threshold.
    """
    if validation_V is None or not len(validation_V):
        rule = "none: there are no validation images (dataset.validation_fraction) to choose a threshold with"
        return {"macro_f1": None, "threshold": None, "threshold_rule": rule}
    threshold = metrics.known_threshold(validation_V, keep=KEEP)
    decided = _decided(known_N, unknown_M, predicted_N, predicted_M, threshold, num_classes)
    truth = np.concatenate([labels_N, np.full(len(unknown_M), num_classes)])
    macro_f1 = metrics.macro_f1(np.concatenate(decided), truth, num_classes=num_classes)
    return {"macro_f1": macro_f1, "threshold": threshold, "threshold_rule": RULE}


def _decided(known_N, unknown_M, predicted_N, predicted_M, threshold, num_classes):
    return (
        np.where(known_N >= threshold, predicted_N, num_classes),
        np.where(unknown_M >= threshold, predicted_M, num_classes),
    )


def confusion(
    known_N: np.ndarray,
    unknown_M: np.ndarray,
    predicted_N: np.ndarray,
    predicted_M: np.ndarray,
    *,
    classes_N: np.ndarray,
    classes_M: np.ndarray,
    known_names: tuple[str, ...],
    threshold: float | None,
) -> dict[str, Any] | None:
    """Counts of decisions: a row for every known and unknown class, a column for every known class and "unknown".

    Args:
      classes_N, classes_M: names of the images' classes.
      known_names: names of the known classes in label order.
      threshold: lowest score that counts as known; None: there is no matrix.
    """
    if threshold is None:
        return None
    unknown_names = sorted(set(classes_M.tolist()))
    row_of_known = {name: row for row, name in enumerate(known_names)}
    row_of_unknown = {name: row for row, name in enumerate(unknown_names, len(known_names))}
    # With two datasets, both sides may have a class "0".
    both = row_of_known.keys() & row_of_unknown.keys()
    named = lambda side, names: [f"{side} {name}" if name in both else name for name in names]
    rows = [*named("known", known_names), *named("unknown", unknown_names)]
    decided = _decided(known_N, unknown_M, predicted_N, predicted_M, threshold, len(known_names))
    places = [row_of_known[name] for name in classes_N] + [row_of_unknown[name] for name in classes_M]
    counts = np.zeros((len(rows), len(known_names) + 1), int)
    np.add.at(counts, (places, np.concatenate(decided)), 1)
    return {"rows": rows, "columns": [*rows[: len(known_names)], "unknown"], "counts": counts.tolist()}


def _numbered(classes_N):
    """(sorted class names, number of each image's class)."""
    classes = classes_N.tolist()
    names = sorted(set(classes))
    number_of = {name: number for number, name in enumerate(names)}
    return names, np.array([number_of[name] for name in classes])


def per_class(
    known_N: np.ndarray, unknown_M: np.ndarray, correct_N: np.ndarray, *, classes_N: np.ndarray, classes_M: np.ndarray
) -> tuple[dict[str, Any], dict[str, Any]]:
    """({known class: accuracy, AUROC against all unknown}, {unknown class: AUROC of all known against it, n}).

    All AUROCs come from one ranking, so a thousand classes cost little more than one.
    """
    (known_names, number_N), (unknown_names, number_M) = _numbered(classes_N), _numbered(classes_M)
    known_K, unknown_U = metrics.auroc_per_class(known_N, unknown_M, number_N, number_M)
    accuracy_K = np.bincount(number_N, weights=correct_N) / np.bincount(number_N)
    known = zip(known_names, accuracy_K.tolist(), known_K.tolist())
    unknown = zip(unknown_names, unknown_U.tolist(), np.bincount(number_M).tolist())
    return (
        {name: {"accuracy": accuracy, "auroc": auroc} for name, accuracy, auroc in known},
        {name: {"auroc": auroc, "n": count} for name, auroc, count in unknown},
    )


def intervals(known_N: np.ndarray, unknown_M: np.ndarray, correct_N: np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """95 % bootstrap intervals over test images of accuracy, AUROC and OSCR."""
    of = significance.bootstrap(seed, known_N, unknown_M, correct_N)
    confidence, resamples = of["auroc"].confidence, of["auroc"].resamples
    limits = {name: [interval.low, interval.high] for name, interval in of.items()}
    return limits | {"confidence": confidence, "resamples": resamples, "over": "test images"}


def classifier_metrics(logits_NxK: np.ndarray, labels_N: np.ndarray) -> dict[str, Any]:
    """Accuracy and calibration of logits on known test images; "reliability" holds the bins behind "ece"."""
    bins, nll, brier = calibration.all_of(logits_NxK, labels_N)
    means = {name: [None if np.isnan(m) else m for m in getattr(bins, f"{name}_M").tolist()] for name in _MEANS}
    return {
        "accuracy": float(np.mean(logits_NxK.argmax(axis=1) == labels_N)),
        "ece": calibration.expected_error(bins),
        "nll": nll,
        "brier": brier,
        "reliability": {"count": bins.count_M.tolist(), **means},
    }


def gallery_places(
    known_N: np.ndarray, unknown_M: np.ndarray, correct_N: np.ndarray, *, size: int = 16
) -> dict[str, tuple[str, np.ndarray]]:
    """The test images to show: {kind: ("known" or "unknown", places)}, the clearest cases first.

    accepted_unknown: unknown images with the highest scores; rejected_known: known ones with the lowest; misclassified:
    known ones with the highest scores in a wrong class; accepted_known: the same in the right class, for comparison;
    unknown_spread, known_spread: images of evenly spaced ranks, highest scores first.
    """
    right, wrong = np.flatnonzero(correct_N), np.flatnonzero(~correct_N)
    descending = lambda scores: np.argsort(-scores, kind="stable")[:size]
    evenly = lambda scores: np.argsort(-scores, kind="stable")[_spread(len(scores), size)]
    return {
        "accepted_unknown": ("unknown", descending(unknown_M)),
        "rejected_known": ("known", descending(-known_N)),
        "misclassified": ("known", wrong[descending(known_N[wrong])]),
        "accepted_known": ("known", right[descending(known_N[right])]),
        "unknown_spread": ("unknown", evenly(unknown_M)),
        "known_spread": ("known", evenly(known_N)),
    }


def _spread(count: int, size: int) -> np.ndarray:
    """At most `size` distinct, evenly spaced positions in 0 .. count - 1, including the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, size)).round().astype(int))
