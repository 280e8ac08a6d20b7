"""The share of an image that the class evidence of a trained network depends on: deletion until the evidence halves.

The evidence is the margin: the predicted class's logit minus the largest other logit. The logits come from the
classifier if there is one; otherwise they are the cosine similarities of the encoder's features to the class means of
the training images. The point where the margin halves does not depend on the scale of the logits. For a probability it
would, and a probability near 1 has no gradient to make a map from.

Letters: N images, K classes, D features, S steps of a curve.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import maps as maps_benchmark
import numpy as np

from gradmix_jax import augment, models
from gradmix_jax import config as config_lib
from gradmix_jax import data as data_lib
from gradmix_jax.evaluation import cache, fitting
from gradmix_jax.evaluation.features import Features
from gradmix_jax.method import attribution
from gradmix_jax.scores.fitted import LOGITS
from gradmix_jax.scores.neighbors import unit

IMAGES = 256
SMOOTHING = 3  # pixels, the default of `attribution.smoothing`


def halving_shares(workdir: str, data: data_lib.OpenSet) -> tuple[float, float]:
    """(by the run's map, in random order): mean share of a known test image to delete until the margin halves.

    The map is the gradient of the margin with respect to the image, in the run's trained network. All methods, also
    those without a map, use this kind of map, so that the comparison is of networks and not of maps.

    Args:
      workdir: workdir of a finished run with its features.npz.
      data: the data of the run.
    """
    experiment = config_lib.from_config(config_lib.read(workdir), num_devices=1)
    model = fitting.restore(experiment.setup, workdir, data=data)
    parts = cache.load(workdir)
    means_KxD = class_means(parts["train"], data.num_classes)
    test = data.test_known
    chosen = np.linspace(0, len(test) - 1, min(IMAGES, len(test))).round().astype(int)
    images = np.stack([test[int(index)] for index in chosen]).astype(np.float32) / 255
    normalization = (tuple(experiment.normalization.mean), tuple(experiment.normalization.std))
    module = models.create(experiment.model, num_classes=data.num_classes)
    deleted = _deletion_curves(module, normalization, jax.device_get(model.variables), means_KxD, images)
    return tuple(float(halving_share(np.asarray(curve, np.float64)).mean()) for curve in deleted)


def class_means(train: Features, num_classes: int) -> np.ndarray:
    """means_KxD of the unit features of each class, scaled to unit length."""
    features_NxD = np.asarray(unit(train.outputs["features"]))
    means_KxD = np.stack([features_NxD[train.labels == label].mean(axis=0) for label in range(num_classes)])
    return np.asarray(unit(means_KxD))


def _cosines(features_NxD: Any, means_KxD: Any) -> jax.Array:
    return unit(features_NxD) @ means_KxD.T


def margin(logits_NxK: jax.Array, predicted_N: jax.Array) -> jax.Array:
    """The logit of a class minus the largest other logit."""
    is_it_NxK = jax.nn.one_hot(predicted_N, logits_NxK.shape[1], dtype=bool)
    own_N = jnp.max(jnp.where(is_it_NxK, logits_NxK, -jnp.inf), axis=1)
    return own_N - jnp.max(jnp.where(is_it_NxK, -jnp.inf, logits_NxK), axis=1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _deletion_curves(module, normalization, variables, means_KxD, images_NxHxWxC):
    """Margin of the predicted class, (by the map, in random order), each [N, S]."""
    mean, std = normalization

    def logits_of(images):
        _, out = module.apply(variables, augment.normalize(images, mean=mean, std=std), train=False)
        return out[LOGITS] if LOGITS in out else _cosines(out["features"], means_KxD)

    predicted_N = jnp.argmax(logits_of(images_NxHxWxC), axis=1)
    margin_of = lambda images: margin(logits_of(images), predicted_N)
    gradients = jax.grad(lambda images: jnp.sum(margin_of(images)))(images_NxHxWxC)
    by_map = attribution.input_gradient(gradients, norm="image", smoothing=SMOOTHING)
    keys_N = jax.random.split(jax.random.key(0), len(images_NxHxWxC))
    at_random = jax.vmap(lambda key: jax.random.uniform(key, images_NxHxWxC.shape[1:3]))(keys_N)
    return tuple(maps_benchmark.curves(margin_of, each, images_NxHxWxC)[0] for each in (by_map, at_random))


def halving_share(curves_NxS: np.ndarray) -> np.ndarray:
    """The share at which each curve first falls to half of its start, interpolated linearly; 1 if it never does.

    Args:
      curves_NxS: curves at evenly spaced shares from 0 to 1.
    """
    half_N = curves_NxS[:, 0] / 2
    below_NxS = curves_NxS <= half_N[:, None]
    first_N = below_NxS.argmax(axis=1)
    rows = np.arange(len(curves_NxS))
    before_N, after_N = curves_NxS[rows, np.maximum(first_N - 1, 0)], curves_NxS[rows, first_N]
    drop_N = np.where(before_N > after_N, before_N - after_N, 1)
    share_N = (first_N - 1 + (before_N - half_N) / drop_N) / (curves_NxS.shape[1] - 1)
    return np.where(below_NxS.any(axis=1), np.maximum(share_N, 0.0), 1.0)
