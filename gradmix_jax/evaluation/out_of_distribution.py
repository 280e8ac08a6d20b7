"""Images of no known kind: near and far data sets against the known test images."""

from collections.abc import Mapping
from typing import Any

from gradmix_jax import data as data_lib
from gradmix_jax.evaluation import guards, open_set
from gradmix_jax.evaluation.features import Features
from gradmix_jax.evaluation.fitting import Evaluator


def evaluate(evaluator: Evaluator, selection: tuple[Features, ...], known: Features) -> dict[str, Any]:
    """Every score on every data set of `evaluate.near` and `evaluate.far`.

    Args:
      evaluator: the fitted scores.
      selection: features of the training images and, where there are such, of the validation images.
      known: features of the known test images.

    Returns:
      {"near": {data set: {"n", "by_score": {feature: {score: metrics}}}}, "far": likewise}.

    Raises:
      ValueError: a data set is missing, shares a class with the known ones, or images with training, validation or the
        known test.
    """
    spec = evaluator.model.spec
    known_scores = (
        evaluator.fitted.scores(evaluator.complete(known.outputs), constant=True) if spec.near or spec.far else {}
    )
    return {
        kind: {name: _one(evaluator, name, selection, known, known_scores) for name in getattr(spec, kind)}
        for kind in ("near", "far")
    }


def _one(evaluator: Evaluator, name: str, selection: tuple, known: Features, known_scores: Mapping) -> dict[str, Any]:
    model = evaluator.model
    unknown = model.features(name, data_lib.out_of_distribution(model.data_spec, name))
    guards.same_checkpoint(*selection, known, unknown)
    guards.disjoint_classes(selection[0], unknown)
    unknown, dropped = guards.without_duplicates((*selection, known), unknown, model.spec.duplicates)
    # Images of one kind, such as noise, may all get the same score.
    unknown_scores = evaluator.fitted.scores(evaluator.complete(unknown.outputs), constant=True)
    by_score = {
        feature: {
            score: open_set.rejection_metrics(known_N, unknown_scores[feature][score])
            for score, known_N in of_feature.items()
            if score in unknown_scores[feature]
        }
        for feature, of_feature in known_scores.items()
    }
    return {"n": len(unknown), "duplicates": dropped, "by_score": by_score}
