"""Shared by classification losses: targets of clean and mixed images, label smoothing, and means over known images.

Images of negative classes have the label -1 and an all-zero target: they belong to no class, and a mean leaves them
out. Letters: B rows of this device (views included), K known classes.
"""

import jax
import jax.numpy as jnp
import optax

from gradmix_jax.objectives.base import Given, Mixed
from gradmix_jax.objectives.contrastive import mean_where


def labels_of(given: Given) -> jax.Array:
    """labels_B of this device's rows, -1 for negatives."""
    return jnp.tile(given.labels_b, given.batch.views)


def clean_targets(given: Given) -> jax.Array:
    """targets_BxK of the clean views: one-hot."""
    return jax.nn.one_hot(labels_of(given), given.num_classes)


def mixed_targets(labels_B: jax.Array, weight_B: jax.Array, partner_B: jax.Array, *, num_classes: int) -> jax.Array:
    """Area-weighted labels: weight * own + (1 - weight) * partner's; targets_BxK."""
    own_BxK = jax.nn.one_hot(labels_B, num_classes)
    weight_Bx1 = weight_B[:, None]
    return weight_Bx1 * own_BxK + (1.0 - weight_Bx1) * own_BxK[partner_B]


def targets_of_mixed(given: Given, mixed: Mixed) -> jax.Array:
    """targets_BxK of the mixed images; they sum to less than 1 by the share of a negative image."""
    return mixed_targets(labels_of(given), mixed.weight, mixed.partner, num_classes=given.num_classes)


def smoothed(targets_BxK: jax.Array, smoothing: float) -> jax.Array:
    """Label smoothing that keeps 1 - smoothing for the class itself and shares the rest among the K - 1 others.

    Of ConOSR and SpHOR. `optax.smooth_labels` shares it among all K: its alpha is K / (K - 1) times this smoothing.
    """
    others_BxK = targets_BxK.sum(axis=1, keepdims=True) - targets_BxK
    return (1 - smoothing) * targets_BxK + smoothing / max(targets_BxK.shape[1] - 1, 1) * others_BxK


def soft_cross_entropy(logits_BxK: jax.Array, targets_BxK: jax.Array, smoothing: float) -> jax.Array:
    """loss_B: softmax cross-entropy against probabilities, smoothed over all K; 0 for an all-zero target."""
    mass_Bx1 = targets_BxK.sum(axis=1, keepdims=True)
    targets_BxK = (1 - smoothing) * targets_BxK + smoothing / targets_BxK.shape[1] * mass_Bx1
    return optax.softmax_cross_entropy(logits_BxK.astype(jnp.float32), targets_BxK)


def mean_of_known(given: Given, loss_B: jax.Array, targets_BxK: jax.Array) -> jax.Array:
    """This device's part of the mean over the rows, each weighted by the sum of its target.

    The losses are linear in their targets, so they already include that weight.
    """
    if not given.has_negatives:
        return jnp.mean(loss_B)
    mass_B = targets_BxK.sum(axis=1)
    return mean_where(loss_B / jnp.where(mass_B > 0, mass_B, 1.0), mass_B, given.batch.axis_name)


def tempered(given: Given, logits_BxK: jax.Array, temperature: float = 1.0) -> jax.Array:
    """The logits divided by a temperature and this step's factor of it."""
    temperature = temperature * given.batch.temperature_factor
    return logits_BxK if isinstance(temperature, float) and temperature == 1 else logits_BxK / temperature
