"""Scores of a classifier: from its logits, or from its features through its last layer. Higher = known."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradmix_jax.scores.distances import scatter
from gradmix_jax.scores.neighbours import PRECISION


def fit_nothing(reference):
    """These scores need no training statistics."""
    return ()


def _log_probabilities(outputs):
    """Log softmax that keeps sure images apart: log1p of the other classes, where 1 + 1e-9 would round to 1."""
    logits_NxK = jnp.asarray(outputs.logits, jnp.float32)
    below_NxK = logits_NxK - logits_NxK.max(axis=1, keepdims=True)
    is_top_NxK = jax.nn.one_hot(logits_NxK.argmax(axis=1), logits_NxK.shape[1], dtype=bool)
    return below_NxK - jnp.log1p(jnp.where(is_top_NxK, 0, jnp.exp(below_NxK)).sum(axis=1, keepdims=True))


def _energy(logits_NxK):
    return jax.nn.logsumexp(logits_NxK, axis=1)


@jax.jit
def score_msp(state, outputs):
    """Log of the maximum softmax probability (Hendrycks & Gimpel 2017): same order, no ties near 1."""
    return _log_probabilities(outputs).max(axis=1)


@jax.jit
def score_max_logit(state, outputs):
    """Maximum logit (Hendrycks et al. 2022, "Scaling OOD Detection"; Vaze et al. 2022)."""
    return jnp.asarray(outputs.logits, jnp.float32).max(axis=1)


@jax.jit
def score_energy(state, outputs):
    """Minus the free energy at temperature 1: logsumexp of the logits (Liu et al. 2020, eq. 4)."""
    return _energy(jnp.asarray(outputs.logits, jnp.float32))


@jax.jit
def score_entropy(state, outputs):
    """Minus the entropy of the softmax in nats, in [-log K, 0]."""
    log_p_NxK = _log_probabilities(outputs)
    return (jnp.exp(log_p_NxK) * log_p_NxK).sum(axis=1)


@jax.jit
def _mean_posteriors(logits_NxK):
    predicted_N = logits_NxK.argmax(axis=1)
    num_classes = logits_NxK.shape[1]
    sums_KxK = jax.ops.segment_sum(jax.nn.softmax(logits_NxK, axis=1), predicted_N, num_classes)
    return sums_KxK, jnp.bincount(predicted_N, length=num_classes)


def fit_kl_matching(reference):
    """Log of the mean softmax over the training images predicted as each class; no template for the others."""
    sums_KxK, count_K = map(np.asarray, _mean_posteriors(np.asarray(reference.train.logits, np.float32)))
    templates_TxK = sums_KxK[count_K > 0] / count_K[count_K > 0, None]
    return np.log(np.maximum(templates_TxK, np.finfo(np.float32).tiny))


@jax.jit
def score_kl_matching(log_templates_TxK, outputs):
    """Minus the least KL(softmax || template) (Hendrycks et al. 2022, "Scaling OOD Detection")."""
    log_p_NxK = _log_probabilities(outputs)
    p_NxK = jnp.exp(log_p_NxK)
    cross_NxT = jnp.einsum("nk,tk->nt", p_NxK, log_templates_TxK, precision=PRECISION)
    return -((p_NxK * log_p_NxK).sum(axis=1)[:, None] - cross_NxT).min(axis=1)


class Clipped(NamedTuple):
    limit: jax.Array
    kernel_FxK: jax.Array
    bias_K: jax.Array


def _linear(features_NxF, kernel_FxK, bias_K):
    return jnp.einsum("nf,fk->nk", features_NxF, kernel_FxK, precision=PRECISION) + bias_K[None]


def fit_react(reference, *, percentile=90.0):
    """The percentile of all training activations at which features are clipped; 90 is the paper's."""
    limit = np.percentile(np.asarray(reference.train.features, np.float32), percentile)
    kernel_FxK, bias_K = (np.asarray(weights, np.float32) for weights in reference.head)
    return jax.device_put(Clipped(np.float32(limit), kernel_FxK, bias_K))


@jax.jit
def score_react(clipped, outputs):
    """Energy after clipping the features from above (Sun et al. 2021, "ReAct", eq. 3-4)."""
    features_NxF = jnp.minimum(jnp.asarray(outputs.features, jnp.float32), clipped.limit)
    return _energy(_linear(features_NxF, clipped.kernel_FxK, clipped.bias_K))


class VirtualLogit(NamedTuple):
    origin_F: jax.Array
    residual_FxR: jax.Array
    scale: jax.Array
    kernel_FxK: jax.Array
    bias_K: jax.Array


def _residual_norm(features_NxF, origin_F, residual_FxR):
    centred_NxF = features_NxF - origin_F[None]
    projected_NxR = jnp.einsum("nf,fr->nr", centred_NxF, residual_FxR, precision=PRECISION)
    return jnp.linalg.norm(projected_NxR, axis=1)


@jax.jit
def _scatter_around(features_NxF, origin_F):
    return scatter(features_NxF - origin_F[None])


@jax.jit
def _residual_scale(features_NxF, origin_F, residual_FxR, kernel_FxK, bias_K):
    max_logit_N = _linear(features_NxF, kernel_FxK, bias_K).max(axis=1)
    return max_logit_N.mean() / _residual_norm(features_NxF, origin_F, residual_FxR).mean()


def fit_vim(reference, *, dimension=None):
    """Origin, residual space of the training features, and the scale that matches residuals to logits.

    dimension: of the principal space; None: the paper's 1000 for F >= 2048, 512 for F >= 768, else F / 2.
    """
    kernel_FxK, bias_K = (np.asarray(weights, np.float64) for weights in reference.head)
    channels = len(kernel_FxK)
    if dimension is None:
        dimension = 1000 if channels >= 2048 else 512 if channels >= 768 else channels // 2
    if not 0 < dimension < channels:
        raise ValueError(f"vim's dimension must be in 1 .. {channels - 1} (feature channels - 1), got {dimension}")
    features_NxF = np.asarray(reference.train.features, np.float32)
    origin_F = (-np.linalg.pinv(kernel_FxK.T) @ bias_K).astype(np.float32)
    scatter_FxF = np.asarray(_scatter_around(features_NxF, origin_F), np.float64)
    residual_FxR = np.linalg.eigh(scatter_FxF)[1][:, : channels - dimension].astype(np.float32)
    weights = kernel_FxK.astype(np.float32), bias_K.astype(np.float32)
    scale = _residual_scale(features_NxF, origin_F, residual_FxR, *weights)
    return jax.device_put(VirtualLogit(origin_F, residual_FxR, scale, *weights))


@jax.jit
def score_vim(state, outputs):
    """Energy minus the virtual logit, the scaled norm of the feature's residual (Wang et al. 2022, "ViM").

    CVPR 2022, eq. 5-7: the softmax probability of the virtual logit, turned into an order-preserving "known".
    """
    features_NxF = jnp.asarray(outputs.features, jnp.float32)
    virtual_N = state.scale * _residual_norm(features_NxF, state.origin_F, state.residual_FxR)
    return _energy(_linear(features_NxF, state.kernel_FxK, state.bias_K)) - virtual_N
