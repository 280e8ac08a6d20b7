"""The VGG-like network of the open set literature (Neal et al. 2018, "Open Set Learning with Counterfactual
Images"; used by ARPL, arXiv 2103.00953, and Vaze et al., arXiv 2110.06207).

It has no dropout here, so that all randomness of a training step is in its images.
"""

import flax.linen as nn
import jax

from gradmix_jax.models.layers import Encoder, Tap, global_average


class Classifier32(Encoder):
    """Three stages of three 3x3 convolutions, each with batch norm and leaky ReLU; the last has stride 2.

    width, width, 2 * width channels in the first stage, 2 * width in the others. Activations may be negative.
    """

    @nn.compact
    def __call__(self, images_BxHxWxC: jax.Array, *, train: bool, tap: Tap) -> jax.Array:
        conv, norm = self.layers(train)
        x = images_BxHxWxC
        for stage, factors in enumerate(((1, 1, 2), (2, 2, 2), (2, 2, 2)), start=1):
            for layer, (factor, stride) in enumerate(zip(factors, (1, 1, 2), strict=True), start=1):
                name = f"stage{stage}_layer{layer}"
                x = conv(factor * self.width, 3, stride, name=f"{name}_conv")(x)
                x = nn.leaky_relu(norm(name=f"{name}_bn")(x), negative_slope=0.2)
            x = tap(f"stage{stage}", x)
        return global_average(x)
