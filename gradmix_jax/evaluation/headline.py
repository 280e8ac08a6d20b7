"""Scores of images and the results for the headline score; pure functions of arrays.

Letters: N known test images, M unknown test images, V validation images, K known classes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradmix_jax.evaluation import open_set
from gradmix_jax.scores.fitted import Fitted

KNOWN, UNKNOWN, VALIDATION = "test_known", "test_unknown", "validation"


@dataclasses.dataclass(frozen=True)
class Scored:
    """Scores and predictions for parts of the data.

    Attributes:
      scores: {part: {feature or "logits": {score: score_N float32}}}; higher means known.
      predicted: {part: {feature or "logits": class_N}}.
    """

    scores: dict[str, dict[str, dict[str, np.ndarray]]]
    predicted: dict[str, dict[str, np.ndarray]]

    def of(self, part: str, feature: str, score: str) -> np.ndarray | None:
        """The scores of a part's images; None for a part that was not given."""
        return self.scores[part][feature][score] if part in self.scores else None


def score_parts(fitted: Fitted, outputs: Mapping[str, Mapping[str, np.ndarray]]) -> Scored:
    """Every score and prediction for parts of the data, given as {part: {name of an output: x_NxD}}.

    All images go through each score together, so each score compiles one program, whatever the sizes of the parts.
    """
    names = list(outputs)
    together = {name: np.concatenate([outputs[part][name] for part in names]) for name in outputs[names[0]]}
    ends = np.cumsum([len(next(iter(outputs[part].values()))) for part in names])[:-1]
    scored = Scored({part: {} for part in names}, {part: {} for part in names})
    for feature, by_score in fitted.scores(together).items():
        for part, values in zip(names, np.split(fitted.predict(feature, together), ends)):
            scored.predicted[part][feature] = values
        for score, values in by_score.items():
            for part, of_part in zip(names, np.split(values, ends)):
                scored.scores[part].setdefault(feature, {})[score] = of_part
    return scored


@dataclasses.dataclass(frozen=True)
class Truth:
    """Ground truth about the test images.

    Attributes:
      labels_N: classes of the known ones, 0..K-1; None if they are unknown, so there is no accuracy.
      classes_N, classes_M: names of the classes of the known and the unknown ones.
      class_names: names of the K known classes, in label order.
      groups: {group: names of its unknown classes}, which are reported separately.
    """

    labels_N: np.ndarray | None
    classes_N: np.ndarray
    classes_M: np.ndarray
    class_names: Sequence[str]
    groups: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)


def results(scored: Scored, truth: Truth, *, feature: str, score: str) -> dict[str, Any]:
    """Metrics of every score, and everything about the headline score.

    Args:
      scored: the parts KNOWN, UNKNOWN and, to set the threshold, VALIDATION.
      truth: ground truth about their images.
      feature, score: those of the headline.

    Returns:
      The metrics of the headline, "by_score" {feature: {score: metrics}}, "by_feature" (the headline's score),
      "intervals", "per_class", "per_unknown_class", "confusion", "feature", "score_name", and, if the unknown classes
      are in groups, "per_unknown_group": "classes", "n", the metrics of the headline, "by_score". Without labels, there
      is no accuracy, OSCR, macro-F1, interval, confusion matrix or per-class number.
    """
    by_score = {
        each: {name: _metrics(scored, truth, each, name) for name in names}
        for each, names in scored.scores[KNOWN].items()
    }
    found = {
        **by_score[feature][score],
        "feature": feature,
        "score_name": score,
        "by_feature": {each: values[score] for each, values in by_score.items() if score in values},
        "by_score": by_score,
    }
    if truth.groups:
        found["per_unknown_group"] = {
            name: _group(scored, truth, np.isin(truth.classes_M, list(classes)), feature, score)
            for name, classes in truth.groups.items()
        }
    return found if truth.labels_N is None else found | _labeled(scored, truth, feature, score)


