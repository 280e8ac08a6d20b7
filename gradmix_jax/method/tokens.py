"""Mixing for transformers, by whole tokens: TokenMix, and the labels of TransMix.

Common arguments, result and errors: see `boxes`.

Letters: B batch (views included), H W image, C image channels, h w tokens of the patches, T tokens (class token and
registers, if any, included), N heads, K blocks.
"""

import jax
import jax.numpy as jnp

from gradmix_jax.method import masks
from gradmix_jax.method.boxes import random_box
from gradmix_jax.method.draws import draw, fill_hole
from gradmix_jax.method.fills import FILLS, kept_share

Mixed = tuple[jax.Array, jax.Array, jax.Array]
# Width / height of a block, at most and at least its inverse.
ASPECT = 10 / 3


def tokenmix(
    key: jax.Array,
    images_BxHxWxC: jax.Array,
    maps_BxHxW: jax.Array,
    *,
    keep_range: tuple[float, float],
    fill: str,
    views: int,
    blocks: int,
    patch_size: int,
    keep_B: jax.Array | None = None,
    border: int = 0,
) -> Mixed:
    """Blocks of tokens from the partner, and a label weight by the visible share of both maps.

    Random rectangles of tokens are masked one after the other until exactly the drawn share is. The weight is the
    kept part of the image's map against the shown part of the partner's: a / (a + b), with a the sum of the image's
    map outside the mask as a share of its sum, b the partner's inside the mask as a share of its own.

    Source: TokenMix, Liu et al. 2022, arXiv 2207.08409, section 3. Its maps are those of a pretrained teacher; these
    are of the network itself. The paper uses the two scores directly; here they are divided by their sum. Its released
    code masks 112 of 196 tokens by blocks of 1 token to all that remain.

    An empty map, such as that of an image without a loss, counts as constant. Without a partner (see `fills`) the
    weight is the kept share.

    Args:
      blocks: number of rectangles K; tokens at random positions make up for any shortfall.
      patch_size: side of a token in pixels.
    """
    batch, height, width, _ = images_BxHxWxC.shape
    drawn = draw(key, batch, views=views, keep_range=keep_range, keep_B=keep_B, more=2)
    grid_hxw = masks.patch_grid((height, width), patch_size)
    order_Bxhxw = block_order(drawn.keys[0], drawn.keys[1], batch, grid_hxw=grid_hxw, blocks=blocks)
    mask_BxHxW = masks.expand_cells(masks.threshold(order_Bxhxw, drawn.keep_B), (height, width))
    mixed, weight_B, partner_B = fill_hole(drawn, images_BxHxWxC, mask_BxHxW, fill=fill, border=border)
    if FILLS[fill].needs_partner:
        weight_B = map_share(maps_BxHxW, masks.soften(mask_BxHxW, border), partner_B)
    return mixed, weight_B, partner_B


def transmix(
    key: jax.Array,
    images_BxHxWxC: jax.Array,
    maps_BxHxW: jax.Array | None,
    *,
    keep_range: tuple[float, float],
    fill: str,
    views: int,
    keep_B: jax.Array | None = None,
    border: int = 0,
) -> tuple[jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]:
    """`boxes.cutmix`, plus {"mask": mask_BxHxW}, from which the step weighs the labels by `attended_share`.

    Source: TransMix, Chen et al. 2022, arXiv 2111.09833, section 3. The released code takes the mean of this weight and
    that of the area.
    """
    del maps_BxHxW
    drawn, mask_BxHxW = random_box(key, images_BxHxWxC.shape, views=views, keep_range=keep_range, keep_B=keep_B)
    mixed = fill_hole(drawn, images_BxHxWxC, mask_BxHxW, fill=fill, border=border)
    return *mixed, {"mask": masks.soften(mask_BxHxW, border)}


