"""Evaluate a checkpoint: features -> scores -> metrics."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradmix_jax import data as data_lib
from gradmix_jax import metrics
from gradmix_jax.evaluation import corrupted, fitting, guards, open_set, out_of_distribution, probes
from gradmix_jax.evaluation.features import Features
from gradmix_jax.evaluation.fitting import Evaluator
from gradmix_jax.evaluation.spec import Setup, Spec
from gradmix_jax.metrics import diversity
from gradmix_jax.scores.fitted import LOGITS


def evaluate(setup: Setup, workdir: str) -> dict[str, Any]:
    """Evaluate the newest checkpoint of a run; see `run.evaluate`, which takes a config."""
    started = time.perf_counter()
    model = fitting.restore(setup, workdir)
    parts = fitting.compute_parts(model, workdir)
    parts, dropped = _guarded(parts, model.spec.duplicates)
    dropped["validation"] = len(model.data.validation) - len(parts.get("validation", ()))
    evaluator = fitting.fit(model, {name: parts[name] for name in ("train", "validation") if name in parts})
    scored = _score(evaluator, parts)
    places = tuple(parts[f"test_{side}"].places for side in _SIDES)
    headline = _headline(evaluator, scored, parts)
    return {
        **headline,
        "step": model.step,
        "checkpoint": model.checkpoint,
        "trial": model.data_spec.trial,
        "known_classes": list(model.data.class_names),
        "openness": metrics.openness(*_openness_of(model.data)),
        "num_train": len(parts["train"]),
        "num_known": len(parts["test_known"]),
        "num_unknown": len(parts["test_unknown"]),
        "duplicates": dropped,
        "logits_from": "linear probe" if LOGITS not in parts["train"].outputs else "classifier head",
        "closed_set": _closed_set(evaluator, parts, scored["predicted"]["test_known"].get("features")),
        "diversity": _diversity(evaluator, parts["train"]),
        "ood": out_of_distribution.evaluate(evaluator, guards.of_selection(parts), parts["test_known"]),
        "corruptions": corrupted.evaluate(evaluator, headline, places),
        "probes": {name: _probe(evaluator, name) for name in model.spec.probes},
        "seconds": round(time.perf_counter() - started, 3),
    }


def check_data(dataset: data_lib.Spec, spec: Spec) -> None:
    """Open what an evaluation will want besides the run's own data: something missing is better found before training.

    Args:
      dataset: the `dataset` section of the run.
      spec: the `evaluate` section.

    Raises:
      ValueError: a data set, or the results of the reference, is missing or does not fit.
    """
    others = {name: data_lib.out_of_distribution(dataset, name) for name in (*spec.near, *spec.far)}
    if others:
        known_N = data_lib.open_set(dataset).train.classes
        for name, source in others.items():
            guards.disjoint_names("train", known_N, name, source.classes)
    for name in spec.probes:
        data_lib.labelled(dataset, name)
    corrupted.check_data(dataset, spec)


def _openness_of(data: data_lib.OpenSet) -> tuple[int, int, int]:
    """Numbers of classes: in training, in the test, to be recognized."""
    return data.num_classes, data.num_classes + len(data.split.unknown), data.num_classes


def _guarded(parts: dict[str, Features], policy: str) -> tuple[dict[str, Features], dict[str, int]]:
    """The parts without test images that are in training or validation, or on both sides, and how many there were."""
    guards.same_checkpoint(*parts.values())
    guards.disjoint_classes(parts["train"], parts["test_unknown"])
    others, parts, dropped = guards.of_selection(parts), dict(parts), {}
    for side in _SIDES:
        name = f"test_{side}"
        parts[name], dropped[side] = guards.without_duplicates(others, parts[name], policy)
        others = *others, parts[name]
    return parts, dropped


_SIDES = ("known", "unknown")
_SCORED = ("validation", "test_known", "test_unknown")


def _score(evaluator: Evaluator, parts: Mapping[str, Features]) -> dict[str, dict[str, Any]]:
    """{"scores": {part: {feature: {score: score_N}}}, "predicted": {part: {feature: class_N}}}.

    All images go through each score together: one program a score, whatever the sizes of the parts.
    """
    names = [name for name in _SCORED if name in parts]
    outputs = [evaluator.complete(parts[name].outputs) for name in names]
    together = {name: np.concatenate([x[name] for x in outputs]) for name in outputs[0]}
    ends = np.cumsum([len(parts[name]) for name in names])[:-1]
    split = lambda values: dict(zip(names, np.split(values, ends)))
    found: dict[str, dict[str, Any]] = {"scores": {}, "predicted": {}}
    for feature, by_score in evaluator.fitted.scores(together).items():
        for part, values in split(evaluator.fitted.predict(feature, together)).items():
            found["predicted"].setdefault(part, {})[feature] = values
        for score, values in by_score.items():
            for part, of_part in split(values).items():
                found["scores"].setdefault(part, {}).setdefault(feature, {})[score] = of_part
    return found


def _headline(evaluator: Evaluator, scored: Mapping[str, Any], parts: Mapping[str, Features]) -> dict[str, Any]:
    """Everything about the known and unknown test images of the run."""
    spec, known, unknown = evaluator.model.spec, parts["test_known"], parts["test_unknown"]
    of = lambda part, feature, score: scored["scores"][part][feature][score]
    predicted = lambda part, feature=spec.feature: scored["predicted"][part][feature]
    every = scored["scores"]["test_known"]
    by_score = {
        feature: {
            score: open_set.threshold_free_metrics(
                of("test_known", feature, score),
                of("test_unknown", feature, score),
                predicted("test_known", feature),
                known.labels,
            )
            for score in every[feature]
        }
        for feature in every
    }
    known_N, unknown_M = (of(part, spec.feature, spec.score) for part in ("test_known", "test_unknown"))
    judged = known_N, unknown_M, predicted("test_known"), predicted("test_unknown")
    correct_N = judged[2] == known.labels
    validation_V = of("validation", spec.feature, spec.score) if "validation" in parts else None
    at_threshold = open_set.threshold_metrics(
        *judged, known.labels, validation_V=validation_V, num_classes=evaluator.model.data.num_classes
    )
    names = {"classes_N": _bare(known.classes), "classes_M": _bare(unknown.classes)}
    of_known, of_unknown = open_set.per_class(known_N, unknown_M, correct_N, **names)
    threshold = at_threshold["threshold"]
    return {
        **by_score[spec.feature][spec.score],
        **at_threshold,
        "score": f"{_describe(spec)}; higher means known",
        "feature": spec.feature,
        "score_name": spec.score,
        "by_feature": {feature: values[spec.score] for feature, values in by_score.items() if spec.score in values},
        "by_score": by_score,
        "left_out": evaluator.fitted.left_out,
        "intervals": open_set.intervals(known_N, unknown_M, correct_N),
        "per_class": of_known,
        "per_unknown_class": of_unknown,
        "confusion": open_set.confusion(
            *judged, **names, known_names=evaluator.model.data.class_names, threshold=threshold
        ),
        "arrays": _arrays(scored, judged, known.labels),
        "gallery": _gallery(evaluator, parts, judged, correct_N),
    }


def _describe(spec: Spec) -> str:
    if spec.score == "topk_cosine":
        return f"sum of the {spec.k} largest cosine similarities to a class ({spec.feature})"
    return f"{spec.score} ({spec.feature})"


def _bare(classes: np.ndarray) -> np.ndarray:
    """Names of classes without that of their data set."""
    return np.array([name.rpartition("/")[2] for name in classes.tolist()])


def _arrays(scored: Mapping[str, Any], judged: tuple, labels: np.ndarray) -> dict[str, np.ndarray]:
    """What scores.npz holds: the headline's arrays, and the scores by each feature and score."""
    arrays = dict(known_scores=judged[0], unknown_scores=judged[1], predicted=judged[2], labels=labels)
    for side in _SIDES:
        for feature, by_score in scored["scores"][f"test_{side}"].items():
            arrays |= {f"{feature}/{score}/{side}": values for score, values in by_score.items()}
    return arrays


