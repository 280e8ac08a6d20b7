"""MoCo v2 with a queue of keys, and its GradMix form.

Letters: B rows of this device (views included), M those of all devices, P query rows, Q queue, D embedding.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gradmix_jax.fields import Key
from gradmix_jax.objectives.base import Objective, Spec, State, Update, check_two_views, follow
from gradmix_jax.objectives.contrastive import Batch, by_view, gather


class Keys(NamedTuple):
    """Output of the key encoder: keys_BxD of this device's clean views, and queue_QxD of earlier ones."""

    keys: jax.Array
    queue: jax.Array


def initial_queue(key: jax.Array, size: int, projection: int) -> jax.Array:
    """queue_QxD of random unit vectors (He et al. 2020, arXiv 1911.05722, released code)."""
    queue_QxD = jax.random.normal(key, (size, projection))
    return queue_QxD / jnp.linalg.norm(queue_QxD, axis=1, keepdims=True)


def enqueue(queue_QxD: jax.Array, keys_BxD: jax.Array, step: jax.Array, *, views: int, axis_name: str | None):
    """The queue with the oldest rows replaced by the keys of all devices, in an order independent of devices."""
    keys_MxD = jnp.concatenate(by_view(gather(keys_BxD, axis_name), views, axis_name))
    rows = keys_MxD.shape[0]
    first = (step % (queue_QxD.shape[0] // rows)) * rows
    return lax.dynamic_update_slice_in_dim(queue_QxD, keys_MxD, first, axis=0)


def moco(batch: Batch, queries_PxD: jax.Array, carried: Keys, spec: Spec, weight_P: jax.Array | None = None):
    """InfoNCE of queries against the key of the other view of the same image, negatives from the queue alone.

    MoCo v2 (Chen et al. 2020, arXiv 2003.04297; He et al. 2020, equation 1), symmetric: every view is a query once.
    With mixed images as queries and their kept shares as weights, it is the loss that GradMix adds: the kept part of
    an image must suffice to find its other view.

    Args:
      batch: the clean features, which define how rows belong together.
      queries_PxD: unit features of this device's clean or mixed views, of all or of view 0 only, view-major.
      carried: keys of this device's clean views, and the queue.
      spec: the objective section.
      weight_P: a weight for each query; 1 where not given.

    Returns:
      Scalar, this device's part of the mean.
    """
    dot = lambda a, b: jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32).T, precision=lax.Precision.HIGHEST)
    images = carried.keys.shape[0] // batch.views
    temperature = spec.temperature * batch.temperature_factor
    row_P, row_B = jnp.arange(queries_PxD.shape[0]), jnp.arange(carried.keys.shape[0])
    positives_PxB = ((row_P % images)[:, None] == (row_B % images)[None, :]) & (row_P[:, None] != row_B[None, :])
    positive_PxB = dot(queries_PxD, carried.keys) / temperature
    negatives_P = jax.nn.logsumexp(dot(queries_PxD, carried.queue) / temperature, axis=1)
    log_probability_PxB = positive_PxB - jnp.logaddexp(positive_PxB, negatives_P[:, None])
    loss_P = -jnp.sum(jnp.where(positives_PxB, log_probability_PxB, 0.0), axis=1) / (batch.views - 1)
    loss_P = loss_P if weight_P is None else loss_P * weight_P
    return temperature / spec.base_temperature * jnp.mean(loss_P)


def _init(key: jax.Array, model: Any, embedding: int, spec: Spec) -> dict[str, Any]:
    return {"momentum": model, "queue": initial_queue(key, spec.options["moco"]["queue_size"], embedding)}


def _update(state: dict[str, Any], update: Update) -> tuple[Keys, dict[str, Any]]:
    """Move the key encoder toward the model, then compute the keys of the clean views."""
    encoder = follow(state["momentum"], update.model, update.spec.options["moco"]["momentum"])
    # Train mode, like the model: statistics of the batch, over all devices.
    keys_BxD = update.forward(encoder)
    queue_QxD = state["queue"]
    filled_QxD = enqueue(queue_QxD, keys_BxD, update.step, views=update.views, axis_name=update.axis_name)
    return Keys(keys_BxD, queue_QxD), {"momentum": encoder, "queue": filled_QxD}


def _check(experiment, where: str) -> None:
    check_two_views(experiment, where)
    size, views = experiment.train.batch_size, experiment.train.num_views
    queue_size = experiment.objective.options["moco"]["queue_size"]
    if size and queue_size % (size * views):  # 0: not derived yet
        raise ValueError(
            f"objective.options.moco.queue_size must be a multiple of the {size * views} views of a step, got "
            f"{queue_size} (train.batch_size {size} x train.num_views {views})."
        )


OBJECTIVE = Objective(
    clean=lambda given: moco(given.batch, given.batch.anchors_NxD, given.carried, given.spec),
    mixed=lambda given, mixed: moco(given.batch, mixed.z, given.carried, given.spec, mixed.weight),
    # Mixed queries are compared only with keys and queue.
    touches_clean=lambda spec: False,
    uses_head=False,
    state=State(_init, _update, copies=("momentum",)),
    check=_check,
    options={
        "queue_size": Key(8192, "length of the queue, a multiple of batch_size * num_views", least=1),
        "momentum": Key(0.999, "momentum of the key encoder", least=0, below=1),
    },
)
