"""The loss of a train step: the phase's weighted sum of objectives, for the clean views and for the mixed images."""

import jax

from gradmix_jax import objectives
from gradmix_jax.method import attribution
from gradmix_jax.training.forward import Outputs
from gradmix_jax.training.program import Context


def clean_loss(context: Context, outputs: Outputs) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum of the objectives of the clean views.

    Args:
      context: the context of the step; objectives without a weight in any phase are left out.
      outputs: outputs of the clean views.

    Returns:
      (loss, {objective: its unweighted value}): float32 scalars, this device's part of the mean.
    """
    given = _givens(context, outputs, context.program.objective_names)
    terms = {name: objectives.OBJECTIVES[name].clean(each) for name, each in given.items()}
    return sum(context.weights[name] * value for name, value in terms.items()), terms


def mixed_loss(
    context: Context, outputs: Outputs, mixed: objectives.Mixed
) -> tuple[jax.Array | float, dict[str, jax.Array]]:
    """The same objectives with the mixed images as positives, queries or targets.

    Args:
      context, outputs: as for `clean_loss`.
      mixed: outputs of the mixed images.

    Returns:
      (loss, {"mixed_" + objective: its unweighted value}), as for `clean_loss`; 0.0 and {} if no objective mixes.
    """
    terms, loss = {}, 0.0
    for name, given in _givens(context, outputs, context.program.mixed_objectives).items():
        terms[f"mixed_{name}"] = objectives.OBJECTIVES[name].mixed(given, mixed)
        loss += context.weights[name] * terms[f"mixed_{name}"]
    return loss, terms


def attribution_loss(context: Context, outputs: Outputs) -> jax.Array:
    """The loss whose gradient gives the maps, for any outputs; a scalar, this device's part of the mean."""
    name = context.program.attribution.loss
    if name == attribution.TRAINING:
        return clean_loss(context, outputs)[0]
    return objectives.OBJECTIVES[name].clean(_givens(context, outputs, [name])[name])


def attribution_cotangent(context: Context, outputs: Outputs, clean_cotangent: Outputs | None) -> Outputs:
    """Gradient of the attribution loss with respect to the clean outputs.

    Args:
      context, outputs: as for `clean_loss`.
      clean_cotangent: gradient of `clean_loss`, which the attribution loss "training" uses as is.

    Returns:
      `Outputs` with the shapes of `outputs`.
    """
    if context.program.attribution.loss == attribution.TRAINING:
        return clean_cotangent
    return jax.grad(lambda outputs: attribution_loss(context, outputs))(outputs)


def _givens(context, outputs, names) -> dict[str, objectives.Given]:
    """{objective: the inputs of its losses}."""
    program, labels_b = context.program, context.labels_b
    options = dict(views=program.num_views, axis_name=context.axis_name, temperature_factor=context.temperature_factor)
    batch = objectives.make_batch(outputs.z, outputs.z_all, labels_b, **options)
    same = batch, outputs.logits, labels_b, program.num_classes, program.objective
    more = dict(head=outputs.head, key=context.keys.get("objective"), has_negatives=program.has_negatives)
    return {name: objectives.Given(*same, context.carried.get(name), **more) for name in names}
