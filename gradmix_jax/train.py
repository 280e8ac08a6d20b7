"""Training a run in its workdir, or going on with it."""

import contextlib
import functools
import glob
import itertools
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import jax
import numpy as np
from clu import parameter_overview

from gradmix_jax import config as config_lib
from gradmix_jax import datasets, files, loop, models, parallel, state, train_step
from gradmix_jax.checkpoint import Checkpoints
from gradmix_jax.config import flatten
from gradmix_jax.datasets import order
from gradmix_jax.experiment import Experiment
from gradmix_jax.metrics_writer import MetricsWriter
from gradmix_jax.program import Program

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")
# Keys that do not change what is computed: a run may be resumed with other values of them, with the data elsewhere,
# say. Where images could be read, it does not matter what would have become of bad ones.
FREE_SECTIONS = ("evaluate", "name")
FREE_KEYS = (
    *("log_every_steps", "checkpoint_every_epochs", "keep_checkpoints", "workers", "cache_gigabytes"),
    *("data_dir", "download", "bad_images"),
)


def make_program(
    experiment: Experiment, *, num_classes: int, num_images: int, axis_name: str | None = parallel.AXIS
) -> Program:
    """The static part of the train step for a training set of `num_images` images."""
    batch_size = experiment.train.batch_size
    steps_per_epoch = order.steps_per_epoch(num_images, batch_size)
    schedule = state.learning_rate_schedule(experiment.optimizer, experiment.phases, steps_per_epoch)
    return Program(
        model=models.create(experiment.model, num_classes=num_classes, axis_name=axis_name),
        transform=state.optimizer(experiment.optimizer, schedule),
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
    )


def initial_state(experiment: Experiment, program: Program) -> state.TrainState:
    """The state before the first step, a function of the config's seed."""
    return state.create(
        program.model,
        program.transform,
        experiment.seed,
        experiment.image_shape,
        averaged=bool(program.average_decay),
        queue_size=program.objective.queue_size if program.uses_momentum else 0,
    )


def train(experiment: Experiment, config: dict[str, Any], workdir: str) -> tuple[int, int]:
    """Train until the last phase is over, from the newest checkpoint in `workdir` if there is one.

    Args:
      experiment: the specs.
      config: what they were made from, recorded in the workdir.
      workdir: directory of the run; made if need be.

    Returns:
      The number of steps done and planned; done is smaller after SIGTERM, which saves a checkpoint first.

    Raises:
      KeyboardInterrupt: after Ctrl-C, with a checkpoint saved; a second one interrupts at once.
      ValueError: the workdir holds a run of another config, the data cannot be used, or the loss is not finite.
    """
    check_same_run(config, workdir)
    data = datasets.open_set(experiment.dataset)
    program = make_program(experiment, num_classes=data.num_classes, num_images=len(data.train))
    checkpoints = Checkpoints(workdir, keep=experiment.train.keep_checkpoints) if parallel.is_main_process() else None
    initial = initial_state(experiment, program)
    if checkpoints:
        _record(config, workdir, initial.params)
        if checkpoints.latest_step():
            initial = checkpoints.restore(initial)
    initial = parallel.broadcast(initial)
    start_step = int(initial.step)
    total_steps = state.total_steps(program.phases, program.steps_per_epoch)
    writer = MetricsWriter(
        workdir,
        start_step=start_step,
        total_steps=total_steps,
        images_per_step=program.batch_size,
        enabled=checkpoints is not None,
    )
    # Around all of it: a second SIGTERM must not end the process while the checkpoint is written.
    with _signals() as received, contextlib.ExitStack() as closing:
        closing.callback(writer.close)
        if checkpoints:
            closing.callback(checkpoints.close)
        replicated = parallel.replicate(initial)
        nothing = lambda state: None
        _, done = loop.run(
            replicated,
            step=_make_step(experiment, program, data.train, start_step),
            fetch=parallel.to_host,
            start_step=start_step,
            total_steps=total_steps,
            log_every=experiment.train.log_every_steps,
            save_every=experiment.train.checkpoint_every_epochs * program.steps_per_epoch,
            on_metrics=writer.write,
            on_step=writer.advance,
            snapshot=parallel.make_snapshot(replicated) if checkpoints else nothing,
            save=checkpoints.save if checkpoints else nothing,
            should_stop=parallel.preempted if jax.process_count() > 1 else lambda step: bool(received),
        )
    if signal.SIGINT in received and done < total_steps:
        raise KeyboardInterrupt(f"stopped at step {done} of {total_steps}, saved; the same command goes on from there")
    return done, total_steps


