"""Forward passes of a train step, in train mode.

Letters: B rows of this device (views included), H W image, C image channels, D embedding, K known classes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gradmix_jax import augment, models, objectives
from gradmix_jax.training.micro_batches import in_micro_batches
from gradmix_jax.training.program import Context


class Outputs(NamedTuple):
    """The outputs that the losses use: z_BxD, the z of all devices, logits_BxK (None if the model has none), and a dict
    of further outputs of its head (None if there are none)."""

    z: jax.Array
    z_all: jax.Array
    logits: jax.Array | None
    head: dict[str, jax.Array] | None = None


class Clean(NamedTuple):
    """A clean forward pass: outputs, its pullback to (params, taps), activations by stage, new batch statistics, and
    the attention of each block if the map needs it."""

    outputs: Outputs
    pullback: Callable
    activations: dict[str, jax.Array]
    batch_stats: Any
    attentions: tuple[jax.Array, ...] = ()


def apply_model(program, params, batch_stats, images_BxHxWxC, perturbations=None, *, blends=None, with_attention=False):
    """Train-mode forward of images in [0, 1]; returns (z, out, new batch statistics).

    `perturbations` and `blends` apply to the model's stages (see `models.network`). With `with_attention`,
    out["attentions"] holds the attention of each block of a transformer.
    """
    variables = {"params": params, "batch_stats": batch_stats}
    variables |= {"perturbations": perturbations} if perturbations else {}
    variables |= {"blends": blends} if blends else {}
    normalized = augment.normalize(images_BxHxWxC, mean=program.mean, std=program.std)
    mutable = ["batch_stats", *["intermediates"] * with_attention]
    (z, out), mutated = program.model.apply(variables, normalized, train=True, mutable=mutable)
    if with_attention:
        out = out | {"attentions": models.attentions(mutated["intermediates"])}
    return z, out, mutated.get("batch_stats", {})


def projections(program, variables, images_BxHxWxC) -> jax.Array:
    """z_BxD of the clean views under other variables of the model, {"params", "batch_stats"}, in train mode."""
    forward = lambda images: apply_model(program, variables["params"], variables["batch_stats"], images)[0]
    return in_micro_batches(program, forward, images_BxHxWxC, views=program.num_views)


def _taps(context: Context, images_BxHxWxC):
    """The variables with respect to which the map's gradient is taken: the images, zeros at the stages, or none."""
    program = context.program
    if not program.maps_gradients:
        return {}
    if program.attribution.uses_input:
        return {"images": images_BxHxWxC}
    shapes = jax.eval_shape(lambda x: apply_model(program, context.params, context.batch_stats, x)[1], images_BxHxWxC)
    return {stage: jnp.zeros(shapes[stage].shape, shapes[stage].dtype) for stage in program.attribution.stages}


def forward_views(context: Context, params, images_BxHxWxC, added=None, *, kept=(), with_attention=False):
    """(outputs, (activations, new batch statistics, attentions)) of the clean views, in micro batches if asked.

    Args:
      context: the context of the step, whose parameters are not used.
      params: parameters of the model.
      images_BxHxWxC: views in [0, 1], view-major.
      added: {stage: array added to its activations}.
      kept: stages whose activations are returned, besides those of `added`.
      with_attention: whether the attention of each block is returned.
    """
    program, added = context.program, added or {}

    def forward(rows):
        options = dict(perturbations=rows[1], with_attention=with_attention)
        z, out, new_stats = apply_model(program, params, context.batch_stats, rows[0], **options)
        looked_at = {name: out[name] for name in (*added, *kept)}, new_stats, out.get("attentions", ())
        # No gradient ever flows through them, so nothing has to be kept for a backward pass.
        return (z, out.get("logits"), out.get("head")), lax.stop_gradient(looked_at)

    rows = images_BxHxWxC, added
    (z, logits, head), looked_at = in_micro_batches(program, forward, rows, views=program.num_views)
    return Outputs(z, objectives.gather(z, context.axis_name), logits, head), looked_at


def clean_forward(context: Context, images_BxHxWxC) -> Clean:
    """Forward the clean views once, ready to be pulled back as often as needed."""
    program = context.program
    kept = program.attribution.stages if program.map_needs("activations") else ()
    options = dict(kept=kept, with_attention=program.map_needs("attention"))

    def forward(params, taps):
        images = taps.get("images", images_BxHxWxC)
        added = {name: value for name, value in taps.items() if name != "images"}
        return forward_views(context, params, images, added, **options)

    taps = _taps(context, images_BxHxWxC)
    outputs, pullback, (activations, new_stats, attentions) = jax.vjp(forward, context.params, taps, has_aux=True)
    return Clean(outputs, pullback, activations, new_stats, attentions)