def _gallery(evaluator, parts, judged, correct_N) -> dict[str, np.ndarray]:
    """Images of the clearest mistakes, with their scores, classes and predictions."""
    data, gallery = evaluator.model.data, {}
    scores, predicted = dict(zip(_SIDES, judged[:2])), dict(zip(_SIDES, judged[2:]))
    names = np.array(data.class_names)
    for kind, (side, places) in open_set.gallery_places(*judged[:2], correct_N).items():
        part, source = parts[f"test_{side}"], getattr(data, f"test_{side}")
        shape = (0, source.image_size, source.image_size, source.channels)
        images = np.array([source[int(i)] for i in part.places[places]], np.uint8)
        gallery |= {
            f"{kind}/images": images if len(images) else np.zeros(shape, np.uint8),
            f"{kind}/scores": scores[side][places],
            f"{kind}/truth": _bare(part.classes[places]),
            f"{kind}/predicted": names[predicted[side][places]],
        }
    return gallery


def _closed_set(evaluator: Evaluator, parts: Mapping[str, Features], nearest_N: np.ndarray | None) -> dict[str, Any]:
    """How well the known classes are told apart, by neighbours (`nearest_N`: classes by the top-k cosine similarity
    of features, whatever the headline looks at; None: not asked for), a linear probe and the classifier head."""
    known, num_classes = parts["test_known"], evaluator.model.data.num_classes
    neighbours = _fit_neighbours(parts["train"], parts.get("validation"), num_classes)
    features, labels = fitting.probed(known)
    has_head = LOGITS in known.outputs
    return {
        "topk_cosine": None if nearest_N is None else {"accuracy": float(np.mean(nearest_N == labels))},
        "knn": {"accuracy": float(np.mean(neighbours.predict(features) == labels)), "k": neighbours.k},
        "linear_probe": open_set.classifier_metrics(evaluator.linear.logits(features), labels)
        | {"l2": evaluator.linear.l2},
        "head": open_set.classifier_metrics(known.outputs[LOGITS], labels) if has_head else None,
    }


