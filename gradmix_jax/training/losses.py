"""What a train step minimises: the phase's weighted sum of objectives of the clean views, and of the mixed images.

Letters: b images of this device, B rows (views included), P rows of its mixed images, D embedding, K known classes.
"""

import jax
import jax.numpy as jnp

from gradmix_jax import objectives
from gradmix_jax.objectives import self_supervised
from gradmix_jax.training.program import Outputs, Program

ATTRIBUTION_LOSSES = (*objectives.SSL, "supcon", "cross_entropy", "training")


def _clean_terms(program, outputs, labels_b, axis_name, names, momentum) -> dict[str, jax.Array]:
    """The named losses of the clean views; `momentum` is what MoCo compares them with, None without it."""
    batch = objectives.make_batch(outputs.z, outputs.z_all, labels_b, views=program.num_views, axis_name=axis_name)

    def cross_entropy():
        targets = jax.nn.one_hot(jnp.tile(labels_b, program.num_views), program.num_classes)
        return objectives.cross_entropy(outputs.logits, targets, program.objective)

    losses = {
        "simclr": lambda: objectives.simclr(batch, program.objective),
        "moco": lambda: self_supervised.moco(batch, outputs.z, momentum, program.objective),
        "barlow_twins": lambda: self_supervised.barlow_twins(batch, program.objective),
        "supcon": lambda: objectives.supcon(batch, program.objective),
        "cross_entropy": cross_entropy,
    }
    return {name: losses[name]() for name in names}


def clean_loss(program, outputs, labels_b, weights, axis_name, momentum):
    """supcon * SupCon + ssl * (SimCLR or another) + cross_entropy * CE of the clean views.

    Args:
      program: says which of them any phase gives a weight; the others are left out.
      outputs: `Outputs` of the clean views: z_BxD, the z of all devices, logits_BxK or None.
      labels_b: int32, classes of this device's images.
      weights: {"supcon", "ssl", "cross_entropy"}: float32 scalars of this step's phase.
      axis_name: the mapped axis, if any.
      momentum: `self_supervised.Momentum` of MoCo, None without it.

    Returns:
      (loss, {name of an objective: its value without its weight}): float32 scalars, this device's part of the mean.
    """
    weight_of = {program.objective.ssl: "ssl", "supcon": "supcon", "cross_entropy": "cross_entropy"}
    names = [name for name, weight in weight_of.items() if program.weighs(weight)]
    terms = _clean_terms(program, outputs, labels_b, axis_name, names, momentum)
    return sum(weights[weight_of[name]] * value for name, value in terms.items()), terms


def mixed_loss(program, outputs, mixed_outputs, labels_b, mixed, weights, axis_name, momentum):
    """The same objectives with the mixed images as positives or targets.

    Args:
      program, outputs, labels_b, weights, axis_name, momentum: as for `clean_loss`.
      mixed_outputs: (z_PxD, logits_PxK or None) of the mixed images, view-major; P is B, or B / V of view 0 only.
      mixed: `weight`, their kept shares [P], and `partner`, rows among B [P].

    Returns:
      (loss, {"mixed_" + name of an objective: its value without its weight}), as `clean_loss`; 0.0 and {} for none.
    """
    z, logits = mixed_outputs
    spec = program.objective
    batch = objectives.make_batch(outputs.z, outputs.z_all, labels_b, views=program.num_views, axis_name=axis_name)
    terms, loss = {}, 0.0
    if program.weighs("ssl"):
        mixed_ssl = {
            "simclr": lambda: objectives.mixed_simclr(batch, z, mixed.weight, spec),
            "moco": lambda: self_supervised.moco(batch, z, momentum, spec, mixed.weight),
            "barlow_twins": lambda: self_supervised.mixed_barlow_twins(batch, z, mixed.weight, spec),
        }
        terms[f"mixed_{spec.ssl}"] = mixed_ssl[spec.ssl]()
        loss += weights["ssl"] * terms[f"mixed_{spec.ssl}"]
    if program.weighs("supcon") and spec.mixed_supcon:
        terms["mixed_supcon"] = objectives.mixed_supcon(batch, z, mixed.weight, spec)
        loss += weights["supcon"] * terms["mixed_supcon"]
    if program.weighs("cross_entropy"):
        labels = jnp.tile(labels_b, program.num_views)
        targets = objectives.mixed_targets(labels, mixed.weight, mixed.partner, num_classes=program.num_classes)
        terms["mixed_cross_entropy"] = objectives.cross_entropy(logits, targets, spec)
        loss += weights["cross_entropy"] * terms["mixed_cross_entropy"]
    return loss, terms


def attribution_cotangent(program: Program, outputs: Outputs, labels_b, clean_cotangent, axis_name, momentum):
    """Gradient of the attribution loss with respect to the clean outputs.

    Args:
      program, outputs, labels_b, axis_name, momentum: as for `clean_loss`.
      clean_cotangent: gradient of `clean_loss`, which is that of the attribution loss "training".

    Returns:
      `Outputs` with the shapes of `outputs`.
    """
    name = program.attribution.loss
    if name == "training":
        return clean_cotangent
    return jax.grad(lambda outputs: _clean_terms(program, outputs, labels_b, axis_name, [name], momentum)[name])(
        outputs
    )
