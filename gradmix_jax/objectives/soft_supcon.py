"""ConOSR's supervised contrastive loss with soft labels, of clean and mixed images together.

Letters: B rows of this device (views included), N its anchors, M rows of all devices, D embedding, K known classes.
"""

import dataclasses

import jax
import jax.numpy as jnp

from gradmix_jax.fields import Key
from gradmix_jax.objectives.base import Given, Mixed, Objective
from gradmix_jax.objectives.contrastive import Batch, gather, mean_loss
from gradmix_jax.objectives.targets import clean_targets, smoothed, targets_of_mixed


def soft_supcon(batch: Batch, labels_BxK: jax.Array, labels_MxK: jax.Array, spec) -> jax.Array:
    """SupCon in which a row counts as a positive by the cosine of its soft label and the anchor's.

    Xu, Shen & Zhao 2023, "Contrastive Open Set Recognition" (ConOSR), AAAI, and its released code; with one-hot labels
    it is SupCon.

    Args:
      batch: anchors, and the rows they are compared with.
      labels_BxK, labels_MxK: soft labels of both, 0 or more. A row of zeros has no positives and is not a positive.
      spec: the objective section.

    Returns:
      Scalar, this device's part of the mean over the anchors that have a positive.
    """
    unit_BxK, unit_MxK = _unit(labels_BxK), _unit(labels_MxK)
    column_M = jnp.arange(labels_MxK.shape[0])

    def positives_of(row_n):
        other_nxM = (batch.first_anchor + row_n)[:, None] != column_M[None, :]
        return (unit_BxK[row_n] @ unit_MxK.T) * other_nxM

    return mean_loss(batch, positives_of, spec)


def _unit(labels_NxK):
    norm_Nx1 = jnp.linalg.norm(labels_NxK, axis=1, keepdims=True)
    return labels_NxK / jnp.where(norm_Nx1 > 0, norm_Nx1, 1.0)


def _clean(given: Given) -> jax.Array:
    labels_BxK = smoothed(clean_targets(given), given.spec.options["soft_supcon"]["smoothing"])
    return soft_supcon(given.batch, labels_BxK, gather(labels_BxK, given.batch.axis_name), given.spec)


def _mixed(given: Given, mixed: Mixed) -> jax.Array:
    """The loss of clean and mixed rows together, minus that of the clean rows alone.

    The published loss is one mean over all of them, each an anchor and all in its denominator. It cannot be split into
    two, so what is added to the loss of the clean rows is the difference.
    """
    batch, smoothing = given.batch, given.spec.options["soft_supcon"]["smoothing"]
    rows = lambda clean, mixed: jnp.concatenate([clean, mixed])
    labels_NxK = smoothed(rows(clean_targets(given), targets_of_mixed(given, mixed)), smoothing)
    z_NxD = rows(batch.anchors_NxD, mixed.z)
    # Clean and mixed rows of one device are neighbors, so that the anchors are consecutive rows of the contrast.
    contrast_MxD, labels_MxK = (gather(x, batch.axis_name) for x in (z_NxD, labels_NxK))
    both = dataclasses.replace(batch, anchors_NxD=z_NxD, contrast_MxD=contrast_MxD, first_anchor=2 * batch.first_anchor)
    return soft_supcon(both, labels_NxK, labels_MxK, given.spec) - _clean(given)


OBJECTIVE = Objective(
    clean=_clean,
    mixed=_mixed,
    touches_clean=lambda spec: True,
    uses_head=False,
    uses_labels=True,
    options={
        "smoothing": Key(0.2, "share of a label that the other classes get; 0.2 for TinyImageNet", least=0, below=1)
    },
)
