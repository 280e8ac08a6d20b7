"""Metrics of a run: `metrics.jsonl`, TensorBoard event files and a progress bar; no TensorFlow needed."""

import json
import math
import os
import sys

from tqdm.auto import tqdm

from gradmix_jax import files


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
        path = os.path.join(workdir, "metrics.jsonl")
        _keep_lines_until(path, start_step)
        self._file = open(path, "a", buffering=1)  # noqa: SIM115  (open as long as the run)
        self._tensorboard = SummaryWriter(os.path.join(workdir, "tensorboard"), purge_step=start_step or None)
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


def _keep_lines_until(path: str, step: int) -> None:
    if not os.path.exists(path):
        return
    with open(path) as file:
        # A line cut short by a crash is not JSON; it lies past the last checkpoint too.
        lines = [line for line in file if line.endswith("}\n") and json.loads(line)["step"] <= step]
    with files.replacing(path) as file:
        file.writelines(lines)
