"""Shared by the encoders: fields, convolution, batch norm and initializers.

Initialization follows torchvision: convolutions He normal with fan-out, batch-norm scale 1 and bias 0, dense
kernels uniform in +-1/sqrt(fan_in) as PyTorch's `Linear`, but dense biases 0.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gradmix_jax.models.batch_norm import BatchNorm
from gradmix_jax.models.convolution import convolve

Tap = Callable[..., jax.Array | tuple[jax.Array, jax.Array]]

conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def conv(features: int, size: int, stride: int = 1, *, dtype: Any, name: str) -> nn.Conv:
    """A size x size convolution without bias, padded by size // 2 on every side.

    Explicit padding, because 'SAME' pads a strided convolution of an even-sized image at the bottom and right
    only, which shifts every stage by a pixel against the published (PyTorch) networks.
    """
    padding = ((size // 2, size // 2),) * 2
    return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        padding=padding,
        use_bias=False,
        dtype=dtype,
        kernel_init=conv_init,
        conv_general_dilated=convolve,
        name=name,
    )


class Encoder(nn.Module, kw_only=True):
    """Base of the encoders: `encoder(images_BxHxWxC, train=, tap=) -> features_BxF`, float32.

    An encoder calls `x_BxhxwxF = tap("stage1", x_BxhxwxF)` after the last activation function of each stage
    and continues with the result. Anything outside the grid, such as a class token, is passed along:
    `x_BxhxwxF, others_BxNxF = tap("stage1", x_BxhxwxF, others_BxNxF)`.

    Attributes:
      width: feature channels of the first stage.
      stem: "cifar" or "imagenet".
      dtype: type of activations and compute; parameters and batch-norm statistics are always float32.
      axis_name: the mapped axis over which batch-norm statistics are averaged in training, or None.
      frozen: parts (see `parts.part_of`) whose batch norm uses and keeps its running averages in training.
    """

    width: int
    stem: str
    dtype: Any
    axis_name: str | None
    frozen: tuple[str, ...] = ()

    def layers(self, train: bool) -> tuple[Callable[..., nn.Conv], Callable[..., BatchNorm]]:
        """The constructors of convolution and batch norm.

        momentum 0.9 is PyTorch's 0.1. Unlike PyTorch's, the running variance is the biased one.
        """
        norm = partial(
            BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            axis_name=self.axis_name,
            frozen=self.frozen,
        )
        return partial(conv, dtype=self.dtype), norm


def global_average(x_BxhxwxF: jax.Array) -> jax.Array:
    """Mean over the positions, accumulated and returned in float32: features_BxF."""
    return jnp.mean(x_BxhxwxF.astype(jnp.float32), axis=(1, 2))
