"""A run's data and program on one device, for showing what its steps do."""

import dataclasses
from typing import Any

import numpy as np

from gradmix_jax import assembly
from gradmix_jax import data as data_lib
from gradmix_jax.config import Experiment, from_config
from gradmix_jax.data import order
from gradmix_jax.training.checkpoint import Checkpoints
from gradmix_jax.training.identity import identity
from gradmix_jax.training.program import Program


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The inputs for explaining the steps of a run: its workdir, specs, data, and program for one device."""

    workdir: str
    experiment: Experiment
    data: data_lib.OpenSet
    program: Program

    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints, to be closed; raises ValueError if there are none."""
        names = self.data.class_names, self.data.negative_names
        of = identity(self.experiment.dataset, self.experiment.seed, *names)
        return Checkpoints(self.workdir, of=of, read_only=True)

    def batch(self, seed: int, step: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """(images uint8 [b, H, W, C], labels int32 [b], names of their classes) that the run trains on at a step."""
        sizes = dict(size=self.program.num_images, batch_size=self.program.batch_size)
        chosen = order.host_batch_indices(seed, step, **sizes)
        source = self.data.for_training.take(chosen)
        names = [f"negative {name}" if label < 0 else str(name) for name, label in zip(source.classes, source.labels)]
        return np.stack([source[index] for index in range(len(source))]), source.labels, names


def prepare(config: dict[str, Any], workdir: str) -> Prepared:
    """Load the data of a run and make its program.

    Args:
      config: nested dict of all keys, as its config.json.
      workdir: directory of the run.

    Raises:
      ValueError: a run that does not mix, or data that is not there.
    """
    experiment = from_config(config, num_devices=1)
    if not experiment.mix.mixes:
        raise ValueError(f"the run in {workdir} does not mix (mix.method {experiment.mix.method!r}): nothing to show.")
    data = data_lib.open_set(experiment.dataset)
    program = assembly.make_program(experiment, num_classes=data.num_classes, num_images=len(data.for_training))
    return Prepared(workdir, experiment, data, program)
