"""The views, maps, masks and mixed images that a step would make of a batch, for figures; no training."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradmix_jax.training import step as step_lib
from gradmix_jax.training.program import Program
from gradmix_jax.training.state import TrainState


class Explanation(NamedTuple):
    """views_BxHxWxC, their Mixed, and mask_BxHxW (float in [0, 1], 1 where the image is replaced; all 0 for a method
    without masks)."""

    views: jax.Array
    mixed: step_lib.Mixed
    mask: jax.Array


def explain(program: Program, state: TrainState, images_bxHxWxC, labels_b) -> Explanation:
    """The `Explanation` of the step `state.step` for a batch of uint8 images, on one device."""
    views_BxHxWxC = step_lib.views_of(program, step_lib.step_key(state, "views"), images_bxHxWxC, None)
    context, _ = step_lib.context_of(program, state, views_BxHxWxC, labels_b, None)
    mixed = step_lib.clean_half(context, views_BxHxWxC).mixed
    mask_BxHxW = jnp.zeros(mixed.images.shape[:3])
    if program.mix.has_mask:
        # The masks, as the difference of two fills with the same key: mask * 1 + (1 - mask) * image, and
        # (1 - mask) * image.
        filled = [
            step_lib.mix_views(context, dataclasses.replace(program.mix, fill=fill), views_BxHxWxC, mixed.maps)[0]
            for fill in ("ones", "zeros")
        ]
        mask_BxHxW = jnp.mean(filled[0] - filled[1], axis=-1)
    return Explanation(views_BxHxWxC, mixed, mask_BxHxW)
