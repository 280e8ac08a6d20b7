"""Trackers, which receive metrics besides `metrics.jsonl`: TensorBoard, Weights & Biases, MLflow.

To add one, write a class with `write`, `summarize` and `close` and enter it in TRACKERS. Nothing is sent to another
machine unless the user's environment asks for it (`WANDB_MODE=online`, `MLFLOW_TRACKING_URI`).
"""

import dataclasses
import importlib.util
import json
import os
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any, Protocol

from gradmix_jax import workdir as workdir_lib

PROJECT = "gradmix_jax"  # default project of Weights & Biases and experiment of MLflow


class Tracker(Protocol):
    """The object that an entry opens. Its methods may raise anything; training then continues without it."""

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Record scalars after `step` steps."""

    def summarize(self, step: int, results: dict[str, float]) -> None:
        """Record the metrics of an evaluation after `step` steps, replacing those of an earlier one."""

    def close(self) -> None:
        """Write any remaining data."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """An entry of TRACKERS.

    Attributes:
      title: its name in warnings.
      package: the package that it imports.
      install: the package to install for it.
      open: (workdir, number of steps already done) -> `Tracker`; called once, when training starts or resumes.
    """

    title: str
    package: str
    install: str
    open: Callable[[str, int], Tracker]

    @property
    def installed(self) -> bool:
        found = importlib.util.find_spec(self.package)
        return found is not None and found.origin is not None  # None: a folder of that name, such as ./wandb


def _import_tensorboard():
    # If PyTorch is installed, as in Colab, tensorboardX imports it, which takes seconds for classes that are not used.
    hidden = {"torch"} - sys.modules.keys()
    sys.modules.update(dict.fromkeys(hidden))
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
    finally:
        for name in hidden:
            del sys.modules[name]
    return EventsWriter, event_pb2


class TensorBoard:
    """An event file for TensorBoard, written without a thread.

    The writer thread of tensorboardX dies on a full disk, and its queue then blocks forever.

    Args:
      workdir: directory of the run; the file is in its folder `tensorboard`.
      start_step: events of earlier files past this step are hidden.

    Raises:
      OSError: the file cannot be written; `write` and `close` raise it too.
    """

    def __init__(self, workdir: str, start_step: int):
        events_writer, self._event_pb2 = _import_tensorboard()
        directory = workdir_lib.path(workdir, workdir_lib.TENSORBOARD)
        os.makedirs(directory, exist_ok=True)
        self._events = events_writer(os.path.join(directory, "events"))
        if start_step:
            start = self._event_pb2.SessionLog(status=self._event_pb2.SessionLog.START)
            first = start_step + 1  # TensorBoard hides earlier events from this step on
            self._events.write_event(self._event_pb2.Event(step=first, wall_time=time.time(), session_log=start))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        event = self._event_pb2.Event(step=step, wall_time=time.time())
        for name, value in scalars.items():
            event.summary.value.add(tag=name, simple_value=value)
        self._events.write_event(event)
        self._events.flush()

    summarize = write  # of several values of a step, TensorBoard shows the newest

    def close(self) -> None:
        self._events.close()


class WeightsAndBiases:
    """A run of Weights & Biases, offline in the workdir's folder `wandb` unless WANDB_MODE says otherwise.

    `wandb sync` uploads an offline run later. A resumed run continues under the same id. Its steps only increase, so
    the values that an interrupted run wrote past its last checkpoint stay and are not written again.
    """

    def __init__(self, workdir: str, start_step: int):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # crash reports go to another machine, too
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", os.path.basename(os.path.abspath(workdir))),
            id=_kept_id(workdir, "wandb", lambda: uuid.uuid4().hex[:8]),
            resume="allow",
            dir=workdir,
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=_config(workdir),
            settings=wandb.Settings(console="off", silent=True),
        )

    def write(self, step: int, scalars: dict[str, float]) -> None:
        self._run.log(scalars, step=step)

    def summarize(self, step: int, results: dict[str, float]) -> None:
        # Not in the history, whose steps only increase, because a run may be evaluated again at its last step.
        self._run.summary.update({**results, "evaluated_step": step})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow, in files in the workdir's folder `mlruns` unless MLFLOW_TRACKING_URI says otherwise.

    A resumed run continues the same MLflow run after the last recorded step.
    """

    def __init__(self, workdir: str, start_step: int):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            # Files, because mlflow-skinny comes without a database; MLflow 3 needs this variable to allow them.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = f"file://{os.path.join(os.path.abspath(workdir), 'mlruns')}"
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric, self._client = Metric, MlflowClient(tracking_uri=uri)
        self._run = _kept_id(workdir, "mlflow", lambda: self._start(workdir))
        # A parameter keeps its first value: a later evaluation may have another, and writing it again is an error.
        known = self._client.get_run(self._run).data.params
        config = {name: value for name, value in _flat(_config(workdir)).items() if name not in known}
        config = [Param(name, value[:6000]) for name, value in config.items()]
        for first in range(0, len(config), 100):  # at most 100 in one call
            self._client.log_batch(self._run, params=config[first : first + 100])
        history = self._client.get_metric_history(self._run, "loss") if start_step else []
        self._last = max((metric.step for metric in history), default=-1)

    def _start(self, workdir: str) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        return self._client.create_run(experiment, run_name=os.path.basename(os.path.abspath(workdir))).info.run_id

    def write(self, step: int, scalars: dict[str, float]) -> None:
        if step > self._last:
            self.summarize(step, scalars)

    def summarize(self, step: int, results: dict[str, float]) -> None:
        now = int(1000 * time.time())  # of several values of a step, the newest counts
        metrics = [self._metric(name, float(value), now, step) for name, value in results.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run)


TRACKERS = {
    "tensorboard": Entry("TensorBoard events", "tensorboardX", "tensorboardX", TensorBoard),
    "wandb": Entry("Weights & Biases", "wandb", "wandb", WeightsAndBiases),
    "mlflow": Entry("MLflow", "mlflow", "mlflow-skinny", MLflow),
}


def _kept_id(workdir: str, tracker: str, new: Callable[[], str]) -> str:
    """The id of the run in a tracker: the one recorded by an earlier start, or a new one, which is recorded."""
    try:
        kept = workdir_lib.read_json(workdir, workdir_lib.TRACKED)
    except ValueError:
        kept = {}
    if not isinstance(kept.get(tracker), str):
        kept[tracker] = new()
        workdir_lib.write_json(workdir, workdir_lib.TRACKED, kept)
    return kept[tracker]


def _config(workdir: str) -> dict[str, Any]:
    """config.json of the run; {} without one."""
    try:
        return workdir_lib.read_json(workdir, workdir_lib.CONFIG)
    except ValueError:
        return {}


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """{"section.key": value as JSON}."""
    flat: dict[str, str] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: json.dumps(value)}
    return flat
