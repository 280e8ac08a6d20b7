"""Diversity of features: effective rank and intrinsic dimension.

The rank is computed by NumPy in float64 on the host, the search for neighbors by a jitted function on the device.

Letters: N images, D features, B rows of a block, k neighbors, c candidates.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

_BLOCK = 128


def effective_rank(features_NxD: np.ndarray) -> float:
    """exp of the entropy of the normalized singular values of the centered features (Roy & Vetterli 2007, section 2).

    Singular values below float32 rounding error count as zero, as in `numpy.linalg.matrix_rank`.

    Args:
      features_NxD: float features of N images.

    Returns:
      A number from 1 (all on one line) to min(N - 1, D) (the same spread in all directions); 0 if all features are
      the same, as the rank of a matrix of zeros.

    Raises:
      ValueError: another shape, fewer than two images, or a value that is not finite.
    """
    centered_NxD = _centered(features_NxD).astype(np.float64)
    # Eigenvalues of the smaller Gram matrix, which in float64 resolve more than `rounding` and take a fraction of the
    # time of an SVD.
    tall = centered_NxD if centered_NxD.shape[0] >= centered_NxD.shape[1] else centered_NxD.T
    singular_R = np.sqrt(np.maximum(np.linalg.eigvalsh(tall.T @ tall)[::-1], 0))
    rounding = singular_R[0] * max(centered_NxD.shape) * np.finfo(np.float32).eps
    singular_R = singular_R[singular_R > rounding]
    if singular_R.size == 0:
        return 0.0
    share_R = singular_R / singular_R.sum()
    return float(np.exp(-np.sum(share_R * np.log(share_R))))


def intrinsic_dimension(features_NxD: np.ndarray, *, k: int = 10) -> float:
    """Maximum-likelihood dimension of the manifold that the features lie on (Levina & Bickel 2004, equation 8).

    The inverses of the estimates at each image are averaged (MacKay & Ghahramani 2005, "Comments on 'Maximum
    likelihood estimation of intrinsic dimension'"), which is the maximum of the joint likelihood. With T_j the
    distance to the j-th neighbor: 1 / mean over images and j < k of log(T_k / T_j). High dimensions are
    underestimated when N is small.

    Images with the same features count once: a distance of zero says nothing about a continuous density.

    Args:
      features_NxD: float features of N images, usually of one class.
      k: number of neighbors.

    Returns:
      The dimension; NaN if it is undefined: k or fewer distinct features, or all neighbors equally far.

    Raises:
      ValueError: another shape, fewer than two images, a value that is not finite, or k below 2.
    """
    if k < 2:
        raise ValueError(f"intrinsic_dimension needs k of 2 or more, got k={k}.")
    distinct_NxD = np.unique(_centered(features_NxD), axis=0)
    size = len(distinct_NxD)
    if size <= k:
        return float("nan")
    padded = _padded_size(size)
    padded_NxD = np.pad(distinct_NxD, ((0, padded - size), (0, 0)))
    sums_N = np.asarray(_sums_of_logs(padded_NxD, size, k=k), np.float64)[:size]
    mean = sums_N.sum() / (size * (k - 1))
    return float(1 / mean) if mean > 0 else float("nan")


def _centered(features_NxD):
    """Float32, centered, and scaled to a largest value of 1, which changes neither measure."""
    features_NxD = np.asarray(features_NxD, np.float64)
    if features_NxD.ndim != 2 or len(features_NxD) < 2 or features_NxD.shape[1] < 1:
        raise ValueError(f"features must have shape [N, D] with two images or more, got {features_NxD.shape}")
    if not np.isfinite(features_NxD).all():
        raise ValueError(f"features must be finite, got {(~np.isfinite(features_NxD)).sum()} values that are not")
    # Equal columns stay exactly zero: the mean of equal numbers may be rounded.
    centered_NxD = features_NxD - features_NxD[0]
    centered_NxD -= centered_NxD.mean(axis=0)
    largest = np.abs(centered_NxD).max()
    return (centered_NxD / (largest or 1.0)).astype(np.float32)


def _padded_size(size):
    """The next of a short list of sizes, at most a quarter more or one block, so that few programs are compiled."""
    step = max(1 << max(size.bit_length() - 3, 0), _BLOCK)
    return -(-size // step) * step


@functools.partial(jax.jit, static_argnames="k")
def _sums_of_logs(features_NxD, size, *, k):
    """Sum over j < k of log(T_k / T_j) for each row; rows from `size` on are padding.

    Matrix products find candidates, and subtraction then measures them: |a|^2 + |b|^2 - 2ab loses small distances.
    """
    count = features_NxD.shape[0]
    squared_N = jnp.sum(features_NxD**2, axis=1)
    num_candidates = min(2 * k, count - 1)

    def one_block(start):
        rows_B = start + jnp.arange(_BLOCK)
        block_BxD = features_NxD[rows_B]
        products_BxN = jnp.dot(block_BxD, features_NxD.T, precision="highest")
        rough_BxN = squared_N[None, :] - 2 * products_BxN
        other_BxN = (jnp.arange(count)[None, :] != rows_B[:, None]) & (jnp.arange(count)[None, :] < size)
        _, nearest_Bxc = jax.lax.top_k(jnp.where(other_BxN, -rough_BxN, -jnp.inf), num_candidates)
        exact_Bxc = jnp.sum((block_BxD[:, None, :] - features_NxD[nearest_Bxc]) ** 2, axis=-1)
        exact_Bxc = jnp.where(jnp.take_along_axis(other_BxN, nearest_Bxc, axis=1), exact_Bxc, jnp.inf)
        # Distinct features may still be too close for float32 to square their distance.
        logs_Bxk = jnp.log(jnp.maximum(jnp.sort(exact_Bxc, axis=1)[:, :k], jnp.finfo(jnp.float32).tiny))
        return jnp.sum(logs_Bxk[:, -1:] - logs_Bxk[:, :-1], axis=1) / 2  # halves: of squares

    return jax.lax.map(one_block, jnp.arange(0, count, _BLOCK)).reshape(count)
