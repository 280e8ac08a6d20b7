"""ARPL: features far from the reciprocal point of their class, within a radius of it."""

import jax

from gradmix_jax.fields import Key
from gradmix_jax.objectives.base import Given, Objective, check_head
from gradmix_jax.objectives.targets import (
    clean_targets,
    mean_of_known,
    soft_cross_entropy,
    targets_of_mixed,
    tempered,
)


def radius_loss(distance_BxK: jax.Array, radius: jax.Array, targets_BxK: jax.Array, *, margin: float) -> jax.Array:
    """loss_B: how far beyond radius - margin a feature is from the reciprocal point of its class.

    Chen et al. 2021, "Adversarial Reciprocal Points Learning", arXiv 2103.00953: the adversarial margin
    constraint, with the margin of the released code; 0 is the paper's. `distance_BxK` is that of
    `models.prototypes.ReciprocalPoints`; soft targets give a weighted mean.
    """
    return (targets_BxK * jax.nn.relu(distance_BxK - radius + margin)).sum(axis=1)


def _loss(given: Given, logits_BxK: jax.Array, head, targets_BxK: jax.Array) -> jax.Array:
    """Classification by distance plus `radius_weight` times the constraint."""
    options = given.spec.options["arpl"]
    logits_BxK = tempered(given, logits_BxK, options["temperature"])
    loss_B = soft_cross_entropy(logits_BxK, targets_BxK, given.spec.label_smoothing)
    open_B = radius_loss(head["distance"], head["radius"], targets_BxK, margin=options["margin"])
    return mean_of_known(given, loss_B + options["radius_weight"] * open_B, targets_BxK)


OBJECTIVE = Objective(
    clean=lambda given: _loss(given, given.logits, given.head, clean_targets(given)),
    mixed=lambda given, mixed: _loss(given, mixed.logits, mixed.head, targets_of_mixed(given, mixed)),
    uses_labels=True,
    check=check_head("reciprocal_points"),
    options={
        "temperature": Key(1.0, "temperature that divides the logits", above=0),
        "radius_weight": Key(0.1, "weight of the margin constraint", least=0),
        "margin": Key(1.0, "margin of that constraint; 0: the paper's, 1: that of its released code", least=0),
    },
)
