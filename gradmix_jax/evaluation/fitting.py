"""Restore a checkpoint and fit its scores and probes.

Letters: N images, K known classes, F feature.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from gradmix_jax import data as data_lib
from gradmix_jax import models
from gradmix_jax.evaluation import cache, features, guards, probes, processes, weights
from gradmix_jax.evaluation import images as images_lib
from gradmix_jax.evaluation.features import Features
from gradmix_jax.evaluation.spec import Setup, Spec, check_fits
from gradmix_jax.scores import fitted as fitted_lib
from gradmix_jax.scores.fitted import FAILURES, LOGITS, Fitted
from gradmix_jax.training import mapping

PARTS = ("train", "validation", "test_known", "test_unknown", guards.NEGATIVE)
# Share of the training images that chooses the probes' settings if no image is held out from training.
CHOOSING_SHARE = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A checkpoint that turns images into features.

    Attributes:
      setup: the sections of the run's config.
      data: the open set data of the run.
      step: step of the checkpoint.
      checkpoint: its fingerprint.
      function: from `features.make_feature_function`.
      variables: those of the model, on the local devices.
      opener: opens the images of the evaluation.
      team: the processes that share the extraction.
      random: names of outputs that are not scored, see `weights.restored`.
    """

    setup: Setup
    data: data_lib.OpenSet
    step: int
    checkpoint: str
    function: Any
    variables: Any
    opener: images_lib.Opener
    team: processes.Team
    random: tuple[str, ...] = ()

    @property
    def spec(self) -> Spec:
        return self.setup.evaluate

    @property
    def scored_features(self) -> tuple[str, ...]:
        """Names of the features that images are scored by."""
        return tuple(name for name in self.spec.features if name not in self.random)

    @property
    def data_spec(self) -> data_lib.Spec:
        return self.setup.dataset

    def outputs(self, images: features.Images) -> dict[str, np.ndarray]:
        """{name of an output: x_NxD} for a source or array uint8 [N, H, W, C], computed by this process alone."""
        options = dict(batch_size=self.spec.batch_size, hashed=False)
        return features.extract(self.function, self.variables, images, **options)[0]

    def extract(self, name: tuple, *, hashed: bool = False, progress: str | None = None) -> tuple[dict, Any]:
        """({name of an output: x_NxD}, hashes_N or None) of the images that `images.Opener` calls `name`.

        Each process of a pod extracts a share of the images. The main process calls this method; the others take part
        through `serve`, where the arrays are None.

        Raises:
          ValueError: images cannot be read on one of the processes.
        """
        team = self.team
        if team.is_main:
            team.send("extract", name=name, hashed=hashed)

        def extract_share():
            images, size = self.opener.share(tuple(name), team.index, team.count)
            options = dict(batch_size=self.spec.batch_size, hashed=hashed, progress=progress)
            return features.extract(self.function, self.variables, images, **options), size

        (outputs, hashes), size = processes.together(team, extract_share)
        outputs = {output: team.gather(x_NxD, size) for output, x_NxD in sorted(outputs.items())}
        return outputs, None if hashes is None else team.gather(hashes, size)

    def features(self, name: tuple, part: str) -> Features:
        """The outputs of the images that `images.Opener` calls `name`, with their labels, classes and hashes."""
        outputs, hashes = self.extract(name, hashed=True, progress=f"features, {part}")
        source = self.opener.share(name)[0]
        rows = dict(labels=source.labels, classes=source.classes, hashes=hashes, places=np.arange(len(source)))
        return Features(part, self.checkpoint, outputs, **rows, dataset=source.dataset)

    def choose_places(self, places: tuple[np.ndarray, np.ndarray]) -> None:
        """Set the positions of the known and unknown test images to corrupt, on all processes."""
        self.team.send("places", places=[each.tolist() for each in places])
        self.opener.places = places


def restore(setup: Setup, workdir: str, *, data: data_lib.OpenSet | None = None) -> Model:
    """Restore the newest checkpoint of a run or, without one, the weights of `model.init_from`.

    The other processes of a pod get the weights from this one, see `serve`.

    Args:
      setup: sections of the run's config.
      workdir: the run's directory.
      data: the run's data, if already open.

    Raises:
      ValueError: there is neither, or the config does not fit the data or the checkpoint.
    """
    check_fits(setup.evaluate, setup.dataset, setup.model)
    data = data_lib.open_set(setup.dataset) if data is None else data
    model = models.create(setup.model, num_classes=data.num_classes)
    step, variables, random = weights.restored(setup, model, workdir, data=data)
    if setup.evaluate.feature in random:
        raise ValueError(
            f"evaluate.feature={setup.evaluate.feature!r} is the output of a head that {setup.model.init_from} lacks; "
            "train it, or score features or logits."
        )
    team = processes.Team()
    team.send("model", step=step)
    return dataclasses.replace(_make_model(setup, data, model, step, variables, team), random=random)


def serve(setup: Setup, data: data_lib.OpenSet) -> None:
    """Take part in the extraction of features that the main process directs, until it is done.

    Raises:
      ValueError: the evaluation failed on the main process.
      RuntimeError: the main process has sent nothing for `pod.agreement.WAIT` seconds.
    """
    team, model = processes.Team(), None
    while True:
        kind, content = team.receive()
        if kind == "stop":
            if content["problem"]:
                raise ValueError(content["problem"])
            return
        if kind == "model":
            net = models.create(setup.model, num_classes=data.num_classes)
            zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), weights.template(net, setup.dataset))
            model = _make_model(setup, data, net, content["step"], zeros, team)
        elif kind == "places":
            model.opener.places = tuple(np.array(each, int) for each in content["places"])
        else:
            with contextlib.suppress(ValueError):  # the main process knows and reports it
                model.extract(content["name"], hashed=content["hashed"])


