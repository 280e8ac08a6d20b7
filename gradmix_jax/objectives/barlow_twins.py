"""Barlow Twins, and its GradMix form.

Letters: N images of the global batch, P mixed rows of this device, D embedding.
"""

import jax
import jax.numpy as jnp
from jax import lax

from gradmix_jax.fields import Key
from gradmix_jax.objectives.base import Objective, Spec
from gradmix_jax.objectives.contrastive import Batch, by_view, gather


def barlow_twins(batch: Batch, spec: Spec) -> jax.Array:
    """Cross-correlation of the two views' features toward the identity (Zbontar et al. 2021, arXiv 2103.03230).

    Equation 1 over the global batch, divided by D, on projections of unit length. Scalar, the same on all devices.
    """
    first_NxD, second_NxD = by_view(batch.contrast_MxD, batch.views, batch.axis_name)
    return _redundancy(first_NxD, second_NxD, jnp.ones(first_NxD.shape[0]), spec)


def mixed_barlow_twins(batch: Batch, mixed_PxD: jax.Array, weight_P: jax.Array, spec: Spec) -> jax.Array:
    """Barlow Twins of the mixed version of a view and the other clean view, with rows weighted by the kept share.

    Args:
      batch: the clean features.
      mixed_PxD: projections of this device's mixed images, of both views or of view 0 only, view-major.
      weight_P: kept share of each mixed image.
      spec: the objective section.
    """
    mixed_views = mixed_PxD.shape[0] * batch.views // batch.anchors_NxD.shape[0]
    clean = by_view(batch.contrast_MxD, batch.views, batch.axis_name)
    if spec.detach_anchors:
        clean = [lax.stop_gradient(view) for view in clean]
    mixed = by_view(gather(mixed_PxD, batch.axis_name), mixed_views, batch.axis_name)
    weights = by_view(gather(weight_P, batch.axis_name), mixed_views, batch.axis_name)
    losses = [_redundancy(mixed[view], clean[1 - view], weights[view], spec) for view in range(mixed_views)]
    return sum(losses) / mixed_views


def _redundancy(first_NxD, second_NxD, weight_N, spec):
    share_Nx1 = (weight_N / jnp.maximum(weight_N.sum(), 1e-6))[:, None]

    def standardized(x_NxD):
        x_NxD = x_NxD.astype(jnp.float32)
        centered_NxD = x_NxD - (share_Nx1 * x_NxD).sum(axis=0, keepdims=True)
        # The epsilon of a BatchNorm without scale, as in the authors' code, so equal features give 0, not NaN.
        variance_1xD = (share_Nx1 * jnp.square(centered_NxD)).sum(axis=0, keepdims=True)
        return centered_NxD * lax.rsqrt(variance_1xD + 1e-5)

    correlation_DxD = jnp.matmul(
        (share_Nx1 * standardized(first_NxD)).T, standardized(second_NxD), precision=lax.Precision.HIGHEST
    )
    size = correlation_DxD.shape[0]
    on = jnp.sum(jnp.square(1.0 - jnp.diagonal(correlation_DxD)))
    off = jnp.sum(jnp.square(correlation_DxD * (1.0 - jnp.eye(size))))
    return (on + spec.options["barlow_twins"]["off_diagonal_weight"] * off) / size


def _check(experiment, where: str) -> None:
    views = experiment.train.num_views
    if views != 2:
        raise ValueError(f"{where} needs train.num_views 2 for barlow_twins, got {views}.")


OBJECTIVE = Objective(
    clean=lambda given: barlow_twins(given.batch, given.spec),
    mixed=lambda given, mixed: mixed_barlow_twins(given.batch, mixed.z, mixed.weight, given.spec),
    touches_clean=lambda spec: not spec.detach_anchors,
    uses_head=False,
    check=_check,
    options={
        "off_diagonal_weight": Key(0.005, "weight of the squared correlations between different dimensions", above=0)
    },
)
