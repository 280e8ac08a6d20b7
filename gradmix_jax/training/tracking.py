"""Writes metrics and evaluation results of a run to its trackers; a failing tracker costs a warning, not the run."""

import contextlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from tqdm.auto import tqdm

from gradmix_jax import workdir as workdir_lib
from gradmix_jax.training.trackers import TRACKERS, Tracker
from gradmix_jax.workdir.mirror import Mirror

# The files that trackers read, which are copied from a workdir in a bucket, see `Mirror`.
CONTINUED = (workdir_lib.CONFIG, workdir_lib.TRACKED, "mlruns")
EVALUATION = "evaluation/"  # prefix of the metrics of an evaluation


class Attempts:
    """Calls that may fail, with one warning for each target that cannot be written."""

    def __init__(self):
        self._failed: set[str] = set()

    def __call__(self, what: str, write: Callable[[], Any], errors: type[Exception] = OSError) -> bool:
        """Whether `write` succeeded; warns at the first failure of each target."""
        try:
            write()
        except errors as error:
            if what not in self._failed:
                self._failed.add(what)
                reason = " ".join(str(error).split()) or type(error).__name__
                warn(f"cannot write {what} ({reason}); the run continues without it.")
            return False
        return True


class Tracking:
    """The trackers of a run, without those that are not installed or fail.

    Args:
      names: names in TRACKERS.
      workdir: directory of the run.
      start_step: number of steps already done.
      attempt: calls their methods.
    """

    def __init__(self, names: Sequence[str], workdir: str, *, start_step: int, attempt: Attempts):
        self._attempt = attempt
        self._trackers: dict[str, Tracker] = {}
        for name in dict.fromkeys(names):
            entry = TRACKERS[name]
            if entry.installed:
                attempt(entry.title, partial(self._open, name, workdir, start_step), Exception)
            else:
                warn(f"train.trackers has {name!r}, which is not installed; pip install {entry.install}.")

    def _open(self, name: str, workdir: str, start_step: int) -> None:
        self._trackers[name] = TRACKERS[name].open(workdir, start_step)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record scalars after `step` steps."""
        self._each(lambda tracker: tracker.write(step, dict(scalars)))

    def summarize(self, step: int, results: Mapping[str, float]) -> None:
        """Record the metrics of an evaluation after `step` steps, replacing those of an earlier one."""
        self._each(lambda tracker: tracker.summarize(step, dict(results)))

    def _each(self, write: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            if not self._attempt(TRACKERS[name].title, partial(write, tracker), Exception):
                del self._trackers[name]  # an incomplete event of TensorBoard hides all later ones

    def close(self) -> None:
        for name, tracker in self._trackers.items():
            self._attempt(TRACKERS[name].title, tracker.close, Exception)


def track_results(names: Sequence[str], workdir: str, results: Mapping[str, Any]) -> None:
    """Send the headline metrics of an evaluation to the trackers of a run.

    Args:
      names: names in TRACKERS.
      workdir: directory of the run.
      results: results of the evaluation, with "by_score", "feature", "score_name" and "step".
    """
    headline = results["by_score"][results["feature"]][results["score_name"]] | {"macro_f1": results.get("macro_f1")}
    scalars = {
        f"{EVALUATION}{name}": float(value)
        for name, value in headline.items()
        if value is not None and math.isfinite(value)
    }
    attempt = Attempts()
    attempt("results to the trackers", partial(_track, names, workdir, results["step"], scalars, attempt))


def _track(names, workdir, step, scalars, attempt):
    mirror = Mirror(workdir, CONTINUED)
    tracking = Tracking(names, mirror.local, start_step=0, attempt=attempt)
    tracking.summarize(step, scalars)
    tracking.close()
    mirror.push()


def warn(message: str) -> None:
    """Print a warning on its own line, without breaking the progress bar."""
    with contextlib.suppress(OSError):
        tqdm.write(f"warning: {message}", file=sys.stderr)
