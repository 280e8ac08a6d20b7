"""Probes: how well a linear classifier and nearest neighbors separate classes by a frozen encoder's features.

Letters: N training images, V validation images, M test images, F feature, K classes.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradmix_jax.scores.base import checked_labels
from gradmix_jax.scores.neighbors import BLOCK_SIZE, PRECISION, unit

# Penalties to choose from with the validation images, strongest first.
L2 = (1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
NEIGHBORS = (1, 5, 10, 20, 50, 200)
MAX_STEPS = 5000
# The loss is strongly convex with constant l2: the weights are within |gradient| / l2 of the minimum.
TOLERANCE, TOLERANCE_OF_L2, LEAST_TOLERANCE = 1e-6, 1e-4, 1e-10


class Linear(NamedTuple):
    """logits_NxK = features_NxF @ kernel_FxK + bias_K, and the penalty it was fitted with."""

    kernel_FxK: np.ndarray
    bias_K: np.ndarray
    l2: float

    def logits(self, features_NxF: np.ndarray) -> np.ndarray:
        return np.asarray(features_NxF, np.float32) @ self.kernel_FxK + self.bias_K


class Neighbors(NamedTuple):
    """Unit training features_NxF, their labels_N, and how many neighbors vote."""

    features_NxF: jax.Array
    labels_N: np.ndarray
    num_classes: int
    k: int

    def predict(self, features_MxF: np.ndarray) -> np.ndarray:
        return np.asarray(_votes(self.features_NxF, self.labels_N, features_MxF, (self.k,), self.num_classes))[:, 0]


def _loss(weights, features_NxF, labels_N, l2):
    kernel_FxK, bias_K = weights
    logits_NxK = jnp.matmul(features_NxF, kernel_FxK, precision=PRECISION) + bias_K[None]
    losses_N = optax.losses.softmax_cross_entropy_with_integer_labels(logits_NxK, labels_N)
    return losses_N.mean() + l2 / 2 * jnp.square(kernel_FxK).sum()


@jax.jit
def _descend(weights, features_NxF, labels_N, l2, tolerance):
    loss = lambda weights: _loss(weights, features_NxF, labels_N, l2)
    solver = optax.lbfgs(memory_size=20)
    value_and_gradient = optax.value_and_grad_from_state(loss)

    def go_on(carry):
        _, state, steps = carry
        gradient = optax.tree.get(state, "grad")
        largest = jnp.maximum(jnp.abs(gradient[0]).max(), jnp.abs(gradient[1]).max())
        return (steps == 0) | ((steps < MAX_STEPS) & (largest > tolerance))

    def step(carry):
        weights, state, steps = carry
        value, gradient = value_and_gradient(weights, state=state)
        updates, state = solver.update(gradient, state, weights, value=value, grad=gradient, value_fn=loss)
        return optax.apply_updates(weights, updates), state, steps + 1

    return jax.lax.while_loop(go_on, step, (weights, solver.init(weights), 0))[0]


def _minimize(weights, features_NxF, labels_N, l2):
    """Weights at the minimum of the loss, by L-BFGS from the given ones.

    In float64, because the tolerance of small penalties is below the rounding of float32 gradients, about 1e-7.
    """
    tolerance = max(LEAST_TOLERANCE, min(TOLERANCE, TOLERANCE_OF_L2 * l2))
    with jax.enable_x64(True):
        return jax.device_get(_descend(weights, features_NxF, labels_N, np.float64(l2), np.float64(tolerance)))


def fit_linear(features_NxF: np.ndarray, labels_N: np.ndarray, *, num_classes: int, l2: float) -> Linear:
    """Multinomial logistic regression: mean cross-entropy + l2 / 2 * |kernel|^2, the bias free, by L-BFGS.

    Features are standardized first (mean 0, standard deviation 1 over the training images; constant ones become 0),
    and the result applies to the original features. Equals scikit-learn's StandardScaler and
    LogisticRegression with C = 1 / (l2 * N).

    Args:
      features_NxF: features of the training images, any scale.
      labels_N: 0 .. num_classes - 1, each class at least once.
      num_classes: K.
      l2: strength of the penalty, 0 or more. At 0, linearly separable classes have no minimum, and MAX_STEPS applies.

    Raises:
      ValueError: features that are not finite, labels out of range, or a class without images.
    """
    standardized_NxF, labels_N, mean_F, std_F = _standardize(features_NxF, labels_N, num_classes)
    start = _zeros(standardized_NxF.shape[1], num_classes)
    return _unstandardize(_minimize(start, standardized_NxF, labels_N, l2), mean_F, std_F, l2)


def linear(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    *,
    num_classes: int,
    l2_values: Sequence[float] = L2,
) -> Linear:
    """`fit_linear` with the penalty that is most accurate on the validation images; on ties, the strongest.

    Args:
      train: features_NxF and labels_N to fit.
      validation: features_VxF and labels_V to choose the penalty. Never test images.
      num_classes: K.
      l2_values: penalties to try.

    Raises:
      ValueError: as `fit_linear`, or no validation images.
    """
    if not len(validation[1]):
        raise ValueError("The linear probe needs validation images to choose its penalty with, got none.")
    standardized_NxF, labels_N, mean_F, std_F = _standardize(*train, num_classes)
    weights = _zeros(standardized_NxF.shape[1], num_classes)
    best, best_accuracy = None, -1.0
    for l2 in sorted(l2_values, reverse=True):
        # The minimum at the next stronger penalty is close.
        weights = _minimize(weights, standardized_NxF, labels_N, l2)
        candidate = _unstandardize(weights, mean_F, std_F, l2)
        accuracy = float(np.mean(candidate.logits(validation[0]).argmax(axis=1) == validation[1]))
        if accuracy > best_accuracy:
            best, best_accuracy = candidate, accuracy
    return best


def _standardize(features_NxF, labels_N, num_classes):
    features_NxF = np.asarray(features_NxF, np.float32)
    if not np.isfinite(features_NxF).all():
        raise ValueError("A probe needs finite features, got some that are infinite or not a number.")
    labels_N = checked_labels(labels_N, num_features=len(features_NxF), num_classes=num_classes)
    mean_F = features_NxF.mean(axis=0, dtype=np.float64)
    std_F = features_NxF.std(axis=0, dtype=np.float64)
    std_F = np.where(std_F > 1e-7 * np.abs(mean_F), std_F, np.inf)
    return (features_NxF - mean_F) / std_F, labels_N, mean_F, std_F


def _zeros(num_features, num_classes):
    return np.zeros((num_features, num_classes)), np.zeros(num_classes)


def _unstandardize(weights, mean_F, std_F, l2):
    kernel_FxK, bias_K = (np.asarray(x, np.float64) for x in weights)
    kernel_FxK = kernel_FxK / std_F[:, None]
    return Linear(kernel_FxK.astype(np.float32), (bias_K - mean_F @ kernel_FxK).astype(np.float32), l2)


@functools.partial(jax.jit, static_argnames=("ks", "num_classes"))
def _votes(bank_NxF, labels_N, features_MxF, ks, num_classes):
    """Majority class of the k nearest by cosine, for every k, [M, len(ks)]; on ties, the lower class."""

    def one_image(feature_F):
        cosine_N = jnp.einsum("nf,f->n", bank_NxF, feature_F, precision=PRECISION)
        nearest = jax.lax.top_k(cosine_N, max(ks))[1]
        counts_kxK = jnp.cumsum(jax.nn.one_hot(labels_N[nearest], num_classes), axis=0)
        return counts_kxK[np.array(ks) - 1].argmax(axis=1)

    return jax.lax.map(one_image, unit(jnp.asarray(features_MxF, jnp.float32)), batch_size=BLOCK_SIZE)


def neighbors(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    *,
    num_classes: int,
    ks: Sequence[int] = NEIGHBORS,
) -> Neighbors:
    """k-nearest-neighbor classifier by cosine similarity, with the k that is most accurate on the validation images.

    As in Wu et al. 2018 (arXiv 1805.01978), but with equal votes. On ties, the smallest k.

    Args:
      train, validation, num_classes: as for `linear`.
      ks: numbers of neighbors to try; those above the number of training images are skipped.

    Raises:
      ValueError: as `linear`, or no k left.
    """
    labels_N = checked_labels(train[1], num_features=len(train[0]), num_classes=num_classes)
    ks = tuple(k for k in sorted(ks) if 1 <= k <= len(labels_N))
    if not ks or not len(validation[1]):
        raise ValueError(
            f"The neighbor probe needs validation images and a k from 1 to {len(labels_N)}, the number of training "
            f"images, got {len(validation[1])} images and {len(ks)} such k."
        )
    bank_NxF = unit(jnp.asarray(train[0], jnp.float32))
    predicted_VxS = np.asarray(_votes(bank_NxF, labels_N, validation[0], ks, num_classes))
    accuracy_S = (predicted_VxS == np.asarray(validation[1])[:, None]).mean(axis=0)
    return Neighbors(bank_NxF, labels_N, num_classes, ks[int(accuracy_S.argmax())])
