"""Mixing by weighted means: mixup of images, and manifold mixup of activations.

Letters: B batch (views included), H W image, C image channels.
"""

import jax
import jax.numpy as jnp

from gradmix_jax.method.checks import check_images
from gradmix_jax.method.draws import partners

Mixed = tuple[jax.Array, jax.Array, jax.Array]
INPUT = "input"  # in a list of stages: the images themselves


def check_stages(name: str, stages: tuple[str, ...]) -> None:
    """Raises ValueError, naming `stages` as `name`, unless there is a stage to draw from and each is there once."""
    if not stages or len(set(stages)) < len(stages):
        raise ValueError(f"{name} must name at least one stage and each of them once, got {stages!r}.")


def mixup(
    key: jax.Array,
    images_BxHxWxC: jax.Array,
    maps_BxHxW: jax.Array | None,
    *,
    alpha: float,
    views: int,
) -> Mixed:
    """weight * image + (1 - weight) * partner, weight ~ Beta(alpha, alpha).

    Source: mixup, Zhang et al. 2018, arXiv 1710.09412, section 2.

    Args:
      key: randomness of partners and weights.
      images_BxHxWxC: images in [0, 1]; B = views * images, view-major.
      maps_BxHxW: ignored.
      alpha: parameter of the Beta distribution, above 0; 1 is uniform.
      views: number of views V in B.

    Returns:
      mixed images (shape and dtype of the input), weight_B and partner_B.
    """
    del maps_BxHxW
    check_images(images_BxHxWxC)
    batch = images_BxHxWxC.shape[0]
    partner_key, weight_key = jax.random.split(key)
    partner_B = partners(partner_key, batch, views=views)
    weight_B = jax.random.beta(weight_key, alpha, alpha, (batch,))
    weight_Bx1x1x1 = weight_B[:, None, None, None]
    mixed = weight_Bx1x1x1 * images_BxHxWxC + (1.0 - weight_Bx1x1x1) * images_BxHxWxC[partner_B]
    return mixed.astype(images_BxHxWxC.dtype), weight_B, partner_B


def manifold_mixup(
    key: jax.Array,
    images_BxHxWxC: jax.Array,
    maps_BxHxW: jax.Array | None,
    *,
    alpha: float,
    stages: tuple[str, ...],
    views: int,
) -> tuple[jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]:
    """`mixup` of the activations of one stage, drawn at random from `stages`, where "input" stands for the images.

    Source: Manifold mixup, Verma et al. 2019, arXiv 1806.05236, section 2. One stage is drawn for each group of
    partners and one weight for each row; the paper draws one of each for the batch, for CIFAR with an alpha of 2.

    Args:
      key: randomness of partners, weights and stage.
      images_BxHxWxC, maps_BxHxW, alpha, views: as for `mixup`.
      stages: the stages to draw from.

    Returns:
      images (mixed if "input" was drawn, else unchanged), weight_B, partner_B, and {stage: share_B}: weight_B at the
      stage that was drawn, 1 at the others.

    Raises:
      ValueError: no stage, or one of them twice.
    """
    check_stages("stages", stages)
    mix_key, stage_key = jax.random.split(key)
    mixed, weight_B, partner_B = mixup(mix_key, images_BxHxWxC, maps_BxHxW, alpha=alpha, views=views)
    drawn = jax.random.randint(stage_key, (), 0, len(stages))
    if INPUT in stages:
        images_BxHxWxC = jnp.where(drawn == stages.index(INPUT), mixed, images_BxHxWxC)
    shares = {name: jnp.where(drawn == i, weight_B, 1.0) for i, name in enumerate(stages) if name != INPUT}
    return images_BxHxWxC, weight_B, partner_B, shares
