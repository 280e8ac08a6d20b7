"""Scores from class statistics of the training features: means, covariances, norms. Higher = known."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradmix_jax.scores.neighbours import PRECISION, unit

# The per-class score holds block x K x F floats; a smaller block than the neighbours' keeps that near 100 MB.
BLOCK_SIZE = 64


class Unfit(ValueError):
    """These training and validation images cannot be scored this way."""


class Meaningless(Unfit):
    """A score that says nothing by the nature of a feature; nothing is wrong with the images."""


# What is fitted is jitted too: operation by operation it would be some seventy programs for a first run to compile.
@functools.partial(jax.jit, static_argnames="num_classes")
def _class_means(features_NxF, labels_N, num_classes):
    sums_KxF = jax.ops.segment_sum(features_NxF, labels_N, num_classes)
    return sums_KxF / jnp.bincount(labels_N, length=num_classes)[:, None]


@functools.partial(jax.jit, static_argnames="num_classes")
def _class_mean_directions(features_NxF, labels_N, num_classes):
    return unit(_class_means(unit(features_NxF), labels_N, num_classes))


def fit_class_mean_cosine(reference):
    """Mean of the unit training features of each class, made unit again."""
    return _class_mean_directions(_features(reference), reference.labels_N, reference.num_classes)


@jax.jit
def score_class_mean_cosine(means_KxF, outputs):
    """Cosine similarity to the nearest class mean, in [-1, 1].

    Nearest class mean on normalised features, as in Tack et al. 2020 ("CSI") and Mensink et al. 2013.
    """
    features_NxF = unit(jnp.asarray(outputs.features, jnp.float32))
    return jnp.einsum("nf,kf->nk", features_NxF, means_KxF, precision=PRECISION).max(axis=1)


def fit_class_mean_l1(reference):
    """Mean training feature of each class, features as they are."""
    return _class_means(_features(reference), reference.labels_N, reference.num_classes)


@jax.jit
def score_class_mean_l1(means_KxF, outputs):
    """Minus the L1 distance to the nearest class mean (nearest class mean, Mensink et al. 2013, under L1)."""
    nearest = lambda feature_F: jnp.abs(feature_F[None] - means_KxF).sum(axis=1).min()
    return -jax.lax.map(nearest, jnp.asarray(outputs.features, jnp.float32), batch_size=BLOCK_SIZE)


class Gaussians(NamedTuple):
    """K Gaussians: their means, and the matrices that make each one's covariance the identity."""

    mean_KxF: jax.Array
    whiten_KxFxF: jax.Array  # 1 instead of K where the Gaussians share one covariance


def _features(reference):
    return np.asarray(reference.train.features, np.float32)


def scatter(centred_NxF):
    """Sum of the outer products, not divided by N."""
    return jnp.einsum("nf,ng->fg", centred_NxF, centred_NxF, precision=PRECISION)


@functools.partial(jax.jit, static_argnames="num_classes")
def _shared_covariance(features_NxF, labels_N, num_classes):
    """Means of the classes, and the covariance around them."""
    mean_KxF = _class_means(features_NxF, labels_N, num_classes)
    return mean_KxF, scatter(features_NxF - mean_KxF[labels_N]) / len(features_NxF)


@jax.jit
def _covariance_of_class(features_LxF, count, mean_F):
    """Of the first `count` rows."""
    centred_LxF = jnp.where(jnp.arange(len(features_LxF))[:, None] < count, features_LxF - mean_F[None], 0)
    return scatter(centred_LxF) / count


def _whitening(covariance_FxF):
    """W with W W^T = pseudo-inverse of the covariance, so that |x W|^2 is the Mahalanobis distance.

    Eigenvalues below float32 resolution are dropped: dead features and n < F leave a singular covariance.
    """
    values_F, vectors_FxF = np.linalg.eigh(np.asarray(covariance_FxF, np.float64))
    kept_F = values_F > values_F[-1] * values_F.size * np.finfo(np.float32).eps
    scale_F = np.where(kept_F, 1 / np.sqrt(np.where(kept_F, values_F, 1)), 0)
    return (vectors_FxF * scale_F).astype(np.float32)


def _gaussians(mean_KxF, covariance_KxFxF):
    # On the device for good: they are used for every array of images, of which corruptions have 150.
    return jax.device_put(Gaussians(mean_KxF, np.stack([_whitening(each_FxF) for each_FxF in covariance_KxFxF])))


