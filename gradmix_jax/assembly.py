"""The program of an experiment's train step, and its first state."""

import dataclasses

import jax

from gradmix_jax import models
from gradmix_jax.config import Experiment
from gradmix_jax.data import order
from gradmix_jax.training import cost, mapping
from gradmix_jax.training import optimizer as optimizer_lib
from gradmix_jax.training import state as state_lib
from gradmix_jax.training.program import Program


def make_program(
    experiment: Experiment, *, num_classes: int, num_images: int, mapped: mapping.Mapping | None = None
) -> Program:
    """The static part of the train step.

    Args:
      experiment: the specs.
      num_classes: number K of known classes.
      num_images: size of the training set.
      mapped: how the step runs on several devices; None: on one, with plain `jax.jit`.
    """
    module = models.create(experiment.model, num_classes=num_classes, axis_name=mapped and mapped.axis_name)
    batch_size = experiment.train.batch_size
    steps_per_epoch = order.steps_per_epoch(num_images, batch_size)
    schedule = optimizer_lib.learning_rate_schedule(experiment.optimizer, experiment.phases, steps_per_epoch)
    return Program(
        model=mapped.model(module) if mapped else module,
        transform=optimizer_lib.optimizer(
            experiment.optimizer,
            schedule,
            frozen=experiment.model.frozen,
            encoder_factor=experiment.model.loaded_learning_rate_factor,
        ),
        schedule=schedule,
        phases=experiment.phases,
        augment=experiment.augment,
        attribution=experiment.attribution,
        mix=experiment.mix,
        objective=experiment.objective,
        mean=experiment.normalization.mean,
        std=experiment.normalization.std,
        num_views=experiment.train.num_views,
        num_classes=num_classes,
        num_images=num_images,
        image_shape=experiment.image_shape,
        batch_size=batch_size,
        average_decay=experiment.optimizer.ema,
        patch_size=models.patch_size(experiment.model),
        class_token=models.ENCODERS[experiment.model.name].class_token,
        has_negatives=experiment.dataset.has_negatives,
        skips_nonfinite=experiment.train.skip_nonfinite > 0,
        micro_batch_size=experiment.train.micro_batch_size,
        devices_in_rows=len(mapped.devices) if mapped and mapped.axis_name is None else 1,
    )


def initial_state(experiment: Experiment, program: Program) -> state_lib.TrainState:
    """The state before the first step, a function of the config's seed; not yet that of `model.init_from`."""
    return state_lib.create(
        program.model,
        program.transform,
        experiment.seed,
        experiment.image_shape,
        averaged=bool(program.average_decay),
        carrying=program.carrying,
        objective=program.objective,
    )


def step_cost(experiment: Experiment, *, num_classes: int, num_images: int) -> cost.Cost:
    """Cost of one train step on one device, by XLA's count.

    Args:
      experiment: the specs.
      num_classes: K, known classes.
      num_images: size of the training set, at least a batch.
    """
    program = make_program(experiment, num_classes=num_classes, num_images=num_images)
    return cost.of(cost.compile_step(program, jax.eval_shape(lambda: initial_state(experiment, program))))


class LastProgram:
    """The program of the last run, kept for the next one: if only the seed differs, nothing is traced or compiled."""

    def __init__(self):
        self._of: tuple[Experiment, int, int] | None = None
        self._made: tuple[mapping.Mapping, Program] | None = None

    def of(self, experiment: Experiment, *, num_classes: int, num_images: int) -> tuple[mapping.Mapping, Program]:
        """How the step of an experiment runs on all devices, and its static part; see `make_program`."""
        of = dataclasses.replace(experiment, seed=0), num_classes, num_images
        if self._made is None or of != self._of:
            mapped = mapping.MAPPINGS[experiment.train.mapping]()
            program = make_program(experiment, num_classes=num_classes, num_images=num_images, mapped=mapped)
            self._of, self._made = of, (mapped, program)
        return self._made
