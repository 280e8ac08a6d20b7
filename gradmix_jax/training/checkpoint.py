"""Checkpoints with Orbax, in two items: `model`, which evaluation needs, and `training`, which only training needs.

A third item, `about`, identifies the run and holds the SHA-256 of the other two, which is verified on restoring.

If the run is evaluated by a moving average, the average is the `model`, and the weights it follows are in `training`.
"""

import concurrent.futures
import contextlib
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from gradmix_jax import workdir as workdir_lib
from gradmix_jax.training import bucket as bucket_lib
from gradmix_jax.training import digests, identity
from gradmix_jax.training.state import TrainState
from gradmix_jax.workdir import lock, storage, temporary


def _silence_orbax() -> None:
    """Drop the tracebacks that Orbax logs for every failed part of a save, because it also raises the error."""

    def is_new(record: logging.LogRecord) -> bool:
        return not (record.exc_info and f"{os.sep}orbax{os.sep}" in record.pathname)

    logger = logging.getLogger("absl")
    if not any(getattr(each, "of_orbax", False) for each in logger.filters):
        is_new.of_orbax = True
        logger.addFilter(is_new)
        # TensorStore reports to an event loop that Orbax has already closed; nothing waits for the report.
        show = sys.unraisablehook
        late = lambda said: isinstance(said.exc_value, RuntimeError) and "loop is closed" in str(said.exc_value)
        sys.unraisablehook = lambda said: None if late(said) else show(said)


