"""Makes a classifier from the workdir of a run, without its images if their features are cached."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from gradmix_jax import config as config_lib
from gradmix_jax import data as data_lib
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.config import Experiment, derive
from gradmix_jax.data import order, readers, splits
from gradmix_jax.data.source import BACKGROUNDS
from gradmix_jax.evaluation import cache, fitting, guards
from gradmix_jax.evaluation.features import Features
from gradmix_jax.evaluation.fitting import Evaluator
from gradmix_jax.fields import one_line
from gradmix_jax.portable import conformal, functions, gallery
from gradmix_jax.portable.classifier import Classifier
from gradmix_jax.scores import SCORES
from gradmix_jax.scores.fitted import LOGITS, PERTURBED
from gradmix_jax.scores.neighbors import TopK
from gradmix_jax.training import phases as phases_lib

FORMAT, VERSION = "gradmix_jax classifier", 1
KEEP = 0.95
RESIZE = (
    "apply the EXIF orientation; divide 16-bit gray by 256; lay transparent images on the background; convert to RGB, "
    "or to gray if channels is 1; resize to size x size pixels with Pillow's bilinear filter, aspect ratio not kept"
)
NEEDED = ("train", "validation", guards.NEGATIVE)


@dataclasses.dataclass(frozen=True)
class Reduction:
    """The part of the gallery of training features to keep.

    Attributes:
      per_class: features per class; None: all.
      rule: one of `gallery.RULES`.
      dtype: "float32" or "float16", as stored.
    """

    per_class: int | None = None
    rule: str = "k_center"
    dtype: str = "float32"


def load(workdir: str, reduction: Reduction | None = None) -> Classifier:
    """The classifier of a run's newest checkpoint and headline score.

    Features of the training and validation images come from the run's features.npz if it belongs to this checkpoint;
    otherwise the images themselves are needed.

    Raises:
      ValueError: no run or no checkpoint there, or neither cached features nor the dataset.
    """
    config = config_lib.read(workdir)
    left = derive.missing(config)
    if left:  # a run records what it derived
        path = workdir_lib.path(workdir, workdir_lib.CONFIG)
        raise ValueError(f"{path} is damaged: it has no value for {', '.join(left)}.")
    experiment = config_lib.from_config(config, num_devices=1)
    evaluator, parts = _restore(experiment, workdir)
    return classifier_of(experiment, evaluator, parts, workdir, reduction or Reduction())


def classifier_of(
    experiment: Experiment, evaluator: Evaluator, parts: Mapping[str, Features], workdir: str, reduction: Reduction
) -> Classifier:
    """The classifier of a fitted evaluator, with threshold and calibration from the validation images."""
    evaluator, rows_M, reduced = _reduce(evaluator, parts, reduction)
    made = functions.make(evaluator)
    classifier = Classifier(
        metadata=_describe(experiment, evaluator, made, parts, workdir) | {"gallery": reduced},
        weights=made.weights,
        arrays=made.arrays,
        model=jax.jit(made.model),
        score=jax.jit(made.score),
        explain=jax.jit(made.explain),
        **_gallery_rows(experiment, evaluator, parts["train"], rows_M),
    )
    if "validation" in parts:
        scores = np.sort(classifier.scores(evaluator.complete(parts["validation"].outputs))["score"])
        classifier.metadata["calibration_scores"] = scores.tolist()
        classifier.metadata["threshold"] = conformal.threshold(scores, keep=KEEP)
    return classifier


def unfinished(metadata: Mapping[str, Any]) -> str | None:
    """A warning if the training of a classifier is not finished, else None."""
    step, steps = metadata["step"], metadata["steps"]
    if step >= steps:
        return None
    return f"the run is unfinished: its newest checkpoint is of step {step} of {steps}."


def _restore(experiment: Experiment, workdir: str) -> tuple[Evaluator, dict[str, Features]]:
    cached = _cached(experiment, workdir)
    if cached is not None:
        return cached
    try:
        model = fitting.restore(experiment.setup, workdir)
        parts = fitting.compute_parts(model, workdir, NEEDED)
    except (ValueError, OSError) as error:
        if "checkpoint" in str(error):
            raise
        raise ValueError(
            f"{workdir} has no cached features of its newest checkpoint, and its dataset cannot be read "
            f"({str(error).rstrip('.')}); run `gradmix eval --config=... --workdir={workdir}` where the data is."
        ) from error
    return fitting.fit(model, parts, headline_only=True), parts


def _cached(experiment: Experiment, workdir: str) -> tuple[Evaluator, dict[str, Features]] | None:
    """Restore from features.npz; None if it is missing, of another checkpoint, or without the headline's feature."""
    parts = cache.load(workdir)
    if not parts or "train" not in parts:
        return None
    dataset = experiment.dataset.name
    names = _class_names(parts["train"], dataset)
    # A restored model needs only the names of the classes from its data.
    nothing = dict.fromkeys(("train", "validation", "test_known", "test_unknown"))
    trained = parts.get(guards.NEGATIVE)
    stored = names if trained is None else (*names, *_without(np.unique(trained.classes), dataset))
    known, negative = tuple(range(len(names))), tuple(range(len(names), len(stored)))
    split = splits.Split(known, (), dataset, dataset, negative)
    data = data_lib.OpenSet(**nothing, split=split, class_names=names, stored_names=stored)
    model = fitting.restore(experiment.setup, workdir, data=data)
    feature = experiment.evaluate.feature
    if parts["train"].checkpoint != model.checkpoint or feature not in {LOGITS, *parts["train"].outputs}:
        return None
    parts = {name: parts[name] for name in NEEDED if name in parts}
    if "validation" in parts:
        trained = [parts[name] for name in ("train", guards.NEGATIVE) if name in parts]
        parts["validation"] = guards.not_learned(trained, parts["validation"])
        parts = {name: part for name, part in parts.items() if part}
    return fitting.fit(model, parts, headline_only=True), parts


