"""Shared by the mixing methods: partners, kept shares, and filling a mask.

Letters: B batch (views included), H W image, C image channels, g images of a group.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradmix_jax.method import masks
from gradmix_jax.method.fills import fill_masked


class Drawn(NamedTuple):
    """One draw of a mixing method: partner_B, keep_B, the key of the fill, and further keys."""

    partner_B: jax.Array
    keep_B: jax.Array
    fill_key: jax.Array
    keys: tuple[jax.Array, ...]


def partners(key: jax.Array, batch: int, *, views: int = 1) -> jax.Array:
    """Partner of every row: a uniformly random cycle through the images, crossed over views; partner_B int32."""
    images = batch // views
    cycle = jax.random.permutation(key, images)
    # i -> the image after i in a random cycle: a permutation without fixed points.
    partner_g = jnp.zeros(images, jnp.int32).at[cycle].set(jnp.roll(cycle, -1).astype(jnp.int32))
    crossed_V = jnp.arange(views - 1, -1, -1, dtype=jnp.int32) * images
    return (crossed_V[:, None] + partner_g[None, :]).reshape(batch)


def draw_keep(key: jax.Array, shape: tuple[int, ...], keep_range: tuple[float, float]) -> jax.Array:
    """Keep shares low + (high - low) * u with u ~ Beta(1, 1), which is the uniform distribution."""
    low, high = keep_range
    return jax.random.uniform(key, shape, minval=low, maxval=high)


def draw(
    key: jax.Array,
    batch: int,
    *,
    views: int,
    keep_range: tuple[float, float],
    keep_B: jax.Array | None = None,
    more: int = 0,
) -> Drawn:
    """Partners and keep shares of a batch, and `more` keys in addition to that of the fill.

    Args:
      key: randomness of all draws.
      batch: number of rows B.
      views: number of views V in B.
      keep_range: lowest and highest share of pixels to keep.
      keep_B: keep shares, to use in place of a draw.
      more: number of further keys.

    Raises:
      ValueError: B is not a multiple of `views`.
    """
    if batch % views:
        raise ValueError(f"mixing needs a multiple of views={views} images, got {batch}.")
    partner_key, keep_key, fill_key, *keys = jax.random.split(key, 3 + more)
    partner_B = partners(partner_key, batch, views=views)
    if keep_B is None:
        keep_B = draw_keep(keep_key, (batch,), keep_range)
    return Drawn(partner_B, keep_B, fill_key, tuple(keys))


def fill_hole(
    drawn: Drawn, images_BxHxWxC: jax.Array, mask_BxHxW: jax.Array, *, fill: str, border: int = 0
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(mixed, weight_B, partner_B) of a mask: `fills.fill_masked` behind a border of `border` pixels."""
    mask_BxHxW = masks.soften(mask_BxHxW, border)
    return fill_masked(drawn.fill_key, images_BxHxWxC, mask_BxHxW, fill, partner_B=drawn.partner_B)