class Checkpoints:
    """The checkpoints of one run, in `<workdir>/checkpoints`, saved in the background.

    A save is complete only after `close`. For a workdir in a bucket, Orbax saves to and restores from a temporary local
    directory, and the checkpoints are copied from and to the bucket, see `bucket`.

    Only the main process uses this class; the others receive its state (`mapping.broadcast`). If all processes write,
    they use `shared_checkpoints.SharedCheckpoints`.

    Args:
      workdir: directory of the run.
      of: the run, see `identity.identity`: recorded in every checkpoint, and compared on restoring; None: any run.
      keep: number of the newest checkpoints to keep.
      read_only: raise if there are none, and create nothing.

    Attributes:
      restored_step: the step of the checkpoint that was restored last.
      restored_of: what that checkpoint says its run is; older ones say nothing.

    Raises:
      ValueError: `read_only` and there is no checkpoint.
      OSError: the bucket cannot be used; the methods raise it too.
    """

    # Whether Orbax writes in threads of its own.
    _ASYNC = True

    def __init__(self, workdir: str, *, of: Mapping[str, Any] | None, keep: int = 2, read_only: bool = False):
        self._of, self._read_only, self._keep = dict(of or {}), read_only, keep
        self._workdir = workdir if storage.is_remote(workdir) else os.path.abspath(workdir)
        self.restored_step: int | None = None
        self.restored_of: dict[str, Any] = {}
        self.directory = workdir_lib.path(self._workdir, workdir_lib.CHECKPOINTS)
        if read_only and not self.exist(workdir):
            raise ValueError(f"no checkpoint in {workdir}; give the workdir of a run that has saved one.")
        self._local, self._bucket = self.directory, None
        if storage.is_remote(workdir):
            self._bucket = bucket_lib.Bucket(self.directory)
            self._staging = temporary.directory()
            self._local, keep = self._staging.name, 1
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=False,
            multiprocessing_options=self._processes(),
            enable_async_checkpointing=self._ASYNC,
        )
        if not read_only:
            os.makedirs(self._local, exist_ok=True)
        _silence_orbax()
        self._manager = ocp.CheckpointManager(self._local, options=options)
        # Orbax writes in the background, but first it copies to the host and creates folders, and training would wait.
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: concurrent.futures.Future | None = None

    def _processes(self) -> ocp.options.MultiprocessingOptions:
        """One process writes and reads, so that the hosts of a pod need no shared disk."""
        if jax.process_count() == 1:
            return ocp.options.MultiprocessingOptions()
        index = jax.process_index()
        return ocp.options.MultiprocessingOptions(
            primary_host=index, active_processes={index}, barrier_sync_key_prefix="main"
        )

    @staticmethod
    def exist(workdir: str) -> bool:
        """Whether a workdir holds a checkpoint."""
        return bool(_present(workdir_lib.path(workdir, workdir_lib.CHECKPOINTS)))

    def latest_step(self) -> int | None:
        return max(self.steps(), default=None)

    def steps(self) -> list[int]:
        """The steps of the existing checkpoints, the oldest first."""
        return self._bucket.steps if self._bucket else sorted(self._manager.all_steps())

    def save(self, state: TrainState) -> None:
        """Copy the state to the host and write it, both in the background; a step that is already saved is left alone.

        Args:
          state: the state; none of its arrays may be donated.

        Raises:
          SaveError: the previous save, which this call waits for, failed; one line.
        """
        self._finish()
        self._saving = self._thread.submit(self._save, state)

    def _save(self, state: TrainState) -> None:
        state = jax.device_get(state)
        step = int(state.step)
        if step == self.latest_step():
            return
        items = items_of(state)
        self._write(step, items, {name: digests.of_tree(tree) for name, tree in items.items()})
        if self._bucket:
            self._upload(step)

    def _write(self, step: int, items: dict[str, Any], sha256: dict[str, Any]) -> None:
        about = {"of": self._of, "step": step, "sha256": sha256}
        wanted = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        with self._told():  # also errors of the previous save, which Orbax finishes first
            self._manager.save(step, args=ocp.args.Composite(**wanted, about=ocp.args.JsonSave(about)))

    def _upload(self, step: int) -> None:
        with self._told():
            self._manager.wait_until_finished()
        lock.check(self._workdir)
        with self._told():
            self._bucket.upload(step, os.path.join(self._local, str(step)))
            self._bucket.keep(self._keep)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn write errors of Orbax and TensorStore into one line."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            said = " ".join(str(error).split())
            full = "No space left on device"
            reason = full.lower() if full.lower() in said.lower() else getattr(error, "strerror", None) or said[:200]
            kept = self._bucket.steps if self._bucket else _present(self.directory)
            kept = f"step {max(kept)} is the newest there" if kept else "there is none yet"
            raise SaveError(
                f"a checkpoint cannot be saved in {self.directory} ({reason}); {kept}; rerun the command to resume."
            ) from error

    def _finish(self) -> None:
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def restore(self, template: TrainState, step: int | None = None) -> TrainState:
        """The state of a step, or the newest, shaped like `template` (whose values are not used); NumPy leaves.

        If the newest is damaged, the one before it is restored, with a warning; unless `read_only`, the damaged one is
        moved out of the way.

        Raises:
          ValueError: no checkpoint can be read, or it belongs to another run or has another shape.
        """
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), template)
        restored = self._restore(step, model=shapes.evaluated, training=_training(shapes))
        model, training = restored["model"], restored["training"]
        followed = training.pop("followed", model)
        extra = dict(training.pop("extra", {})) | ({"average": model} if "average" in template.extra else {})
        return TrainState(**followed, **training, extra=extra)

    def restore_model(self, template: dict[str, Any]) -> dict[str, Any]:
        """Only the newest {"params", "batch_stats"}, shaped like `template`; raises as `restore`."""
        return self._restore(None, model=template)["model"]

    def saved_model(self) -> dict[str, Any]:
        """The newest {"params", "batch_stats"} as saved, whatever its shape; raises as `restore`."""
        return self._restore(None, model=None)["model"]

    def _restore(self, step: int | None, **shapes: Any) -> Any:
        if step is not None:
            return self._restore_step(step, shapes)
        while True:
            step = self.latest_step() if step is None else step
            try:
                return self._restore_step(step, shapes)
            except DamagedError as error:
                earlier = [other for other in self.steps() if other < step]
                if not earlier:
                    raise
                print(f"warning: {error} Using {self._path(earlier[-1])}.", file=sys.stderr)
                if not self._read_only:  # training will reach this step again
                    self._set_aside(step)
                step = earlier[-1]

    def _path(self, name: int | str) -> str:
        return os.path.join(self.directory, str(name))

    def _set_aside(self, step: int) -> None:
        if self._bucket:
            self._bucket.set_aside(step)
            shutil.rmtree(os.path.join(self._local, str(step)), ignore_errors=True)
        else:
            shutil.rmtree(self._path(f"damaged_{step}"), ignore_errors=True)  # left from an earlier time
            os.replace(self._path(step), self._path(f"damaged_{step}"))
        self._manager.reload()

    def _download(self, step: int) -> None:
        try:
            self._bucket.download(step, os.path.join(self._local, str(step)))
        except bucket_lib.MissingError as error:
            raise DamagedError(f"{self._path(step)} cannot be read ({error}).") from error
        self._manager.reload()

    def _restore_step(self, step: int, shapes: Mapping[str, Any]) -> Any:
        if self._bucket:  # outside `try`, because a bucket that cannot be reached is not damage
            self._download(step)
        try:
            found = {name: self._saved_shapes(step, name) if tree is None else tree for name, tree in shapes.items()}
            wanted = {name: ocp.args.StandardRestore(jax.tree.map(_hollow, tree)) for name, tree in found.items()}
            if os.path.isdir(os.path.join(self._local, str(step), "about")):  # older checkpoints have none
                wanted["about"] = ocp.args.JsonRestore()
            restored = self._manager.restore(step, args=ocp.args.Composite(**wanted))
            about = restored["about"] if "about" in wanted else {"of": {}, "sha256": {}}
            if not isinstance(about, dict) or not all(isinstance(about.get(name), dict) for name in ("of", "sha256")):
                raise ValueError("its 'about' is incomplete")
            if about.get("step", step) != step:  # older ones do not record it
                raise ValueError(f"it is of step {about['step']}")
            for name, tree in shapes.items():
                if tree is not None:
                    jax.tree_util.tree_map_with_path(_check_shape, tree, restored[name])
                if not digests.agree(about["sha256"].get(name, ""), restored[name]):
                    raise ValueError(f"the SHA-256 of {name!r} differs from the recorded one")
        except (MemoryError, ShapeError):
            raise
        except Exception as error:  # Orbax and TensorStore raise anything for a missing or broken file
            said = textwrap.shorten(str(error), 200, placeholder=" ...")
            raise DamagedError(f"{self._path(step)} cannot be read ({said}).") from error
        other = identity.difference(about["of"], self._of)
        if other:
            raise ValueError(f"{self._path(step)} is of a run with {other}; give another workdir.")
        self.restored_step, self.restored_of = step, about["of"]
        return restored

    def _saved_shapes(self, step: int, item: str) -> Any:
        """Shapes and dtypes of an item as saved: without them, Orbax wants the devices that it was saved from."""
        return ocp.StandardCheckpointHandler().metadata(self._manager.directory / str(step) / item).tree

    def close(self) -> None:
        """Wait until all saves are written. Raises SaveError if one fails."""
        with contextlib.ExitStack() as closing:
            closing.callback(self._manager.close)
            closing.callback(self._wait)
            closing.callback(self._thread.shutdown)
            self._finish()

    def _wait(self) -> None:
        with self._told():
            self._manager.wait_until_finished()


