"""Cost of one train step by XLA's own count, for regression tests and tables, where wall times are too noisy."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradmix_jax.training import program_text
from gradmix_jax.training import step as step_lib
from gradmix_jax.training.program import Program


class Cost(NamedTuple):
    """Cost of a step on one device: FLOPs, bytes read and written by its kernels, bytes of temporary memory.

    FLOPs count the body of a loop as often as it runs, if the compiler knows how often; bytes count it once.
    """

    flops: float
    bytes: float
    temporary_bytes: int


def compile_step(program: Program, state: Any) -> jax.stages.Compiled:
    """The train step of a program for one device, compiled but not run.

    Args:
      program: made without an axis name.
      state: a TrainState, or its shapes.
    """
    step = jax.jit(step_lib.make_train_step(program, axis_name=None), donate_argnums=0)
    return step.lower(state, *resident_shapes(program)).compile()


def resident_shapes(program: Program) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes of a step's inputs besides its state: pixels of all images, their labels, the order of the epoch.

    Images and labels fill whole batches, and the order names whole batches, as in `train.resident_data`.
    """
    size, numbers = program.padded_images, lambda count: jax.ShapeDtypeStruct((count,), jnp.int32)
    images = jax.ShapeDtypeStruct((size, math.prod(program.image_shape)), jnp.uint8)
    return images, numbers(size), numbers(program.used_images)


def of(compiled: jax.stages.Compiled) -> Cost:
    """The cost by XLA's analyses, counting every iteration of a loop; on a GPU, without calls of cuDNN and cuBLAS."""
    analysis, text = compiled.cost_analysis(), compiled.as_text()
    # XLA counts one iteration of each loop; the others are counted here, by the same rules.
    others = program_text.flops(text) - program_text.flops(text, rounds=False)
    return Cost(analysis["flops"] + others, analysis["bytes accessed"], compiled.memory_analysis().temp_size_in_bytes)
