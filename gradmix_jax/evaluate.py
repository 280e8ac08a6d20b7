"""Open set evaluation of a checkpoint: features -> scores -> metrics. Knows no trainer.

    results = evaluate(config, workdir)

Every test image is scored exactly once at any batch size: the last batch is padded, and the padding cut off.
Letters: N data set, H W image, C image channels, D feature, K classes.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradmix_jax import augment, datasets, metrics, models, scores
from gradmix_jax.checkpoint import Checkpoints
from gradmix_jax.config import to_plain

FEATURES = ("projection", "features")


@dataclasses.dataclass(frozen=True)
class Spec:
    """The `evaluate` section of a config; see `config.default_config` for what each key means."""

    batch_size: int
    feature: str
    k: int

    def __post_init__(self):
        for name in ("batch_size", "k"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluate.{name} is {getattr(self, name)!r}; allowed: 1 or more.")
        if self.feature not in FEATURES:
            raise ValueError(f"evaluate.feature is {self.feature!r}; allowed: {', '.join(FEATURES)}.")


def make_feature_function(model: Any, *, mean: tuple, std: tuple) -> Callable:
    """Jitted (variables, images_BxHxWxC uint8) -> {name of FEATURES: feature_BxD float32}, in evaluation mode."""

    @jax.jit
    def features(variables, images_BxHxWxC):
        images_BxHxWxC = images_BxHxWxC.astype(jnp.float32) / 255.0
        normalized = augment.normalize(images_BxHxWxC, mean=mean, std=std)
        z, out = model.apply(variables, normalized, train=False)
        return {"projection": z, "features": out["features"]}

    return features


def extract(
    features: Callable, variables: Any, images: datasets.Source | np.ndarray, *, batch_size: int
) -> dict[str, np.ndarray]:
    """Both features of every image of a source or of an array [N, H, W, C] uint8, in its order: {name: feature_NxD}.

    The batch is spread over the local devices, and images are read while the device works.
    """
    devices = jax.local_devices()
    batch_size = -(-batch_size // len(devices)) * len(devices)
    mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    variables = jax.device_put(variables, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    parts = []
    for start in range(0, len(images), batch_size):
        stop = min(start + batch_size, len(images))
        stored = isinstance(images, np.ndarray)
        chunk = images[start:stop] if stored else datasets.read_range(images, start, stop)
        padding = np.zeros((batch_size - len(chunk), *chunk.shape[1:]), np.uint8)
        batch = jax.device_put(np.concatenate([chunk, padding]), rows)
        parts.append((features(variables, batch), len(chunk)))
    return {name: np.concatenate([np.asarray(part[name])[:count] for part, count in parts]) for name in FEATURES}


@dataclasses.dataclass(frozen=True)
class Scorer:
    """A checkpoint with its training features, ready to score images.

    Attributes:
      data: the open set data of the run.
      spec: the evaluate section.
      step: of the checkpoint.
      features: (images) -> {name of FEATURES: feature_NxD}.
      banks: the training features by class, for each name of FEATURES.
    """

    data: datasets.OpenSet
    spec: Spec
    step: int
    features: Callable
    banks: dict[str, Any]

    def class_scores(self, images: datasets.Source | np.ndarray) -> np.ndarray:
        """Score of each class for each image by the feature of the spec, scores_NxK; higher: more like that class."""
        return self.all_class_scores(images)[self.spec.feature]

    def all_class_scores(self, images: datasets.Source | np.ndarray) -> dict[str, np.ndarray]:
        """`class_scores` by each of FEATURES, for one pass over the images."""
        features = self.features(images)
        return {name: np.asarray(scores.class_similarities(self.banks[name], features[name])) for name in FEATURES}


def load(config: Any, checkpoint_dir: str) -> Scorer:
    """Restore the newest checkpoint of a run and compute the features of its training images.

    Arguments and errors as in `evaluate`.
    """
    config = config if isinstance(config, dict) else to_plain(config)
    spec = Spec(**config["evaluate"])
    checkpoints = Checkpoints(checkpoint_dir, read_only=True)
    data = datasets.open_set(datasets.Spec(**config["dataset"]))
    model = models.create(models.Spec(**config["model"]), num_classes=data.num_classes)
    variables = checkpoints.restore_model(_template(model, config["dataset"]))
    step = checkpoints.latest_step()
    checkpoints.close()
    function = make_feature_function(model, **config["normalization"])
    features = lambda images: extract(function, variables, images, batch_size=spec.batch_size)
    make_bank = lambda x: scores.class_bank(x, data.train.labels, num_classes=data.num_classes, k=spec.k)
    banks = {name: make_bank(x) for name, x in features(data.train).items()}
    return Scorer(data, spec, step, features, banks)


def open_set_metrics(
    known_scores: np.ndarray, unknown_scores: np.ndarray, predicted: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """All threshold-free metrics of one evaluation; higher scores mean "known". Arrays of length n_known, n_unknown."""
    correct = predicted == labels
    return {
        "accuracy": float(np.mean(correct)),
        "auroc": metrics.auroc(known_scores, unknown_scores),
        "oscr": metrics.oscr(known_scores, unknown_scores, correct),
        "oscr_compat": metrics.oscr(known_scores, unknown_scores, correct, compat=True),
        "fpr95_unknown_positive": metrics.fpr_at(known_scores, unknown_scores, positive="unknown"),
        "fpr95_known_positive": metrics.fpr_at(known_scores, unknown_scores, positive="known"),
        "average_precision_known": metrics.average_precision(known_scores, unknown_scores, positive="known"),
        "average_precision_unknown": metrics.average_precision(known_scores, unknown_scores, positive="unknown"),
    }


def evaluate(config: Any, checkpoint_dir: str) -> dict[str, Any]:
    """Evaluate the newest checkpoint of a run.

    Args:
      config: the run's config: a ConfigDict, or the dict of its config.json.
      checkpoint_dir: the run's workdir.

    Returns:
      The metrics of `open_set_metrics` for the feature of the config and, under "by_feature", for each of FEATURES;
      what they are of (step, trial, classes, sizes); and under "arrays" the scores, predictions and labels of the
      former.

    Raises:
      ValueError: no checkpoint, or a config that does not fit the data or the checkpoint.
    """
    config = config if isinstance(config, dict) else to_plain(config)
    started = time.perf_counter()
    scorer = load(config, checkpoint_dir)
    data, spec = scorer.data, scorer.spec
    known, unknown = scorer.all_class_scores(data.test_known), scorer.all_class_scores(data.test_unknown)
    labels = np.asarray(data.test_known.labels)
    arrays = {
        name: dict(
            known_scores=known[name].max(axis=1),
            unknown_scores=unknown[name].max(axis=1),
            predicted=known[name].argmax(axis=1),
            labels=labels,
        )
        for name in FEATURES
    }
    by_feature = {name: open_set_metrics(**arrays[name]) for name in FEATURES}
    return {
        **by_feature[spec.feature],
        "by_feature": by_feature,
        "step": scorer.step,
        "trial": config["dataset"]["trial"],
        "score": f"sum of the {spec.k} largest cosine similarities to a class ({spec.feature}); higher means known",
        "known_classes": list(data.class_names),
        "num_train": len(data.train),
        "num_known": len(data.test_known),
        "num_unknown": len(data.test_unknown),
        "seconds": round(time.perf_counter() - started, 3),
        "arrays": arrays[spec.feature],
    }


def _template(model, dataset):
    """Shapes of the variables to restore; nothing is computed."""
    size, channels = dataset["image_size"], dataset["channels"]
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    variables = jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), image)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
