"""How fast could the step be? Images/s of it and of variants against the device's ceilings for products and copies.

python benchmarks/roofline.py [--batches=256,1024] [--width=64] [--dtype=float32] [--recipe=layer]
python benchmarks/roofline.py --image_size=224 --batches=64 --repeats=0      memory with and without remat, not timed

The ceilings are measured: a matrix product, a convolution like those of the network, and a copy, each the best of
several by XLA. FLOPs and bytes of the unchanged step are XLA's count for the compiled program; the larger of FLOPs /
product and bytes / copy is a lower bound of the time. Every variant, whatever it computes or moves, is compared with
this bound. Variants take turns. Images above 32 pixels get the ImageNet stem. To try XLA flags, run the script again
with other XLA_FLAGS, which are printed.
"""

import argparse
import contextlib
import os
import re
import statistics
import time
from typing import NamedTuple
from unittest import mock

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import resnet18
import turns
from jax import lax

from gradmix_jax import assembly, augment
from gradmix_jax.training import cost
from gradmix_jax.training import state as state_lib
from gradmix_jax.training import step as step_lib

NUM_IMAGES = 4096


class Variant(NamedTuple):
    """Config keys, steps per dispatch, whether the state is donated, whether blocks are recomputed, image channels."""

    keys: dict = {}
    steps: int = 1
    donated: bool = True
    remat: bool = False
    channels: int = 3


VARIANTS = {
    "as it is": Variant(),
    "state not donated": Variant(donated=False),
    "4 steps a dispatch (lax.scan)": Variant(steps=4),
    "images padded to 8 channels": Variant(channels=8),
    "blocks computed again (remat)": Variant(remat=True),
    "no crop, no flip": Variant({"augment.crop_scale": (1.0, 1.0), "augment.flip_prob": 0.0}),
}


def best_seconds(function, *arguments, repeats: int = 5) -> float:
    """Shortest wall time of a compiled function, after one call to warm up.

    An accelerator gets many calls at once, since starting one and waiting for it can take longer than the call itself.
    """
    calls = 1 if jax.default_backend() == "cpu" else 50
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(calls):
            result = function(*arguments)
        jax.block_until_ready(result)
        times.append((time.perf_counter() - started) / calls)
    return min(times)


def stage_size(image_size: int) -> int:
    """Height and width of the activations of stage 1."""
    return image_size // 4 if image_size > 32 else image_size


def ceilings(dtype, batch: int, width: int, image_size: int) -> tuple[float, float, float]:
    """(FLOP/s of a product, FLOP/s of a 3x3 convolution of stage 1, bytes/s read and written by a copy)."""
    on_cpu = jax.default_backend() == "cpu"
    key = jax.random.key(0)
    size = 2048 if on_cpu else 8192
    square = jax.random.normal(key, (size, size), dtype)
    product = 2 * size**3 / best_seconds(jax.jit(jnp.matmul), square, square)
    side = stage_size(image_size)
    images = jax.random.normal(key, (batch, side, side, width), dtype)
    kernel = jax.random.normal(key, (3, 3, width, width), dtype)
    convolve = jax.jit(
        lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    )
    convolution = 2 * batch * side**2 * 9 * width**2 / best_seconds(convolve, images, kernel)
    long = jnp.zeros((1 << (26 if on_cpu else 29),), jnp.float32)
    copy = 2 * long.nbytes / best_seconds(jax.jit(lambda x: x + 1.0), long)
    return product, convolution, copy


def build(arguments, batch: int, variant: Variant):
    """(executable, its first state) of one variant on one device."""
    size = arguments.image_size
    keys = resnet18.size_keys(size) | variant.keys
    settings = dict(width=arguments.width, batch=batch, dtype=arguments.dtype, overrides=keys)
    specs = resnet18.settings(arguments.recipe, resnet18.JOINT, **settings)
    network = resnet18.recomputed() if variant.remat else contextlib.nullcontext()
    normalize = augment.normalize

    def padded(images_BxHxWxC, **options):
        images_BxHxWxC = normalize(images_BxHxWxC, **options)
        return jnp.pad(images_BxHxWxC, ((0, 0), (0, 0), (0, 0), (0, variant.channels - images_BxHxWxC.shape[-1])))

    with network, mock.patch.object(augment, "normalize", padded):
        program = assembly.make_program(specs, num_classes=resnet18.NUM_CLASSES, num_images=NUM_IMAGES)
        step = step_lib.make_train_step(program, axis_name=None)

        def several(state, *data):
            return lax.scan(lambda state, _: step(state, *data), state, length=variant.steps)

        state = state_lib.create(program.model, program.transform, 0, (size, size, variant.channels))
        compiled = jax.jit(several if variant.steps > 1 else step, donate_argnums=0 if variant.donated else ())
        return compiled.lower(state, *cost.resident_shapes(program)).compile(), state


