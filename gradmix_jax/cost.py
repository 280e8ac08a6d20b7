"""What one train step costs by XLA's own count: for regressions and tables, where wall times are too noisy."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradmix_jax import hlo, train, train_step
from gradmix_jax.experiment import Experiment


class Cost(NamedTuple):
    """Of a step on one device: FLOPs, bytes read and written by its kernels, bytes of temporary memory.

    The body of a loop is counted once.
    """

    flops: float
    bytes: float
    temporary_bytes: int


def compile_step(specs: Experiment, *, num_classes: int, num_images: int) -> jax.stages.Compiled:
    """The train step of an experiment on one device, compiled and not run.

    Args:
      specs: of the experiment.
      num_classes: known classes.
      num_images: size of the training set, which is on the device; at least a batch.
    """
    program = train.make_program(specs, num_classes=num_classes, num_images=num_images, axis_name=None)
    step = jax.jit(train_step.make_train_step(program, axis_name=None), donate_argnums=0)
    state = jax.eval_shape(lambda: train.initial_state(specs, program))
    return step.lower(state, *resident_shapes(num_images, specs.image_shape)).compile()


def resident_shapes(num_images: int, image_shape: tuple[int, ...]) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Of what a step is given with its state: the pixels of all images, their labels, the order of the epoch."""
    numbers = jax.ShapeDtypeStruct((num_images,), jnp.int32)
    return jax.ShapeDtypeStruct((num_images, math.prod(image_shape)), jnp.uint8), numbers, numbers


def of(compiled: jax.stages.Compiled) -> Cost:
    """By XLA's analyses, and by our own count of what they leave out on a GPU: the calls of cuDNN and cuBLAS."""
    analysis, text = compiled.cost_analysis(), compiled.as_text()
    flops, moved = analysis["flops"], analysis["bytes accessed"]
    if hlo.calls_libraries(text):
        kernels = hlo.kernels(text)
        flops += sum(kernel.flops for kernel in kernels)
        moved = sum(kernel.bytes for kernel in kernels)
    return Cost(flops, moved, compiled.memory_analysis().temp_size_in_bytes)
