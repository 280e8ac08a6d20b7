"""Cross-entropy, with area-weighted labels for mixed images."""

import jax
import jax.numpy as jnp
import optax

from gradmix_jax.objectives.base import Given, Mixed, Objective, Spec


def cross_entropy(logits_BxK: jax.Array, targets_BxK: jax.Array, spec: Spec) -> jax.Array:
    """Mean softmax cross-entropy against probabilities, label smoothing included. Scalar, this device's mean."""
    targets_BxK = optax.smooth_labels(targets_BxK, spec.label_smoothing)
    return jnp.mean(optax.softmax_cross_entropy(logits_BxK.astype(jnp.float32), targets_BxK))


def mixed_targets(labels_B: jax.Array, weight_B: jax.Array, partner_B: jax.Array, *, num_classes: int) -> jax.Array:
    """Area-weighted labels: weight * own + (1 - weight) * partner's; targets_BxK."""
    own_BxK = jax.nn.one_hot(labels_B, num_classes)
    weight_Bx1 = weight_B[:, None]
    return weight_Bx1 * own_BxK + (1.0 - weight_Bx1) * own_BxK[partner_B]


def _clean(given: Given) -> jax.Array:
    targets_BxK = jax.nn.one_hot(jnp.tile(given.labels_b, given.batch.views), given.num_classes)
    return cross_entropy(given.logits, targets_BxK, given.spec)


def _mixed(given: Given, mixed: Mixed) -> jax.Array:
    labels_B = jnp.tile(given.labels_b, given.batch.views)
    targets_BxK = mixed_targets(labels_B, mixed.weight, mixed.partner, num_classes=given.num_classes)
    return cross_entropy(mixed.logits, targets_BxK, given.spec)


def _check(experiment, where: str) -> None:
    if experiment.model.classifier == "none":
        raise ValueError(f"{where} needs a model.classifier: 'linear' or 'cosine'.")


OBJECTIVE = Objective(clean=_clean, mixed=_mixed, uses_labels=True, check=_check)
