"""Everything static about a train step, and the context that is passed between its parts."""

import dataclasses
from typing import Any

import jax
import optax

from gradmix_jax import augment, objectives
from gradmix_jax.data import order
from gradmix_jax.method import attribution, mix
from gradmix_jax.training.phases import Phase


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """Everything static about a step; equal only to itself, because its schedule and transform are functions.

    `batch_size` is global, and `num_images` is the size of the training set. `patch_size` is that of a transformer, 0
    for other models; `class_token` says whether the model has one, `has_negatives` whether some images have the label
    -1, and `skips_nonfinite` whether a step with a nonfinite loss or gradient changes nothing. `micro_batch_size` is
    the number of images per device and pass, 0 for all of them. `devices_in_rows` is the number of devices whose images
    the step sees as one batch: all devices if the step has no axis name, otherwise 1.
    """

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
        """The objectives with a weight in any phase; all others are left out of the program."""
        return tuple(name for name in objectives.OBJECTIVES if any(name in phase.weights for phase in self.phases))

    @property
    def mixed_objectives(self) -> tuple[str, ...]:
        """Those of them that have a loss for mixed images."""
        return tuple(name for name in self.objective_names if objectives.OBJECTIVES[name].mixes(self.objective))

    @property
    def carrying(self) -> tuple[str, ...]:
        """Those of them that carry state from step to step."""
        return tuple(name for name in self.objective_names if objectives.OBJECTIVES[name].state)

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole batches in an epoch. Raises ValueError if there is none."""
        return order.steps_per_epoch(self.num_images, self.batch_size)

    @property
    def used_images(self) -> int:
        """Images in the whole batches of an epoch: the length of the order that a step picks its batch by."""
        return self.steps_per_epoch * self.batch_size

    @property
    def padded_images(self) -> int:
        """Resident images with those that fill up the last batch: class splits of similar size share this shape."""
        return -(-self.num_images // self.batch_size) * self.batch_size

    def temperature_factor(self, step: jax.Array) -> jax.Array | float:
        """The factor of `objective.temperature_schedule` for temperatures at a step; it changes by epoch."""
        epochs = sum(phase.epochs for phase in self.phases)
        return objectives.temperature_factor(self.objective, step // self.steps_per_epoch, epochs)

    @property
    def mixes(self) -> bool:
        return self.mix.mixes

    @property
    def maps_gradients(self) -> bool:
        """Whether the mix has a map that is made of gradients of the clean pass."""
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
        """Whether one backward pass, before the mixed pass begins, serves both training and the map, if any."""
        of_training = not self.maps_gradients or self.attribution.loss == attribution.TRAINING
        return not self.mixes or (not self.mixed_touches_clean and of_training)


@dataclasses.dataclass(frozen=True)
class Context:
    """The context that is passed between the parts of a step: the program, and this step's arrays on this device.

    Attributes:
      program: the static part of the step.
      axis_name: the mapped axis, if any.
      keys: keys of this step, {"map": key, "mix": key, "objective": key}.
      params, batch_stats: variables of the model; in train mode, the running statistics are updated but not used.
      labels_b: int32, classes of this device's images.
      weights: {objective: float32 scalar} of this step's phase.
      carried: {objective: the part of its carried state that its losses use}.
      fresh: whether this step's maps come from gradients and are not random (traced); None: those of every step do.
      temperature_factor: factor of the temperatures of this step's losses.
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