def _group(scored: Scored, truth: Truth, chosen_M: np.ndarray, feature: str, score: str) -> dict[str, Any]:
    """Every score, for all known images against the unknown ones of one group."""
    classes = len(set(truth.classes_M[chosen_M].tolist()))
    if not classes:  # all of its images were dropped
        return {"classes": 0, "n": 0, "by_score": {}}
    unknown = {
        each: {name: values[chosen_M] for name, values in by_score.items()}
        for each, by_score in scored.scores[UNKNOWN].items()
    }
    part = dataclasses.replace(scored, scores={**scored.scores, UNKNOWN: unknown})
    by_score = {
        each: {name: _metrics(part, truth, each, name) for name in names}
        for each, names in scored.scores[KNOWN].items()
    }
    return {"classes": classes, "n": int(chosen_M.sum()), **by_score[feature][score], "by_score": by_score}


def _metrics(scored: Scored, truth: Truth, feature: str, score: str) -> dict[str, float]:
    sides = [scored.of(part, feature, score) for part in (KNOWN, UNKNOWN)]
    if truth.labels_N is None:
        return open_set.rejection_metrics(*sides)
    return open_set.threshold_free_metrics(*sides, scored.predicted[KNOWN][feature], truth.labels_N)


def judged(scored: Scored, feature: str, score: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(known_N, unknown_M, predicted_N, predicted_M) of one score."""
    known_N, unknown_M = (scored.of(part, feature, score) for part in (KNOWN, UNKNOWN))
    return known_N, unknown_M, scored.predicted[KNOWN][feature], scored.predicted[UNKNOWN][feature]


def _labeled(scored: Scored, truth: Truth, feature: str, score: str) -> dict[str, Any]:
    arrays = judged(scored, feature, score)
    known_N, unknown_M, predicted_N, _ = arrays
    correct_N = predicted_N == truth.labels_N
    names = {"classes_N": truth.classes_N, "classes_M": truth.classes_M}
    validation_V = scored.of(VALIDATION, feature, score)
    at_threshold = open_set.threshold_metrics(
        *arrays, truth.labels_N, validation_V=validation_V, num_classes=len(truth.class_names)
    )
    of_known, of_unknown = open_set.per_class(known_N, unknown_M, correct_N, **names)
    threshold = at_threshold["threshold"]
    return {
        **at_threshold,
        "intervals": open_set.intervals(known_N, unknown_M, correct_N),
        "per_class": of_known,
        "per_unknown_class": of_unknown,
        "confusion": open_set.confusion(*arrays, **names, known_names=tuple(truth.class_names), threshold=threshold),
    }


def arrays(scored: Scored, truth: Truth, *, feature: str, score: str) -> dict[str, np.ndarray]:
    """The content of scores.npz: the headline's arrays, and "<feature>/<score>/<known or unknown>" for every score.

    "unknown_classes" index the sorted names of the unknown classes, which are the keys of "per_unknown_class".
    """
    known_N, unknown_M, predicted_N, predicted_M = judged(scored, feature, score)
    found = {"known_scores": known_N, "unknown_scores": unknown_M, "predicted": predicted_N}
    found |= {"predicted_unknown": predicted_M}
    if truth.labels_N is not None:
        places_M = np.unique(truth.classes_M, return_inverse=True)[1].astype(np.int32)
        found |= {"labels": truth.labels_N, "unknown_classes": places_M}
    for side, part in (("known", KNOWN), ("unknown", UNKNOWN)):
        for each, by_score in scored.scores[part].items():
            found |= {f"{each}/{name}/{side}": values for name, values in by_score.items()}
    return found


def fewer_images_than(k: int, labels_N: np.ndarray, class_names: Sequence[str], *, key: str = "evaluate.k") -> str:
    """What is to be said of classes with fewer than k training images, in one line; "" if there are none."""
    size_K = np.bincount(labels_N, minlength=len(class_names))
    few = int((size_K < k).sum())
    if not few:
        return ""
    name, least = class_names[size_K.argmin()], size_K.min()
    return (
        f"{few} of {len(class_names)} classes have fewer than {k} training images ({name} has {least}): their scores "
        f"are sums over those, and so lower; {key} should be at most {least}."
    )
