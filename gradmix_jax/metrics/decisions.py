"""Metrics of decisions: rejection threshold, macro-F1, mean corruption error; and openness. NumPy on the host."""

import numpy as np

from gradmix_jax.metrics import checks


def known_threshold(validation_known, *, keep=0.95):
    """Largest threshold t such that at least the share `keep` of validation known images has score >= t.

    The rejection rule of the open macro-F1: chosen on known validation images only, never on test images.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be in (0, 1], got {keep}")
    descending_N = np.sort(checks.as_scores("validation known", validation_known))[::-1]
    kept_N = np.arange(1, descending_N.size + 1) / descending_N.size
    return float(descending_N[np.argmax(kept_N >= keep)])


def macro_f1(predicted, labels, *, num_classes):
    """Unweighted mean over classes of F1 = 2 TP / (2 TP + FP + FN), in [0, 1].

    Args:
      predicted, labels: integers [N]; 0 .. num_classes - 1 are the known classes, `num_classes` (or -1, as data sources
        label it) is "unknown", the last class of the mean.
      num_classes: number of known classes.

    Classes that neither occur nor are predicted are left out of the mean, as in scikit-learn's `f1_score`.
    Raises ValueError for a class outside -1 .. num_classes.
    """
    predicted, labels = checks.as_classes("predicted", predicted), checks.as_classes("labels", labels)
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
    """1 - sqrt(2 n_train / (n_test + n_target)) of numbers of classes (Scheirer et al. 2013); 0 = closed."""
    return float(1 - np.sqrt(2 * num_train / (num_test + num_target)))


def mean_corruption_error(errors_CxS, reference_CxS=None):
    """Mean over C corruptions of sum over S severities of the error, divided by the reference model's sum.

    Hendrycks & Dietterich 2019. Without a reference the divisor is S, the sum of a model that is always wrong, which
    leaves the plain mean error that CIFAR-10-C results quote as "mCE" (AugMix, 2020).

    Args:
      errors_CxS, reference_CxS: error rates in [0, 1].

    Raises:
      ValueError: the shapes differ.
    """
    errors_CxS = np.asarray(errors_CxS, np.float64)
    if reference_CxS is None:
        reference_CxS = np.ones_like(errors_CxS)
    reference_CxS = np.asarray(reference_CxS, np.float64)
    if errors_CxS.ndim != 2 or errors_CxS.shape != reference_CxS.shape:
        shapes = f"{errors_CxS.shape} and {reference_CxS.shape}"
        raise ValueError(f"errors and reference must share one shape [C, S], got {shapes}")
    return float(np.mean(errors_CxS.sum(axis=1) / reference_CxS.sum(axis=1)))
