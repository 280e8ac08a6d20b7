"""Scores from features, logits and the linear layer between them. Higher means known.

Letters: N images, F feature, K classes.
"""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gradmix_jax.scores.logits import energy
from gradmix_jax.scores.neighbors import BLOCK_SIZE, PRECISION

VARIANTS = ("b", "p", "s")


class Head(NamedTuple):
    """Linear layer: logits = features @ kernel_FxK + bias_K."""

    kernel_FxK: jax.Array
    bias_K: jax.Array

    def __call__(self, features_NxF):
        return jnp.einsum("nf,fk->nk", features_NxF, self.kernel_FxK, precision=PRECISION) + self.bias_K[None]


def head_of(reference):
    """`Head` of a reference, float32 on the device."""
    return jax.device_put(Head(*(np.asarray(weights, np.float32) for weights in reference.head)))


def fit_react(reference, *, percentile=90.0):
    """The percentile of all training activations at which features are clipped; 90 is the paper's."""
    return np.percentile(reference.features(), percentile).astype(np.float32), head_of(reference)


@jax.jit
def score_react(state, outputs):
    """Energy after clipping the features from above (Sun et al. 2021, "ReAct", eq. 3-4)."""
    limit, head = state
    return energy(head(jnp.minimum(jnp.asarray(outputs.features, jnp.float32), limit)))


@flax.struct.dataclass
class Ash:
    """The linear layer, how many activations of each image are kept, and what is done with them."""

    head: Head
    kept: int = flax.struct.field(pytree_node=False)
    variant: str = flax.struct.field(pytree_node=False)


def fit_ash(reference, *, variant="s", percentile=90.0):
    """The linear layer; the percentile of each image's activations below which they are set to zero."""
    channels = reference.features().shape[1]
    return Ash(head_of(reference), max(1, channels - round(channels * percentile / 100)), variant)


@jax.jit
def score_ash(ash, outputs):
    """Energy after keeping only the largest activations of each image (Djurisic et al. 2023, "ASH", section 3).

    "Extremely Simple Activation Shaping for Out-of-Distribution Detection", ICLR 2023, on pooled features. With s1 the
    sum of all activations and s2 that of the kept ones, variant "s" multiplies the kept ones by exp(s1 / s2), "b" sets
    each to s1 / their number, and "p" leaves them as they are.
    """

    def shape(feature_F):
        kept_L, place_L = jax.lax.top_k(feature_F, ash.kept)
        before, after = feature_F.sum(), kept_L.sum()
        if ash.variant == "s":
            kept_L = kept_L * jnp.exp(before / jnp.where(after == 0, 1, after))
        elif ash.variant == "b":
            kept_L = jnp.full_like(kept_L, before / ash.kept)
        return jnp.zeros_like(feature_F).at[place_L].set(kept_L)

    features_NxF = jnp.asarray(outputs.features, jnp.float32)
    return energy(ash.head(jax.lax.map(shape, features_NxF, batch_size=BLOCK_SIZE)))


def fit_dice(reference, *, percentile=90.0):
    """The linear layer with only the weights of the largest mean contributions to the logits; 90 is the paper's."""
    kernel_FxK, bias_K = (np.asarray(weights, np.float64) for weights in reference.head)
    contribution_FxK = reference.features().mean(axis=0, dtype=np.float64)[:, None] * kernel_FxK
    kept_FxK = contribution_FxK > np.percentile(contribution_FxK, percentile)
    return jax.device_put(Head((kernel_FxK * kept_FxK).astype(np.float32), bias_K.astype(np.float32)))


@jax.jit
def score_dice(sparse_head, outputs):
    """Energy of the sparsified linear layer (Sun & Li 2022, "DICE", eq. 4-5)."""
    return energy(sparse_head(jnp.asarray(outputs.features, jnp.float32)))


def fit_she(reference):
    """Mean feature of the correctly classified training images of each class, pattern_KxF.

    If none is classified correctly, of all training images of the class.
    """
    features_NxF, labels_N = reference.features(), reference.labels_N
    is_correct_N = np.asarray(reference.train.logits).argmax(axis=1) == labels_N
    pattern_KxF = []
    for known_class in range(reference.num_classes):
        own_N = labels_N == known_class
        own_N = own_N & is_correct_N if (own_N & is_correct_N).any() else own_N
        pattern_KxF.append(features_NxF[own_N].mean(axis=0, dtype=np.float64))
    return jax.device_put(np.stack(pattern_KxF).astype(np.float32))


@jax.jit
def score_she(pattern_KxF, outputs):
    """Inner product of the feature with the stored pattern of the predicted class (Zhang et al. 2023, "SHE").

    "Out-of-Distribution Detection Based on In-Distribution Data Patterns Memorization with Modern Hopfield Energy",
    ICLR 2023, simplified Hopfield energy.
    """
    features_NxF, predicted_N = jnp.asarray(outputs.features, jnp.float32), outputs.logits.argmax(axis=1)
    product_NxK = jnp.einsum("nf,kf->nk", features_NxF, pattern_KxF, precision=PRECISION)
    return jnp.take_along_axis(product_NxK, predicted_N[:, None], axis=1)[:, 0]


@jax.jit
def score_gradnorm(state, outputs):
    """L1 norm of the gradient of KL(uniform || softmax) in the last layer's kernel (Huang et al. 2021, "GradNorm").

    "On the Importance of Gradients for Detecting Distributional Shifts in the Wild", NeurIPS 2021, temperature 1: in
    closed form, the L1 norm of the feature times that of softmax - 1 / K.
    """
    softmax_NxK = jax.nn.softmax(jnp.asarray(outputs.logits, jnp.float32), axis=1)
    of_logits_N = jnp.abs(softmax_NxK - 1 / softmax_NxK.shape[1]).sum(axis=1)
    return jnp.abs(jnp.asarray(outputs.features, jnp.float32)).sum(axis=1) * of_logits_N


@jax.jit
def score_postmax(state, outputs):
    """Maximum logit divided by the L2 norm of the feature (Cruz et al. 2024, "PostMax"); 0 for a zero feature.

    "Operational Open-Set Recognition and PostMax Refinement", ECCV 2024. The paper then maps this to a probability by
    the distribution function of a generalized Pareto distribution. That keeps the order except for ties at 0 and 1,
    so it is left out.
    """
    norm_N = jnp.linalg.norm(jnp.asarray(outputs.features, jnp.float32), axis=1)
    top_N = jnp.asarray(outputs.logits, jnp.float32).max(axis=1)
    return jnp.where(norm_N > 0, top_N / jnp.where(norm_N > 0, norm_N, 1), 0)
