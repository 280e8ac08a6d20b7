"""Residual networks with batch norm and ReLU before the convolutions: PreAct ResNet-18 (He et al. 2016, arXiv
1603.05027) and Wide ResNets (Zagoruyko and Komodakis 2016, arXiv 1605.07146), for small images.

The sum at the end of a stage has passed no ReLU, so a stage is tapped after the batch norm and ReLU that
follow it: those at the start of the next stage, or the last ones of the network. Nothing bypasses the tap.
"""

from collections.abc import Callable

import flax.linen as nn
import jax

from gradmix_jax.models.batch_norm import BatchNorm
from gradmix_jax.models.layers import Encoder, Tap, global_average


class PreActBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: x_BxhxwxF -> a sum of `channels` channels, not activated.

    With `activated` the input has passed batch norm and ReLU already.
    """

    channels: int
    stride: int
    activated: bool
    conv: Callable[..., nn.Conv]
    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x if self.activated else self.norm(name="bn1")(x, with_relu=True)
        shortcut = x
        if self.stride != 1 or x.shape[-1] != self.channels:
            shortcut = self.conv(self.channels, 1, self.stride, name="shortcut_conv")(y)
        y = self.conv(self.channels, 3, self.stride, name="conv1")(y)
        y = self.conv(self.channels, 3, name="conv2")(self.norm(name="bn2")(y, with_relu=True))
        return shortcut + y


class PreActResNet(Encoder):
    """One stage of `blocks[s]` blocks for each entry of `blocks`, with width, 2, 4, ... * width channels.

    Attributes:
      blocks: number of blocks of each stage.
      stem_channels: channels of the first convolution; None for `width`.
    """

    blocks: tuple[int, ...]
    stem_channels: int | None

    @nn.compact
    def __call__(self, images_BxHxWxC: jax.Array, *, train: bool, tap: Tap) -> jax.Array:
        conv, norm = self.layers(train)
        x = conv(self.stem_channels or self.width, 3, name="stem_conv")(images_BxHxWxC)
        for stage, number in enumerate(self.blocks, start=1):
            for index in range(1, number + 1):
                first = index == 1 and stage > 1
                channels = self.width * 2 ** (stage - 1)
                name = f"stage{stage}_block{index}"
                x = PreActBlock(channels, 2 if first else 1, first, conv, norm, name=name)(x)
            x = tap(f"stage{stage}", norm(name=f"stage{stage}_bn")(x, with_relu=True))
        return global_average(x)
