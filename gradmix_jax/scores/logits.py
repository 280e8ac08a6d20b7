"""Scores from logits alone. Higher means known. Letters: N images, K classes, T templates.

Probabilities of confident images round to 1 in float32, so images tie. These scores use scales on which they do not:
log odds instead of a probability, the log of an entropy instead of the entropy. The order is the same.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gradmix_jax.scores.base import Unfit
from gradmix_jax.scores.neighbors import PRECISION


def fit_nothing(reference):
    """For scores without training statistics."""
    return ()


def _is_top(logits_NxK):
    """True for the class of the largest logit, the first of equal ones."""
    return jax.nn.one_hot(logits_NxK.argmax(axis=1), logits_NxK.shape[1], dtype=bool)


def log_odds(logits_NxK):
    """Largest logit minus logsumexp of the others: log(p / (1 - p)) of the largest softmax probability p."""
    others_NxK = jnp.where(_is_top(logits_NxK), -jnp.inf, logits_NxK)
    return logits_NxK.max(axis=1) - jax.nn.logsumexp(others_NxK, axis=1)


def _log_probabilities(logits_NxK):
    """Log softmax that is exact near 0: log1p of the other classes, where 1 + 1e-9 would round to 1."""
    below_NxK = logits_NxK - logits_NxK.max(axis=1, keepdims=True)
    others_NxK = jnp.where(_is_top(logits_NxK), 0, jnp.exp(below_NxK))
    return below_NxK - jnp.log1p(others_NxK.sum(axis=1, keepdims=True))


def energy(logits_NxK):
    """Logsumexp of the logits, minus the free energy at temperature 1."""
    return jax.nn.logsumexp(logits_NxK, axis=1)


@jax.jit
def score_msp(state, outputs):
    """Log odds of the maximum softmax probability (Hendrycks & Gimpel 2017): its order, without ties near 1."""
    return log_odds(jnp.asarray(outputs.logits, jnp.float32))


@jax.jit
def score_max_logit(state, outputs):
    """Maximum logit (Hendrycks et al. 2022, "Scaling OOD Detection"; Vaze et al. 2022)."""
    return jnp.asarray(outputs.logits, jnp.float32).max(axis=1)


def fit_energy(reference, *, temperature=1.0):
    """The temperature."""
    return np.float32(temperature)


@jax.jit
def score_energy(temperature, outputs):
    """Minus the free energy, T logsumexp(logits / T) (Liu et al. 2020, eq. 4)."""
    return temperature * energy(jnp.asarray(outputs.logits, jnp.float32) / temperature)


@jax.jit
def score_entropy(state, outputs):
    """Minus the log of the entropy of the softmax in nats: the order of minus the entropy, without ties near 0."""
    logits_NxK = jnp.asarray(outputs.logits, jnp.float32)
    log_p_NxK, odds_Nx1 = _log_probabilities(logits_NxK), log_odds(logits_NxK)[:, None]
    # log(-log p) of the top class; log1p(exp(-odds)) underflows where its log is still -odds.
    log_surprise_Nx1 = jnp.where(
        odds_Nx1 > 10, -odds_Nx1 - jnp.exp(-odds_Nx1) / 2, jnp.log(jax.nn.softplus(-jnp.minimum(odds_Nx1, 10)))
    )
    is_top_NxK = _is_top(logits_NxK)
    of_others_NxK = jnp.log(-jnp.where(is_top_NxK, -1, log_p_NxK))
    return -jax.nn.logsumexp(log_p_NxK + jnp.where(is_top_NxK, log_surprise_Nx1, of_others_NxK), axis=1)


def fit_gen(reference, *, gamma=0.1, largest=100):
    """The exponent, and how many of the largest probabilities are summed."""
    return np.float32(gamma), np.arange(min(largest, reference.num_classes))


@jax.jit
def score_gen(state, outputs):
    """Minus the log of the generalized entropy, sum of (p (1 - p))^gamma over the largest p (Liu et al. 2023).

    "GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection", CVPR 2023; gamma 0.1 and the 100 largest
    of 1000 probabilities are the paper's. The log keeps the order and images apart where the sum underflows.
    """
    gamma, index_M = state
    logits_NxK = jnp.asarray(outputs.logits, jnp.float32)
    log_p_NxK = _log_probabilities(logits_NxK)
    of_top_Nx1 = -jax.nn.softplus(log_odds(logits_NxK))[:, None]
    is_top_NxK = _is_top(logits_NxK)
    log_rest_NxK = jnp.where(is_top_NxK, of_top_Nx1, jnp.log1p(-jnp.exp(jnp.where(is_top_NxK, -1, log_p_NxK))))
    if len(index_M) < log_p_NxK.shape[1]:
        log_p_NxK, index_NxM = jax.lax.top_k(log_p_NxK, len(index_M))
        log_rest_NxK = jnp.take_along_axis(log_rest_NxK, index_NxM, axis=1)
    return -jax.nn.logsumexp(gamma * (log_p_NxK + log_rest_NxK), axis=1)


def fit_kl_matching(reference):
    """Log of the mean softmax of the images predicted as each class, log_template_TxK; none for the other classes.

    They come from validation images, as in the paper, or from training images if there are none.
    """
    given = reference.validation if reference.validation is not None else reference.train
    logits_NxK = np.asarray(given.logits, np.float32)
    if not len(logits_NxK):
        raise Unfit("kl_matching needs validation images, got none.")
    predicted_N = logits_NxK.argmax(axis=1)
    log_template_TxK = []
    for known_class in np.unique(predicted_N):
        own_NxK = logits_NxK[predicted_N == known_class].astype(np.float64)
        log_p_NxK = own_NxK - np.logaddexp.reduce(own_NxK, axis=1, keepdims=True)
        log_template_TxK.append(np.logaddexp.reduce(log_p_NxK, axis=0) - np.log(len(own_NxK)))
    return jax.device_put(np.stack(log_template_TxK).astype(np.float32))


@jax.jit
def score_kl_matching(log_template_TxK, outputs):
    """Minus the least KL(softmax || template) (Hendrycks et al. 2022, "Scaling OOD Detection")."""
    log_p_NxK = _log_probabilities(jnp.asarray(outputs.logits, jnp.float32))
    p_NxK = jnp.exp(log_p_NxK)
    cross_NxT = jnp.einsum("nk,tk->nt", p_NxK, log_template_TxK, precision=PRECISION)
    return -((p_NxK * log_p_NxK).sum(axis=1)[:, None] - cross_NxT).min(axis=1)
