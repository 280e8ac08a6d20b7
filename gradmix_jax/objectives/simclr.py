"""SimCLR, and its GradMix form."""

import jax
import jax.numpy as jnp

from gradmix_jax.objectives.base import Objective, Spec, check_two_views
from gradmix_jax.objectives.contrastive import Batch, mean_loss, of_same_image


def simclr(batch: Batch, spec: Spec) -> jax.Array:
    """NT-Xent: the positive of a view is the other view of the same image. Scalar, this device's part of the mean."""
    return mean_loss(batch, lambda row_n: of_same_image(batch, row_n), spec)


def mixed_simclr(batch: Batch, mixed_PxD: jax.Array, weight_P: jax.Array, spec: Spec) -> jax.Array:
    """SimCLR with mixed images as positives: clean anchors, clean denominators, weighted by the kept share.

    The positive of view v of an image is the mixed version of its other view, which is on the same device, so the
    mixed features need no gather.

    Args:
      batch: the clean features.
      mixed_PxD: projections of this device's mixed images, of all views or of view 0 only, view-major.
      weight_P: kept share of each mixed image.
      spec: the objective section.

    Returns:
      Scalar, this device's part of the mean.
    """
    images = batch.anchors_NxD.shape[0] // batch.views
    mixed_P = jnp.arange(mixed_PxD.shape[0])

    def positives_of(row_n):
        same_image_nxP = (row_n % images)[:, None] == (mixed_P % images)[None, :]
        return same_image_nxP & (row_n[:, None] != mixed_P[None, :])

    return mean_loss(batch, positives_of, spec, mixed_PxD, weight_P)


OBJECTIVE = Objective(
    clean=lambda given: simclr(given.batch, given.spec),
    mixed=lambda given, mixed: mixed_simclr(given.batch, mixed.z, mixed.weight, given.spec),
    touches_clean=lambda spec: not spec.detach_anchors,
    uses_head=False,
    check=check_two_views,
)
