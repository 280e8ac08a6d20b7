"""Everything static about a train step, and its forward passes.

Letters: B rows of this device (views included), H W image, C image channels, D embedding, K known classes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradmix_jax import augment, objectives
from gradmix_jax.data import order
from gradmix_jax.method import attribution, mix
from gradmix_jax.training import state as state_lib


@dataclasses.dataclass(frozen=True)
class Program:
    """Everything static about a step. `batch_size` is global, `num_images` the size of the training set."""

    model: Any
    transform: optax.GradientTransformation
    schedule: optax.Schedule
    phases: tuple[state_lib.Phase, ...]
    augment: augment.Spec
    attribution: attribution.Spec
    mix: mix.Spec
    objective: objectives.Spec
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_views: int
    num_classes: int
    num_images: int
    image_shape: tuple[int, int, int]
    batch_size: int
    average_decay: float = 0.0

    @property
    def uses_momentum(self) -> bool:
        """Whether there is a key encoder and a queue."""
        return self.objective.ssl == "moco" and self.weighs("ssl")

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches. Raises ValueError where there is not even one."""
        return order.steps_per_epoch(self.num_images, self.batch_size)

    def weighs(self, name: str) -> bool:
        """Whether any phase gives objective `name` a weight: one that never counts is left out of the program."""
        return any(getattr(phase, name) for phase in self.phases)

    @property
    def mixes(self) -> bool:
        return self.mix.method != "none"

    @property
    def maps_gradients(self) -> bool:
        """Whether the mix asks for gradients: it has a map, and not a random one."""
        return self.mix.uses_map and self.attribution.uses_gradients

    @property
    def mixed_touches_clean(self) -> bool:
        """Whether the mixed loss has a gradient with respect to the clean outputs."""
        # Mixed queries of MoCo meet keys and queue only.
        contrasts = self.weighs("ssl") and self.objective.ssl != "moco"
        return self.mixes and (contrasts or self.objective.mixed_supcon) and not self.objective.detach_anchors

    @property
    def shares_backward(self) -> bool:
        """Whether one backward pass serves the map, if any, and the training, before the mixed pass begins."""
        of_training = not self.maps_gradients or self.attribution.loss == "training"
        return not self.mixes or (not self.mixed_touches_clean and of_training)


class Outputs(NamedTuple):
    """What the losses see of a forward pass: z_BxD, the z of all devices, logits_BxK (None without a classifier)."""

    z: jax.Array
    z_all: jax.Array
    logits: jax.Array | None


class Clean(NamedTuple):
    """A clean forward pass: outputs, its pullback to (params, probe), activations by stage, new batch statistics."""

    outputs: Outputs
    pullback: Callable
    activations: dict[str, jax.Array]
    batch_stats: Any


def apply_model(program, params, batch_stats, images_BxHxWxC, perturbations=None):
    """Train-mode forward of images in [0, 1]; returns (z, out, new batch statistics)."""
    variables = {"params": params, "batch_stats": batch_stats}
    if perturbations is not None:
        variables["perturbations"] = perturbations
    normalized = augment.normalize(images_BxHxWxC, mean=program.mean, std=program.std)
    (z, out), mutated = program.model.apply(variables, normalized, train=True, mutable=["batch_stats"])
    return z, out, mutated.get("batch_stats", {})


def _probe(program, params, batch_stats, images_BxHxWxC):
    """The point at which the map's gradient is asked for: the images, zeros at the stages, or nothing."""
    if not program.maps_gradients:
        return {}
    if program.attribution.uses_input:
        return {"images": images_BxHxWxC}
    shapes = jax.eval_shape(lambda x: apply_model(program, params, batch_stats, x)[1], images_BxHxWxC)
    return {stage: jnp.zeros(shapes[stage].shape, shapes[stage].dtype) for stage in program.attribution.stages}


def clean_forward(program: Program, params, batch_stats, images_BxHxWxC, axis_name: str | None) -> Clean:
    """Forward the clean views once, ready to be pulled back as often as needed."""
    probe = _probe(program, params, batch_stats, images_BxHxWxC)

    def forward(params, probe):
        images = probe.get("images", images_BxHxWxC)
        taps = {name: value for name, value in probe.items() if name != "images"}
        z, out, new_stats = apply_model(program, params, batch_stats, images, taps or None)
        outputs = Outputs(z, objectives.gather(z, axis_name), out.get("logits"))
        return outputs, ({name: out[name] for name in taps}, new_stats)

    outputs, pullback, (activations, new_stats) = jax.vjp(forward, params, probe, has_aux=True)
    return Clean(outputs, pullback, activations, new_stats)
