"""ResNet-18/34/50 (He et al. 2016, arXiv 1512.03385), laid out as torchvision's: a bottleneck has its stride
on the 3x3 convolution ("v1.5"), and blocks that change the shape have a projection shortcut.

Stem "cifar": one 3x3 convolution, stride 1, no pooling (as for CIFAR-10 in SimCLR, arXiv 2002.05709, B.9).
Stem "imagenet": 7x7 convolution with stride 2, then 3x3 max pooling with stride 2.
"""

from collections.abc import Callable

import flax.linen as nn
import jax

from gradmix_jax.models.batch_norm import BatchNorm, relu
from gradmix_jax.models.layers import Encoder, Tap, global_average


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: x_BxhxwxF -> ReLU'd output of `channels` channels."""

    channels: int
    stride: int
    conv: Callable[..., nn.Conv]
    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.norm(name="bn1")(self.conv(self.channels, 3, self.stride, name="conv1")(x), with_relu=True)
        y = self.norm(name="bn2")(self.conv(self.channels, 3, name="conv2")(y))
        return relu(y + _shortcut(self, x, self.channels))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution and a shortcut: x_BxhxwxF -> ReLU'd output of 4 * `channels` channels."""

    channels: int
    stride: int
    conv: Callable[..., nn.Conv]
    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.norm(name="bn1")(self.conv(self.channels, 1, name="conv1")(x), with_relu=True)
        y = self.norm(name="bn2")(self.conv(self.channels, 3, self.stride, name="conv2")(y), with_relu=True)
        y = self.norm(name="bn3")(self.conv(4 * self.channels, 1, name="conv3")(y))
        return relu(y + _shortcut(self, x, 4 * self.channels))


def _shortcut(block: BasicBlock | Bottleneck, x: jax.Array, channels: int) -> jax.Array:
    if block.stride == 1 and x.shape[-1] == channels:
        return x
    return block.norm(name="shortcut_bn")(block.conv(channels, 1, block.stride, name="shortcut_conv")(x))


class ResNet(Encoder):
    """Four stages of `blocks[s]` blocks with width, 2, 4 and 8 * width channels (x4 with `Bottleneck`)."""

    block: type[BasicBlock] | type[Bottleneck]
    blocks: tuple[int, int, int, int]

    @nn.compact
    def __call__(self, images_BxHxWxC: jax.Array, *, train: bool, tap: Tap) -> jax.Array:
        conv, norm = self.layers(train)
        if self.stem == "cifar":
            x = norm(name="stem_bn")(conv(self.width, 3, name="stem_conv")(images_BxHxWxC), with_relu=True)
        else:
            x = norm(name="stem_bn")(conv(self.width, 7, 2, name="stem_conv")(images_BxHxWxC), with_relu=True)
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, number in enumerate(self.blocks, start=1):
            for index in range(1, number + 1):
                stride = 2 if stage > 1 and index == 1 else 1
                channels = self.width * 2 ** (stage - 1)
                x = self.block(channels, stride, conv, norm, name=f"stage{stage}_block{index}")(x)
            x = tap(f"stage{stage}", x)
        return global_average(x)
