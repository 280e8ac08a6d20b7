"""Shared by the benchmarks of the step: ResNet-18 on color images, two views, any recipe."""

import functools
from collections.abc import Mapping
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import numpy as np

from gradmix_jax import assembly, models
from gradmix_jax import config as config_lib
from gradmix_jax import run as run_lib
from gradmix_jax.config import phase
from gradmix_jax.models.resnet import BasicBlock, ResNet
from gradmix_jax.training import cost, mapping
from gradmix_jax.training import step as step_lib

NUM_CLASSES = 6
SSL = phase("ssl", epochs=1, ssl=1.0)
JOINT = phase("joint", epochs=1, supcon=1.0, ssl=1.2)
CROSS_ENTROPY = phase("cross-entropy", epochs=1, cross_entropy=1.0)


def config(
    recipe: str,
    phase_of: Any,
    *,
    width: int,
    batch: int,
    dtype: str = "float32",
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The plain config of one phase (`SSL` or `JOINT`) with a global batch; `overrides` are {"mix.fill": ...}."""
    c = config_lib.default_config()
    c.dataset.image_size, c.dataset.channels = 32, 3
    c.normalization.mean, c.normalization.std = (0.5,) * 3, (0.25,) * 3
    # Costs the same with and without a map, and is slow to compile on a CPU.
    c.augment.jitter_prob = c.augment.gray_prob = 0.0
    c.model.name, c.model.width, c.model.dtype = "resnet18", width, dtype
    c.train.batch_size = batch
    c.phases = (phase_of,)
    config_lib.apply_recipe(c, recipe)
    for name, value in (overrides or {}).items():
        section, key = name.split(".")
        c[section][key] = value
    return config_lib.to_plain(c)


def size_keys(image_size: int) -> dict[str, Any]:
    """Overrides for an image size: above 32 pixels, the ImageNet stem."""
    return {"dataset.image_size": image_size, "model.stem": "imagenet" if image_size > 32 else "cifar"}


def recomputed():
    """Context in which ResNet-18 recomputes its blocks in the backward pass (remat)."""
    build = functools.partial(ResNet, block=nn.remat(BasicBlock), blocks=(2, 2, 2, 2))
    return mock.patch.dict(models.ENCODERS, resnet18=models.ENCODERS["resnet18"]._replace(build=build))


def settings(recipe: str, phase_of: Any, *, devices: int = 1, **options: Any) -> run_lib.Experiment:
    """The experiment of `config`, with its options."""
    return run_lib.from_config(config(recipe, phase_of, **options), num_devices=devices)


def random_data(num_images: int, image_size: int = 32) -> tuple[np.ndarray, ...]:
    """(images, labels, order) of a training set of noise, as input of a step."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (num_images, image_size**2 * 3), dtype=np.uint8)
    labels = random.integers(0, NUM_CLASSES, num_images, dtype=np.int32)
    return images, labels, random.permutation(num_images).astype(np.int32)


def compile_mapped(
    recipe: str,
    phase_of: Any,
    devices: list[jax.Device],
    *,
    num_images: int,
    mapping_name: str = "pmap",
    **options: Any,
):
    """(executable, program, shapes of the state) of the mapped step of `train` for `devices`, present or not.

    Args:
      recipe: as in `config`.
      phase_of: `SSL` or `JOINT`.
      devices: what to compile for.
      num_images: size of the training set.
      mapping_name: a key of `mapping.MAPPINGS`.
      options: of `config`.
    """
    specs = settings(recipe, phase_of, devices=len(devices), **options)
    mapped = mapping.MAPPINGS[mapping_name](devices)
    program = assembly.make_program(specs, num_classes=NUM_CLASSES, num_images=num_images, mapped=mapped)
    state = jax.eval_shape(lambda: assembly.initial_state(specs, program))
    step = mapped.compile_step(step_lib.make_train_step(program, axis_name=mapped.axis_name))
    arguments = mapped.abstract(state, cost.resident_shapes(program))
    return step.lower(*arguments).compile(), program, state
