"""What a step would do to a batch, for figures: views, maps, masks and mixed images. Trains nothing."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradmix_jax.training import step as step_lib
from gradmix_jax.training.program import Program
from gradmix_jax.training.state import TrainState


class Explanation(NamedTuple):
    """views_BxHxWxC, their Mixed, and mask_BxHxW (bool; all False for a method without masks)."""

    views: jax.Array
    mixed: step_lib.Mixed
    mask: jax.Array


def explain(program: Program, state: TrainState, images_bxHxWxC, labels_b) -> Explanation:
    """What the step `state.step` would do to a batch of uint8 images, on one device."""
    views_BxHxWxC = step_lib.views_of(program, step_lib.step_key(state, "views"), images_bxHxWxC, None)
    context, _ = step_lib.context_of(program, state, views_BxHxWxC, labels_b, None)
    mixed = step_lib.clean_half(context, views_BxHxWxC).mixed
    mask_BxHxW = jnp.zeros(mixed.images.shape[:3], bool)
    if program.mix.has_mask:
        # The masks, seen by filling them with noise under the same key: it meets no pixel's value.
        noisy = dataclasses.replace(program.mix, fill="noise")
        filled = step_lib.mix_views(context, noisy, views_BxHxWxC, mixed.maps)[0]
        mask_BxHxW = jnp.any(filled != views_BxHxWxC[: len(filled)], axis=-1)
    return Explanation(views_BxHxWxC, mixed, mask_BxHxW)
