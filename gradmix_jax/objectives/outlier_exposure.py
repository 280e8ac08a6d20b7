"""Outlier exposure: uniform predictions for images of negative classes."""

import jax
import jax.numpy as jnp

from gradmix_jax.objectives.base import Given, Mixed, Objective, check_logits
from gradmix_jax.objectives.contrastive import mean_where
from gradmix_jax.objectives.targets import labels_of


def uniform_cross_entropy(logits_BxK: jax.Array) -> jax.Array:
    """loss_B: cross-entropy of the softmax against the uniform distribution.

    Hendrycks, Mazeika & Dietterich 2019, "Deep Anomaly Detection with Outlier Exposure", arXiv 1812.04606,
    and its released code. Its weight is 0.5 for images.
    """
    logits_BxK = logits_BxK.astype(jnp.float32)
    return jax.nn.logsumexp(logits_BxK, axis=1) - logits_BxK.mean(axis=1)


def _loss(given: Given, logits_BxK: jax.Array, share_B: jax.Array) -> jax.Array:
    return mean_where(uniform_cross_entropy(logits_BxK), share_B, given.batch.axis_name)


def _clean(given: Given) -> jax.Array:
    return _loss(given, given.logits, labels_of(given) < 0)


def _mixed(given: Given, mixed: Mixed) -> jax.Array:
    """The loss of mixed images, weighted by the share that is negative."""
    is_negative_B = (labels_of(given) < 0).astype(jnp.float32)
    share_B = mixed.weight * is_negative_B + (1 - mixed.weight) * is_negative_B[mixed.partner]
    return _loss(given, mixed.logits, share_B)


def _check(experiment, where: str) -> None:
    check_logits(experiment, where)
    if not experiment.dataset.has_negatives:
        raise ValueError(f"{where} needs negative classes; set dataset.negative or dataset.num_negative.")


OBJECTIVE = Objective(clean=_clean, mixed=_mixed, uses_labels=True, check=_check)
