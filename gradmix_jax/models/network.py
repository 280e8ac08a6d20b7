"""Encoder, projection head and, if wanted, a classification head in one module, with taps on the stages."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax

from gradmix_jax.models.heads import Projection
from gradmix_jax.models.layers import Encoder


class Network(nn.Module):
    """images_BxHxWxC (normalized, float) -> z_BxD (float32, unit length), out.

    out["features"] is features_BxF (float32), out["stage1"] ... the activations_BxhxwxF of every stage after
    its last ReLU, and out["logits"] logits_BxK (float32) where there is a classification head that gives some. What
    else a head says to its loss is in out["head"], a dict (see `models.prototypes`).

    The variable collection "perturbations" may hold, for any of the stages, an array that is added to the
    stage's activations; the gradient with respect to it is dL/dA. Flax's own `Module.perturb` will not do:
    `init` would put perturbations of the initialization's batch size among the variables, and `apply` wants
    either all or none of them.

    The variable collection "blends" may hold, for any of the stages, {"share": share_B, "partner": partner_B}: the
    stage's activations become share * own + (1 - share) * partner's, class token and registers included.

    Raises:
      ValueError: if a perturbation or blend names no stage, or a perturbation has not its activations' shape.
    """

    encoder: Callable[..., Encoder]
    stages: tuple[str, ...]
    hidden: int
    projection: int
    classifier: Callable[..., nn.Module] | None

    @nn.compact
    def __call__(self, images_BxHxWxC: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        perturbations = self.variables.get("perturbations", {})
        blends = self.variables.get("blends", {})
        unknown = sorted({*perturbations, *blends} - set(self.stages))
        if unknown:
            raise ValueError(f"unknown stage {unknown[0]!r}: this encoder has {', '.join(self.stages)}.")
        out = {}

        def tap(name: str, x_BxhxwxF: jax.Array, others_BxNxF: jax.Array | None = None):
            if name in perturbations:
                x_BxhxwxF = _add(name, x_BxhxwxF, perturbations[name])
            if name in blends:
                x_BxhxwxF, others_BxNxF = jax.tree.map(partial(_blend, **blends[name]), (x_BxhxwxF, others_BxNxF))
            out[name] = x_BxhxwxF
            return x_BxhxwxF if others_BxNxF is None else (x_BxhxwxF, others_BxNxF)

        out["features"] = self.encoder(name="encoder")(images_BxHxWxC, train=train, tap=tap)
        z_BxD = Projection(self.hidden, self.projection, name="projection")(out["features"])
        if self.classifier is not None:
            head = self.classifier(name="classifier")
            said = head(z_BxD if getattr(head, "of_projection", False) else out["features"])
            said = dict(said) if isinstance(said, dict) else {"logits": said}
            if "logits" in said:
                out["logits"] = said.pop("logits")
            if said:
                out["head"] = said
        return z_BxD, out


def _blend(x: jax.Array, *, share: jax.Array, partner: jax.Array) -> jax.Array:
    """share * x + (1 - share) * the partner's x, row by row; shape and dtype of x."""
    share = share.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)
    return share * x + (1 - share) * x[partner]


def _add(name: str, x_BxhxwxF: jax.Array, perturbation_BxhxwxF: jax.Array) -> jax.Array:
    if perturbation_BxhxwxF.shape != x_BxhxwxF.shape:
        shapes = f"{perturbation_BxhxwxF.shape}: it must be {x_BxhxwxF.shape}"
        raise ValueError(f"the perturbation of {name} has the shape {shapes}.")
    # The cast keeps a float32 perturbation from turning the rest of a bfloat16 network into float32.
    return x_BxhxwxF + perturbation_BxhxwxF.astype(x_BxhxwxF.dtype)
