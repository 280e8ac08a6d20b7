"""GCPL: distance-based cross-entropy with one learned prototype per class, which attracts the features of its class."""

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


def prototype_loss(distance_BxK: jax.Array, targets_BxK: jax.Array) -> jax.Array:
    """loss_B: the distance to the prototype of its class; soft targets give a weighted mean.

    Yang et al. 2018, "Robust Classification with Convolutional Prototype Learning", arXiv 1805.03438: the
    prototype loss. The head divides distances by the number of features, as ARPL's released code does, not
    the paper.
    """
    return (targets_BxK * distance_BxK).sum(axis=1)


def _loss(given: Given, distance_BxK: jax.Array, targets_BxK: jax.Array) -> jax.Array:
    """Distance-based cross-entropy plus `prototype_weight` times the prototype loss."""
    options = given.spec.options["gcpl"]
    logits_BxK = tempered(given, -options["gamma"] * distance_BxK)
    loss_B = soft_cross_entropy(logits_BxK, targets_BxK, given.spec.label_smoothing)
    loss_B = loss_B + options["prototype_weight"] * prototype_loss(distance_BxK, targets_BxK)
    return mean_of_known(given, loss_B, targets_BxK)


OBJECTIVE = Objective(
    clean=lambda given: _loss(given, given.head["distance"], clean_targets(given)),
    mixed=lambda given, mixed: _loss(given, mixed.head["distance"], targets_of_mixed(given, mixed)),
    uses_labels=True,
    check=check_head("prototypes"),
    options={
        "gamma": Key(1.0, "factor of the distances, which are divided by the number of features", above=0),
        "prototype_weight": Key(0.05, "weight of the prototype loss; half of 0.1 in ARPL's comparison", least=0),
    },
)