def _fit_neighbours(train: Features, validation: Features | None, num_classes: int) -> probes.Neighbors:
    fit_on, choose_with = fitting.choosing(train, validation)
    chosen = probes.neighbors(*map(fitting.probed, (fit_on, choose_with)), num_classes=num_classes)
    if validation is None:
        whole = fitting.probed(train)
        return probes.neighbors(whole, whole, num_classes=num_classes, ks=(chosen.k,))
    return chosen


def _diversity(evaluator: Evaluator, train: Features) -> dict[str, Any]:
    """Effective rank of the training features, and the intrinsic dimension of each class in them, None if undefined."""
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
        for feature in evaluator.model.spec.features
    }


def _probe(evaluator: Evaluator, name: str) -> dict[str, Any]:
    """The frozen encoder on all classes of another data set: linear probe and neighbours."""
    model = evaluator.model
    data = data_lib.labelled(model.data_spec, name)
    part = lambda kind: model.features(kind, getattr(data, kind))
    train, validation, test = part("train"), part("validation"), part("test")
    validation = guards.not_learned(train, validation)
    others = [part for part in (train, validation) if part]
    test, dropped = guards.without_duplicates(others, test, model.spec.duplicates)
    linear = fitting.fit_probe(train, validation, data.num_classes)
    neighbours = _fit_neighbours(train, validation, data.num_classes)
    features, labels = fitting.probed(test)
    share = lambda predicted: float(np.mean(predicted == labels))
    return {
        "classes": data.num_classes,
        "n_train": len(train),
        "n_validation": len(validation or ()),
        "n_test": len(test),
        "duplicates": dropped,
        "linear_probe": {"accuracy": share(linear.logits(features).argmax(axis=1)), "l2": linear.l2},
        "knn": {"accuracy": share(neighbours.predict(features)), "k": neighbours.k},
    }
