"""Scores that the evaluation computes with NumPy in float64, as JAX functions of (state, outputs).

All other scores of `scores.SCORES` are JAX functions already. Each takes the state that the score's `fit` returns, and
runs with 64-bit types enabled.

Letters: N images, F feature, K classes, R, J directions.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gradmix_jax.scores import SCORES, ensemble, gaussians, neighbors, vim
from gradmix_jax.scores.logits import energy


def _double(array):
    return jnp.asarray(array, jnp.float64)


def _least_distance(z_NxR, mean_KxR):
    """Squared Euclidean distance to the nearest mean. One class at a time, as [N, K, R] may not fit."""
    distance = lambda mean_R: jnp.square(z_NxR - mean_R[None]).sum(axis=1)
    return jax.lax.map(distance, mean_KxR).min(axis=0)


def _whitened(state, features_NxF):
    return (_double(features_NxF) - state.center_F[None]) @ state.whiten_FxR


def mahalanobis(state, outputs):
    """See `gaussians.score_mahalanobis`."""
    return -_least_distance(_whitened(state, outputs.features), state.mean_KxR)


def mahalanobis_plus_plus(state, outputs):
    """See `gaussians.score_mahalanobis_plus_plus`."""
    features_NxF = _double(outputs.features)
    norm_Nx1 = jnp.linalg.norm(features_NxF, axis=1, keepdims=True)
    return -_least_distance(_whitened(state, features_NxF / jnp.where(norm_Nx1 > 0, norm_Nx1, 1)), state.mean_KxR)


def mahalanobis_per_class(state, outputs):
    """See `gaussians.score_mahalanobis_per_class`."""
    z_NxR = _whitened(state.within, outputs.features)
    own = [
        jnp.square((z_NxR - mean_R[None]) @ whiten).sum(axis=1)
        for mean_R, whiten in zip(state.within.mean_KxR, state.whiten_K)
    ]
    return -jnp.stack(own).min(axis=0)


def relative_mahalanobis(state, outputs):
    """See `gaussians.score_relative_mahalanobis`."""
    y_NxJ = (_double(outputs.features) - state.center_F[None]) @ state.project_FxJ
    return jnp.square(y_NxJ) @ state.precision_J - _least_distance(y_NxJ, state.mean_KxJ)


def virtual_logit(state, outputs):
    """See `vim.score_vim`."""
    residual_NxR = (_double(outputs.features) - state.origin_F[None]) @ state.residual_FxR
    virtual_N = state.scale * jnp.linalg.norm(residual_NxR, axis=1)
    return energy(state.head(jnp.asarray(outputs.features, jnp.float32))) - virtual_N


def topk(state, outputs):
    """See `neighbors.score_topk`."""
    sums_NxK = neighbors.class_similarities(state.bank, outputs.features)
    if state.normalized:
        sums_NxK = sums_NxK / sums_NxK.sum(axis=1, keepdims=True)
    return sums_NxK.max(axis=1)


def mean_of_members(state, outputs):
    """See `ensemble.score`."""
    scores = [_double(form_of(name)(member, outputs)) for name, member in state.states.items()]
    standardized = [(score_N - mean) / std for score_N, mean, std in zip(scores, state.mean_S, state.std_S)]
    return sum(standardized) / len(standardized)


# The evaluation's function of a score -> the same in JAX.
FORMS = {
    gaussians.score_mahalanobis: mahalanobis,
    gaussians.score_mahalanobis_plus_plus: mahalanobis_plus_plus,
    gaussians.score_mahalanobis_per_class: mahalanobis_per_class,
    gaussians.score_relative_mahalanobis: relative_mahalanobis,
    vim.score_vim: virtual_logit,
    neighbors.score_topk: topk,
    ensemble.score: mean_of_members,
}


def form_of(name: str) -> Callable[..., jax.Array]:
    """(state, outputs) -> score_N of a score of `scores.SCORES`, as a function that JAX can trace."""
    function = SCORES[name].score
    return FORMS.get(getattr(function, "func", function), function)
