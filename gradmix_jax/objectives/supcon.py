"""SupCon, and its GradMix form."""

import jax

from gradmix_jax.objectives.base import Objective, Spec
from gradmix_jax.objectives.contrastive import Batch, gather, mean_loss, of_same_class


def supcon(batch: Batch, spec: Spec) -> jax.Array:
    """SupCon: all rows of the same class are positives. Scalar, this device's part of the mean."""
    return mean_loss(batch, lambda row_n: of_same_class(batch, row_n), spec)


def mixed_supcon(batch: Batch, mixed_BxD: jax.Array, weight_B: jax.Array, spec: Spec) -> jax.Array:
    """SupCon with the mixed versions of all rows of the same class, except the anchor's own, as positives. Scalar."""
    mixed, weight = gather(mixed_BxD, batch.axis_name), gather(weight_B, batch.axis_name)
    return mean_loss(batch, lambda row_n: of_same_class(batch, row_n), spec, mixed, weight)


OBJECTIVE = Objective(
    clean=lambda given: supcon(given.batch, given.spec),
    mixed=lambda given, mixed: mixed_supcon(given.batch, mixed.z, mixed.weight, given.spec),
    has_mixed=lambda spec: spec.mixed_supcon,
    touches_clean=lambda spec: not spec.detach_anchors,
    uses_head=False,
    uses_labels=True,
)
