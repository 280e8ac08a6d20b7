"""The training features that predictions compare with: their rows, and how to reduce them.

Letters: M training images, P parts of length L, K classes, D feature, V validation images.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradmix_jax import metrics
from gradmix_jax.scores.neighbors import PRECISION, Bank, class_bank, class_similarities, unit

# Names of the arrays of a `Bank` behind the "gallery/" of `functions`.
FEATURES, VALID, PARTS = "gallery/features_PxLxD", "gallery/valid_PxL", "gallery/parts_KxQ"


def rows_of(arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(unit features_MxD, classes_M) of a gallery, class by class; within a class in the order of the training part."""
    parts_KxQ, valid_PxL = arrays[PARTS], arrays[VALID]
    features, classes = [], []
    for known_class, parts_Q in enumerate(parts_KxQ):
        own = parts_Q[parts_Q < len(valid_PxL)]
        features.append(arrays[FEATURES][own][valid_PxL[own]])
        classes.append(np.full(len(features[-1]), known_class, np.int32))
    return np.concatenate(features), np.concatenate(classes)


def nearest(features_MxD: np.ndarray, features_NxD: np.ndarray, *, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows_Nxc, cosine_Nxc) of the most similar gallery features, the nearest first."""
    similarity = jnp.matmul(unit(jnp.asarray(features_NxD)), jnp.asarray(features_MxD).T, precision=PRECISION)
    cosine_Nxc, rows_Nxc = jax.lax.top_k(similarity, min(count, len(features_MxD)))
    return np.asarray(rows_Nxc), np.asarray(cosine_Nxc)


def farthest_first(features_MxD: np.ndarray, *, count: int) -> np.ndarray:
    """Rows of a k-center subset: the one nearest to the mean, then repeatedly the one farthest from all chosen ones.

    Gonzalez 1985, "Clustering to minimize the maximum intercluster distance": the largest distance of a feature to the
    subset is at most twice the least possible one. Deterministic.

    Args:
      features_MxD: unit features.
      count: number to choose; all of them if there are no more.

    Returns:
      int [min(count, M)], ascending.
    """
    if count >= len(features_MxD):
        return np.arange(len(features_MxD))
    features_MxD = np.asarray(features_MxD, np.float32)
    chosen = [int(np.argmax(features_MxD @ features_MxD.mean(axis=0)))]
    closest_M = features_MxD @ features_MxD[chosen[0]]
    for _ in range(count - 1):
        chosen.append(int(np.argmin(closest_M)))
        np.maximum(closest_M, features_MxD @ features_MxD[chosen[-1]], out=closest_M)
    return np.sort(chosen)


def evenly(features_MxD: np.ndarray, *, count: int, seed: int = 0) -> np.ndarray:
    """Rows of a uniform random subset without replacement, ascending, which keeps the density of a class."""
    size = len(features_MxD)
    return np.sort(np.random.default_rng(seed).choice(size, min(count, size), replace=False))


RULES = {
    "random": (evenly, "a uniform random subset of each class, seed 0"),
    "k_center": (farthest_first, "a k-center subset of each class, chosen farthest first (Gonzalez 1985)"),
}


def reduced(
    features_MxD: np.ndarray, labels_M: np.ndarray, *, num_classes: int, k: int, count: int, rule: str
) -> tuple[Bank, np.ndarray]:
    """(`Bank` of at most `count` training features per class, their rows_m)."""
    unit_MxD, rows = np.asarray(unit(jnp.asarray(features_MxD))), []
    for known_class in range(num_classes):
        own = np.flatnonzero(labels_M == known_class)
        rows.append(own[RULES[rule][0](unit_MxD[own], count=count)])
    rows_m = np.sort(np.concatenate(rows))
    return class_bank(features_MxD[rows_m], labels_M[rows_m], num_classes=num_classes, k=k), rows_m


def difference(before: Bank, after: Bank, features_VxD: np.ndarray, labels_V: np.ndarray) -> dict[str, Any] | None:
    """The effect of a reduction, measured only on validation images of known classes; None if there are none.

    AUROC needs unknown images, so each class in turn is treated as unknown, without its training features, and the mean
    over the classes is reported.

    Returns:
      {"images", "same_class": share of equal predictions, "accuracy", "auroc": [before, after]}.
    """
    if not len(labels_V):
        return None
    before_VxK, after_VxK = (np.asarray(class_similarities(bank, features_VxD)) for bank in (before, after))
    accuracy = lambda sums_VxK: float(np.mean(sums_VxK.argmax(axis=1) == labels_V))
    return {
        "images": len(labels_V),
        "same_class": float(np.mean(before_VxK.argmax(axis=1) == after_VxK.argmax(axis=1))),
        "accuracy": [accuracy(before_VxK), accuracy(after_VxK)],
        "auroc": [left_out_auroc(before_VxK, labels_V), left_out_auroc(after_VxK, labels_V)],
    }


def left_out_auroc(sums_VxK: np.ndarray, labels_V: np.ndarray) -> float | None:
    """Mean AUROC over the classes, each treated as unknown in turn; None with fewer than two classes."""
    found = []
    for left_out in np.unique(labels_V):
        score_V = np.delete(sums_VxK, left_out, axis=1).max(axis=1, initial=-np.inf)
        if (labels_V != left_out).any():
            found.append(metrics.auroc(score_V[labels_V != left_out], score_V[labels_V == left_out]))
    return float(np.mean(found)) if found else None
