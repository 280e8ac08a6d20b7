"""Shared by the losses: the contrastive loss, the image and class of each row, and means over devices.

Letters: B rows of this device (views included), N anchors, M contrast features, P positive features, D embedding.
Contrast is global: with `axis_name`, features of all devices are gathered. Since the transpose of a gather sums the
cotangents of all devices, the mean over devices of the parameter gradients is the gradient of the global loss.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax


def contrastive(
    anchors_NxD: jax.Array,
    contrast_NxD: jax.Array,
    positives_NxN: jax.Array,
    *,
    temperature: float,
    base_temperature: float | None = None,
    positive_features_NxD: jax.Array | None = None,
    positive_weights_N: jax.Array | None = None,
    first_anchor: jax.Array | int = 0,
) -> jax.Array:
    """Contrastive loss of every anchor.

    l_a = -(T / T0) * mean over p in P(a) of w_p * [ a.p / T - log sum over n != a of exp(a.n / T) ], T0 = T by default

    Sources: Khosla et al. 2020, "Supervised contrastive learning", equation 2 (the sum outside the logarithm); with one
    positive it is NT-Xent of Chen et al. 2020 (SimCLR), equation 1. The denominator is always over the contrast
    features but the anchor itself; with `positive_features_NxD` (mixed images) only the numerator changes.

    Args:
      anchors_NxD: L2-normalized anchors; anchor i is row `first_anchor + i` of the contrast features.
      contrast_NxD: L2-normalized features of the whole batch; M rows, more than anchors where those are one device's.
      positives_NxN: bool, or how much of a positive each is, 0 or more; row: anchor, column: one of the P positive
        features. The anchor itself must not be marked where the positives are the contrast features.
      temperature: T.
      base_temperature: T0; the loss is multiplied by T / T0. None: T0 = T, the plain loss.
      positive_features_NxD: features of the positives, P rows; the contrast features where not given (P = M).
      positive_weights_N: a weight in [0, 1] for every positive feature, P of them; 1 where not given.
      first_anchor: row of anchor 0 in the contrast features (may be traced).

    Returns:
      loss_N, float32. An anchor without a positive has loss 0 and must be left out of a mean.
    """
    dot = lambda a, b: jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32).T, precision=lax.Precision.HIGHEST)
    logits_NxM = dot(anchors_NxD, contrast_NxD) / temperature
    anchor_N = first_anchor + jnp.arange(anchors_NxD.shape[0])
    is_self_NxM = anchor_N[:, None] == jnp.arange(contrast_NxD.shape[0])[None, :]
    denominator_N = jax.nn.logsumexp(jnp.where(is_self_NxM, -jnp.inf, logits_NxM), axis=1)
    if positive_features_NxD is None:
        similarity_NxP = logits_NxM
    else:
        similarity_NxP = dot(anchors_NxD, positive_features_NxD) / temperature
    share_NxP = positives_NxN.astype(jnp.float32)
    sum_Nx1 = jnp.sum(share_NxP, axis=1, keepdims=True)
    share_NxP = share_NxP / jnp.where(sum_Nx1 > 0, sum_Nx1, 1.0)
    if positive_weights_N is not None:
        share_NxP = share_NxP * positive_weights_N[None, :]
    log_probability_NxP = similarity_NxP - denominator_N[:, None]
    scale = 1.0 if base_temperature is None else temperature / base_temperature
    return -scale * jnp.sum(share_NxP * log_probability_NxP, axis=1)


def mean_where(loss_N, has_positive_N, axis_name):
    """Mean of the losses of the anchors that have a positive (or by weights in its place); 0 where none has.

    With `axis_name`, it is this device's part, scaled so that the mean over devices is the mean over all anchors,
    however unevenly those with a positive are spread (SupCon with a single view).
    """
    has_positive_N = has_positive_N.astype(jnp.float32)
    count, devices = jnp.sum(has_positive_N), 1
    if axis_name is not None:
        count, devices = lax.psum(count, axis_name), lax.axis_size(axis_name)
    return jnp.sum(loss_N * has_positive_N) * devices / jnp.where(count > 0, count, 1.0)


@dataclasses.dataclass(frozen=True)
class Batch:
    """What every contrastive loss of one device's step shares.

    Attributes:
      anchors_NxD: this device's features, view-major.
      contrast_MxD: the features of all devices.
      image_N, image_M: number of the image that each row came from, in the global batch.
      label_N, label_M: its class.
      first_anchor: row of anchor 0 in the contrast features.
      views: number of views.
      axis_name: the mapped axis over which the batch is spread, if any.
      temperature_factor: factor of the temperatures of this step (`objectives.temperatures`).
    """

    anchors_NxD: jax.Array
    contrast_MxD: jax.Array
    image_N: jax.Array
    image_M: jax.Array
    label_N: jax.Array
    label_M: jax.Array
    first_anchor: jax.Array | int
    views: int
    axis_name: str | None
    temperature_factor: jax.Array | float = 1.0


def gather(x: jax.Array, axis_name: str | None) -> jax.Array:
    """Rows of all devices, in the order of devices; the identity without an axis."""
    return x if axis_name is None else lax.all_gather(x, axis_name, tiled=True)


def make_batch(
    z_BxD: jax.Array,
    contrast_MxD: jax.Array,
    labels_b: jax.Array,
    *,
    views: int,
    axis_name: str | None = None,
    temperature_factor: jax.Array | float = 1.0,
) -> Batch:
    """Assign an image and a class to every row.

    Args:
      z_BxD: this device's features, B = views * b rows, view-major.
      contrast_MxD: `gather(z_BxD, axis_name)`, taken once by the caller for all losses.
      labels_b: the classes of this device's images.
      views: number of views.
      axis_name: the mapped axis, if any.
      temperature_factor: factor of this step's temperatures.

    Returns:
      The batch that the losses below take.
    """
    images, rows = labels_b.shape[0], z_BxD.shape[0]
    device = 0 if axis_name is None else lax.axis_index(axis_name)
    # A row's number determines its image, so only classes have to be gathered, once per image.
    row_M = jnp.arange(contrast_MxD.shape[0])
    image_M = row_M // rows * images + row_M % images
    return Batch(
        anchors_NxD=z_BxD,
        contrast_MxD=contrast_MxD,
        image_N=device * images + jnp.tile(jnp.arange(images), views),
        image_M=image_M,
        label_N=jnp.tile(labels_b, views),
        label_M=gather(labels_b, axis_name)[image_M],
        first_anchor=device * rows,
        views=views,
        axis_name=axis_name,
        temperature_factor=temperature_factor,
    )


def of_same_image(batch: Batch, row_n: jax.Array) -> jax.Array:
    return (batch.image_N[row_n][:, None] == batch.image_M[None, :]) & not_self(batch, row_n)


def of_same_class(batch: Batch, row_n: jax.Array) -> jax.Array:
    """Rows of one class; an image of a negative class (label -1) shares its class with no other image."""
    label_n = batch.label_N[row_n][:, None]
    has_class = (label_n == batch.label_M[None, :]) & (label_n >= 0)
    return (has_class & not_self(batch, row_n)) | of_same_image(batch, row_n)


def not_self(batch: Batch, row_n: jax.Array) -> jax.Array:
    return (batch.first_anchor + row_n)[:, None] != jnp.arange(batch.contrast_MxD.shape[0])[None, :]


def mean_loss(batch, positives_of, spec, positive_features=None, positive_weights=None):
    """Mean over the anchors that have a positive, `spec.block_size` anchors at a time.

    Blocks are recomputed in the backward pass, so that memory grows with the number of contrast features instead of
    its square.
    """
    anchors, contrast = batch.anchors_NxD, batch.contrast_MxD
    if positive_features is not None and spec.detach_anchors:
        # The mixed loss then does not touch the clean features, and one backward pass serves map and training.
        anchors, contrast = lax.stop_gradient(anchors), lax.stop_gradient(contrast)
    size = _largest_divisor(anchors.shape[0], spec.block_size)

    def block(start, anchors_nxD, contrast, positive_features):
        positives_nxP = positives_of(start + jnp.arange(size))
        loss_n = contrastive(
            anchors_nxD,
            contrast,
            positives_nxP,
            temperature=spec.temperature * batch.temperature_factor,
            base_temperature=spec.base_temperature,
            positive_features_NxD=positive_features,
            positive_weights_N=positive_weights,
            first_anchor=batch.first_anchor + start,
        )
        return loss_n, jnp.any(positives_nxP, axis=1)

    if size == anchors.shape[0]:
        loss_N, has_positive_N = block(0, anchors, contrast, positive_features)
    else:
        starts = jnp.arange(0, anchors.shape[0], size)
        again = jax.checkpoint(block, prevent_cse=False)
        blocks = starts, anchors.reshape(-1, size, anchors.shape[1])
        loss_N, has_positive_N = lax.map(lambda each: again(*each, contrast, positive_features), blocks)
    return mean_where(loss_N.ravel(), has_positive_N.ravel(), batch.axis_name)


def _largest_divisor(number: int, limit: int) -> int:
    return next(size for size in range(min(number, limit), 0, -1) if number % size == 0)


def by_view(x_M, views, axis_name):
    """Rows of all devices, view-major on each device, as one array per view: [x_N, ...]."""
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    x = x_M.reshape(devices, views, -1, *x_M.shape[1:])
    return [x[:, view].reshape(-1, *x_M.shape[1:]) for view in range(views)]