def fit_mahalanobis(reference):
    """Class means and the covariance of the features around them, shared by all classes."""
    mean_KxF, covariance_FxF = _shared_covariance(_features(reference), reference.labels_N, reference.num_classes)
    return _gaussians(mean_KxF, covariance_FxF[None])


def fit_mahalanobis_per_class(reference, *, shrinkage=0.1):
    """Class means and covariances, each mixed with the share `shrinkage` of the shared one.

    A class with fewer images than feature channels has a singular covariance of its own. As regularised discriminant
    analysis (Friedman 1989), whose mixture also weighs by numbers of images, which is left out here. `shrinkage=0`
    falls back on pseudo-inverses. Memory: K F^2 floats.
    """
    features_NxF, labels_N = _features(reference), reference.labels_N
    mean_KxF = np.asarray(_class_means(features_NxF, labels_N, reference.num_classes))
    count_K = np.bincount(labels_N)
    own_KxFxF = []
    for known_class, mean_F in enumerate(mean_KxF):
        own_NxF = features_NxF[labels_N == known_class]
        # All of the size of the largest class: one program for classes of any size.
        padded_LxF = np.pad(own_NxF, ((0, count_K.max() - len(own_NxF)), (0, 0)))
        own_KxFxF.append(np.asarray(_covariance_of_class(padded_LxF, len(own_NxF), mean_F), np.float64))
    shared_FxF = np.average(own_KxFxF, axis=0, weights=count_K)
    return _gaussians(mean_KxF, [(1 - shrinkage) * own_FxF + shrinkage * shared_FxF for own_FxF in own_KxFxF])


def _distances(gaussians, feature_F):
    """Squared Mahalanobis distance of one image to each Gaussian, distance_K."""
    offset_KxF = feature_F[None] - gaussians.mean_KxF
    if len(gaussians.whiten_KxFxF) == 1:
        white_KxF = jnp.einsum("kf,fg->kg", offset_KxF, gaussians.whiten_KxFxF[0], precision=PRECISION)
    else:
        white_KxF = jnp.einsum("kf,kfg->kg", offset_KxF, gaussians.whiten_KxFxF, precision=PRECISION)
    return jnp.square(white_KxF).sum(axis=1)


@jax.jit
def score_mahalanobis(gaussians, outputs):
    """Minus the squared Mahalanobis distance to the nearest class mean (Lee et al. 2018, eq. 2)."""
    nearest = lambda feature_F: _distances(gaussians, feature_F).min()
    return -jax.lax.map(nearest, jnp.asarray(outputs.features, jnp.float32), batch_size=BLOCK_SIZE)


def fit_relative_mahalanobis(reference):
    """The class Gaussians with shared covariance, and one Gaussian over all training features.

    Raises:
      Unfit: of a single class these are the same, and their difference is rounding.
    """
    if reference.num_classes == 1:
        raise Unfit("relative_mahalanobis got 1 known class; allowed: 2 or more.")
    features_NxF = _features(reference)
    mean_1xF, covariance_FxF = _shared_covariance(features_NxF, np.zeros(len(features_NxF), np.int32), 1)
    return fit_mahalanobis(reference), _gaussians(mean_1xF, covariance_FxF[None])


@jax.jit
def score_relative_mahalanobis(state, outputs):
    """Minus the least of (distance to a class Gaussian - distance to the Gaussian of all training features).

    Ren et al. 2021, "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection", section 3.
    """
    classes, background = state
    relative = lambda feature_F: _distances(classes, feature_F).min() - _distances(background, feature_F)[0]
    return -jax.lax.map(relative, jnp.asarray(outputs.features, jnp.float32), batch_size=BLOCK_SIZE)


def fit_feature_norm(reference):
    """Nothing to fit.

    Raises:
      Meaningless: features of one length, as a projection has them: what differs is rounding.
    """
    norm_N = np.linalg.norm(_features(reference), axis=1)
    if np.ptp(norm_N) <= 1e-5 * norm_N.max():
        raise Meaningless(
            f"feature_norm got features of one length, {norm_N.max():.6g}; allowed: of different lengths."
        )
    return ()


@jax.jit
def score_feature_norm(state, outputs):
    """L2 norm of the feature (Tack et al. 2020, "CSI", section 2.2)."""
    return jnp.linalg.norm(jnp.asarray(outputs.features, jnp.float32), axis=1)
