"""Near and far out-of-distribution datasets against the known test images."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gradmix_jax.evaluation import guards, images, leaderboard, open_set
from gradmix_jax.evaluation.features import Features
from gradmix_jax.evaluation.fitting import Evaluator
from gradmix_jax.evaluation.shifted import Spectrum

Scores = Mapping[str, Mapping[str, np.ndarray]]


def detect(
    evaluator: Evaluator, name: str, *, selection: tuple[Features, ...], known: Features, spectrum: Spectrum
) -> dict[str, Any]:
    """Every score on one dataset of `evaluate.near` or `evaluate.far`.

    Args:
      evaluator: the fitted scores.
      name: of the dataset.
      selection: features of the training images and, if any, of the validation and negative images.
      known: features of the known test images.
      spectrum: the scores of these images and of all shifted datasets.

    Returns:
      {"n", "duplicates", "by_score": {feature: {score: metrics}}, "leaderboard"}, and "full_spectrum" as "by_score"
      if there are shifted datasets.

    Raises:
      ValueError: the dataset is missing, shares a class with the known ones, or images with training, validation or
        the known test.
    """
    model = evaluator.model
    unknown = model.features((images.OTHER, name), name)
    guards.same_checkpoint(*selection, known, unknown)
    for part in selection:
        guards.disjoint_classes(part, unknown)
    unknown, dropped = guards.without_duplicates((*selection, known), unknown, model.spec.duplicates)
    # Images of one kind, such as noise, may all get the same score.
    unknown_scores = evaluator.fitted.scores(evaluator.complete(unknown.outputs), constant=True)
    against = {leaderboard.OOD: spectrum.scores[0]}
    if spectrum.is_whole:
        against[leaderboard.FULL_SPECTRUM] = spectrum.joined()
    found = {name: metrics_of(known_scores, unknown_scores) for name, known_scores in against.items()}
    chosen = lambda scores: scores.get(model.spec.feature, {}).get(model.spec.score)
    unknown_M = chosen(unknown_scores)
    rows = {
        name: leaderboard.row(known_N, unknown_M)
        for name, known_N in ((name, chosen(each)) for name, each in against.items())
        if known_N is not None and unknown_M is not None
    }
    full = {"full_spectrum": found[leaderboard.FULL_SPECTRUM]} if spectrum.is_whole else {}
    counts = {"n": len(unknown), "duplicates": dropped}
    return {**counts, "by_score": found[leaderboard.OOD], **full, "leaderboard": rows}


def metrics_of(known_scores: Scores, unknown_scores: Scores) -> dict[str, dict[str, dict[str, float]]]:
    """{feature: {score: metrics}} of the scores that both sides have."""
    return {
        feature: {
            score: open_set.rejection_metrics(known_N, unknown_scores[feature][score])
            for score, known_N in of_feature.items()
            if score in unknown_scores[feature]
        }
        for feature, of_feature in known_scores.items()
        if feature in unknown_scores
    }
