"""Heads whose classes are points in the feature space. Besides logits, they return the inputs of their losses.

Letters: B images, F feature, D projection, K classes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from gradmix_jax.models.heads import l2_normalize

# The released code of ARPL, for reciprocal points and prototypes alike.
POINTS = nn.initializers.normal(0.1)
PRECISION = jax.lax.Precision.HIGHEST


def mean_squared_distance(features_BxF: jax.Array, points_KxF: jax.Array) -> jax.Array:
    """distance_BxK: squared Euclidean distance of every feature to every point, divided by F."""
    cross_BxK = jnp.matmul(features_BxF, points_KxF.T, precision=PRECISION)
    squares_Bx1 = jnp.sum(jnp.square(features_BxF), axis=1, keepdims=True)
    squares_1xK = jnp.sum(jnp.square(points_KxF), axis=1)[None]
    return (squares_Bx1 - 2 * cross_BxK + squares_1xK) / features_BxF.shape[1]


class Prototypes(nn.Module):
    """features_BxF -> {"logits": minus distance_BxK, "distance": distance_BxK} to one prototype per class.

    Yang et al. 2018, "Robust Classification with Convolutional Prototype Learning", arXiv 1805.03438.
    """

    num_classes: int

    @nn.compact
    def __call__(self, features_BxF: jax.Array) -> dict[str, jax.Array]:
        points_KxF = self.param("points", POINTS, (self.num_classes, features_BxF.shape[-1]))
        distance_BxK = mean_squared_distance(features_BxF, points_KxF)
        return {"logits": -distance_BxK, "distance": distance_BxK}


class ReciprocalPoints(nn.Module):
    """features_BxF -> {"logits", "distance": [B, K], "radius": scalar}; the farther from its point, the more a class.

    Chen et al. 2021, "Adversarial Reciprocal Points Learning", arXiv 2103.00953: a logit is the
    squared Euclidean distance to the class's reciprocal point, divided by F, minus the inner product with it.
    """

    num_classes: int

    @nn.compact
    def __call__(self, features_BxF: jax.Array) -> dict[str, jax.Array]:
        points_KxF = self.param("points", POINTS, (self.num_classes, features_BxF.shape[-1]))
        radius = self.param("radius", nn.initializers.zeros, ())
        distance_BxK = mean_squared_distance(features_BxF, points_KxF)
        product_BxK = jnp.matmul(features_BxF, points_KxF.T, precision=PRECISION)
        return {"logits": distance_BxK - product_BxK, "distance": distance_BxK, "radius": radius}


class SphericalPrototypes(nn.Module):
    """z_BxD of unit length -> {"cosine": [B, K], "between": [K, K]}: cosines to and between label embeddings.

    Bahavan et al. 2025, "SpHOR", arXiv 2503.08049. It gives no logits: the paper's classifier is a linear one on the
    frozen encoder's features, fitted afterwards like the linear probe of an evaluation.
    """

    num_classes: int
    of_projection: bool = True

    @nn.compact
    def __call__(self, z_BxD: jax.Array) -> dict[str, jax.Array]:
        init = nn.initializers.kaiming_normal(in_axis=1, out_axis=0)
        points_KxD = l2_normalize(self.param("points", init, (self.num_classes, z_BxD.shape[-1])))
        dot = lambda a, b: jnp.matmul(a, b.T, precision=PRECISION)
        return {"cosine": dot(z_BxD, points_KxD), "between": dot(points_KxD, points_KxD)}
