"""Everything static about a train step, and the context that its parts hand on."""

import dataclasses
from typing import Any

import jax
import optax

from gradmix_jax import augment, objectives
from gradmix_jax.data import order
from gradmix_jax.method import attribution, mix
from gradmix_jax.training.phases import Phase


@dataclasses.dataclass(frozen=True)
class Program:
    """Everything static about a step. `batch_size` is global, `num_images` the size of the training set; `patch_size`
    is that of a transformer, 0 for other models, `class_token` says whether it has one, `has_negatives` whether some
    images have the label -1, `skips_nonfinite` whether a step whose loss or gradient is not finite changes nothing.
    `micro_batch_size` counts the images of a device in one pass, 0: all of them; `devices_in_rows` the devices whose
    images the step sees as one batch: all of them where it has no axis name."""

    model: Any
    transform: optax.GradientTransformation
    schedule: optax.Schedule
    phases: tuple[Phase, ...]
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
    patch_size: int = 0
    class_token: bool = False
    has_negatives: bool = False
    skips_nonfinite: bool = False
    micro_batch_size: int = 0
    devices_in_rows: int = 1

    @property
    def objective_names(self) -> tuple[str, ...]:
        """Those that any phase gives a weight: one that never counts is left out of the program."""
        return tuple(name for name in objectives.OBJECTIVES if any(name in phase.weights for phase in self.phases))

    @property
    def mixed_objectives(self) -> tuple[str, ...]:
        """Those of them whose loss mixed images add to."""
        return tuple(name for name in self.objective_names if objectives.OBJECTIVES[name].mixes(self.objective))

    @property
    def carrying(self) -> tuple[str, ...]:
        """Those of them that carry a state from step to step."""
        return tuple(name for name in self.objective_names if objectives.OBJECTIVES[name].state)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches. Raises ValueError where there is not even one."""
        return order.steps_per_epoch(self.num_images, self.batch_size)

    def temperature_factor(self, step: jax.Array) -> jax.Array | float:
        """What `objective.temperature_schedule` multiplies temperatures with at a step; it changes by epoch."""
        epochs = sum(phase.epochs for phase in self.phases)
        return objectives.temperature_factor(self.objective, step // self.steps_per_epoch, epochs)

    @property
    def mixes(self) -> bool:
        return self.mix.mixes

    @property
    def maps_gradients(self) -> bool:
        """Whether the mix asks for gradients of the clean pass: it has a map that is made of them."""
        return self.mix.uses_map and self.attribution.uses_gradients

    def map_needs(self, what: str) -> bool:
        """Whether the mix has a map that needs "activations", "attention" or "gradient": see `attribution.Map`."""
        return self.mix.uses_map and self.attribution.needs(what)

    @property
    def mixed_touches_clean(self) -> bool:
        """Whether the mixed loss has a gradient with respect to the clean outputs."""
        entries = (objectives.OBJECTIVES[name] for name in self.mixed_objectives)
        return self.mixes and any(entry.touches_clean(self.objective) for entry in entries)

    @property
    def shares_backward(self) -> bool:
        """Whether one backward pass serves the map, if any, and the training, before the mixed pass begins."""
        of_training = not self.maps_gradients or self.attribution.loss == attribution.TRAINING
        return not self.mixes or (not self.mixed_touches_clean and of_training)


@dataclasses.dataclass(frozen=True)
class Context:
    """What the parts of a step hand on: the program, and this step's arrays on this device.

    Attributes:
      program: the static part of the step.
      axis_name: the mapped axis, if any.
      keys: of this step, {"map": key, "mix": key, "objective": key}.
      params, batch_stats: of the model; the running statistics are not used in train mode, but updated.
      labels_b: int32, classes of this device's images.
      weights: {objective: float32 scalar} of this step's phase.
      carried: {objective: what its losses see of the state that it carries}.
      fresh: whether this step makes maps of gradients and not random ones (traced); None: every step does.
      temperature_factor: of the temperatures of this step's losses.
    """

    program: Program
    axis_name: str | None
    keys: dict[str, jax.Array]
    params: Any
    batch_stats: Any
    labels_b: jax.Array
    weights: dict[str, jax.Array]
    carried: dict[str, Any] = dataclasses.field(default_factory=dict)
    fresh: jax.Array | None = None
    temperature_factor: jax.Array | float = 1.0
