"""Metrics of a run: `metrics.jsonl`, TensorBoard event files and a progress bar; no TensorFlow needed."""

import json
import math
import os
import sys
from typing import Any

from tqdm.auto import tqdm

from gradmix_jax import workdir as workdir_lib


def _import_summary_writer():
    # tensorboardX imports PyTorch where that is installed, as in Colab: seconds, for classes that never come here.
    hidden = {"torch"} - sys.modules.keys()
    sys.modules.update(dict.fromkeys(hidden))
    try:
        from tensorboardX import SummaryWriter
    finally:
        for name in hidden:
            del sys.modules[name]
    return SummaryWriter


SummaryWriter = _import_summary_writer()


class MetricsWriter:
    """Writes scalars of a run that goes from `start_step` to `total_steps`.

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
        self._tensorboard = SummaryWriter(
            workdir_lib.path(workdir, workdir_lib.TENSORBOARD), purge_step=start_step or None
        )
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
        self._file.write(json.dumps({"step": step, **clean}) + "\n")
        for name, value in metrics.items():
            self._tensorboard.add_scalar(name, value, step)
        shown = {"loss": f"{metrics['loss']:.3f}"} if "loss" in metrics else {}
        if "steps_per_second" in metrics:
            shown["images/s"] = f"{metrics['steps_per_second'] * self._images_per_step:.0f}"
        self._bar.set_postfix(shown, refresh=False)

    def advance(self) -> None:
        """Move the progress bar by one step."""
        if self._enabled:
            self._bar.update(1)

    def close(self) -> None:
        if self._enabled:
            self._bar.close()
            self._file.close()
            self._tensorboard.close()


def read(workdir: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, {"step": ..., "loss": ..., ...} each; [] where there is no such file.

    A line that a crash cut short is left out.
    """
    path = workdir_lib.path(workdir, workdir_lib.METRICS)
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [_parsed(line) for line in file]
    return [line for line in lines if line]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except ValueError:
        return None
    return content if isinstance(content, dict) and "step" in content else None


def _keep_lines_until(workdir: str, step: int) -> None:
    kept = [line for line in read(workdir) if line["step"] <= step]
    with workdir_lib.replacing(workdir_lib.path(workdir, workdir_lib.METRICS)) as file:
        file.writelines(json.dumps(line) + "\n" for line in kept)
