"""Scores from the nearest training features. Higher means known.

Memory stays bounded: `jax.lax.map` takes a block of images at a time, so that at most [block, size of the bank]
similarities are held at once, never [number of images, size of the bank].

Letters: N images, M training images, D feature, K classes, P parts of length L.
"""

import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gradmix_jax.fields import check_number
from gradmix_jax.scores.base import checked_labels

BLOCK_SIZE = 256
# Images and training features compared at once by `class_similarities`: enough for a matrix product to be efficient,
# few enough for the similarities to stay in a CPU's cache.
TILE = 512, 2560
# Cosines of trained features crowd near 1, where the TF32 and bfloat16 defaults of accelerators lose order.
PRECISION = jax.lax.Precision.HIGHEST


@jax.jit
def unit(features):
    """Features divided by their L2 norm along the last axis; zero stays zero."""
    norm = jnp.linalg.norm(features, axis=-1, keepdims=True)
    return features / jnp.maximum(norm, jnp.finfo(features.dtype).tiny)


@flax.struct.dataclass
class Bank:
    """Training features cut by class into P parts of one length L, so that classes of any size stack.

    Classes of similar size get one part each, of the largest size. Otherwise L is the mean size, which makes
    at most 2 K parts: padding at most doubles the bank, however unequal the classes are.

    Attributes:
      features_PxLxD: unit features, zero where padded.    valid_PxL: bool, False where padded.
      parts_KxQ: the parts of each class; P stands for "no further part".
    """

    features_PxLxD: jax.Array
    valid_PxL: jax.Array
    parts_KxQ: jax.Array
    k: int = flax.struct.field(pytree_node=False)


class TopK(NamedTuple):
    """State of the `topk_cosine` scores."""

    bank: Bank
    normalized: bool


