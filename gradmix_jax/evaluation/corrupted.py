"""Accuracy, AUROC and OSCR on corrupted test images, with both sides corrupted alike."""

import os
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from gradmix_jax import corruptions, metrics, stored
from gradmix_jax import data as data_lib
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.evaluation import images, open_set
from gradmix_jax.evaluation.fitting import Evaluator
from gradmix_jax.evaluation.spec import Spec
from gradmix_jax.workdir import storage

METRICS = ("accuracy", "auroc", "oscr")
PLAIN = "none: the mean error itself"


def measure(
    evaluator: Evaluator, clean: dict[str, float], places: tuple[np.ndarray, np.ndarray], labels_N: np.ndarray
) -> dict[str, Any]:
    """The headline score under the corruptions of `evaluate.corruptions`, each at five severities.

    Args:
      evaluator: the fitted scores.
      clean: the headline's metrics on the clean images.
      places: positions in their sources of the known and the unknown test images used for these metrics.
      labels_N: labels of the known ones.

    Returns:
      {"source", "constants", "n", "results": {corruption: {"1" to "5": {METRICS}}}, "mean", "clean", "mce",
      "mce_reference"}; "constants" names the published set of strengths of regenerated images, else None.
      Known and unknown test images are corrupted by the same corruption and severity.

    Raises:
      ValueError: the corrupted images, or the results of the reference, are missing.
    """
    model = evaluator.model
    source = model.spec.corruptions
    reference, called = reference_errors(model.spec, model.data_spec)
    model.choose_places(places)
    results: dict[str, dict[str, dict[str, float]]] = {}
    all_names = [(name, severity) for name in corruptions.NAMES for severity in corruptions.SEVERITIES]
    for name, severity in tqdm(all_names, desc="corruptions"):
        outputs, _ = model.extract((images.CORRUPTED, name, severity))
        complete = evaluator.complete(outputs)
        known_N, unknown_M = np.split(evaluator.score(complete), [len(labels_N)])
        predicted_N = evaluator.predict(complete)[: len(labels_N)]
        found = open_set.threshold_free_metrics(known_N, unknown_M, predicted_N, labels_N)
        results.setdefault(name, {})[str(severity)] = {metric: found[metric] for metric in METRICS}
    return {
        "source": source,
        "constants": _constants(source, model.data_spec),
        "n": sum(map(len, places)),
        "results": results,
        "mean": {metric: float(np.mean(_table(results, metric))) for metric in METRICS},
        "clean": {metric: clean[metric] for metric in METRICS},
        "mce": metrics.mean_corruption_error(1 - _table(results, "accuracy"), reference),
        "mce_reference": called,
    }


def check(spec: Spec, data_spec: data_lib.Spec, data: data_lib.OpenSet) -> None:
    """Open every corrupted set of images of `evaluate.corruptions`, without decoding any.

    Raises:
      ValueError: one is missing, or has other classes, labels or numbers of images than the run's test images.
    """
    if spec.corruptions in ("none", "regenerated"):
        return
    for name in corruptions.NAMES:
        for severity in corruptions.SEVERITIES:
            sources = data_lib.corrupted(data_spec, data, spec.corruptions, name, severity)
            for source, clean in zip(sources, (data.test_known, data.test_unknown)):
                stored = clean.records.labels  # including images that are skipped because they cannot be read
                wanted = stored[np.isin(stored, clean.class_ids)]
                if not np.array_equal(np.sort(source.class_ids), np.sort(wanted)):
                    raise ValueError(
                        f"evaluate.corruptions must have the run's test images at every severity, but {name} of "
                        f"{spec.corruptions!r} has {len(source)} of the {len(wanted)} images, or other classes, at "
                        f"severity {severity}."
                    )


def reference_errors(spec: Spec, data_spec: data_lib.Spec) -> tuple[np.ndarray | None, str]:
    """(errors [C, S] of `evaluate.corruption_reference` to divide by, their name).

    Raises:
      ValueError: the reference has no such errors, or is of other data.
    """
    workdir, source = spec.corruption_reference, spec.corruptions
    if not workdir:
        return None, PLAIN
    before = stored.results(workdir)["corruptions"]
    if not before or before.get("source") != source:
        had = before.get("source", "unknown") if before else "none"
        raise ValueError(
            f"evaluate.corruption_reference must be a run evaluated with corruptions {source!r}, got {workdir!r}, "
            f"which was evaluated with {had!r}."
        )
    # Before there were two sets, all image sizes used CIFAR-10-C's.
    had_constants = before.get("constants", corruptions.CIFAR10_C if source == "regenerated" else None)
    wanted = _constants(source, data_spec)
    if had_constants != wanted:
        raise ValueError(
            f"evaluate.corruption_reference must be a run evaluated with the constants {wanted!r}, got "
            f"{workdir!r}, which was evaluated with {had_constants!r}; evaluate it again."
        )
    had = workdir_lib.read_json(workdir, workdir_lib.CONFIG).get("dataset")
    had = had if isinstance(had, dict) else {}
    for key in ("name", "benchmark", "trial"):
        if had.get(key) != getattr(data_spec, key):
            raise ValueError(
                f"evaluate.corruption_reference must be a run with dataset.{key} {getattr(data_spec, key)!r}, got "
                f"{workdir!r}, which has {had.get(key)!r}."
            )
    try:
        errors = 1 - _table(before["results"], "accuracy")
    except (KeyError, TypeError):  # a corruption is missing or has no accuracy
        raise ValueError(f"evaluate.corruption_reference {workdir!r} lacks corruptions; evaluate it again.") from None
    if not errors.sum(axis=1).all():
        raise ValueError(
            f"evaluate.corruption_reference {workdir!r} makes no error under some corruption, so there is nothing to "
            "divide by; use another run."
        )
    return errors, workdir if storage.is_remote(workdir) else os.path.normpath(workdir)


def _constants(source: str, data_spec: data_lib.Spec) -> str | None:
    return corruptions.published_set(data_spec.image_size) if source == "regenerated" else None


def _table(results: dict[str, Any], metric: str) -> np.ndarray:
    """[C, S] of one metric, in the order of `corruptions`."""
    return np.array([[results[c][str(s)][metric] for s in corruptions.SEVERITIES] for c in corruptions.NAMES])