class SaveError(storage.UnavailableError):
    """A checkpoint cannot be written."""


class DamagedError(ValueError):
    """A checkpoint cannot be read, or its content differs from what was saved."""


class ShapeError(ValueError):
    """A checkpoint belongs to another model than the one to restore."""


def _present(directory: str) -> list[int]:
    """The steps of the checkpoints in a directory, whether or not they can be read, the oldest first."""
    if storage.is_remote(directory):
        return bucket_lib.committed(directory)
    return sorted(int(name) for name in storage.names(directory) if name.isdigit())


def _hollow(leaf: Any) -> np.ndarray:
    """An array of a leaf's shape and dtype that takes no memory.

    For leaves that may have a sharding, Orbax first reads every array's metadata, which TensorStore never frees.
    """
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def _check_shape(path: tuple, wanted: Any, found: Any) -> None:
    """Raises ShapeError for another shape, because Orbax does not check shapes."""
    if wanted.shape != found.shape:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        shapes = f"{found.shape} in the checkpoint and {wanted.shape} in the config's model"
        raise ShapeError(f"{name} has the shape {shapes}; use the config of the run.")


def items_of(state: TrainState) -> dict[str, Any]:
    """The two items of a state."""
    return {"model": state.evaluated, "training": _training(state)}


def _training(state: TrainState) -> dict[str, Any]:
    """The item `training`: everything that `model` does not hold, without keys that the run does not use."""
    extra = {name: value for name, value in state.extra.items() if name != "average"}
    followed = {"params": state.params, "batch_stats": state.batch_stats} if "average" in state.extra else {}
    return {
        "step": state.step,
        "seed": state.seed,
        "opt_state": state.opt_state,
        **({"extra": extra} if extra else {}),
        **({"followed": followed} if followed else {}),
    }
