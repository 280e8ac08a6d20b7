"""Known-or-unknown scores on the features or logits of a trained model; **higher = known**, always.

    state = scores.fit("knn", scores.Reference(train=Outputs(features), labels_N=labels, num_classes=6))
    score_N = scores.score("knn", state, Outputs(test_features))

A score learns from known classes only (`Reference`) and sees test images one by one: nothing of the test set
enters its statistics. A new score is one pair of functions and one entry of `SCORES`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.struct
import numpy as np

from gradmix_jax.fields import Key
from gradmix_jax.scores import classifier, distances, neighbours
from gradmix_jax.scores.distances import Meaningless, Unfit
from gradmix_jax.scores.neighbours import class_bank, class_similarities, topk_cosine

__all__ = ["SCORES", "Meaningless", "Outputs", "Reference", "Score", "Unfit", "fit", "score", "usable"]
__all__ += ["class_bank", "class_similarities", "topk_cosine"]


class Outputs(NamedTuple):
    """What a model gives for N images: features [N, F] (or projections [N, D]), and logits [N, K] or None.

    similarities: {k: sums_NxK} of `class_similarities` to the training features where they are known already.
    """

    features: Any
    logits: Any = None
    similarities: Any = None


@dataclass(frozen=True)
class Reference:
    """All that a score may learn from: known classes only.

    Attributes:
      train: outputs of the clean training images.    labels_N: their classes, 0 .. num_classes - 1.
      head: (kernel_FxK, bias_K) of the linear layer from `train.features` to the logits, or None.
      validation: outputs of held-out images of the known classes, or None.
    """

    train: Outputs
    labels_N: Any
    num_classes: int
    head: tuple[Any, Any] | None = None
    validation: Outputs | None = None

    def __post_init__(self):
        size = len(self.train.features)
        labels_N = neighbours.checked_labels(self.labels_N, num_features=size, num_classes=self.num_classes)
        object.__setattr__(self, "labels_N", labels_N)


class Score(NamedTuple):
    """fit(reference, **options) -> state, score(state, outputs) -> score_N; `needs` of `PARTS`; {option: Key}."""

    fit: Callable
    score: Callable
    needs: tuple[str, ...]
    options: dict[str, Key] = {}


# What a score may need -> how to find it in a `Reference`.
PARTS = {
    "features": lambda reference: reference.train.features,
    "logits": lambda reference: reference.train.logits,
    "head": lambda reference: reference.head,
    "validation": lambda reference: reference.validation,
}


MEMBERS = ("topk_cosine", "relative_mahalanobis")


@flax.struct.dataclass
class Ensemble:
    """Of MEMBERS: their states, and mean and spread of each over the validation images."""

    states: tuple
    mean_S: np.ndarray
    std_S: np.ndarray


def fit_ensemble(reference, *, fitted=None):
    """Fits the members and, on the validation images of the known classes, the mean and spread of each.

    fitted: {name: state} of scores that were fitted to the same reference before, to be used again.

    Validation and not training images, because a training image is its own nearest neighbour.
    """
    fitted = fitted or {}
    states = tuple(fitted[name] if name in fitted else fit(name, reference) for name in MEMBERS)
    scores_SxV = np.stack(
        [score(name, state, reference.validation) for name, state in zip(MEMBERS, states)], dtype=np.float64
    )
    std_S = scores_SxV.std(axis=1)
    if not np.all(std_S > 0):
        constant = [name for name, std in zip(MEMBERS, std_S) if not std > 0]
        raise Unfit(
            f"ensemble members must vary over the validation images, {constant} do not; allowed: more of these images, "
            "or another score."
        )
    return Ensemble(states, scores_SxV.mean(axis=1), std_S)


def score_ensemble(ensemble, outputs):
    """Mean of the members' scores after subtracting their validation mean and dividing by their spread."""
    scores_SxN = np.stack(
        [score(name, state, outputs) for name, state in zip(MEMBERS, ensemble.states)],
        dtype=np.float64,
    )
    return np.mean((scores_SxN - ensemble.mean_S[:, None]) / ensemble.std_S[:, None], axis=0)


_FEATURES, _LOGITS, _HEAD = ("features",), ("logits",), ("features", "head")
SCORES = {
    "topk_cosine": Score(neighbours.fit_topk, neighbours.score_topk, _FEATURES),
    "topk_cosine_normalized": Score(
        functools.partial(neighbours.fit_topk, normalized=True), neighbours.score_topk, _FEATURES
    ),
    "knn": Score(neighbours.fit_knn, neighbours.score_knn, _FEATURES),
    "class_mean_cosine": Score(distances.fit_class_mean_cosine, distances.score_class_mean_cosine, _FEATURES),
    "class_mean_l1": Score(distances.fit_class_mean_l1, distances.score_class_mean_l1, _FEATURES),
    "mahalanobis": Score(distances.fit_mahalanobis, distances.score_mahalanobis, _FEATURES),
    "mahalanobis_per_class": Score(distances.fit_mahalanobis_per_class, distances.score_mahalanobis, _FEATURES),
    "relative_mahalanobis": Score(distances.fit_relative_mahalanobis, distances.score_relative_mahalanobis, _FEATURES),
    "feature_norm": Score(distances.fit_feature_norm, distances.score_feature_norm, _FEATURES),
    "msp": Score(classifier.fit_nothing, classifier.score_msp, _LOGITS),
    "max_logit": Score(classifier.fit_nothing, classifier.score_max_logit, _LOGITS),
    "energy": Score(classifier.fit_nothing, classifier.score_energy, _LOGITS),
    "entropy": Score(classifier.fit_nothing, classifier.score_entropy, _LOGITS),
    "kl_matching": Score(classifier.fit_kl_matching, classifier.score_kl_matching, _LOGITS),
    "react": Score(classifier.fit_react, classifier.score_react, _HEAD),
    "vim": Score(classifier.fit_vim, classifier.score_vim, _HEAD),
    "ensemble": Score(fit_ensemble, score_ensemble, ("features", "validation")),
}


def _look_up(name):
    if name not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, got {name!r}")
    return SCORES[name]


def usable(reference):
    """Names of the scores for which the model gives all that they need."""
    return tuple(
        name for name, rule in SCORES.items() if all(PARTS[part](reference) is not None for part in rule.needs)
    )


def fit(name, reference, **options):
    """State of the score `name`, from known classes only. Raises ValueError for a missing name or part."""
    rule = _look_up(name)
    missing = [part for part in rule.needs if PARTS[part](reference) is None]
    if missing:
        raise ValueError(f"score {name!r} needs {' and '.join(missing)}, which this model does not give")
    return rule.fit(reference, **options)


def score(name, state, outputs):
    """score_N of the images, higher = known."""
    return _look_up(name).score(state, outputs)