def class_bank(features_MxD, labels_M, *, num_classes, k=3):
    """`Bank` for `class_similarities`. Raises ValueError for labels out of range or a class without any."""
    check_number("k", k, least=1, whole=True)
    labels_M = checked_labels(labels_M, num_features=len(features_MxD), num_classes=num_classes)
    size_K = np.bincount(labels_M, minlength=num_classes)
    mean = -(-labels_M.size // num_classes)
    length = size_K.max() if size_K.max() <= 2 * mean else mean
    num_parts_K = -(-size_K // length)
    first_part_K = np.cumsum(num_parts_K) - num_parts_K

    order_M = np.argsort(labels_M, kind="stable")
    class_M = labels_M[order_M]
    place_M = np.arange(labels_M.size) - (np.cumsum(size_K) - size_K)[class_M]  # rank within its class
    row_PxL = np.full((num_parts_K.sum(), length), -1, np.int32)
    row_PxL[first_part_K[class_M] + place_M // length, place_M % length] = order_M

    part_Q = np.arange(num_parts_K.max())
    parts_KxQ = np.where(part_Q < num_parts_K[:, None], first_part_K[:, None] + part_Q, len(row_PxL))
    features_PxLxD = _gather_unit(np.asarray(features_MxD, np.float32), row_PxL)
    return jax.device_put(Bank(features_PxLxD, row_PxL >= 0, parts_KxQ.astype(np.int32), k))


@jax.jit
def _gather_unit(features_MxD, row_PxL):
    return jnp.where(row_PxL[..., None] >= 0, unit(features_MxD)[row_PxL], 0)


@functools.partial(jax.jit, static_argnames="tile")
def class_similarities(bank, features_NxD, *, tile=TILE):
    """Per-class sums of the k largest cosine similarities, scores_NxK; see `topk_cosine`."""
    (num_images, channels), (num_parts, length) = features_NxD.shape, bank.valid_PxL.shape
    rows, num_groups = min(tile[0], num_images), -(-num_parts // max(1, tile[1] // length))
    parts_at_once = -(-num_parts // num_groups)
    missing = num_groups * parts_at_once - num_parts
    features_PxLxD = jnp.pad(bank.features_PxLxD, ((0, missing), (0, 0), (0, 0)))
    valid_PxL = jnp.pad(bank.valid_PxL, ((0, missing), (0, 0)))
    # One product for the parts of a group; a batch of products, even of one, takes about twice as long on a CPU.
    groups = features_PxLxD.reshape(num_groups, -1, channels), valid_PxL.reshape(num_groups, parts_at_once, length)

    def largest(block_nxD, features_MxD, valid_GxL):
        cosine_nxGxL = jnp.matmul(block_nxD, features_MxD.T, precision=PRECISION).reshape(rows, *valid_GxL.shape)
        return jax.lax.top_k(jnp.where(valid_GxL[None], cosine_nxGxL, -jnp.inf), min(bank.k, length))[0]

    def one_block(block_nxD):
        top_nxPxk = jnp.moveaxis(jax.lax.map(lambda group: largest(block_nxD, *group), groups), 1, 0)
        top_Pxnxk = jnp.moveaxis(top_nxPxk.reshape(rows, num_parts + missing, -1)[:, :num_parts], 1, 0)
        top_Pxnxk = jnp.concatenate([top_Pxnxk, jnp.full_like(top_Pxnxk[:1], -jnp.inf)])
        of_class_nxKxR = jnp.moveaxis(top_Pxnxk[bank.parts_KxQ], 2, 0).reshape(rows, len(bank.parts_KxQ), -1)
        top_nxKxk = jax.lax.top_k(of_class_nxKxR, min(bank.k, of_class_nxKxR.shape[2]))[0]
        return jnp.where(top_nxKxk > -jnp.inf, top_nxKxk, 0).sum(axis=2)

    features_NxD = unit(jnp.asarray(features_NxD, jnp.float32))
    padded = jnp.pad(features_NxD, ((0, -num_images % rows), (0, 0)))
    blocks = padded.reshape(-1, rows, features_NxD.shape[1])
    return jax.lax.map(one_block, blocks).reshape(-1, len(bank.parts_KxQ))[:num_images]


def _normalized(scores_NxK):
    with np.errstate(invalid="ignore"):  # 0 / 0 of a zero feature is rightly NaN
        return scores_NxK / scores_NxK.sum(axis=1, keepdims=True)


def topk_cosine(features_NxD, bank_MxD, bank_labels_M, *, k=3, num_classes, normalized=False, tile=TILE):
    """Per class, the sum of the k largest cosine similarities to that class's training features.

    The default score of contrastive models (Xu, Kao, Keuper 2025): prediction = argmax over the
    classes, score = the raw maximum, higher = known.

    Args:
      features_NxD: image features; any scale, they are normalized here.
      bank_MxD, bank_labels_M: training features and their classes, 0 .. num_classes - 1.
      k: neighbors per class. A class with fewer members sums over those it has, so its scores are lower.
      normalized: divide by the sum over the classes, as the method's released code does. Costs AUROC where
        that sum is near 0 and flips order where it is negative; here only for comparison.
      tile: images and training features compared at once; memory is about their product in floats.

    Returns scores_NxK, float32, raw ones in [-k, k].
    Raises ValueError for labels out of range or a class without any training feature.
    """
    bank = class_bank(bank_MxD, bank_labels_M, num_classes=num_classes, k=k)
    sums_NxK = class_similarities(bank, features_NxD, tile=tile)
    return _normalized(sums_NxK) if normalized else sums_NxK


def fit_topk(reference, *, k=0, normalized=False):
    """Training features by class; k = 0 takes as many neighbors as predictions, `reference.k`."""
    k = k or reference.k
    compute = lambda: class_bank(reference.features(), reference.labels_N, num_classes=reference.num_classes, k=k)
    return TopK(reference.shared(("class_bank", k), compute), normalized)


def class_sums(bank, outputs):
    """`class_similarities` of the outputs, computed once for scores and predictions with the same k."""
    return outputs.shared(
        ("class_similarities", bank.k), lambda: np.asarray(class_similarities(bank, outputs.features))
    )


def score_topk(topk, outputs):
    """Largest class sum of the k largest cosine similarities; see `topk_cosine`."""
    sums_NxK = class_sums(topk.bank, outputs)
    return (_normalized(sums_NxK) if topk.normalized else sums_NxK).max(axis=1)


@flax.struct.dataclass
class Neighbors:
    features_MxD: jax.Array
    k: int = flax.struct.field(pytree_node=False)


def fit_knn(reference, *, k=50):
    """Unit training features. k = 50 is the paper's for CIFAR-10; smaller training sets use their size."""
    features_MxD = reference.features()
    return Neighbors(unit(features_MxD), min(k, len(features_MxD)))


@jax.jit
def score_knn(neighbors, outputs):
    """Minus the Euclidean distance of unit features to the k-th nearest training feature (Sun et al. 2022).

    "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022, eq. 4. In [-2, 0].
    """

    def one_image(feature_D):
        cosine_M = jnp.einsum("md,d->m", neighbors.features_MxD, feature_D, precision=PRECISION)
        kth = jax.lax.top_k(cosine_M, neighbors.k)[1][-1]
        # Not sqrt(2 - 2 cosine), which has the resolution 3e-4 where the cosine is near 1.
        return -jnp.linalg.norm(neighbors.features_MxD[kth] - feature_D)

    return jax.lax.map(one_image, unit(jnp.asarray(outputs.features, jnp.float32)), batch_size=BLOCK_SIZE)


def fit_nnguide(reference, *, k=10, share=1.0):
    """Unit training features times the energy of their logits; of every (1 / share)-th training image.

    k = 10 is the paper's. It takes 1 % of ImageNet's training images and all of smaller sets.
    """
    size = len(reference.labels_N)
    kept = np.linspace(0, size - 1, max(1, round(share * size))).round().astype(int)
    energy_M = np.logaddexp.reduce(np.asarray(reference.train.logits, np.float64)[kept], axis=1)
    features_MxD = unit(reference.features()[kept]) * energy_M[:, None].astype(np.float32)
    return Neighbors(features_MxD, min(k, len(kept)))


@jax.jit
def score_nnguide(neighbors, outputs):
    """Energy times the mean of the k largest products of the unit feature with the energy-scaled training features.

    Park et al. 2023, "Nearest Neighbor Guidance for Out-of-Distribution Detection", ICCV 2023.
    """

    def one_image(feature_D):
        guide_M = jnp.einsum("md,d->m", neighbors.features_MxD, feature_D, precision=PRECISION)
        return jax.lax.top_k(guide_M, neighbors.k)[0].mean()

    features_NxD = unit(jnp.asarray(outputs.features, jnp.float32))
    guidance_N = jax.lax.map(one_image, features_NxD, batch_size=BLOCK_SIZE)
    return guidance_N * jax.nn.logsumexp(jnp.asarray(outputs.logits, jnp.float32), axis=1)
