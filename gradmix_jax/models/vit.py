"""A small vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) as simplified by Beyer et al. 2022
(arXiv 2205.01580): fixed sine and cosine positions and the mean over the tokens instead of a class token.

Without learned positions one set of parameters takes images of any size that the patches divide.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gradmix_jax.models.layers import Encoder, Tap, dense_init

# Patch size per stem: 8 x 8 tokens of a 32-pixel image, 14 x 14 of a 224-pixel image.
PATCHES = {"cifar": 4, "imagenet": 16}


class TransformerBlock(nn.Module):
    """tokens_BxNxF -> tokens_BxNxF: attention and a 4x wider perceptron, both residual and pre-normalised."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        y = nn.LayerNorm(dtype=self.dtype, name="norm1")(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype, kernel_init=dense_init, name="attention")(
            y
        )
        y = nn.LayerNorm(dtype=self.dtype, name="norm2")(x)
        y = nn.Dense(4 * width, dtype=self.dtype, kernel_init=dense_init, name="dense1")(y)
        return x + nn.Dense(width, dtype=self.dtype, kernel_init=dense_init, name="dense2")(nn.gelu(y))


class ViT(Encoder):
    """Four stages of `blocks_per_stage` blocks at one resolution, one attention head for each 64 channels.

    A stage's activations are the residual stream as a grid: h x w tokens of `width` channels, of either sign.

    Raises:
      ValueError: if the patches do not divide the image, or the heads and positions the width.
    """

    blocks_per_stage: int

    @nn.compact
    def __call__(self, images_BxHxWxC: jax.Array, *, train: bool, tap: Tap) -> jax.Array:
        patch, heads = PATCHES[self.stem], max(1, self.width // 64)
        height, width = images_BxHxWxC.shape[1:3]
        if height % patch or width % patch:
            raise ValueError(
                f"images of {height}x{width} pixels do not fit the transformer with model.stem "
                f"{self.stem!r}: both sides must be multiples of its patch size {patch}."
            )
        if self.width % 4 or self.width % heads:
            raise ValueError(
                f"model.width is {self.width}: for the transformer it must be a multiple of 4 and of its "
                f"{heads} attention head(s), one for each 64 channels."
            )
        strides = (patch, patch)
        options = dict(padding="VALID", dtype=self.dtype, kernel_init=dense_init, name="stem_conv")
        x = nn.Conv(self.width, strides, strides, **options)(images_BxHxWxC)
        grid = x.shape
        x = (x + positions(*grid[1:]).astype(x.dtype)).reshape(grid[0], -1, self.width)
        for stage in range(1, 5):
            for index in range(1, self.blocks_per_stage + 1):
                x = TransformerBlock(heads, self.dtype, name=f"stage{stage}_block{index}")(x)
            x = tap(f"stage{stage}", x.reshape(grid)).reshape(x.shape)
        return jnp.mean(nn.LayerNorm(name="norm")(x.astype(jnp.float32)), axis=1)


def positions(h: int, w: int, channels: int) -> jax.Array:
    """positions_1xhxwxF in [-1, 1]: sines and cosines of the row and of the column, at channels / 4
    wavelengths from 2 pi to 20000 pi tokens (MoCo v3, arXiv 2104.02057)."""
    wave = 1e-4 ** (np.arange(channels // 4) / max(1, channels // 4 - 1))
    row_hxwxf, column_hxwxf = (axis[:, :, None] * wave for axis in np.mgrid[:h, :w].astype(np.float64))
    parts = [np.sin(row_hxwxf), np.cos(row_hxwxf), np.sin(column_hxwxf), np.cos(column_hxwxf)]
    return jnp.asarray(np.concatenate(parts, axis=-1)[None], jnp.float32)