def block_order(
    block_key: jax.Array, token_key: jax.Array, batch: int, *, grid_hxw: tuple[int, int], blocks: int
) -> jax.Array:
    """Scores of tokens, which are masked in descending order; [B, h, w], float32.

    Tokens of the first block score above K - 1, those that only the second covers above K - 2, and so on, with
    uniform noise inside a block; tokens outside all blocks have only noise. A block covers 1 / 16 to 1 / 3 of the
    tokens before it is clipped, with a log-uniform aspect.
    """
    heights, widths = (jnp.arange(size, dtype=jnp.float32) for size in grid_hxw)
    uniform_4xBxK = jax.random.uniform(block_key, (4, batch, blocks))
    area_BxK = (1 / 16 + (1 / 3 - 1 / 16) * uniform_4xBxK[0]) * (grid_hxw[0] * grid_hxw[1])
    aspect_BxK = ASPECT ** (2 * uniform_4xBxK[1] - 1)

    def covered(center_BxK, side_BxK, positions):
        side_BxK = jnp.maximum(jnp.round(side_BxK), 1.0)
        start_BxK = jnp.floor(center_BxK * len(positions)) - jnp.floor(side_BxK / 2)
        positions = positions[None, None]
        return (positions >= start_BxK[..., None]) & (positions < (start_BxK + side_BxK)[..., None])

    rows_BxKxh = covered(uniform_4xBxK[2], jnp.sqrt(area_BxK / aspect_BxK), heights)
    columns_BxKxw = covered(uniform_4xBxK[3], jnp.sqrt(area_BxK * aspect_BxK), widths)
    inside_BxKxhxw = rows_BxKxh[..., :, None] & columns_BxKxw[..., None, :]
    rank_K = jnp.arange(blocks, 0, -1, dtype=jnp.float32)[None, :, None, None]
    first_Bxhxw = jnp.max(jnp.where(inside_BxKxhxw, rank_K, 0.0), axis=1)
    return first_Bxhxw + jax.random.uniform(token_key, first_Bxhxw.shape)


def map_share(maps_BxHxW: jax.Array, mask_BxHxW: jax.Array, partner_B: jax.Array) -> jax.Array:
    """The label weight of `tokenmix`, weight_B in [0, 1]."""
    total = lambda x: jnp.sum(x, axis=(1, 2))
    maps_BxHxW, mask_BxHxW = maps_BxHxW.astype(jnp.float32), mask_BxHxW.astype(jnp.float32)
    maps_BxHxW = jnp.where(jnp.any(maps_BxHxW > 0, axis=(1, 2), keepdims=True), maps_BxHxW, 1.0)
    partners_BxHxW = maps_BxHxW[partner_B]
    own_B = total(maps_BxHxW * (1.0 - mask_BxHxW)) / total(maps_BxHxW)
    other_B = total(partners_BxHxW * mask_BxHxW) / total(partners_BxHxW)
    both_B = own_B + other_B
    return jnp.where(both_B > 0, own_B / jnp.where(both_B > 0, both_B, 1.0), kept_share(mask_BxHxW))


def attended_share(
    attention_BxNxTxT: jax.Array, mask_BxHxW: jax.Array, patch_size: int, class_token: bool
) -> jax.Array:
    """The share of the attention of the last block that goes to unmasked patches; weight_B in [0, 1].

    Source: TransMix, Chen et al. 2022, arXiv 2111.09833, equations 4 and 5. The mask of a patch is the mean of its
    pixels, where theirs is sampled. No gradient flows through the weight.

    Args:
      attention_BxNxTxT: attention of the last block, from each token (third axis) to each (last axis), of the mixed
        images.
      mask_BxHxW: what was replaced, bool or float in [0, 1].
      patch_size: side of a token in pixels.
      class_token: whether the first token's attention counts; otherwise the mean over all tokens does.
    """
    grid_hxw = masks.patch_grid(mask_BxHxW.shape[1:], patch_size)
    kept_BxP = 1.0 - masks.cell_means(mask_BxHxW, grid_hxw).reshape(len(mask_BxHxW), -1)
    attention_BxTxT = jnp.mean(attention_BxNxTxT.astype(jnp.float32), axis=1)
    attention_BxT = attention_BxTxT[:, 0] if class_token else jnp.mean(attention_BxTxT, axis=1)
    attention_BxP = attention_BxT[:, -kept_BxP.shape[1] :]
    weight_B = jnp.sum(attention_BxP * kept_BxP, axis=1) / jnp.sum(attention_BxP, axis=1)
    return jax.lax.stop_gradient(weight_B)
