"""Full-spectrum detection: images of the known classes under covariate shift count as known (`evaluate.shifted`)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradmix_jax.evaluation import guards, images
from gradmix_jax.evaluation.features import Features
from gradmix_jax.evaluation.fitting import Evaluator

Scores = Mapping[str, Mapping[str, np.ndarray]]


@dataclasses.dataclass
class Spectrum:
    """The known test images, and those of every shifted dataset scored so far.

    Attributes:
      wanted: names of the shifted datasets.
      scores: {feature: {score: score_N}} of each dataset, the known test images first.
      correct: whether each image is classified correctly by the headline's feature, in the same order.
    """

    wanted: tuple[str, ...]
    scores: list[Scores]
    correct: list[np.ndarray]

    def add(self, scores: Scores, correct_N: np.ndarray) -> None:
        self.scores.append(scores)
        self.correct.append(correct_N)

    @property
    def is_whole(self) -> bool:
        """Whether there are shifted datasets and all of them have been scored."""
        return bool(self.wanted) and len(self.scores) == 1 + len(self.wanted)

    @property
    def accuracy(self) -> float:
        return float(np.mean(np.concatenate(self.correct)))

    def joined(self) -> dict[str, dict[str, np.ndarray]]:
        """{feature: {score: score_N}} of all images together, of the scores that all of them have."""
        first, *others = self.scores
        return {
            feature: {
                score: np.concatenate([values, *(other[feature][score] for other in others)])
                for score, values in of_feature.items()
                if all(score in other.get(feature, {}) for other in others)
            }
            for feature, of_feature in first.items()
        }


def measure(
    evaluator: Evaluator, name: str, spectrum: Spectrum, *, selection: tuple[Features, ...], known: Features
) -> dict[str, Any]:
    """Score one dataset of `evaluate.shifted` and add it to the spectrum.

    Args:
      evaluator: the fitted scores.
      name: of the dataset.
      spectrum: the spectrum to extend.
      selection: features of the images used for training or selection.
      known: features of the known test images.

    Returns:
      {"n", "classes", "duplicates", "accuracy"}: of the headline's feature.

    Raises:
      ValueError: the dataset is missing, has no known class, or images with training, validation or the known test.
    """
    model = evaluator.model
    found = model.features((images.SHIFTED, name), name)
    guards.same_checkpoint(*selection, known, found)
    found, dropped = guards.without_duplicates((*selection, known), found, model.spec.duplicates)
    outputs = evaluator.complete(found.outputs)
    correct_N = evaluator.fitted.predict(model.spec.feature, outputs) == found.labels
    spectrum.add(evaluator.fitted.scores(outputs, constant=True), correct_N)
    classes = len(set(found.labels.tolist()))
    return {"n": len(found), "classes": classes, "duplicates": dropped, "accuracy": float(np.mean(correct_N))}
