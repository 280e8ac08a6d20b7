"""Does the device wait for the host? Training through `main` against the bare step, and the host's work per step.

python benchmarks/loop.py [--width=16] [--batch=128] [--steps=40] [--repeats=3] [--images=60000] [--mapping=shard_map]

The data are random 32 x 32 images in IDX files, read like any dataset. "bare" dispatches the same mapped
and donated program and nothing else; "resident" and "stream" are `train.train` with logging, the progress bar
and one checkpoint in the middle. They take turns. The clock starts at the fourth step; streamed images are decoded in
the first epoch and kept, so "stream" is timed from the fourth step of the second epoch, and the first one separately.
The last lines replace the step by a program that computes nothing on the same state, leaving only the host's work.
"""

import argparse
import contextlib
import gzip
import io
import os
import statistics
import tempfile
import time
from typing import NamedTuple
from unittest import mock

import jax
import numpy as np
import resnet18

from gradmix_jax import assembly
from gradmix_jax import data as data_lib
from gradmix_jax import run as run_lib
from gradmix_jax.data import order
from gradmix_jax.training import cost, loop, mapping, metrics_writer, train
from gradmix_jax.training import step as step_lib

SIDE = 32
SKIPPED = 3  # steps before the clock starts: compilation and the first transfers


def write_images(folder: str, images: int) -> None:
    """MNIST-style files of random images of ten classes."""
    random = np.random.default_rng(0)
    for part, number in (("train", images), ("t10k", 1000)):
        header = lambda magic, *sizes: np.array([magic, *sizes], ">i4").tobytes()
        pixels = random.integers(0, 256, (number, SIDE, SIDE), dtype=np.uint8)
        labels = (np.arange(number) % 10).astype(np.uint8)
        files = {"images-idx3": header(2051, number, SIDE, SIDE) + pixels.tobytes()}
        files["labels-idx1"] = header(2049, number) + labels.tobytes()
        for name, content in files.items():
            with gzip.open(os.path.join(folder, f"{part}-{name}-ubyte.gz"), "wb", compresslevel=1) as file:
                file.write(content)


def settings(folder: str, arguments, storage: str):
    """(specs, config as a dict) of ResNet-18 and the recipe."""
    overrides = {
        "dataset.name": f"idx:{folder}",
        "dataset.benchmark": "random",
        "dataset.num_known": 6,
        "dataset.channels": 1,
        "dataset.storage": storage,
        "normalization.mean": (0.5,),
        "normalization.std": (0.25,),
        "train.checkpoint_every_epochs": 1,
        "train.mapping": arguments.mapping,
    }
    sizes = dict(width=arguments.width, batch=arguments.batch, dtype=arguments.dtype)
    plain = resnet18.config(arguments.recipe, resnet18.JOINT, **sizes, overrides=overrides)
    return run_lib.from_config(plain, num_devices=jax.device_count()), plain


def bare(specs, arguments) -> float:
    """Seconds per step for dispatching alone, with at most two steps in flight, as in the loop."""
    data = data_lib.open_set(specs.dataset)
    mapped = mapping.MAPPINGS[specs.train.mapping]()
    program = assembly.make_program(specs, num_classes=data.num_classes, num_images=len(data.train), mapped=mapped)
    compiled = mapped.compile_step(step_lib.make_train_step(program, axis_name=mapped.axis_name))
    inputs = next(train.resident_data(program, specs.train, data.train, mapped, specs.seed, 0))
    state, metrics = mapped.create(lambda: assembly.initial_state(specs, program)), []
    for index in range(SKIPPED + arguments.steps):
        if index == SKIPPED:
            jax.block_until_ready(state)
            started = time.perf_counter()
        state, last = compiled(state, *inputs)
        metrics.append(last)
        if index >= 2:
            jax.block_until_ready(metrics[index - 2])
    jax.block_until_ready(state)
    return (time.perf_counter() - started) / arguments.steps


class Trained(NamedTuple):
    """Seconds per step of `train.train`, the longest gap between two steps in excess of the median, and seconds per
    step of the first epoch where the images were decoded in it."""

    seconds: float
    stall: float
    first_epoch: float | None


