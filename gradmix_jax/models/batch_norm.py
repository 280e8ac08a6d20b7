"""Batch norm with an optional ReLU, and ReLU alone, whose backward passes read as little memory as possible.

Between two convolutions a training step is bound by memory, not by arithmetic. Differentiating Flax's batch norm leaves
it to the compiler what to keep and in which kernel to sum; compiled for an H100, XLA masks the gradient by the ReLU in
a separate pass and reads it four times. Here the two sums share a pass, and the mask is recomputed from the input,
which is read anyway. benchmarks/README.md has the savings. Values and gradients are those of Flax.

The two sums are two ordinary reductions. A single one of pairs (`lax.reduce` of two operands) means fewer kernels
on a GPU, but the TPU's compiler cannot fuse it with the convolution, and the step takes a quarter longer there.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from gradmix_jax.models.parts import part_of


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0). The gradient is masked by the output, which the next layer keeps anyway, instead of the input."""
    return jnp.maximum(x, 0)


def _relu_forward(x):
    y = jnp.maximum(x, 0)
    return y, y


def _relu_backward(y, cotangent):
    # Not `y > 0`, which XLA turns into a comparison of the input.
    return (jnp.where(y != 0, cotangent, 0),)


relu.defvjp(_relu_forward, _relu_backward)


def _rows(x):
    return tuple(range(x.ndim - 1))


def _like(x, *vectors_F):
    """Vectors of the features, ready to be combined with x: [..., F]."""
    return tuple(jnp.expand_dims(vector, _rows(x)) for vector in vectors_F)


def _over_devices(first_F, second_F, axis_name):
    # Stacked, because two small messages take twice as long as one.
    if axis_name is None:
        return first_F, second_F
    return tuple(lax.pmean(jnp.stack((first_F, second_F)), axis_name))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalize(x, scale_F, bias_F, epsilon: float, with_relu: bool, axis_name: str | None):
    """Batch norm by the statistics of the batch, optionally followed by ReLU.

    Args:
      x: [..., F], of any float dtype; computed in float32.
      scale_F: float32.
      bias_F: float32.
      epsilon: added to the variance.
      with_relu: whether ReLU follows.
      axis_name: the mapped axis whose devices share their statistics, or None.

    Returns:
      y like x, mean_F and variance_F (biased). The latter two are for running averages: they pass on no gradient.
    """
    return _normalize_forward(x, scale_F, bias_F, epsilon, with_relu, axis_name)[0]


def _normalize_forward(x, scale_F, bias_F, epsilon, with_relu, axis_name):
    wide = x.astype(jnp.float32)
    means = jnp.mean(wide, _rows(x)), jnp.mean(wide * wide, _rows(x))
    mean_F, mean_of_squares_F = _over_devices(*means, axis_name)
    # A difference of rounded numbers can fall below zero.
    variance_F = jnp.maximum(0.0, mean_of_squares_F - mean_F * mean_F)
    inverse_F = lax.rsqrt(variance_F + epsilon)
    mean, slope, bias = _like(x, mean_F, inverse_F * scale_F, bias_F)
    y = (wide - mean) * slope + bias
    y = jnp.maximum(y, 0) if with_relu else y
    return (y.astype(x.dtype), mean_F, variance_F), (x, scale_F, bias_F, mean_F, inverse_F)


def _normalize_backward(epsilon, with_relu, axis_name, kept, cotangents):
    x, scale_F, bias_F, mean_F, inverse_F = kept
    mean, slope, bias = _like(x, mean_F, inverse_F * scale_F, bias_F)
    centered, gradient = x.astype(jnp.float32) - mean, cotangents[0].astype(jnp.float32)
    passed = centered * slope + bias > 0
    masked = jnp.where(passed, gradient, 0) if with_relu else gradient
    sums = jnp.sum(masked, _rows(x)), jnp.sum(masked * centered, _rows(x))
    rows = x.size // x.shape[-1]
    mean_gradient_F, mean_product_F = _over_devices(sums[0] / rows, sums[1] / rows, axis_name)
    offset, tilt = _like(x, inverse_F * scale_F * mean_gradient_F, inverse_F**3 * scale_F * mean_product_F)
    along = offset + centered * tilt
    # Written with a second `where` instead of `masked`, which XLA would otherwise keep in memory for this line.
    dx = jnp.where(passed, slope * gradient - along, -along) if with_relu else slope * gradient - along
    # Each device has its share of the gradients of scale and bias, as of every other parameter; the step averages.
    return dx.astype(x.dtype), sums[1] * inverse_F, sums[0]


normalize.defvjp(_normalize_forward, _normalize_backward)


class BatchNorm(nn.Module):
    """`flax.linen.BatchNorm` with the same variables, for the last axis, and ReLU on request: [..., F] -> [..., F].

    Attributes:
      use_running_average: normalize by the running averages (evaluation) instead of the batch (training).
      momentum: share of the running averages that is kept.
      epsilon: added to the variance.
      dtype: type of the result; statistics and parameters are float32.
      axis_name: the mapped axis over which the statistics of the batch are averaged, or None.
      frozen: parts of a network; a layer in one of them uses and keeps its running averages.
    """

    use_running_average: bool
    momentum: float
    epsilon: float
    dtype: Any
    axis_name: str | None
    frozen: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, *, with_relu: bool = False) -> jax.Array:
        shape, x = x.shape[-1:], x.astype(self.dtype)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        variance = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        if self.use_running_average or (self.frozen and part_of(self.path) in self.frozen):
            inverse = lax.rsqrt(variance.value + self.epsilon)
            mean, slope, bias = _like(x, mean.value, inverse * scale, bias)
            y = (x - mean) * slope + bias
            return (relu(y) if with_relu else y).astype(self.dtype)
        # `init` is not mapped: it has no such axis.
        axis_name = None if self.is_initializing() else self.axis_name
        y, *statistics = normalize(x, scale, bias, self.epsilon, with_relu, axis_name)
        if not self.is_initializing():
            for running, new in zip((mean, variance), statistics, strict=True):
                running.value = self.momentum * running.value + (1 - self.momentum) * lax.stop_gradient(new)
        return y
