"""Vision transformers (Dosovitskiy et al. 2021, arXiv 2010.11929).

`ViT` is the one simplified by Beyer et al. 2022 (arXiv 2205.01580): fixed sine and cosine positions and the mean over
the tokens instead of a class token. Without learned positions one set of parameters takes images of any size that the
patches divide. `ClassTokenViT` is the published one, with a class token and learned positions, whose weights PyTorch's
users exchange: ViT and DeiT (arXiv 2012.12877), and DINOv2 (arXiv 2304.07193) with layer scale and registers.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gradmix_jax.models.layers import Encoder, Tap, dense_init

# Patch size per stem: 8 x 8 tokens of a 32-pixel image, 14 x 14 of a 224-pixel image.
PATCHES = {"cifar": 4, "imagenet": 16}


class TransformerBlock(nn.Module):
    """tokens_BxNxF -> tokens_BxNxF: attention and a 4x wider perceptron, both residual and pre-normalized.

    Attributes:
      heads: number of attention heads.
      dtype: type of the compute.
      exact_gelu: GELU by the error function instead of its approximation with a hyperbolic tangent.
      layer_scale: initial value of a learned factor for each channel of both residual branches (Touvron et al. 2021,
        arXiv 2103.17239); None: no such factors.
    """

    heads: int
    dtype: Any
    exact_gelu: bool = False
    layer_scale: float | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        options = dict(dtype=self.dtype, kernel_init=dense_init)
        y = nn.LayerNorm(dtype=self.dtype, name="norm1")(x)
        # Attention weights are kept only by a caller who makes the collection "intermediates" mutable.
        y = nn.MultiHeadDotProductAttention(self.heads, name="attention", **options)(y, sow_weights=True)
        x = x + self._scaled("scale1", y)
        y = nn.LayerNorm(dtype=self.dtype, name="norm2")(x)
        y = nn.gelu(nn.Dense(4 * width, name="dense1", **options)(y), approximate=not self.exact_gelu)
        return x + self._scaled("scale2", nn.Dense(width, name="dense2", **options)(y))

    def _scaled(self, name: str, x: jax.Array) -> jax.Array:
        if self.layer_scale is None:
            return x
        scale_F = self.param(name, nn.initializers.constant(self.layer_scale), x.shape[-1:])
        return x * scale_F[None, None].astype(x.dtype)


class ViT(Encoder):
    """Four stages of `blocks_per_stage` blocks at one resolution, one attention head for each 64 channels.

    A stage's activations are the residual stream as a grid: h x w tokens of `width` channels, of either sign.

    Raises:
      ValueError: if the patches do not divide the image, or the heads and positions the width.
    """

    blocks_per_stage: int

    @nn.compact
    def __call__(self, images_BxHxWxC: jax.Array, *, train: bool, tap: Tap) -> jax.Array:
        x = _embed(self, images_BxHxWxC, PATCHES[self.stem])
        grid, heads = x.shape, max(1, self.width // 64)
        x = (x + positions(*grid[1:]).astype(x.dtype)).reshape(grid[0], -1, self.width)
        for stage in range(1, 5):
            for index in range(1, self.blocks_per_stage + 1):
                x = TransformerBlock(heads, self.dtype, name=f"stage{stage}_block{index}")(x)
            x = tap(f"stage{stage}", x.reshape(grid)).reshape(x.shape)
        return jnp.mean(nn.LayerNorm(name="norm")(x.astype(jnp.float32)), axis=1)


class ClassTokenViT(Encoder):
    """Four stages of `blocks_per_stage` blocks, one attention head for each 64 channels; features: the class token.

    A stage's activations are the patch tokens of the residual stream as a grid, h x w of `width` channels, of either
    sign. Those of the last stage are the input of its last block: after it, only the class token is read, so a patch
    token would have no gradient.

    Attributes:
      blocks_per_stage: number of blocks of each stage.
      patches: patch size in pixels by stem.
      registers: number of additional tokens whose output is ignored (arXiv 2309.16588).
      layer_scale: as in `TransformerBlock`.

    Raises:
      ValueError: if the patches do not divide the image, or the heads the width.
    """

    blocks_per_stage: int
    patches: Mapping[str, int]
    registers: int = 0
    layer_scale: float | None = None

    @nn.compact
    def __call__(self, images_BxHxWxC: jax.Array, *, train: bool, tap: Tap) -> jax.Array:
        x = _embed(self, images_BxHxWxC, self.patches[self.stem])
        grid, heads = x.shape, max(1, self.width // 64)
        small = nn.initializers.normal(0.02)
        x = x + self.param("positions", small, grid[1:])[None].astype(x.dtype)
        first = [self.param("class_token", small, (1, self.width))]
        if self.registers:
            first.append(self.param("registers", small, (self.registers, self.width)))
        number = 1 + self.registers
        first = jnp.broadcast_to(jnp.concatenate(first).astype(x.dtype)[None], (grid[0], number, self.width))
        x = jnp.concatenate([first, x.reshape(grid[0], -1, self.width)], axis=1)

        def tapped(name: str, x: jax.Array) -> jax.Array:
            patches, others = tap(name, x[:, number:].reshape(grid), x[:, :number])
            return jnp.concatenate([others, patches.reshape(grid[0], -1, self.width)], axis=1)

        for stage in range(1, 5):
            for index in range(1, self.blocks_per_stage + 1):
                if stage == 4 and index == self.blocks_per_stage:
                    x = tapped("stage4", x)
                name = f"stage{stage}_block{index}"
                x = TransformerBlock(heads, self.dtype, True, self.layer_scale, name=name)(x)
            x = x if stage == 4 else tapped(f"stage{stage}", x)
        return nn.LayerNorm(name="norm")(x[:, 0].astype(jnp.float32))


def _embed(encoder: Encoder, images_BxHxWxC: jax.Array, patch: int) -> jax.Array:
    """tokens_BxhxwxF, one for each patch, after the checks of the sizes; to be called inside the encoder."""
    height, width = images_BxHxWxC.shape[1:3]
    heads = max(1, encoder.width // 64)
    if height % patch or width % patch:
        raise ValueError(
            f"images of {height}x{width} pixels do not fit the transformer with model.stem {encoder.stem!r}: "
            f"both sides must be multiples of its patch size {patch}."
        )
    if encoder.width % 4 or encoder.width % heads:
        raise ValueError(
            f"model.width is {encoder.width}: for the transformer it must be a multiple of 4 and of its "
            f"{heads} attention head(s), one for each 64 channels."
        )
    options = dict(padding="VALID", dtype=encoder.dtype, kernel_init=dense_init, name="stem_conv")
    return nn.Conv(encoder.width, (patch, patch), (patch, patch), **options)(images_BxHxWxC)


def positions(h: int, w: int, channels: int) -> jax.Array:
    """positions_1xhxwxF in [-1, 1]: sines and cosines of the row and of the column, at channels / 4
    wavelengths from 2 pi to 20000 pi tokens (MoCo v3, arXiv 2104.02057)."""
    wave = 1e-4 ** (np.arange(channels // 4) / max(1, channels // 4 - 1))
    row_hxwxf, column_hxwxf = (axis[:, :, None] * wave for axis in np.mgrid[:h, :w].astype(np.float64))
    parts = [np.sin(row_hxwxf), np.cos(row_hxwxf), np.sin(column_hxwxf), np.cos(column_hxwxf)]
    return jnp.asarray(np.concatenate(parts, axis=-1)[None], jnp.float32)
