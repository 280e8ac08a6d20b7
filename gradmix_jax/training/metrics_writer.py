"""Metrics of a run: `metrics.jsonl`, a progress bar, and the configured trackers; no TensorFlow needed."""

import json
import math
import sys
import time
from collections.abc import Sequence

from tqdm.auto import tqdm

from gradmix_jax import stored
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.training.tracking import CONTINUED, Attempts, Tracking
from gradmix_jax.workdir.mirror import Mirror

# Seconds between copies of the metrics to a workdir in a bucket, besides those before checkpoints.
COPIED_EVERY = 60.0


class MetricsWriter:
    """Writes the scalars of a run from `start_step` to `total_steps`.

    If something cannot be written, or a tracker is missing or fails, a warning is given and training continues without
    the lost data.

    On resuming, lines that the interrupted run wrote past its last checkpoint are dropped, so that every step appears
    once in the file.

    For a workdir in a bucket, files are written on this machine and copied by `push`, by `close` and every minute.

    Args:
      workdir: directory of the run.
      start_step: number of steps already done.
      total_steps: number of steps at the end.
      images_per_step: to turn steps/s into images/s.
      trackers: names of `trackers.TRACKERS` that also receive the scalars.
      enabled: false in all processes except one; every method then does nothing.
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
        self._mirror, self._copied = Mirror(workdir, (workdir_lib.METRICS, *CONTINUED)), time.monotonic()
        workdir = self._mirror.local
        _keep_lines_until(workdir, start_step)
        metrics = workdir_lib.path(workdir, workdir_lib.METRICS)
        self._file = open(metrics, "a", buffering=1, encoding="utf-8")  # noqa: SIM115  (open as long as the run)
        self._attempt = Attempts()
        self._trackers = Tracking(trackers, workdir, start_step=start_step, attempt=self._attempt)
        # A line every half minute is enough in a log file; on a terminal, the bar moves.
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
        # Unwritten data stays in the file's buffer and is written when there is room again.
        self._attempt(workdir_lib.METRICS, lambda: self._file.write(json.dumps({"step": step, **clean}) + "\n"))
        self._trackers.write(step, metrics)
        shown = {"loss": f"{metrics['loss']:.3f}"} if "loss" in metrics else {}
        if "steps_per_second" in metrics:
            shown["images/s"] = f"{metrics['steps_per_second'] * self._images_per_step:.0f}"
        self._bar.set_postfix(shown, refresh=False)
        if time.monotonic() - self._copied > COPIED_EVERY:
            self.push()

    def push(self) -> None:
        """Copy the metrics to a workdir in a bucket; called before a checkpoint, so that no earlier line is missing."""
        if self._enabled:
            self._attempt("the metrics to the bucket", self._mirror.push)
            self._copied = time.monotonic()

    def advance(self) -> None:
        """Move the progress bar by one step."""
        if self._enabled:
            self._attempt("the progress bar", lambda: self._bar.update(1))

    def close(self) -> None:
        if self._enabled:
            self._attempt("the progress bar", self._bar.close)
            self._attempt(workdir_lib.METRICS, self._file.close)
            self._trackers.close()
            self.push()


def _keep_lines_until(workdir: str, step: int) -> None:
    kept = [line for line in stored.metrics(workdir) if line["step"] <= step]
    with workdir_lib.replacing(workdir_lib.path(workdir, workdir_lib.METRICS)) as file:
        file.writelines(json.dumps(line) + "\n" for line in kept)
