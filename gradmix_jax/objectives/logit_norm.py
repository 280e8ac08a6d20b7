"""LogitNorm: cross-entropy of logits of equal length, so that confidence cannot grow with their norm."""

import jax

from gradmix_jax.fields import Key
from gradmix_jax.models.heads import l2_normalize
from gradmix_jax.objectives.base import Given, Objective, check_logits
from gradmix_jax.objectives.targets import (
    clean_targets,
    mean_of_known,
    soft_cross_entropy,
    targets_of_mixed,
)


def logit_norm(logits_BxK: jax.Array, targets_BxK: jax.Array, *, temperature, smoothing: float = 0.0) -> jax.Array:
    """loss_B: cross-entropy of logits / (temperature * their L2 norm) against probabilities.

    Wei et al. 2022, "Mitigating Neural Network Overconfidence with Logit Normalization", arXiv 2205.09310.
    A norm below 1e-6 counts as 1e-6.
    """
    return soft_cross_entropy(l2_normalize(logits_BxK) / temperature, targets_BxK, smoothing)


def _loss(given: Given, logits_BxK: jax.Array, targets_BxK: jax.Array) -> jax.Array:
    temperature = given.spec.options["logit_norm"]["temperature"] * given.batch.temperature_factor
    options = dict(temperature=temperature, smoothing=given.spec.label_smoothing)
    return mean_of_known(given, logit_norm(logits_BxK, targets_BxK, **options), targets_BxK)


OBJECTIVE = Objective(
    clean=lambda given: _loss(given, given.logits, clean_targets(given)),
    mixed=lambda given, mixed: _loss(given, mixed.logits, targets_of_mixed(given, mixed)),
    uses_labels=True,
    check=check_logits,
    options={
        "temperature": Key(0.04, "temperature of the normalized logits; 0.04 is the paper's for CIFAR-10", above=0)
    },
)
