"""Metrics of a run: `metrics.jsonl`, TensorBoard event files and a progress bar; no TensorFlow needed."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm.auto import tqdm

from gradmix_jax import stored
from gradmix_jax import workdir as workdir_lib


def _import_tensorboard():
    # tensorboardX imports PyTorch where that is installed, as in Colab: seconds, for classes that never come here.
    hidden = {"torch"} - sys.modules.keys()
    sys.modules.update(dict.fromkeys(hidden))
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
    finally:
        for name in hidden:
            del sys.modules[name]
    return EventsWriter, event_pb2


EventsWriter, event_pb2 = _import_tensorboard()


class TensorBoard:
    """An event file for TensorBoard, written without a thread.

    That of tensorboardX dies on a full disk, and its queue then blocks for good.

    Args:
      directory: made if need be.
      start_step: events of earlier files past this step are hidden.

    Raises:
      OSError: the file cannot be written; `write` and `close` raise it too.
    """

    def __init__(self, directory: str, start_step: int):
        os.makedirs(directory, exist_ok=True)
        self._events = EventsWriter(os.path.join(directory, "events"))
        if start_step:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._events.write_event(event_pb2.Event(step=start_step, wall_time=time.time(), session_log=start))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        event = event_pb2.Event(step=step, wall_time=time.time())
        for name, value in scalars.items():
            event.summary.value.add(tag=name, simple_value=value)
        self._events.write_event(event)
        self._events.flush()

    def close(self) -> None:
        self._events.close()


class MetricsWriter:
    """Writes scalars of a run that goes from `start_step` to `total_steps`.

    Training goes on where something cannot be written: a warning, and what is lost is lost.

    After a resume the lines that an interrupted run wrote past its last checkpoint are dropped, so that every step
    stands in the file once.

    Args:
      workdir: directory of the run.
      start_step: number of steps done already.
      total_steps: number of steps at the end.
      images_per_step: to turn steps/s into images/s.
      enabled: false in all processes but one; every method then does nothing.
    """

    def __init__(self, workdir: str, *, start_step: int, total_steps: int, images_per_step: int, enabled: bool = True):
        self._enabled = enabled
        if not enabled:
            return
        self._images_per_step = images_per_step
        _keep_lines_until(workdir, start_step)
        metrics = workdir_lib.path(workdir, workdir_lib.METRICS)
        self._file = open(metrics, "a", buffering=1)  # noqa: SIM115  (open as long as the run)
        self._failed: set[str] = set()
        self._tensorboard: TensorBoard | None = None

        def open_tensorboard():
            self._tensorboard = TensorBoard(workdir_lib.path(workdir, workdir_lib.TENSORBOARD), start_step)

        self._attempt("TensorBoard events", open_tensorboard)
        # In a log file a line every half a minute is enough; on a terminal the bar moves.
        interval = 0.2 if sys.stderr.isatty() else 30.0
        self._bar = tqdm(
            total=total_steps,
            initial=start_step,
            unit="step",
            mininterval=interval,
            dynamic_ncols=True,
            desc="training",
        )

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Record scalars after `step` steps. A value that is not finite is written as null."""
        if not self._enabled:
            return
        clean = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        # What was not written is still in the file's buffer, and written when there is room again.
        self._attempt(workdir_lib.METRICS, lambda: self._file.write(json.dumps({"step": step, **clean}) + "\n"))
        if self._tensorboard and not self._attempt(
            "TensorBoard events", lambda: self._tensorboard.write(step, metrics)
        ):
            self._tensorboard = None  # half an event hides all that follow
        shown = {"loss": f"{metrics['loss']:.3f}"} if "loss" in metrics else {}
        if "steps_per_second" in metrics:
            shown["images/s"] = f"{metrics['steps_per_second'] * self._images_per_step:.0f}"
        self._bar.set_postfix(shown, refresh=False)

    def advance(self) -> None:
        """Move the progress bar by one step."""
        if self._enabled:
            self._attempt("the progress bar", lambda: self._bar.update(1))

    def close(self) -> None:
        if self._enabled:
            self._attempt("the progress bar", self._bar.close)
            self._attempt(workdir_lib.METRICS, self._file.close)
            if self._tensorboard:
                self._attempt("TensorBoard events", self._tensorboard.close)

    def _attempt(self, what: str, write: Callable[[], Any]) -> bool:
        """Whether it could be written; a warning the first time that it could not."""
        try:
            write()
        except OSError as error:
            if what not in self._failed:
                self._failed.add(what)
                with contextlib.suppress(OSError):
                    print(f"warning: cannot write {what} ({error}); training continues without.", file=sys.stderr)
            return False
        return True


def _keep_lines_until(workdir: str, step: int) -> None:
    kept = [line for line in stored.metrics(workdir) if line["step"] <= step]
    with workdir_lib.replacing(workdir_lib.path(workdir, workdir_lib.METRICS)) as file:
        file.writelines(json.dumps(line) + "\n" for line in kept)