def _make_step(experiment, program, source, start_step) -> Callable:
    """state -> (state, metrics), with the data bound: on the device for good, or streamed batch by batch."""
    compiled = parallel.pmap(train_step.make_train_step(program, axis_name=parallel.AXIS), donate=(0,))
    make = {"resident": resident_data, "stream": _streamed}[experiment.dataset.storage]
    data = make(experiment, program, source, start_step)
    return lambda state: compiled(state, *next(data))


def resident_data(experiment, program, source, start_step) -> Iterator:
    """(images, labels, order of the epoch) for every step: the same images all along, and an order for each epoch."""
    images, labels = datasets.resident(source, progress=parallel.is_main_process())
    images, labels = parallel.replicate((images.reshape(len(images), -1), labels))
    epoch_order = parallel.pmap(functools.partial(order.epoch_order, size=program.num_images))
    for step in itertools.count(start_step):
        if step == start_step or step % program.steps_per_epoch == 0:
            # Not on the host, which would have to wait for it.
            numbers = np.int32(experiment.seed), np.int32(step // program.steps_per_epoch)
            order_N = epoch_order(*parallel.replicate(numbers))
        yield images, labels, order_N


def _streamed(experiment, program, source, start_step) -> Iterator:
    batches = datasets.host_batches(
        source,
        seed=experiment.seed,
        start_step=start_step,
        batch_size=program.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=experiment.train.workers,
        cache_bytes=1e9 * experiment.train.cache_gigabytes,
    )
    # One batch ahead: its copy to the device runs while the step before it computes.
    ahead = parallel.shard(next(batches))
    for batch in batches:
        yield ahead
        ahead = parallel.shard(batch)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Signals received: SIGTERM, with which schedulers announce the end, and Ctrl-C. The step under way is finished."""
    received: list[int] = []
    if jax.process_count() > 1:  # JAX listens there: all processes have to stop at the same step
        yield received
        return

    def note(number, frame):
        received.append(number)
        if number == signal.SIGINT:
            print("\nsaving after this step; Ctrl-C again stops at once", file=sys.stderr)
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fixed(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that a resumed run has to share, flat: {"mix.fill": ...}."""
    free = lambda section, _, key: section in FREE_SECTIONS or key in FREE_KEYS
    flat = flatten(json.loads(json.dumps(config)))
    return {name: value for name, value in flat.items() if not free(*name.partition("."))}


def check_same_run(config: dict[str, Any], workdir: str) -> None:
    """Raises ValueError where the workdir holds a run of another config, but for keys that do not change the model.

    A start that left neither a checkpoint nor results is no run: there is nothing to lose.
    """
    saved = glob.glob(os.path.join(glob.escape(workdir), "checkpoints", "[0-9]*"))
    results = os.path.exists(os.path.join(workdir, "results.json"))
    if not os.path.exists(os.path.join(workdir, "config.json")) or not (saved or results):
        return
    before = _fixed(config_lib.read(workdir))
    for key, value in _fixed(config).items():
        if before.get(key) != value:
            raise ValueError(
                f"{workdir} holds a run with {key}={before.get(key)!r}, not {value!r}; allowed: the same config to "
                "go on with it, or another --workdir."
            )


def _record(config, workdir, params) -> None:
    """Write config.json, env.json and the table of parameters."""
    os.makedirs(workdir, exist_ok=True)
    write_json(workdir, "config.json", config)
    write_json(workdir, "env.json", environment())
    with open(os.path.join(workdir, "parameters.txt"), "w") as file:
        file.write(parameter_overview.get_parameter_overview(params) + "\n")


def write_json(workdir: str, name: str, content: dict[str, Any]) -> None:
    """Write a file of the workdir in one move."""
    with files.replacing(os.path.join(workdir, name)) as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def commit() -> tuple[str, bool]:
    """(commit of this code, "" where nobody knows it; whether there are changes that are not committed)."""
    here = os.path.dirname(os.path.abspath(__file__))
    git = lambda *words: subprocess.run(["git", "-C", here, *words], capture_output=True, text=True).stdout.strip()
    try:
        head, changed = git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except OSError:
        head, changed = "", False
    if head:
        return head, changed
    # A copy without .git (a pod, an image) is told its commit by whoever made it, with a + where files had changed.
    told = os.environ.get("GRADMIX_JAX_COMMIT", "")
    return told.removesuffix("+"), told.endswith("+")


def environment() -> dict[str, Any]:
    """Versions, devices, commit and command line: what a number has to be read with."""
    head, changed = commit()
    return {
        "commit": head,
        "uncommitted_changes": changed,
        "command": sys.argv,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cpu_count": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # folders and IDX files need no TFDS
        return None