def unfused(executable) -> int:
    """Element-wise operations that XLA left unfused in the main computation (batch norm and ReLU, for example)."""
    entry = executable.as_text().split("\nENTRY")[-1]
    return len(re.findall(r"= \w+\[[\d,]+\]\S* (?:add|subtract|multiply|divide|maximum|rsqrt|select)\(", entry))


def measure(arguments, batch: int) -> None:
    product, convolution, copy = ceilings(arguments.dtype, batch, arguments.width, arguments.image_size)
    print(
        f"\nbatch {batch}: product {product / 1e9:.0f} GFLOP/s, convolution {convolution / 1e9:.0f} GFLOP/s, ", end=""
    )
    print(f"copy {copy / 1e9:.1f} GB/s")
    built = {}
    for name, variant in VARIANTS.items():
        if arguments.only not in name or (arguments.skip and arguments.skip in name):
            continue
        built[name] = build(arguments, batch, variant)
    # The bound is that of the first variant, whose work all of them do.
    flops, moved, _ = hlo.cost_of(next(iter(built.values()))[0])
    least = max(flops / product, moved / copy)
    bound = "product" if flops / product > moved / copy else "copy"
    print(f"bound of {next(iter(built))!r}: {1e3 * least:.2f} ms, by the {bound}\n")
    data = jax.device_put(resnet18.random_data(NUM_IMAGES if arguments.repeats else 1, arguments.image_size))
    runs = {name: turns.of_executable(executable, state, data) for name, (executable, state) in built.items()}
    warm_up = min(1, arguments.repeats)
    times = turns.timed(runs, repeats=arguments.repeats, steps=arguments.steps, warm_up=warm_up)
    times = {name: [seconds / VARIANTS[name].steps for seconds in own] for name, own in times.items()}
    print("| variant | GFLOP | GB | temporary MB | unfused | ms a step (quartiles) | images/s | of the bound |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (executable, _) in built.items():
        flops, moved, temporary = hlo.cost_of(executable)
        flops /= VARIANTS[name].steps  # FLOPs count all iterations of a scan, bytes only one
        middle, spread = 0.0, "–"
        if times[name]:
            middle = statistics.median(times[name])
            low, high = np.quantile(times[name], [0.25, 0.75])
            spread = f"{1e3 * middle:.1f} ({1e3 * low:.1f} to {1e3 * high:.1f})"
        speed = f"{batch / middle:.0f} | {100 * least / middle:.0f} %" if middle else "– | –"
        row = f"{flops / 1e9:.1f} | {moved / 1e9:.2f} | {temporary / 1e6:.0f} | {unfused(executable)}"
        print(f"| {name} | {row} | {spread} | {speed} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="layer")
    parser.add_argument("--batches", default="256,1024")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=10, help="timed turns of each; 0 compiles only")
    parser.add_argument("--steps", type=int, default=1, help="dispatches of a turn; some more on a GPU or TPU")
    parser.add_argument("--only", default="", help="variants whose name contains this")
    parser.add_argument("--skip", default="", help="not those (on a CPU, lax.scan takes minutes)")
    arguments = parser.parse_args()
    device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores"
    size = f"width {arguments.width}, {arguments.image_size} pixels"
    print(f"ResNet-18, {size}, recipe {arguments.recipe}, {arguments.dtype}; {device}")
    print(f"jax {jax.__version__}, XLA_FLAGS={os.environ.get('XLA_FLAGS', '')!r}; median of {arguments.repeats}")
    for batch in arguments.batches.split(","):
        measure(arguments, int(batch))


if __name__ == "__main__":
    main()
