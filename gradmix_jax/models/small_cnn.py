"""A network for images of 8 to 32 pixels that trains on a CPU: the ResNets' stages with one layer each."""

import flax.linen as nn
import jax

from gradmix_jax.models.layers import Encoder, Tap, global_average


class SmallCNN(Encoder):
    """Four stages of 3x3 convolution, batch norm and ReLU, with width, 2, 4 and 8 * width channels.

    Strides 1, 2, 2, 1: an 8-pixel image keeps a 2x2 map in its last stage, so that it can be attributed.
    """

    @nn.compact
    def __call__(self, images_BxHxWxC: jax.Array, *, train: bool, tap: Tap) -> jax.Array:
        conv, norm = self.layers(train)
        x = images_BxHxWxC
        for stage, stride in enumerate((1, 2, 2, 1), start=1):
            x = conv(self.width * 2 ** (stage - 1), 3, stride, name=f"stage{stage}_conv")(x)
            x = tap(f"stage{stage}", norm(name=f"stage{stage}_bn")(x, with_relu=True))
        return global_average(x)