def _make_model(setup, data, model, step, variables, team) -> Model:
    variables = jax.device_get(mapping.broadcast(variables))
    mean, std = setup.normalization.mean, setup.normalization.std
    spec = setup.evaluate
    function = features.make_feature_function(
        model, mean=mean, std=std, stages=spec.stages, perturbation=spec.perturbation
    )
    checkpoint, opener = features.fingerprint(variables), images_lib.Opener(setup, data)
    return Model(setup, data, step, checkpoint, function, features.on_devices(variables), opener, team)


def compute_parts(model: Model, workdir: str, names: tuple[str, ...] = PARTS) -> dict[str, Features]:
    """Features of the named PARTS: from the run's features.npz, or computed, and cached if all parts are named.

    A part without images is left out, as are validation images that training has too.
    """
    sources = {name: getattr(model.data, name) for name in PARTS if getattr(model.data, name) is not None}
    key = cache.key_of(model.checkpoint, model.setup, sources)
    parts = cache.load(workdir, key)
    if parts is None:
        parts = {name: model.features((images_lib.RUN, name), name) for name in names if len(sources.get(name, ()))}
        if names == PARTS:
            cache.save(workdir, parts, key)
    # Older files name classes "dataset/class".
    names_of = lambda part: dict(classes=sources[part].classes, dataset=sources[part].dataset)
    parts = {part: dataclasses.replace(found, **names_of(part)) for part, found in parts.items()}
    if "validation" in parts:
        trained = [parts[name] for name in ("train", guards.NEGATIVE) if name in parts]
        parts["validation"] = guards.not_learned(trained, parts["validation"])
    return {name: part for name, part in parts.items() if name in names and part}


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
    """Scores and probe fitted to training and validation images.

    Attributes:
      model: the checkpoint.
      fitted: the scores.
      linear: the linear probe on the encoder's features; None if it was not requested or could not be fitted.
      problem: why it could not be fitted.
    """

    model: Model
    fitted: Fitted
    linear: probes.Linear | None
    problem: str | None = None

    def complete(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs and, if the model has no classifier head, the logits of the linear probe."""
        return _complete(outputs, self.linear)

    def score(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """score_N by feature and score of the spec; higher means known."""
        spec = self.model.spec
        return self.fitted.score(spec.feature, spec.score, self.complete(outputs))

    def predict(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """class_N by the feature of the spec."""
        return self.fitted.predict(self.model.spec.feature, self.complete(outputs))


def fit(model: Model, parts: Mapping[str, Features], *, headline_only: bool = False) -> Evaluator:
    """Learn from the training and validation images.

    Args:
      model: the checkpoint.
      parts: "train" and, if there are validation images, "validation".
      headline_only: fit only the score and the feature named in the spec.

    Raises:
      ValueError: the parts are of different checkpoints.
    """
    spec, train, validation = model.spec, parts["train"], parts.get("validation")
    guards.same_checkpoint(*parts.values())
    linear, problem, has_logits = None, None, LOGITS in train.outputs
    is_headline = spec.feature == LOGITS and not has_logits
    needs_logits = not has_logits and any(map(fitted_lib.works_on_logits, spec.all_scores))
    if is_headline if headline_only else (needs_logits or "closed_set" in spec.parts):
        try:
            linear = fit_probe(train, validation, model.data.num_classes)
        except FAILURES as error:
            if is_headline:
                raise
            problem = f"the linear probe cannot be fitted: {error}"
    scored = model.scored_features if not headline_only else tuple({spec.feature} - {LOGITS})
    fitted = fitted_lib.fit_all(
        _complete(train.outputs, linear),
        train.labels,
        num_classes=model.data.num_classes,
        features=scored,
        names=(spec.score,) if headline_only else spec.all_scores,
        k=spec.k,
        options=spec.options,
        head=_head(model, train, linear),
        validation=_complete(validation.outputs, linear) if validation else None,
        required=(spec.feature, spec.score),
    )
    return Evaluator(model, fitted, linear, problem)


def choosing(train: Features, validation: Features | None) -> tuple[Features, Features]:
    """(to fit on, to choose with): training and validation images, or two parts of the training images."""
    if validation is None:
        held_out = data_lib.stratified(train.labels, CHOOSING_SHARE, seed=0)
        train, held_out = train.take(~held_out), train.take(held_out)
        validation = guards.not_learned([train], held_out) or held_out
    guards.for_selection(train, validation)
    return train, validation


def fit_probe(train: Features, validation: Features | None, num_classes: int) -> probes.Linear:
    """The linear probe of the encoder's features, fitted on all of `train`."""
    fit_on, choose_with = choosing(train, validation)
    linear = probes.linear(probed(fit_on), probed(choose_with), num_classes=num_classes)
    if validation is None:
        linear = probes.fit_linear(*probed(train), num_classes=num_classes, l2=linear.l2)
    return linear


def probed(part: Features) -> tuple[np.ndarray, np.ndarray]:
    """(features_NxF of the encoder, labels_N)."""
    return part.outputs["features"], part.labels


def _complete(outputs, linear):
    if LOGITS in outputs or linear is None:
        return dict(outputs)
    return {**outputs, LOGITS: linear.logits(outputs["features"])}


def _head(model, train, linear):
    """(kernel_FxK, bias_K) from features to logits, or None: a cosine head has no such weights."""
    if LOGITS not in train.outputs:
        return linear and (linear.kernel_FxK, linear.bias_K)
    dense = model.variables["params"]["classifier"].get("dense")
    if dense is None:
        return None
    kernel_FxK = np.asarray(dense["kernel"])
    return kernel_FxK, np.asarray(dense.get("bias", np.zeros(kernel_FxK.shape[1], kernel_FxK.dtype)))
