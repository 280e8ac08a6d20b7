"""Trains a program, or resumes it, with checkpoints and metrics in a workdir."""

import contextlib
import dataclasses
import functools
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from gradmix_jax import data as data_lib
from gradmix_jax import pod
from gradmix_jax.data import order
from gradmix_jax.fields import Section, key
from gradmix_jax.training import loop, mapping, phases
from gradmix_jax.training import state as state_lib
from gradmix_jax.training import step as step_lib
from gradmix_jax.training.checkpoint import Checkpoints
from gradmix_jax.training.metrics_writer import MetricsWriter
from gradmix_jax.training.program import Program
from gradmix_jax.training.shared_checkpoints import SharedCheckpoints
from gradmix_jax.training.trackers import TRACKERS


@dataclasses.dataclass(frozen=True)
class Spec(Section, section="train"):
    """How training runs: the `train` section."""

    mapping: str = key(
        "pmap",
        "how the step runs on several devices: pmap, shard_map, or sharded for a state too large for one",
        choices=lambda: mapping.MAPPINGS,
        may_change=True,
    )
    batch_size: int = key(
        128, "images per step, over all devices, with num_views views each; 0: by the number of images", least=0
    )
    micro_batch_size: int = key(
        0,
        "images per device and pass, for batches larger than memory; must divide the device's batch; 0: all of them. "
        "Losses see the whole batch, batch norm only one pass",
        least=0,
    )
    num_views: int = key(2, "augmented views of each image", least=1)
    log_every_steps: int = key(20, "steps that metrics are averaged over", least=1, may_change=True)
    checkpoint_every_epochs: int = key(50, "epochs between checkpoints", least=1, may_change=True)
    trackers: tuple[str, ...] = key(
        ("tensorboard",),
        "where metrics go besides metrics.jsonl; wandb and mlflow are extras",
        choices=lambda: TRACKERS,
        may_change=True,
    )
    keep_checkpoints: int = key(2, "number of the newest checkpoints to keep", least=1, may_change=True)
    checkpoint_writers: str = key(
        "main",
        "processes that write checkpoints: main, which needs no shared disk, or all, each its part of the state",
        choices=("main", "all"),
        may_change=True,
    )
    skip_nonfinite: int = key(
        0,
        "number of steps with a nonfinite loss or gradient to skip before the run ends; 0: the first one ends it",
        least=0,
        may_change=True,
    )
    workers: int = key(
        0,
        'reading threads, storage "stream" only; 0: one for small images, two per core for others',
        least=0,
        may_change=True,
    )
    cache_gigabytes: float = key(
        8.0, 'host memory for decoded images, storage "stream" only: read once, then kept', least=0, may_change=True
    )


def train(
    program: Program,
    init: Callable[[], state_lib.TrainState],
    source: data_lib.Source,
    spec: Spec,
    mapped: mapping.Mapping,
    *,
    storage: str,
    workdir: str,
    first: state_lib.TrainState | None = None,
    of: Mapping[str, int | str] | None = None,
) -> tuple[int, int]:
    """Train until the last phase is over, from the newest checkpoint in `workdir` if there is one.

    Args:
      program: the static part of the step.
      init: returns the state before the first step; its shapes are those of the checkpoints.
      source: the training images.
      spec: the `train` section.
      mapped: how the step runs on all devices; the program was made for it.
      storage: "resident" or "stream", see `dataset.storage`.
      workdir: directory of the run, which exists.
      first: a state to start from in place of that of `init`; the main process's is used.
      of: identifies the run, see `Checkpoints`.

    Returns:
      The number of steps done and planned.

    Raises:
      KeyboardInterrupt: after Ctrl-C, with a checkpoint saved; a second one interrupts at once.
      SystemExit: status 143 after SIGTERM, with a checkpoint saved.
      ValueError: the images cannot be read, or the loss is not finite.
    """
    checkpoints = Checkpoints(workdir, keep=spec.keep_checkpoints, of=of) if mapping.is_main_process() else None
    state = _first_state(init, first, checkpoints, mapped)
    together = spec.checkpoint_writers == "all" and jax.process_count() > 1
    if together:
        if checkpoints:
            checkpoints.close()
        checkpoints = SharedCheckpoints(workdir, keep=spec.keep_checkpoints, of=of)
    start_step, seed = (int(number) for number in mapped.to_host((state.step, state.seed)))
    total_steps = phases.total_steps(program.phases, program.steps_per_epoch)
    writer = MetricsWriter(
        workdir,
        start_step=start_step,
        total_steps=total_steps,
        images_per_step=program.batch_size,
        trackers=spec.trackers,
        enabled=mapping.is_main_process(),
    )

    def save(snapshot):
        writer.push()
        checkpoints.save(snapshot)

    # Around everything, because a second SIGTERM must not end the process while the checkpoint is written.
    signals = pod.Stopping() if jax.process_count() > 1 else _Signals()
    with signals, contextlib.ExitStack() as closing:
        closing.callback(writer.close)
        if checkpoints:
            closing.callback(checkpoints.close)
        _, done = loop.run(
            state,
            step=make_step(program, spec, source, mapped, storage=storage, seed=seed, start_step=start_step),
            fetch=mapped.to_host,
            start_step=start_step,
            total_steps=total_steps,
            log_every=spec.log_every_steps,
            save_every=spec.checkpoint_every_epochs * program.steps_per_epoch,
            on_metrics=writer.write,
            on_step=writer.advance,
            snapshot=(
                mapped.make_shared_snapshot(state)
                if together
                else mapped.make_snapshot(state, wanted=checkpoints is not None)
            ),
            save=save if checkpoints else lambda snapshot: None,
            should_stop=signals.should_stop,
            max_skipped=spec.skip_nonfinite,
        )
        closing.close()  # a signal may arrive while the last checkpoint is written
        number = signals.agreed()
    stopped = f"stopped at step {done} of {total_steps} and saved; rerun the command to resume"
    if number == signal.SIGINT:
        raise KeyboardInterrupt(stopped)
    if number == signal.SIGTERM:  # even during the last step, nothing may follow
        print(stopped, file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)
    return done, total_steps


