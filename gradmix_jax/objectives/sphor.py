"""SpHOR: projections as a mixture of von Mises-Fisher distributions around nearly orthogonal label embeddings.

Letters: B rows of this device (views included), K known classes.
"""

import jax
import jax.numpy as jnp

from gradmix_jax.fields import Key
from gradmix_jax.objectives.base import Given, Objective, check_head
from gradmix_jax.objectives.targets import (
    clean_targets,
    mean_of_known,
    smoothed,
    soft_cross_entropy,
    targets_of_mixed,
)


def von_mises_fisher(cosine_BxK: jax.Array, targets_BxK: jax.Array, *, concentration) -> jax.Array:
    """loss_B: minus the expected log posterior of the classes, each a von Mises-Fisher distribution.

    With one concentration for all classes their normalizers cancel: a softmax of concentration * cosine to the mean
    direction of each class (Bahavan et al. 2025, "SpHOR", arXiv 2503.08049).
    """
    return soft_cross_entropy(concentration * cosine_BxK, targets_BxK, 0.0)


def repulsion(between_KxK: jax.Array, *, temperature) -> jax.Array:
    """Sum over the classes of log mean over the others of exp(squared cosine / temperature): 0 where orthogonal.

    As in SpHOR's released code. Scalar.
    """
    count = between_KxK.shape[0]
    if count < 2:
        return jnp.zeros(())
    squares_KxK = jnp.where(jnp.eye(count, dtype=bool), -jnp.inf, jnp.square(between_KxK) / temperature)
    return (jax.nn.logsumexp(squares_KxK, axis=1) - jnp.log(count - 1)).sum()


def _attraction(given: Given, cosine_BxK: jax.Array, targets_BxK: jax.Array) -> jax.Array:
    options = given.spec.options["sphor"]
    targets_BxK = smoothed(targets_BxK, options["smoothing"])
    temperature = options["temperature"] * given.batch.temperature_factor
    loss_B = von_mises_fisher(cosine_BxK, targets_BxK, concentration=1 / temperature)
    return mean_of_known(given, loss_B, targets_BxK)


def _clean(given: Given) -> jax.Array:
    options = given.spec.options["sphor"]
    loss = _attraction(given, given.head["cosine"], clean_targets(given))
    temperature = options["temperature"] * given.batch.temperature_factor
    return loss + options["orthogonality"] * repulsion(given.head["between"], temperature=temperature)


OBJECTIVE = Objective(
    clean=_clean,
    mixed=lambda given, mixed: _attraction(given, mixed.head["cosine"], targets_of_mixed(given, mixed)),
    uses_labels=True,
    check=check_head("spherical"),
    options={
        "temperature": Key(0.1, "1 / concentration; 0.1 for TinyImageNet, 0.07 for fine-grained data", above=0),
        "smoothing": Key(0.1, "share of a label that the other classes get", least=0, below=1),
        "orthogonality": Key(0.05, "weight of the repulsion between label embeddings", least=0),
    },
)
