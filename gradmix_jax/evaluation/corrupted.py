"""Corrupted test images: accuracy on the known classes, and AUROC and OSCR where both sides are corrupted alike."""

import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm

from gradmix_jax import corruptions, metrics
from gradmix_jax import data as data_lib
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.evaluation import open_set
from gradmix_jax.evaluation.fitting import Evaluator, Model
from gradmix_jax.evaluation.spec import Spec

METRICS = ("accuracy", "auroc", "oscr")
PLAIN = "none: the mean error itself"


def evaluate(
    evaluator: Evaluator, clean: dict[str, float], places: tuple[np.ndarray, np.ndarray]
) -> dict[str, Any] | None:
    """The headline score under the corruptions of `evaluate.corruptions`, each at five severities.

    Args:
      evaluator: the fitted scores.
      clean: the headline's metrics on the images as they are.
      places: of the known and of the unknown test images that these metrics are of, in their sources.

    Returns:
      None for "none"; else {"source", "n", "results": {corruption: {"1" to "5": {METRICS}}}, "mean", "clean",
      "mce", "mce_reference"}. Known and unknown test images are corrupted by the same corruption and severity.

    Raises:
      ValueError: the corrupted images, or the results of the reference, are missing.
    """
    model = evaluator.model
    source = model.spec.corruptions
    if source == "none":
        return None
    reference, name = _reference(model.spec.corruption_reference, source, model.data_spec)
    results: dict[str, dict[str, dict[str, float]]] = {}
    total, bar = len(corruptions.NAMES) * len(corruptions.SEVERITIES), "corruptions"
    count = 0
    for corruption, severity, known, unknown, labels in tqdm(_images(model, source, places), total=total, desc=bar):
        outputs = [model.outputs(images) for images in (known, unknown)]
        scores = [evaluator.score(x) for x in outputs]
        found = open_set.threshold_free_metrics(*scores, evaluator.predict(outputs[0]), labels)
        results.setdefault(corruption, {})[str(severity)] = {name: found[name] for name in METRICS}
        count = len(known) + len(unknown)
    return {
        "source": source,
        "n": count,
        "results": results,
        "mean": {name: float(np.mean(_table(results, name))) for name in METRICS},
        "clean": {name: clean[name] for name in METRICS},
        "mce": metrics.mean_corruption_error(1 - _table(results, "accuracy"), reference),
        "mce_reference": name,
    }


def check_data(dataset: data_lib.Spec, spec: Spec) -> None:
    """Raises ValueError where the results of the reference, or the first of the corrupted images, are missing."""
    if spec.corruptions == "none":
        return
    _reference(spec.corruption_reference, spec.corruptions, dataset)
    if spec.corruptions != "regenerated":
        data = data_lib.open_set(dataset)
        data_lib.corrupted(dataset, data, spec.corruptions, corruptions.NAMES[0], corruptions.SEVERITIES[0])


def _table(results: dict[str, Any], name: str) -> np.ndarray:
    """[C, S] of one metric, in the order of `corruptions`."""
    return np.array([[results[c][str(s)][name] for s in corruptions.SEVERITIES] for c in corruptions.NAMES])


def _reference(workdir: str, source: str, dataset: data_lib.Spec) -> tuple[np.ndarray | None, str]:
    """Errors [C, S] to divide by, and what to call them."""
    if not workdir:
        return None, PLAIN
    before = workdir_lib.read_json(workdir, workdir_lib.RESULTS).get("corruptions")
    if not before or before["source"] != source:
        had = before["source"] if before else "none"
        raise ValueError(
            f"evaluate.corruption_reference is {workdir!r}, a run evaluated with corruptions {had!r}; allowed: one "
            f"evaluated with {source!r}."
        )
    had = workdir_lib.read_json(workdir, workdir_lib.CONFIG)["dataset"]
    for key in ("name", "benchmark", "trial"):
        if had[key] != getattr(dataset, key):
            raise ValueError(
                f"evaluate.corruption_reference is {workdir!r}, a run with dataset.{key} {had[key]!r}; allowed: one "
                f"with {getattr(dataset, key)!r}, as here."
            )
    errors = 1 - _table(before["results"], "accuracy")
    if not errors.sum(axis=1).all():
        raise ValueError(f"the run in {workdir} makes no mistake under some corruption; allowed: one to divide by.")
    return errors, os.path.normpath(workdir)


def _images(model: Model, source: str, places: tuple) -> Iterator[tuple[str, int, Any, Any, np.ndarray]]:
    """(corruption, severity, images of known classes, of unknown ones, labels of the former)."""
    data = model.data
    if source == "regenerated":
        parts = [part.take(at) for part, at in zip((data.test_known, data.test_unknown), places)]
        clean = [data_lib.read_all(part) for part in parts]
    for corruption in corruptions.NAMES:
        for severity in corruptions.SEVERITIES:
            if source == "regenerated":
                known, unknown = _corrupt(clean, corruption, severity)
                yield corruption, severity, known, unknown, parts[0].labels
            else:
                known, unknown = data_lib.corrupted(model.data_spec, data, source, corruption, severity, places)
                yield corruption, severity, known, unknown, known.labels


def _corrupt(clean: list[np.ndarray], corruption: str, severity: int) -> list[np.ndarray]:
    """Known and unknown images, corrupted with one key; unknown ones go on counting where known ones end."""
    # All severities share the key: the same noise, stronger.
    key = jax.random.fold_in(jax.random.key(0), corruptions.NAMES.index(corruption))
    together = np.concatenate(clean)
    parts = [
        np.asarray(corruptions.corrupt(key, block, name=corruption, severity=severity, first=first))
        for first, block in _blocks(together)
    ]
    return np.split(np.concatenate(parts)[: len(together)], [len(clean[0])])


def _blocks(images: np.ndarray, size: int = 500) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks of one size, so that one program is compiled; the last is padded with copies of the first images."""
    for first in range(0, len(images), size):
        block = images[first : first + size]
        yield first, np.concatenate([block, np.resize(images, (size - len(block), *images.shape[1:]))])
