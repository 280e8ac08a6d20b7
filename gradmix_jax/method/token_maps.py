"""Attribution maps of tokens, of activations alone, and of a transformer's attention.

As in `maps`: float32, `map_BxHxW` in [0, 1], no gradient.

Letters: B batch, H W image, h w feature map, P places of it (h * w), F feature channels, N heads, T tokens (class token
and registers, if any, before the P patches).
"""

import jax
import jax.numpy as jnp

from gradmix_jax.method.maps import upsampled


def token_map(
    activations_BxhxwxF: jax.Array,
    gradients_BxhxwxF: jax.Array,
    *,
    image_size: int | tuple[int, int],
    sign: int = 1,
    norm: str = "image",
    axis_name: str | None = None,
) -> jax.Array:
    """Sum over channels of relu(sign * A * dL/dA) for every token, constant over the pixels of its patch.

    The sum of `layer_cam` where activations have either sign, as in a transformer's residual stream; for activations
    of at least 0 it is the same. Without the relu it would vanish: behind a layer norm the loss does not depend on the
    length of a token, so that A and dL/dA of a token that only a normalization reads are orthogonal. There the two
    signs give the same map, up to rounding.

    Source: Jiang et al. 2021, "LayerCAM", equation 6, extended to activations of either sign. Arguments and result as
    in `layer_cam`, without interpolation.
    """
    products = activations_BxhxwxF.astype(jnp.float32) * gradients_BxhxwxF.astype(jnp.float32)
    raw_Bxhxw = jnp.sum(jax.nn.relu(sign * products), axis=-1)
    return upsampled(raw_Bxhxw, image_size, norm, axis_name, "nearest")


def eigen_cam(
    activations_BxhxwxF: jax.Array,
    *,
    image_size: int | tuple[int, int],
    iterations: int = 8,
    norm: str = "image",
    axis_name: str | None = None,
) -> jax.Array:
    """Projection of the activations on their first principal component (not centered), without any gradient.

    The component is found by a power iteration from the place with the largest activations; of its two signs, that
    with a positive sum of the projections counts.

    Source: Muhammad and Yeasin 2020, "Eigen-CAM", arXiv 2008.00299, equations 3 and 4, with a power iteration in place
    of the singular value decomposition.

    Args:
      activations_BxhxwxF: activations of one stage, of any sign.
      image_size: H, or (H, W), of the map returned.
      iterations: of the power iteration; each multiplies by the activations twice.
      norm, axis_name: see `maps.min_max`.

    Returns:
      map_BxHxW, float32 in [0, 1], bilinearly upsampled.
    """
    batch, height, width, channels = activations_BxhxwxF.shape
    places_BxPxF = jax.lax.stop_gradient(activations_BxhxwxF.astype(jnp.float32)).reshape(batch, -1, channels)
    # Scaled first, so that squares of tiny or huge activations stay finite.
    largest_Bx1x1 = jnp.max(jnp.abs(places_BxPxF), axis=(1, 2), keepdims=True)
    places_BxPxF = places_BxPxF / jnp.where(largest_Bx1x1 > 0, largest_Bx1x1, 1.0)
    start_B = jnp.argmax(jnp.sum(places_BxPxF**2, axis=2), axis=1)
    component_BxF = jnp.take_along_axis(places_BxPxF, start_B[:, None, None], axis=1)[:, 0]
    for _ in range(iterations):
        projected_BxP = jnp.einsum("BPF,BF->BP", places_BxPxF, component_BxF, precision="highest")
        component_BxF = jnp.einsum("BPF,BP->BF", places_BxPxF, projected_BxP, precision="highest")
        norm_Bx1 = jnp.linalg.norm(component_BxF, axis=1, keepdims=True)
        component_BxF = component_BxF / jnp.where(norm_Bx1 > 0, norm_Bx1, 1.0)
    projected_BxP = jnp.einsum("BPF,BF->BP", places_BxPxF, component_BxF, precision="highest")
    projected_BxP = projected_BxP * jnp.where(jnp.sum(projected_BxP, axis=1, keepdims=True) < 0, -1.0, 1.0)
    return upsampled(projected_BxP.reshape(batch, height, width), image_size, norm, axis_name)


def attention_rollout(
    attentions_BxNxTxT: tuple[jax.Array, ...],
    *,
    image_size: tuple[int, int],
    patch_size: int,
    class_token: bool,
    norm: str = "image",
    axis_name: str | None = None,
) -> jax.Array:
    """How much of each patch reaches the features, by the product of (attention + identity) / 2 of all blocks.

    Source: Abnar and Zuidema 2020, "Quantifying attention flow in transformers", arXiv 2005.00928, section 3, with the
    mean over heads.

    Args:
      attentions_BxNxTxT: attention of each block in order, from a token to a token; rows sum to 1.
      image_size: (H, W).
      patch_size: side of a patch in pixels; divides both.
      class_token: whether the features are those of the first token; otherwise they are the mean over all tokens.
      norm, axis_name: see `maps.min_max`.

    Returns:
      map_BxHxW, float32 in [0, 1], constant over a patch.
    """
    h, w = (size // patch_size for size in image_size)
    rollout_BxTxT = None
    for attention_BxNxTxT in attentions_BxNxTxT:
        attention_BxTxT = jnp.mean(attention_BxNxTxT.astype(jnp.float32), axis=1)
        step_BxTxT = 0.5 * (attention_BxTxT + jnp.eye(attention_BxTxT.shape[-1])[None])
        if rollout_BxTxT is None:
            rollout_BxTxT = step_BxTxT
        else:
            rollout_BxTxT = jnp.matmul(step_BxTxT, rollout_BxTxT, precision="highest")
    of_features_BxT = rollout_BxTxT[:, 0] if class_token else jnp.mean(rollout_BxTxT, axis=1)
    raw_Bxhxw = of_features_BxT[:, -h * w :].reshape(-1, h, w)
    return upsampled(raw_Bxhxw, image_size, norm, axis_name, "nearest")
