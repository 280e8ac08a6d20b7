"""The projection and classification heads. They cost next to nothing, so they always compute in float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from gradmix_jax.models.layers import dense_init


def l2_normalize(x_BxD: jax.Array) -> jax.Array:
    """x / max(|x|, 1e-6) along the last axis.

    The maximum is taken over the squares, under the root, so that the gradient is finite at x = 0, where that of |x| is
    NaN.
    """
    squares = jnp.sum(jnp.square(x_BxD), axis=-1, keepdims=True)
    return x_BxD * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))


class Projection(nn.Module):
    """features_BxF -> z_BxD of unit length: dense, ReLU, dense (SimCLR, arXiv 2002.05709, section 2.1)."""

    hidden: int
    projection: int

    @nn.compact
    def __call__(self, features_BxF: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(self.hidden, kernel_init=dense_init, name="hidden")(features_BxF))
        return l2_normalize(nn.Dense(self.projection, kernel_init=dense_init, name="projection")(x))


class LinearClassifier(nn.Module):
    """features_BxF -> logits_BxK."""

    num_classes: int
    bias: bool = True

    @nn.compact
    def __call__(self, features_BxF: jax.Array) -> jax.Array:
        return nn.Dense(self.num_classes, self.bias, kernel_init=dense_init, name="dense")(features_BxF)


class CosineClassifier(nn.Module):
    """features_BxF -> logits_BxK = scale * cosine(features, weight of the class) (Gidaris and Komodakis 2018,
    arXiv 1804.09458, section 3.2), scale learned from 10 on."""

    num_classes: int

    @nn.compact
    def __call__(self, features_BxF: jax.Array) -> jax.Array:
        weights_KxF = self.param("weights", nn.initializers.normal(1.0), (self.num_classes, features_BxF.shape[-1]))
        scale = self.param("scale", nn.initializers.constant(10.0), ())
        return scale * (l2_normalize(features_BxF) @ l2_normalize(weights_KxF).T)
