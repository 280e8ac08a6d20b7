"""A checkpoint and all that is learned from training images to judge others by.

Letters: N images, K known classes, F feature.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradmix_jax import corruptions, datasets, features, guards, models, probe, scores
from gradmix_jax.checkpoint import Checkpoints
from gradmix_jax.config import check_choice, check_number
from gradmix_jax.features import FEATURES, Features
from gradmix_jax.scores import fitted as fitted_lib
from gradmix_jax.scores.fitted import LOGITS, Fitted

DUPLICATES = ("error", "drop")
CORRUPTIONS = ("none", "regenerated", "cifar10_corrupted")
PARTS = ("train", "validation", "test_known", "test_unknown")
# Where no image is held out from training, this share of the training images chooses the settings of the probes.
CHOOSING_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class Spec:
    """The `evaluate` section of a config; see `config.default_config` for what each key means."""

    batch_size: int
    feature: str
    score: str
    k: int
    scores: tuple[str, ...]
    stages: tuple[str, ...]
    near: tuple[str, ...]
    far: tuple[str, ...]
    corruptions: str
    corruption_reference: str
    probes: tuple[str, ...]
    duplicates: str

    def __post_init__(self):
        for name in ("scores", "stages", "near", "far", "probes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("batch_size", "k"):
            check_number(f"evaluate.{name}", getattr(self, name), least=1, whole=True)
        check_choice("evaluate.feature", self.feature, (*self.features, LOGITS))
        check_choice("evaluate.duplicates", self.duplicates, DUPLICATES)
        for name in self.scores:
            check_choice("an element of evaluate.scores", name, ("all", *scores.SCORES))
        check_choice(f"evaluate.score (of evaluate.feature {self.feature!r})", self.score, self.headline_scores)
        for name in (*self.near, *self.far):
            datasets.check_unknown_name("an element of evaluate.near or evaluate.far", name)
        for name in self.probes:
            datasets.check_name("an element of evaluate.probes", name)
        if not self.corruptions.startswith("folder:"):
            check_choice("evaluate.corruptions", self.corruptions, (*CORRUPTIONS, "folder:PATH"))

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that images are scored by."""
        return (*FEATURES, *self.stages)

    @property
    def headline_scores(self) -> tuple[str, ...]:
        """Names of the scores that work on the headline's feature."""
        return tuple(name for name in scores.SCORES if fitted_lib.works_on_logits(name) == (self.feature == LOGITS))

    @property
    def all_scores(self) -> tuple[str, ...]:
        """Names of the scores to compare, the one of the headline among them."""
        return tuple(scores.SCORES) if "all" in self.scores else tuple(dict.fromkeys((self.score, *self.scores)))


