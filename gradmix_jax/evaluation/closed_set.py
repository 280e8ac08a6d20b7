"""Classification of known classes by frozen features, probes on other datasets, and diversity of features.

Letters: N images.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gradmix_jax.evaluation import fitting, guards, images, open_set, probes
from gradmix_jax.evaluation.features import Features
from gradmix_jax.evaluation.fitting import Evaluator
from gradmix_jax.metrics import diversity
from gradmix_jax.scores.fitted import LOGITS


def accuracies(evaluator: Evaluator, parts: Mapping[str, Features], nearest_N: np.ndarray | None) -> dict[str, Any]:
    """Accuracy on the known test images of neighbors, linear probe and classifier head.

    Args:
      evaluator: the fitted scores and probe.
      parts: features by part.
      nearest_N: classes by the top-k cosine similarity of the encoder's features; None if not requested.

    Returns:
      {"topk_cosine", "knn", "linear_probe", "head": {"accuracy", ...} or None}.
    """
    known, num_classes = parts["test_known"], evaluator.model.data.num_classes
    neighbors = fit_neighbors(parts["train"], parts.get("validation"), num_classes)
    features, labels = fitting.probed(known)
    linear, has_head = evaluator.linear, LOGITS in known.outputs
    return {
        "topk_cosine": None if nearest_N is None else {"accuracy": float(np.mean(nearest_N == labels))},
        "knn": {"accuracy": float(np.mean(neighbors.predict(features) == labels)), "k": neighbors.k},
        "linear_probe": linear and open_set.classifier_metrics(linear.logits(features), labels) | {"l2": linear.l2},
        "head": open_set.classifier_metrics(known.outputs[LOGITS], labels) if has_head else None,
    }


def fit_neighbors(train: Features, validation: Features | None, num_classes: int) -> probes.Neighbors:
    """The nearest-neighbor classifier of the encoder's features, with all of `train`."""
    fit_on, choose_with = fitting.choosing(train, validation)
    chosen = probes.neighbors(*map(fitting.probed, (fit_on, choose_with)), num_classes=num_classes)
    if validation is None:
        whole = fitting.probed(train)
        return probes.neighbors(whole, whole, num_classes=num_classes, ks=(chosen.k,))
    return chosen


def spread(evaluator: Evaluator, train: Features) -> dict[str, Any]:
    """Effective rank of the training features and intrinsic dimension of each of their classes, None if undefined."""
    names = evaluator.model.data.class_names

    def dimension(features_NxD):
        value = diversity.intrinsic_dimension(features_NxD) if len(features_NxD) > 1 else np.nan
        return value if np.isfinite(value) else None

    return {
        feature: {
            "effective_rank": diversity.effective_rank(train.outputs[feature]),
            "intrinsic_dimension": {
                name: dimension(train.outputs[feature][train.labels == label]) for label, name in enumerate(names)
            },
        }
        for feature in evaluator.model.scored_features
    }


def transfer(evaluator: Evaluator, name: str) -> dict[str, Any]:
    """Accuracy of a linear probe and of neighbors on all classes of another dataset, with the encoder frozen."""
    model = evaluator.model
    num_classes = model.opener.probe(name).num_classes
    part = lambda kind: model.features((images.PROBE, name, kind), kind)
    train, validation, test = part("train"), part("validation"), part("test")
    validation = guards.not_learned([train], validation)
    others = [part for part in (train, validation) if part]
    test, dropped = guards.without_duplicates(others, test, model.spec.duplicates)
    linear = fitting.fit_probe(train, validation, num_classes)
    neighbors = fit_neighbors(train, validation, num_classes)
    features, labels = fitting.probed(test)
    share = lambda predicted: float(np.mean(predicted == labels))
    return {
        "classes": num_classes,
        "n_train": len(train),
        "n_validation": len(validation or ()),
        "n_test": len(test),
        "duplicates": dropped,
        "linear_probe": {"accuracy": share(linear.logits(features).argmax(axis=1)), "l2": linear.l2},
        "knn": {"accuracy": share(neighbors.predict(features)), "k": neighbors.k},
    }