def check_memory(state: Any, source: data_lib.Source, storage: str) -> None:
    """Raises ValueError for a run that cannot fit into memory, for which XLA would wait forever.

    Args:
      state: shapes of the initial state.
      source: the training images.
      storage: see `dataset.storage`.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * jax.process_count()
    needed = {"the state of the model": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))}
    if storage == "resident":
        needed["the training images"] = len(source) * source.image_size**2 * source.channels
    for what, size in needed.items():
        if size > memory:
            lower = {"the state of the model": "model.width"}.get(what, "dataset.image_size")
            raise ValueError(f"{what}, {size / 1e9:,.0f} GB, cannot fit into {memory / 1e9:,.0f} GB; lower {lower}.")


def _first_state(
    init: Callable[[], state_lib.TrainState],
    first: state_lib.TrainState | None,
    checkpoints: Checkpoints | None,
    mapped: mapping.Mapping,
) -> state_lib.TrainState:
    """The newest checkpoint, or `first`, or what `init` returns, placed for the step.

    Only the main process has checkpoints and a `first`; the others receive its state.
    """
    template = jax.eval_shape(init)
    if checkpoints and checkpoints.latest_step() is not None:
        first = checkpoints.restore(template)
    if not mapping.broadcast(np.bool_(first is not None)):
        return mapped.create(init)
    if first is None:
        first = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
    return mapped.place_state(mapping.broadcast(jax.device_get(first)))


def make_step(
    program: Program,
    spec: Spec,
    source: data_lib.Source,
    mapped: mapping.Mapping,
    *,
    storage: str,
    seed: int,
    start_step: int,
) -> Callable:
    """state -> (state, metrics), with the data bound: resident on the device, or streamed batch by batch."""
    compiled = _compiled(program, mapped, storage == "stream")
    batches = {"resident": resident_data, "stream": _streamed}[storage](program, spec, source, mapped, seed, start_step)
    return lambda state: compiled(state, *next(batches))


@functools.lru_cache(maxsize=1)  # for the next run of the same program, see `assembly.LastProgram`
def _compiled(program: Program, mapped: mapping.Mapping, streamed: bool) -> Callable:
    step = step_lib.make_train_step(program, axis_name=mapped.axis_name)
    return mapped.compile_step(step, streamed=streamed)


def resident_data(
    program: Program, spec: Spec, source: data_lib.Source, mapped: mapping.Mapping, seed: int, start_step: int
) -> Iterator:
    """(images, labels, order of the epoch) for every step: always the same images, and a new order every epoch.

    Images and labels are padded with zeros, which no order names, to whole batches, and the order is cut to them: class
    splits of nearly the same size then share a compiled step.
    """
    images, labels = data_lib.resident(source, progress=mapping.is_main_process())
    if jax.process_count() > 1:  # before the first step, because one different pixel would give different parameters
        pod.agree({"the content of the training images": data_lib.hash_of(images, labels)})
    missing = program.padded_images - len(images)
    # Under the same names, so that no array on the host is kept while training.
    images, labels = np.pad(images.reshape(len(images), -1), ((0, missing), (0, 0))), np.pad(labels, (0, missing))
    images, labels = mapped.replicate((images, labels))
    used, size = program.used_images, program.num_images
    epoch_order = mapped.compile_replicated(lambda *key: order.epoch_order(*key, size=size)[:used])
    for step in itertools.count(start_step):
        if step == start_step or step % program.steps_per_epoch == 0:
            # Not on the host, which would have to wait for it.
            numbers = np.int32(seed), np.int32(step // program.steps_per_epoch)
            order_N = epoch_order(*mapped.replicate(numbers))
        yield images, labels, order_N


def _streamed(
    program: Program, spec: Spec, source: data_lib.Source, mapped: mapping.Mapping, seed: int, start_step: int
) -> Iterator:
    """(images, labels) for every step, read from disk."""
    if mapping.is_main_process():
        data_lib.check_copies(source)
    batches = data_lib.host_batches(
        source,
        seed=seed,
        start_step=start_step,
        batch_size=program.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=spec.workers,
        cache_bytes=1e9 * spec.cache_gigabytes,
    )
    # One batch ahead, so that its copy to the device overlaps with the step before it.
    ahead = mapped.spread(next(batches))
    for batch in batches:
        yield ahead
        ahead = mapped.spread(batch)


class _Signals:
    """SIGTERM, sent by schedulers before they end a job, and Ctrl-C, for one process; `pod.Stopping` is for several."""

    def __init__(self):
        self.received: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def should_stop(self, done: int) -> bool:
        """Whether to stop after the current step."""
        return bool(self.received)

    def agreed(self) -> int:
        """The smallest signal number received; 0: none."""
        return min(self.received, default=0)

    def _note(self, number: int, frame: Any) -> None:
        self.received.append(number)
        if number == signal.SIGINT:
            print("\nsaving after this step; Ctrl-C again stops at once", file=sys.stderr)
            signal.signal(signal.SIGINT, signal.default_int_handler)
