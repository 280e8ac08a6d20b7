"""Cross-entropy, with area-weighted labels for mixed images."""

import jax
import jax.numpy as jnp
import optax

from gradmix_jax.fields import Key
from gradmix_jax.objectives.base import Given, Objective, Spec, check_logits
from gradmix_jax.objectives.targets import (
    clean_targets,
    mean_of_known,
    soft_cross_entropy,
    targets_of_mixed,
    tempered,
)


def cross_entropy(logits_BxK: jax.Array, targets_BxK: jax.Array, spec: Spec) -> jax.Array:
    """Mean softmax cross-entropy against probabilities, label smoothing included. Scalar, this device's mean."""
    targets_BxK = optax.smooth_labels(targets_BxK, spec.label_smoothing)
    return jnp.mean(optax.softmax_cross_entropy(logits_BxK.astype(jnp.float32), targets_BxK))


def _loss(given: Given, logits_BxK: jax.Array, targets_BxK: jax.Array) -> jax.Array:
    logits_BxK = tempered(given, logits_BxK, given.spec.options["cross_entropy"]["temperature"])
    if not given.has_negatives:
        return cross_entropy(logits_BxK, targets_BxK, given.spec)
    loss_B = soft_cross_entropy(logits_BxK, targets_BxK, given.spec.label_smoothing)
    return mean_of_known(given, loss_B, targets_BxK)


OBJECTIVE = Objective(
    clean=lambda given: _loss(given, given.logits, clean_targets(given)),
    mixed=lambda given, mixed: _loss(given, mixed.logits, targets_of_mixed(given, mixed)),
    uses_labels=True,
    check=check_logits,
    options={"temperature": Key(1.0, "temperature that divides the logits", above=0)},
)
