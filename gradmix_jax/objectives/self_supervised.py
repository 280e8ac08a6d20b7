"""MoCo and Barlow Twins, with GradMix: what they need beyond `objectives`, which holds SimCLR.

Letters: B rows of this device (views included), M those of all devices, Q queue, D embedding.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from gradmix_jax.objectives.contrastive import Batch, Spec, gather


class Momentum(NamedTuple):
    """What the momentum encoder says: keys_BxD of this device's clean views, and queue_QxD of earlier ones."""

    keys: jax.Array
    queue: jax.Array


def initial_queue(key: jax.Array, size: int, projection: int) -> jax.Array:
    """queue_QxD of random unit vectors (He et al. 2020, arXiv 1911.05722, released code)."""
    queue_QxD = jax.random.normal(key, (size, projection))
    return queue_QxD / jnp.linalg.norm(queue_QxD, axis=1, keepdims=True)


def enqueue(queue_QxD: jax.Array, keys_BxD: jax.Array, step: jax.Array, *, views: int, axis_name: str | None):
    """The queue with the oldest rows replaced by the keys of all devices, in an order that no device count changes."""
    keys_MxD = jnp.concatenate(_by_view(gather(keys_BxD, axis_name), views, axis_name))
    rows = keys_MxD.shape[0]
    first = (step % (queue_QxD.shape[0] // rows)) * rows
    return lax.dynamic_update_slice_in_dim(queue_QxD, keys_MxD, first, axis=0)


def follow(momentum: Any, online: Any, decay: float) -> Any:
    """decay * momentum + (1 - decay) * online, leaf by leaf."""
    return optax.incremental_update(online, momentum, 1.0 - decay)


def moco(batch: Batch, queries_PxD: jax.Array, momentum: Momentum, spec: Spec, weight_P: jax.Array | None = None):
    """InfoNCE of queries against the key of the other view of the same image, negatives from the queue alone.

    MoCo v2 (Chen et al. 2020, arXiv 2003.04297; He et al. 2020, equation 1), symmetric: every view is a query once.
    With mixed images as queries and their kept shares as weights it is the loss that GradMix adds: what is left of
    an image must be enough to find its other view.

    Args:
      batch: the clean features; says how rows belong together.
      queries_PxD: unit features of this device's clean or mixed views, of all or of view 0 only, view-major.
      momentum: keys of this device's clean views, and the queue.
      spec: the objective section.
      weight_P: a weight for each query; 1 where not given.

    Returns:
      Scalar, this device's part of the mean.
    """
    dot = lambda a, b: jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32).T, precision=lax.Precision.HIGHEST)
    images = momentum.keys.shape[0] // batch.views
    row_P, row_B = jnp.arange(queries_PxD.shape[0]), jnp.arange(momentum.keys.shape[0])
    positives_PxB = ((row_P % images)[:, None] == (row_B % images)[None, :]) & (row_P[:, None] != row_B[None, :])
    positive_PxB = dot(queries_PxD, momentum.keys) / spec.temperature
    negatives_P = jax.nn.logsumexp(dot(queries_PxD, momentum.queue) / spec.temperature, axis=1)
    log_probability_PxB = positive_PxB - jnp.logaddexp(positive_PxB, negatives_P[:, None])
    loss_P = -jnp.sum(jnp.where(positives_PxB, log_probability_PxB, 0.0), axis=1) / (batch.views - 1)
    loss_P = loss_P if weight_P is None else loss_P * weight_P
    return spec.temperature / spec.base_temperature * jnp.mean(loss_P)


def barlow_twins(batch: Batch, spec: Spec) -> jax.Array:
    """Cross-correlation of the two views' features towards the identity (Zbontar et al. 2021, arXiv 2103.03230).

    Equation 1 over the global batch, divided by D, on projections of unit length. Scalar, the same on all devices.
    """
    first_NxD, second_NxD = _by_view(batch.contrast_MxD, batch.views, batch.axis_name)
    return _redundancy(first_NxD, second_NxD, jnp.ones(first_NxD.shape[0]), spec)


def mixed_barlow_twins(batch: Batch, mixed_PxD: jax.Array, weight_P: jax.Array, spec: Spec) -> jax.Array:
    """Barlow Twins of the mixed version of a view and the *other* clean view, rows weighted by what was kept.

    Args:
      batch: the clean features.
      mixed_PxD: projections of this device's mixed images, of both views or of view 0 only, view-major.
      weight_P: kept share of each mixed image.
      spec: the objective section.
    """
    mixed_views = mixed_PxD.shape[0] * batch.views // batch.anchors_NxD.shape[0]
    clean = _by_view(batch.contrast_MxD, batch.views, batch.axis_name)
    if spec.detach_anchors:
        clean = [lax.stop_gradient(view) for view in clean]
    mixed = _by_view(gather(mixed_PxD, batch.axis_name), mixed_views, batch.axis_name)
    weights = _by_view(gather(weight_P, batch.axis_name), mixed_views, batch.axis_name)
    losses = [_redundancy(mixed[view], clean[1 - view], weights[view], spec) for view in range(mixed_views)]
    return sum(losses) / mixed_views


def _redundancy(first_NxD, second_NxD, weight_N, spec):
    share_Nx1 = (weight_N / jnp.maximum(weight_N.sum(), 1e-6))[:, None]

    def standardized(x_NxD):
        x_NxD = x_NxD.astype(jnp.float32)
        centred_NxD = x_NxD - (share_Nx1 * x_NxD).sum(axis=0, keepdims=True)
        # The epsilon of a BatchNorm without scale, which the authors use: equal features give 0 and not NaN.
        variance_1xD = (share_Nx1 * jnp.square(centred_NxD)).sum(axis=0, keepdims=True)
        return centred_NxD * lax.rsqrt(variance_1xD + 1e-5)

    correlation_DxD = jnp.matmul(
        (share_Nx1 * standardized(first_NxD)).T, standardized(second_NxD), precision=lax.Precision.HIGHEST
    )
    size = correlation_DxD.shape[0]
    on = jnp.sum(jnp.square(1.0 - jnp.diagonal(correlation_DxD)))
    off = jnp.sum(jnp.square(correlation_DxD * (1.0 - jnp.eye(size))))
    return (on + spec.off_diagonal_weight * off) / size


def _by_view(x_M, views, axis_name):
    """Rows of all devices, each device's view-major, as one array a view: [x_N, ...]."""
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    x = x_M.reshape(devices, views, -1, *x_M.shape[1:])
    return [x[:, view].reshape(-1, *x_M.shape[1:]) for view in range(views)]
