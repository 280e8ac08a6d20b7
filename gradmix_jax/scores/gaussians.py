"""Mahalanobis distances to Gaussians of the training features. Higher means known.

Covariances of trained features have condition numbers of 1e8 and more, beyond float32: everything here is float64 on
the host. Directions along which the features do not vary within any class (dead features, fewer images than
dimensions) are left out, the same ones in every term of a score.

Letters: N images, F feature, K classes, R directions within which the features vary.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg

from gradmix_jax.scores.base import Unfit

# Rows at a time: a float64 block of 2048 features is 64 MB.
BLOCK_SIZE = 4096
# Features whose spread within classes is below this share of their size are constant up to rounding.
CONSTANT = 1e-12


class Within(NamedTuple):
    """Training features in coordinates z in which their covariance within classes is the identity.

    Attributes:
      center_F: mean training feature.
      whiten_FxR: z = (feature - center_F) @ whiten_FxR.
      mean_KxR: the class means in these coordinates.
      share_K: the share of each class in the training images.
    """

    center_F: np.ndarray
    whiten_FxR: np.ndarray
    mean_KxR: np.ndarray
    share_K: np.ndarray


def blocks(features_NxF):
    """float64 blocks of at most BLOCK_SIZE rows."""
    for start in range(0, len(features_NxF), BLOCK_SIZE):
        yield np.asarray(features_NxF[start : start + BLOCK_SIZE], np.float64)


def scatter(features_NxF, origin_GxF, group_N=None):
    """Sum of the outer products of feature - origin, float64 [F, F]; not divided by N.

    Args:
      features_NxF: any dtype; float64 a block at a time.
      origin_GxF: the origins, one for each group.
      group_N: which origin each feature has; None: the first.
    """
    total_FxF = np.zeros((np.shape(features_NxF)[1],) * 2)
    group_N = np.zeros(len(features_NxF), int) if group_N is None else group_N
    for start, block_NxF in zip(range(0, len(features_NxF), BLOCK_SIZE), blocks(features_NxF)):
        centered_NxF = block_NxF - origin_GxF[group_N[start : start + BLOCK_SIZE]]
        total_FxF += centered_NxF.T @ centered_NxF
    return total_FxF


def class_means(features_NxF, labels_N, num_classes):
    """float64 [K, F]."""
    return np.stack([features_NxF[labels_N == each].mean(axis=0, dtype=np.float64) for each in range(num_classes)])


def whitening(covariance_FxF, least_F):
    """W [F, R] with W^T C W = identity and W W^T the pseudo-inverse of C, R being its rank.

    Args:
      covariance_FxF: C, float64.
      least_F: standard deviations at or below which a feature counts as constant.

    The rank is that of the correlations, so that it does not depend on the scales of the features: eigenvalues of at
    most F eps(float64) times the largest one are zero.
    """
    std_F = np.sqrt(np.diag(covariance_FxF))
    scale_F = np.where(std_F > least_F, 1 / np.where(std_F > 0, std_F, 1), 0)
    values_F, vectors_FxF = np.linalg.eigh(covariance_FxF * scale_F[:, None] * scale_F)
    kept_F = values_F > max(values_F[-1], 0) * values_F.size * np.finfo(np.float64).eps
    if np.count_nonzero(kept_F) == np.count_nonzero(scale_F):
        return scale_F[:, None] * vectors_FxF[:, kept_F] / np.sqrt(values_F[kept_F])
    # Fewer images than dimensions: C = G G^T with G = Q R has the pseudo-inverse W W^T with W = Q R^-T.
    root_FxR = (std_F * (scale_F > 0))[:, None] * vectors_FxF[:, kept_F] * np.sqrt(values_F[kept_F])
    basis_FxR, triangle_RxR = np.linalg.qr(root_FxR)
    return scipy.linalg.solve_triangular(triangle_RxR, basis_FxR.T).T


def _within(features_NxF, labels_N, num_classes):
    mean_KxF = class_means(features_NxF, labels_N, num_classes)
    covariance_FxF = scatter(features_NxF, mean_KxF, labels_N) / len(features_NxF)
    whiten_FxR = whitening(covariance_FxF, CONSTANT * np.abs(features_NxF).max(axis=0))
    if not whiten_FxR.shape[1]:
        raise Unfit(
            f"Mahalanobis scores need features that vary within a class, got {len(features_NxF)} training images of "
            f"{num_classes} classes that do not."
        )
    center_F = features_NxF.mean(axis=0, dtype=np.float64)
    share_K = np.bincount(labels_N, minlength=num_classes) / len(labels_N)
    return Within(center_F, whiten_FxR, (mean_KxF - center_F) @ whiten_FxR, share_K)


def within(reference):
    """`Within` of a reference, shared by the scores of this file."""
    compute = lambda: _within(reference.features(), reference.labels_N, reference.num_classes)
    return reference.shared("within", compute)


def _by_blocks(score, features_NxF):
    return np.concatenate([score(block_NxF) for block_NxF in blocks(features_NxF)] or [np.zeros(0)])


def _least_distance(z_NxR, mean_KxR):
    """Squared Euclidean distance to the nearest mean. One class at a time: N x K x R would not fit."""
    least_N = np.full(len(z_NxR), np.inf)
    for mean_R in mean_KxR:
        np.minimum(least_N, np.square(z_NxR - mean_R).sum(axis=1), out=least_N)
    return least_N


def score_mahalanobis(gaussians, outputs):
    """Minus the squared Mahalanobis distance to the nearest class mean (Lee et al. 2018, eq. 2)."""
    nearest = lambda x_NxF: -_least_distance((x_NxF - gaussians.center_F) @ gaussians.whiten_FxR, gaussians.mean_KxR)
    return _by_blocks(nearest, outputs.features)


def _unit(features_NxF):
    norm_Nx1 = np.linalg.norm(np.asarray(features_NxF, np.float64), axis=1, keepdims=True)
    return features_NxF / np.where(norm_Nx1 > 0, norm_Nx1, 1)


def fit_mahalanobis_plus_plus(reference):
    """`Within` of the training features divided by their L2 norms."""
    return _within(_unit(reference.features()), reference.labels_N, reference.num_classes)


def score_mahalanobis_plus_plus(gaussians, outputs):
    """Minus the squared Mahalanobis distance of the feature divided by its L2 norm to the nearest class mean.

    Mueller & Hein 2025, "Mahalanobis++: Improving OOD Detection via Feature Normalization", ICML 2025, section 4.
    """
    nearest = lambda x_NxF: (_unit(x_NxF) - gaussians.center_F) @ gaussians.whiten_FxR
    return _by_blocks(lambda x_NxF: -_least_distance(nearest(x_NxF), gaussians.mean_KxR), outputs.features)


class PerClass(NamedTuple):
    """`Within`, and for each class the matrix that makes its own covariance, in z, the identity."""

    within: Within
    whiten_K: tuple[np.ndarray, ...]  # each [R, directions of the class]


def fit_mahalanobis_per_class(reference, *, shrinkage=0.1):
    """Class means and covariances, each mixed with the share `shrinkage` of the shared one.

    A class with fewer images than dimensions has a singular covariance of its own. As in regularized discriminant
    analysis (Friedman 1989), but without weighting by numbers of images. With shrinkage 0, directions along which a
    class does not vary are left out of its distance. Memory: K F^2 doubles.
    """
    shared = within(reference)
    features_NxF, labels_N = reference.features(), reference.labels_N
    whiten_K = []
    for known_class, mean_R in enumerate(shared.mean_KxR):
        own_NxF = features_NxF[labels_N == known_class]
        z_NxR = np.concatenate([(x_NxF - shared.center_F) @ shared.whiten_FxR for x_NxF in blocks(own_NxF)])
        own_RxR = scatter(z_NxR, mean_R[None]) / len(z_NxR)
        if shrinkage:
            # Of full rank in z: the inverse Cholesky factor whitens as well and is a tenth of the work.
            root_RxR = np.linalg.cholesky((1 - shrinkage) * own_RxR + shrinkage * np.eye(len(own_RxR)))
            whiten_K.append(scipy.linalg.solve_triangular(root_RxR, np.eye(len(root_RxR)), lower=True).T)
        else:
            whiten_K.append(whitening(own_RxR, CONSTANT))
    return PerClass(shared, tuple(whiten_K))


def score_mahalanobis_per_class(gaussians, outputs):
    """Minus the squared Mahalanobis distance to the nearest class, each with its own covariance."""
    shared, whiten_K = gaussians

    def nearest(x_NxF):
        z_NxR = (x_NxF - shared.center_F) @ shared.whiten_FxR
        least_N = np.full(len(z_NxR), np.inf)
        for mean_R, whiten in zip(shared.mean_KxR, whiten_K):
            np.minimum(least_N, np.square((z_NxR - mean_R) @ whiten).sum(axis=1), out=least_N)
        return -least_N

    return _by_blocks(nearest, outputs.features)


class Relative(NamedTuple):
    """The J discriminant directions in which the class means differ, see `fit_relative_mahalanobis`.

    Attributes:
      center_F, project_FxJ: y = (feature - center_F) @ project_FxJ.
      mean_KxJ: the class means in these coordinates.
      precision_J: inverse variances of all training features along them, those within classes being 1.
    """

    center_F: np.ndarray
    project_FxJ: np.ndarray
    mean_KxJ: np.ndarray
    precision_J: np.ndarray


def fit_relative_mahalanobis(reference):
    """Class Gaussians with shared covariance against one Gaussian of all training features.

    In the coordinates z of `Within`, the covariance of all training features is the identity plus that of the class
    means. Along directions in which these do not differ, both distances are the same and cancel: only the at most
    K - 1 others, those of linear discriminant analysis, are kept.

    Raises:
      Unfit: with one class both Gaussians are the same.
    """
    if reference.num_classes == 1:
        raise Unfit("relative_mahalanobis needs at least 2 known classes, got 1.")
    center_F, whiten_FxR, mean_KxR, share_K = within(reference)
    _, spread_J, direction_JxR = np.linalg.svd(np.sqrt(share_K)[:, None] * mean_KxR, full_matrices=False)
    project_FxJ = whiten_FxR @ direction_JxR.T
    return Relative(center_F, project_FxJ, mean_KxR @ direction_JxR.T, 1 / (1 + spread_J**2))


def score_relative_mahalanobis(state, outputs):
    """Minus the least of (distance to a class Gaussian - distance to the Gaussian of all training features).

    Ren et al. 2021, "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection", section 3.
    """

    def relative(x_NxF):
        y_NxJ = (x_NxF - state.center_F) @ state.project_FxJ
        return np.square(y_NxJ) @ state.precision_J - _least_distance(y_NxJ, state.mean_KxJ)

    return _by_blocks(relative, outputs.features)
