"""Scores from the class means of the training features, and from the length of a feature. Higher means known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gradmix_jax.scores.base import Meaningless
from gradmix_jax.scores.neighbors import PRECISION, unit

# Holds BLOCK_SIZE x K x F floats at a time: 100 MB for 1000 classes of 512 features.
BLOCK_SIZE = 64


# The fits are jitted too, because run operation by operation, they would compile dozens of programs.
@functools.partial(jax.jit, static_argnames="num_classes")
def class_means(features_NxF, labels_N, num_classes):
    """Mean feature of each class, mean_KxF."""
    sums_KxF = jax.ops.segment_sum(features_NxF, labels_N, num_classes)
    return sums_KxF / jnp.bincount(labels_N, length=num_classes)[:, None]


@functools.partial(jax.jit, static_argnames="num_classes")
def _class_mean_directions(features_NxF, labels_N, num_classes):
    return unit(class_means(unit(features_NxF), labels_N, num_classes))


def fit_class_mean_cosine(reference):
    """Mean of the unit training features of each class, scaled to unit length."""
    return _class_mean_directions(reference.features(), reference.labels_N, reference.num_classes)


@jax.jit
def score_class_mean_cosine(mean_KxF, outputs):
    """Cosine similarity to the nearest class mean, in [-1, 1].

    Nearest class mean on normalized features, as in Tack et al. 2020 ("CSI") and Mensink et al. 2013.
    """
    features_NxF = unit(jnp.asarray(outputs.features, jnp.float32))
    return jnp.einsum("nf,kf->nk", features_NxF, mean_KxF, precision=PRECISION).max(axis=1)


def fit_class_mean_l1(reference):
    """Mean training feature of each class, features not normalized."""
    return class_means(reference.features(), reference.labels_N, reference.num_classes)


@jax.jit
def score_class_mean_l1(mean_KxF, outputs):
    """Minus the L1 distance to the nearest class mean (nearest class mean, Mensink et al. 2013, under L1)."""
    nearest = lambda feature_F: jnp.abs(feature_F[None] - mean_KxF).sum(axis=1).min()
    return -jax.lax.map(nearest, jnp.asarray(outputs.features, jnp.float32), batch_size=BLOCK_SIZE)


def fit_feature_norm(reference):
    """Nothing to fit.

    Raises:
      Meaningless: all features have the same length, as projections do, up to rounding.
    """
    norm_N = np.linalg.norm(reference.features(), axis=1)
    if np.ptp(norm_N) <= 1e-5 * norm_N.max():
        raise Meaningless(f"feature_norm needs features of different lengths, got {norm_N.max():.6g} for all of them.")
    return ()


@jax.jit
def score_feature_norm(state, outputs):
    """L2 norm of the feature (Tack et al. 2020, "CSI", section 2.2)."""
    return jnp.linalg.norm(jnp.asarray(outputs.features, jnp.float32), axis=1)
