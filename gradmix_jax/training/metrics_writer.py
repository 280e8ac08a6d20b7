"""Metrics of a run: `metrics.jsonl`, a progress bar, and the trackers of the config; no TensorFlow needed."""

import contextlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tqdm.auto import tqdm

from gradmix_jax import stored
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.training.trackers import TRACKERS, Tracker


class MetricsWriter:
    """Writes scalars of a run that goes from `start_step` to `total_steps`.

    Training goes on where something cannot be written, or a tracker is not installed or fails: a warning, and what is
    lost is lost.

    After a resume the lines that an interrupted run wrote past its last checkpoint are dropped, so that every step
    stands in the file once.

    Args:
      workdir: directory of the run.
      start_step: number of steps done already.
      total_steps: number of steps at the end.
      images_per_step: to turn steps/s into images/s.
      trackers: names of TRACKERS, where the scalars go as well.
      enabled: false in all processes but one; every method then does nothing.
    """

    def __init__(
        self,
        workdir: str,
        *,
        start_step: int,
        total_steps: int,
        images_per_step: int,
        trackers: Sequence[str] = ("tensorboard",),
        enabled: bool = True,
    ):
        self._enabled = enabled
        if not enabled:
            return
        self._images_per_step = images_per_step
        _keep_lines_until(workdir, start_step)
        metrics = workdir_lib.path(workdir, workdir_lib.METRICS)
        self._file = open(metrics, "a", buffering=1)  # noqa: SIM115  (open as long as the run)
        self._failed: set[str] = set()
        self._trackers: dict[str, Tracker] = {}
        for name in dict.fromkeys(trackers):
            self._open(name, workdir, start_step)
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
        for name, tracker in list(self._trackers.items()):
            if not self._attempt(TRACKERS[name].title, partial(tracker.write, step, metrics), Exception):
                del self._trackers[name]  # half an event of TensorBoard hides all that follow
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
            for name, tracker in self._trackers.items():
                self._attempt(TRACKERS[name].title, tracker.close, Exception)

    def _open(self, name: str, workdir: str, start_step: int) -> None:
        entry = TRACKERS[name]
        if not entry.installed:
            hint = f"pip install {entry.install}"
            _warn(f"train.trackers has {name!r}, which is not installed; {hint}.")
            return

        def opened():
            self._trackers[name] = entry.open(workdir, start_step)

        self._attempt(entry.title, opened, Exception)

    def _attempt(self, what: str, write: Callable[[], Any], errors: type[Exception] = OSError) -> bool:
        """Whether it could be written; a warning the first time that it could not."""
        try:
            write()
        except errors as error:
            if what not in self._failed:
                self._failed.add(what)
                reason = " ".join(str(error).split()) or type(error).__name__
                _warn(f"cannot write {what} ({reason}); training continues without.")
            return False
        return True


def _warn(message: str) -> None:
    """Say it on a line of its own, beside the progress bar."""
    with contextlib.suppress(OSError):
        tqdm.write(f"warning: {message}", file=sys.stderr)


def _keep_lines_until(workdir: str, step: int) -> None:
    kept = [line for line in stored.metrics(workdir) if line["step"] <= step]
    with workdir_lib.replacing(workdir_lib.path(workdir, workdir_lib.METRICS)) as file:
        file.writelines(json.dumps(line) + "\n" for line in kept)