def through_main(specs, plain, arguments, steps_per_epoch: int) -> Trained:
    """Train for the timed steps; streamed images are decoded in an epoch before them."""
    times: list[float] = []
    decoding = steps_per_epoch if specs.dataset.storage == "stream" else 0
    skipped = decoding + SKIPPED
    run = loop.run

    def few_steps(state, **options):
        shortened = {"total_steps": skipped + arguments.steps, "save_every": skipped + arguments.steps // 2}
        return run(state, **options | shortened)

    class Writer(metrics_writer.MetricsWriter):
        def advance(self):
            super().advance()
            times.append(time.perf_counter())

    with (
        tempfile.TemporaryDirectory() as workdir,
        mock.patch.object(loop, "run", few_steps),
        mock.patch.object(train, "MetricsWriter", Writer),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        run_lib.train(specs, plain, os.path.join(workdir, "run"))
    gaps = np.diff(times)
    timed = gaps[skipped - 1 :]
    first = float(np.mean(gaps[SKIPPED - 1 : decoding - 1])) if decoding else None
    return Trained(float(np.mean(timed)), float(np.max(timed) - np.median(timed)), first)


def host_work(specs, arguments, steps: int = 400) -> dict[str, float]:
    """Microseconds of host work per step: the dispatch alone, and the whole loop with fetching, logging and the bar."""
    data = data_lib.open_set(specs.dataset)
    sizes = dict(num_classes=data.num_classes, num_images=len(data.train))
    program = assembly.make_program(specs, **sizes)
    names = jax.eval_shape(
        step_lib.make_train_step(program, axis_name=None),
        assembly.initial_state(specs, program),
        *cost.resident_shapes(program),
    )[1]

    def nothing(state, *inputs):
        return state.replace(step=state.step + 1), {name: 1.0 * state.step for name in names}

    mapped = mapping.MAPPINGS[specs.train.mapping]()
    compiled = mapped.compile_step(nothing)
    inputs = next(train.resident_data(program, specs.train, data.train, mapped, specs.seed, 0))
    state, _ = compiled(mapped.create(lambda: assembly.initial_state(specs, program)), *inputs)
    dispatches = []
    for _ in range(steps):
        started = time.perf_counter()
        state, metrics = compiled(state, *inputs)
        dispatches.append(time.perf_counter() - started)
        jax.block_until_ready(metrics)
    finished: list[float] = []
    with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stderr(io.StringIO()):
        writer = metrics_writer.MetricsWriter(workdir, start_step=0, total_steps=steps, images_per_step=arguments.batch)

        def on_step():
            writer.advance()
            finished.append(time.perf_counter())

        loop.run(
            state,
            step=lambda state: compiled(state, *inputs),
            fetch=mapped.to_host,
            start_step=0,
            total_steps=steps,
            log_every=specs.train.log_every_steps,
            save_every=steps,
            on_metrics=writer.write,
            on_step=on_step,
            snapshot=lambda state: None,
            save=lambda state: None,
        )
        writer.close()
    return {
        "dispatch, median": 1e6 * statistics.median(dispatches),
        "loop, median": 1e6 * float(np.median(np.diff(finished))),
        "loop, mean (with logging every 20 steps)": 1e6 * float(np.mean(np.diff(finished))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="layer")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--mapping", default="pmap", choices=mapping.MAPPINGS)
    parser.add_argument("--steps", type=int, default=40, help="timed steps of each run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=60_000, help="of ten classes, six of them known")
    arguments = parser.parse_args()
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores"
    print(
        f"ResNet-18, width {arguments.width}, 32x32x1, {arguments.recipe}, batch {arguments.batch}, {arguments.dtype}"
    )
    print(
        f"jax {jax.__version__}, {device}; medians of {arguments.repeats} runs of {arguments.steps} steps (extremes)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        write_images(folder, arguments.images)
        # Compiled once, not in every turn.
        jax.config.update("jax_compilation_cache_dir", os.path.join(folder, "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        specs, _ = settings(folder, arguments, "resident")
        steps_per_epoch = order.steps_per_epoch(len(data_lib.open_set(specs.dataset).train), arguments.batch)
        if steps_per_epoch <= SKIPPED + 1:
            parser.error(f"--images must give more than {SKIPPED + 1} steps per epoch, got {steps_per_epoch}.")
        times: dict[str, list[float]] = {"bare": [], "resident": [], "stream, first epoch": [], "stream": []}
        stalls: dict[str, list[float]] = {"resident": [], "stream": []}
        for _ in range(arguments.repeats):
            times["bare"].append(bare(specs, arguments))
            for storage in stalls:
                trained = through_main(*settings(folder, arguments, storage), arguments, steps_per_epoch)
                times[storage].append(trained.seconds)
                stalls[storage].append(trained.stall)
                if trained.first_epoch is not None:
                    times["stream, first epoch"].append(trained.first_epoch)
        print(
            "| loop | ms a step | images/s | of the bare step | longest stall (checkpoint), ms |\n|---|---|---|---|---|"
        )
        for name, seconds in times.items():
            share = [base / own for base, own in zip(times["bare"], seconds)]
            spread = f"{100 * statistics.median(share):.1f} % ({100 * min(share):.1f} to {100 * max(share):.1f})"
            stall = f"{1e3 * statistics.median(stalls[name]):.1f}" if name in stalls else "–"
            middle = statistics.median(seconds)
            print(f"| {name} | {1e3 * middle:.2f} | {arguments.batch / middle:.0f} | {spread} | {stall} |")
        print()
        for name, microseconds in host_work(specs, arguments).items():
            print(f"host work a step, {name}: {microseconds:.0f} us")


if __name__ == "__main__":
    main()
