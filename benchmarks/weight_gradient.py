"""How long does the weight gradient of a convolution take on a CPU, for the whole batch and as a sum over parts of it?

taskset -c 0 python benchmarks/weight_gradient.py                  the table of benchmarks/README.md, in milliseconds
taskset -c 0 python benchmarks/weight_gradient.py --repeats=1 --most_gflop=1

Each entry is the fastest of some repeats. On other devices every column is the whole batch.
"""

import argparse
import time
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from gradmix_jax.models import convolution

PARTS = (64, 32, 16, 8)  # images


class Shape(NamedTuple):
    """A 3x3 convolution."""

    images: int
    size: int
    inputs: int
    outputs: int
    stride: int = 1

    @property
    def gflop(self) -> float:
        """10^9 FLOPs of the weight gradient."""
        return 2e-9 * 9 * self.inputs * self.outputs * self.images * (self.size // self.stride) ** 2

    def __str__(self) -> str:
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        return f"{self.images}, {self.size}x{self.size}, {self.inputs} to {self.outputs}{stride}"


SHAPES = (
    Shape(256, 32, 3, 64),
    Shape(256, 32, 16, 16),
    Shape(128, 32, 64, 64),
    Shape(128, 32, 64, 128, stride=2),
    Shape(128, 16, 128, 128),
    Shape(128, 8, 256, 256),
    Shape(128, 4, 512, 512),
    Shape(64, 56, 64, 64),
    Shape(64, 7, 512, 512),
)


def milliseconds(shape: Shape, images_of_a_part: int, repeats: int) -> float:
    """The fastest of some repeats; `images_of_a_part` of the whole batch: no parts."""
    random = np.random.default_rng(0)
    draw = lambda *sizes: jnp.asarray(random.normal(size=sizes), jnp.float32)
    images, kernel = draw(shape.images, shape.size, shape.size, shape.inputs), draw(3, 3, shape.inputs, shape.outputs)
    options = dict(strides=(shape.stride, shape.stride), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    small = dict(IMAGES=images_of_a_part, MOST_PARTS=shape.images, LEAST_FLOPS=0)
    with mock.patch.multiple(convolution, **small):
        _, pullback = jax.vjp(lambda kernel: convolution.convolve(images, kernel, **options), kernel)
        cotangent = draw(shape.images, shape.size // shape.stride, shape.size // shape.stride, shape.outputs)
        compiled = jax.jit(pullback).lower(cotangent).compile()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(compiled(cotangent))
        times.append(time.perf_counter() - started)
    return 1e3 * min(times)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--most_gflop", type=float, default=float("inf"), help="leave out larger gradients")
    arguments = parser.parse_args(words)
    print("| images, positions, channels | GFLOP | whole | " + " | ".join(map(str, PARTS)) + " images a part |")
    print("|---" * (3 + len(PARTS)) + "|")
    for shape in SHAPES:
        if shape.gflop <= arguments.most_gflop:
            times = [milliseconds(shape, size, arguments.repeats) for size in (shape.images, *PARTS)]
            print(f"| {shape} | {shape.gflop:.2f} | " + " | ".join(f"{each:.0f}" for each in times) + " |", flush=True)
    print(f"\nmilliseconds, {jax.devices()[0].device_kind}, jax {jax.__version__}")


if __name__ == "__main__":
    main()