def check_fits(spec: Spec, data_spec: datasets.Spec, model_spec: models.Spec) -> None:
    """Whether an evaluation can be of such data and such a model: what it cannot, it would say after the training.

    Args:
      spec, data_spec, model_spec: the sections `evaluate`, `dataset` and `model` of a config.

    Raises:
      ValueError: one sentence with the key of `evaluate`, its value and what is allowed.
    """
    for name in spec.stages:
        check_choice("an element of evaluate.stages", name, models.available_stages(model_spec))
    for part, lacking, why in (
        ("validation", not data_spec.validation_fraction, "dataset.validation_fraction 0 leaves no validation images"),
        ("head", model_spec.classifier == "cosine", "model.classifier 'cosine' is no linear layer"),
    ):
        if lacking and part in scores.SCORES[spec.score].needs:
            fitting = [name for name in spec.headline_scores if part not in scores.SCORES[name].needs]
            raise ValueError(f"evaluate.score is {spec.score!r}; allowed: {', '.join(fitting)} ({why}).")
    for key in ("near", "far"):
        for name in getattr(spec, key):
            if datasets.same_data(name, data_spec.name):
                raise ValueError(
                    f"evaluate.{key} is {getattr(spec, key)!r}; allowed: other data sets than the known classes' "
                    f"{data_spec.name!r}."
                )
    if spec.corruptions == "regenerated" and data_spec.image_size < corruptions.SMALLEST:
        raise ValueError(
            f"evaluate.corruptions is 'regenerated'; allowed: none with dataset.image_size {data_spec.image_size}, "
            f"which is below {corruptions.SMALLEST}."
        )
    across = not datasets.same_data(data_spec.name, data_spec.unknown_data)
    if across and spec.corruptions not in ("none", "regenerated"):
        raise ValueError(
            f"evaluate.corruptions is {spec.corruptions!r}; allowed: none, regenerated (known classes are of "
            f"{data_spec.name!r}, unknown ones of {data_spec.unknown_data!r})."
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A checkpoint that turns images into features.

    Attributes:
      spec, data_spec: the sections of the run's config.
      data: the open set data of the run.
      step: of the checkpoint.
      checkpoint: its fingerprint.
      function, variables: of `features.make_feature_function` and the model.
    """

    spec: Spec
    data_spec: datasets.Spec
    data: datasets.OpenSet
    step: int
    checkpoint: str
    function: Any
    variables: Any

    def outputs(self, images: datasets.Source | np.ndarray) -> dict[str, np.ndarray]:
        """{name of an output: x_NxD} of a source, or of an array uint8 [N, H, W, C]."""
        return features.extract(self.function, self.variables, images, batch_size=self.spec.batch_size)[0]

    def features(self, part: str, source: datasets.Source) -> Features:
        """The outputs of a source's images, with what else is known about them."""
        options = dict(batch_size=self.spec.batch_size, progress=f"features, {part}")
        outputs, hashes = features.extract(self.function, self.variables, source, **options)
        rows = dict(labels=source.labels, classes=source.classes, hashes=hashes, places=np.arange(len(source)))
        return Features(part, self.checkpoint, outputs, **rows)


def restore(config: dict[str, Any], workdir: str) -> Model:
    """The newest checkpoint of a run.

    Raises:
      ValueError: there is none, or the config does not fit the data or the checkpoint.
    """
    spec, data_spec = Spec(**config["evaluate"]), datasets.Spec(**config["dataset"])
    model_spec = models.Spec(**config["model"])
    check_fits(spec, data_spec, model_spec)
    checkpoints = Checkpoints(workdir, read_only=True)
    data = datasets.open_set(data_spec)
    model = models.create(model_spec, num_classes=data.num_classes)
    variables = checkpoints.restore_model(_template(model, data_spec))
    step = checkpoints.latest_step()
    checkpoints.close()
    function = features.make_feature_function(model, **config["normalization"], stages=spec.stages)
    return Model(spec, data_spec, data, step, features.fingerprint(variables), function, variables)


def compute_parts(
    model: Model, config: dict[str, Any], workdir: str, names: tuple[str, ...] = PARTS
) -> dict[str, Features]:
    """Features of the named PARTS: from the run's features.npz, or computed, and written there if they are all.

    A part without images is left out, as are validation images that training has too.
    """
    sources = {name: getattr(model.data, name) for name in PARTS}
    key = features.cache_key(model.checkpoint, config, sources)
    parts = features.load(workdir, key)
    if parts is None:
        parts = {name: model.features(name, sources[name]) for name in names if len(sources[name])}
        if names == PARTS:
            features.save(workdir, parts, key)
    if "validation" in parts:
        parts["validation"] = guards.not_learned(parts["train"], parts["validation"])
    return {name: part for name, part in parts.items() if name in names and part}


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
    """What was learned from training and validation images.

    Attributes:
      model: the checkpoint.
      fitted: the scores.
      linear: the linear probe on the encoder's features; None where it was not asked for.
    """

    model: Model
    fitted: Fitted
    linear: probe.Linear | None

    def complete(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs and, where the model has no classifier head, the logits of the linear probe."""
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
      parts: "train" and, where there are such images, "validation".
      headline_only: fit the score and the feature that the spec names and nothing else.

    Raises:
      ValueError: the parts are of different checkpoints.
    """
    spec, train, validation = model.spec, parts["train"], parts.get("validation")
    guards.same_checkpoint(*parts.values())
    linear = None
    if not headline_only or spec.feature == LOGITS:
        linear = fit_probe(train, validation, model.data.num_classes)
    scored = spec.features if not headline_only else tuple({spec.feature} - {LOGITS})
    fitted = fitted_lib.fit_all(
        _complete(train.outputs, linear),
        train.labels,
        num_classes=model.data.num_classes,
        features=scored,
        names=(spec.score,) if headline_only else spec.all_scores,
        k=spec.k,
        head=_head(model, train, linear),
        validation=_complete(validation.outputs, linear) if validation else None,
        required=(spec.feature, spec.score),
    )
    return Evaluator(model, fitted, linear)


def choosing(train: Features, validation: Features | None) -> tuple[Features, Features]:
    """(to fit on, to choose with): training and validation images, or a cut through the training images."""
    if validation is None:
        held_out = datasets.stratified(train.labels, CHOOSING_SHARE, seed=0)
        train, held_out = train.take(~held_out), train.take(held_out)
        validation = guards.not_learned(train, held_out) or held_out
    guards.for_selection(train, validation)
    return train, validation


def fit_probe(train: Features, validation: Features | None, num_classes: int) -> probe.Linear:
    """The linear probe of the encoder's features, fitted on all of `train`."""
    fit_on, choose_with = choosing(train, validation)
    linear = probe.linear(probed(fit_on), probed(choose_with), num_classes=num_classes)
    if validation is None:
        linear = probe.fit_linear(*probed(train), num_classes=num_classes, l2=linear.l2)
    return linear


def probed(part: Features) -> tuple[np.ndarray, np.ndarray]:
    """What probes look at: features_NxF of the encoder and labels_N."""
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
    return dense and (np.asarray(dense["kernel"]), np.asarray(dense["bias"]))


def _template(model, data_spec):
    """Shapes of the variables to restore; nothing is computed."""
    image = jax.ShapeDtypeStruct((1, data_spec.image_size, data_spec.image_size, data_spec.channels), jnp.float32)
    variables = jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), image)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