def _class_names(train: Features, dataset: str) -> tuple[str, ...]:
    """Names of the known classes in label order, without that of their dataset."""
    return _without(train.classes[np.unique(train.labels, return_index=True)[1]], dataset)


def _without(classes: np.ndarray, dataset: str) -> tuple[str, ...]:
    return tuple(name.removeprefix(f"{dataset}/") for name in classes.tolist())


def _reduce(
    evaluator: Evaluator, parts: Mapping[str, Features], reduction: Reduction
) -> tuple[Evaluator, np.ndarray, dict[str, Any] | None]:
    """(the evaluator with fewer training features, their rows in the training part, the effect of the reduction)."""
    spec, train = evaluator.model.spec, parts["train"]
    rows_M = np.arange(len(train))
    if spec.feature == LOGITS:
        return evaluator, rows_M, None
    before = evaluator.fitted.banks[spec.feature]
    after = before
    if reduction.per_class is not None:
        found = dict(num_classes=len(before.parts_KxQ), k=before.k, count=reduction.per_class, rule=reduction.rule)
        after, rows_M = gallery.reduced(train.outputs[spec.feature], train.labels, **found)
    if reduction.dtype == "float16":
        after = after.replace(features_PxLxD=after.features_PxLxD.astype(np.float16))
    described = {"features": len(rows_M), "of": len(train), "dtype": reduction.dtype, "rule": "all training features"}
    if after is before:
        return evaluator, rows_M, described
    if len(rows_M) < len(train):
        described["rule"] = gallery.RULES[reduction.rule][1]
    if "validation" in parts:
        held_out = parts["validation"]
        described["change"] = gallery.difference(before, after, held_out.outputs[spec.feature], held_out.labels)
    return _with_bank(evaluator, before, after), rows_M, described


def _with_bank(evaluator: Evaluator, before: gallery.Bank, after: gallery.Bank) -> Evaluator:
    """The evaluator with another gallery, also in a score of the same gallery."""
    spec, fitted = evaluator.model.spec, evaluator.fitted
    swap = lambda state: state._replace(bank=after) if isinstance(state, TopK) and state.bank is before else state
    states = {spec.feature: {spec.score: swap(fitted.states[spec.feature][spec.score])}}
    return dataclasses.replace(
        evaluator, fitted=dataclasses.replace(fitted, banks={spec.feature: after}, states=states)
    )


def _gallery_rows(experiment: Experiment, evaluator: Evaluator, train: Features, rows_M: np.ndarray) -> dict[str, Any]:
    """places_M and paths_M of a `Classifier`: class by class, as `gallery.rows_of` lists the features."""
    if evaluator.model.spec.feature == LOGITS:
        return {}
    places_M = train.places[rows_M[np.argsort(train.labels[rows_M], kind="stable")]]
    spec = experiment.dataset
    if not spec.name.startswith("folder:"):
        return {"places_M": places_M}
    try:
        source = data_lib.open_set(spec).train
    except (ValueError, OSError):  # the images are elsewhere, so they are named by position
        return {"places_M": places_M}
    root = os.path.expanduser(readers.located(spec, spec.name.removeprefix("folder:")))
    paths = [source.records.describe(int(source.indices[place])) for place in places_M]
    # An export holds them as lines of UTF-8.
    return {"places_M": places_M, "paths_M": [one_line(os.path.relpath(path, root)) for path in paths]}


def _describe(
    experiment: Experiment, evaluator: Evaluator, made: functions.Functions, parts: Mapping[str, Features], workdir: str
) -> dict[str, Any]:
    """The metadata of a classifier, except its gallery and calibration."""
    model, spec, dataset = evaluator.model, experiment.evaluate, experiment.dataset
    is_trained = any(phase.epochs for phase in experiment.phases)
    num_images = sum(len(parts[name]) for name in ("train", guards.NEGATIVE) if name in parts)
    per_epoch = order.steps_per_epoch(num_images, experiment.train.batch_size) if is_trained else 0
    commit, changed = workdir_lib.commit()
    inputs = ["features"] if spec.feature == LOGITS else [spec.feature]
    inputs += [LOGITS] if spec.feature == LOGITS and experiment.model.has_logits else []
    inputs += [PERTURBED] if PERTURBED in SCORES[spec.score].needs else []
    return {
        "format": FORMAT,
        "version": VERSION,
        "class_names": list(model.data.class_names),
        "image": {
            "size": dataset.image_size,
            "channels": dataset.channels,
            "dtype": "uint8",
            "resize": RESIZE,
            "background": dataset.background,
            "background_color": BACKGROUNDS[dataset.background],
        },
        "normalization": {"inside_model": True, **dataclasses.asdict(experiment.normalization)},
        "score": {
            "name": spec.score,
            "feature": spec.feature,
            "k": spec.k,
            "options": spec.options.get(spec.score, {}),
            "orientation": "higher means known",
            "inputs": inputs,
            "float64": made.double,
        },
        "threshold": None,
        "threshold_rule": (
            f"accept if (1 + number of calibration scores <= score) / (V + 1) > {1 - KEEP:.2f}: rejects at most "
            f"{100 * (1 - KEEP):.0f} % of known images in expectation over sets of V validation images"
        ),
        "calibration_scores": None,
        "step": int(model.step),
        "steps": phases_lib.total_steps(experiment.phases, per_epoch),
        "checkpoint": model.checkpoint,
        "commit": commit,
        "uncommitted_changes": changed,
        "packages": workdir_lib.environment()["packages"],
        "config": config_lib.read(workdir),
    }
