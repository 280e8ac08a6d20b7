"""ViM: the residual of a feature as the logit of one more, virtual class. Higher means known.

Letters: N images, F feature, K classes, R dimensions of the residual space.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradmix_jax.scores.base import Unfit
from gradmix_jax.scores.gaussians import blocks, scatter
from gradmix_jax.scores.head import Head, head_of
from gradmix_jax.scores.logits import energy


class VirtualLogit(NamedTuple):
    """Origin_F, the residual space, and the factor from the length of a residual to a logit; float64."""

    origin_F: np.ndarray
    residual_FxR: np.ndarray
    scale: float
    head: Head


def _residual_norm(features_NxF, origin_F, residual_FxR):
    norms = [np.linalg.norm((x_NxF - origin_F) @ residual_FxR, axis=1) for x_NxF in blocks(features_NxF)]
    return np.concatenate(norms or [np.zeros(0)])


def fit_vim(reference, *, dimension=0):
    """Origin, residual space of the training features, and the scale that matches residuals to logits.

    dimension: of the principal space; 0: the paper's 1000 for F >= 2048, 512 for F >= 768, else F / 2.

    Raises:
      Unfit: the dimension does not fit the features, or these have no residual, as when there are too few images.
    """
    kernel_FxK, bias_K = (np.asarray(weights, np.float64) for weights in reference.head)
    channels = len(kernel_FxK)
    dimension = dimension or (1000 if channels >= 2048 else 512 if channels >= 768 else channels // 2)
    if not 0 < dimension < channels:
        raise Unfit(f"vim's dimension must be from 1 to {channels - 1}, feature channels minus 1, got {dimension}.")
    features_NxF = reference.features()
    # The weights are float32: smaller singular values, as a head with columns that sum to zero has, are rounding.
    rounding = max(kernel_FxK.shape) * np.finfo(np.float32).eps
    origin_F = -np.linalg.pinv(kernel_FxK.T, rcond=rounding) @ bias_K
    residual_FxR = np.linalg.eigh(scatter(features_NxF, origin_F[None]))[1][:, : channels - dimension]
    residual_N = _residual_norm(features_NxF, origin_F, residual_FxR)
    size = np.linalg.norm(features_NxF, axis=1).mean(dtype=np.float64)
    if not residual_N.mean() > 1e-6 * size:
        raise Unfit(
            f"vim needs training features with a residual beyond their {dimension} principal dimensions, got lengths "
            f"of {residual_N.mean():.3g} with features of {size:.3g}; lower its dimension."
        )
    max_logit_N = np.concatenate([(x_NxF @ kernel_FxK + bias_K).max(axis=1) for x_NxF in blocks(features_NxF)])
    return VirtualLogit(origin_F, residual_FxR, max_logit_N.mean() / residual_N.mean(), head_of(reference))


@jax.jit
def _head_energy(head, features_NxF):
    return energy(head(jnp.asarray(features_NxF, jnp.float32)))


def score_vim(state, outputs):
    """Energy minus the virtual logit, the scaled norm of the feature's residual (Wang et al. 2022, "ViM").

    CVPR 2022, eq. 5-7: the softmax probability of the virtual logit, turned into an order-preserving "known".
    """
    virtual_N = state.scale * _residual_norm(outputs.features, state.origin_F, state.residual_FxR)
    return np.asarray(_head_energy(state.head, outputs.features)) - virtual_N
