"""Weights & Biases and MLflow: against fakes, and against the packages offline where they are installed."""

import importlib.util
import json
import sys
import textwrap

import pytest

from gradmix_jax.training import trackers
from gradmix_jax.training.metrics_writer import MetricsWriter

FAKES = {
    "wandb.py": """
        import json, os
        class Settings(dict):
            def __init__(self, **options): super().__init__(options)
        class Run:
            def __init__(self, options):
                self.file = open(os.path.join(options["dir"], "fake_wandb.jsonl"), "a")
                self.say({name: options[name] for name in ("project", "name", "id", "resume", "mode", "config")})
            def say(self, what):
                self.file.write(json.dumps(what) + "\\n")
                self.file.flush()
            def log(self, scalars, step):
                if scalars.get("loss") == 666: raise RuntimeError("the network is\\ngone")
                self.say([step, scalars])
            def finish(self): self.say("finished")
        def init(**options): return Run(options)
    """,
    "mlflow/__init__.py": """
        import collections, types
        CALLS, HISTORY = [], []
        class MlflowClient:
            def __init__(self, tracking_uri): CALLS.append(("uri", tracking_uri))
            def get_experiment_by_name(self, name): return None
            def create_experiment(self, name): return "experiment " + name
            def create_run(self, experiment, run_name):
                CALLS.append(("run", experiment, run_name))
                return types.SimpleNamespace(info=types.SimpleNamespace(run_id="run 1"))
            def get_metric_history(self, run, name): return [m for m in HISTORY if m.key == name]
            def log_batch(self, run, metrics=(), params=()):
                assert run == "run 1"
                HISTORY.extend(metrics)
                CALLS.extend(("param", p.key, p.value) for p in params)
            def set_terminated(self, run): CALLS.append(("end", run))
    """,
    "mlflow/entities.py": """
        import collections
        Metric = collections.namedtuple("Metric", "key value timestamp step")
        Param = collections.namedtuple("Param", "key value")
    """,
}
CONFIG = {"seed": 3, "mix": {"fill": "partner", "keep_range": [0.5, 0.9]}}


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """The two packages, each as far as it is used; gone again after the test."""
    for name, code in FAKES.items():
        file = tmp_path / "fakes" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(code))
    names = [name for name in sys.modules if name.split(".")[0] in ("wandb", "mlflow")]
    for name in [*names, "wandb", "mlflow", "mlflow.entities"]:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path / "fakes")
    yield
    for name in ("wandb", "mlflow", "mlflow.entities"):
        sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_NAME", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    # What the trackers set themselves is taken back, too.
    for name in ("WANDB_ERROR_REPORTING", "MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(name, "true" if name.startswith("MLFLOW") else "false")


def write(workdir, names, steps, start=0):
    """Train those steps, with a loss of a tenth of the step."""
    writer = MetricsWriter(str(workdir), start_step=start, total_steps=9, images_per_step=4, trackers=names)
    for step in steps:
        writer.write(step, {"loss": step / 10})
    writer.close()


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path / "run"


def test_weights_and_biases_gets_config_and_scalars_and_resumes(fakes, workdir, monkeypatch):
    write(workdir, ("wandb",), (2, 4))
    monkeypatch.setenv("WANDB_MODE", "online")
    write(workdir, ("wandb",), (6,), start=4)
    said = [json.loads(line) for line in (workdir / "fake_wandb.jsonl").read_text().splitlines()]
    first, *scalars, end, second, third, end_again = said
    assert first["mode"] == "offline" and second["mode"] == "online", "nothing is sent unless asked for"
    assert first["id"] == second["id"] and first["resume"] == "allow"
    assert (first["project"], first["name"], first["config"]) == ("gradmix_jax", "run", CONFIG)
    assert scalars == [[2, {"loss": 0.2}], [4, {"loss": 0.4}]] and third == [6, {"loss": 0.6}]
    assert end == end_again == "finished"
    assert not (workdir / "tensorboard").exists()


def test_mlflow_gets_config_and_scalars_and_no_step_twice(fakes, workdir):
    write(workdir, ("mlflow",), (2, 4, 6))
    write(workdir, ("mlflow",), (6, 8), start=4)
    import mlflow

    assert [(m.key, m.value, m.step) for m in mlflow.HISTORY] == [("loss", step / 10, step) for step in (2, 4, 6, 8)]
    assert ("uri", f"file://{workdir}/mlruns") in mlflow.CALLS
    assert [call for call in mlflow.CALLS if call[0] == "run"] == [("run", "experiment gradmix_jax", "run")]
    assert ("param", "mix.keep_range", "[0.5, 0.9]") in mlflow.CALLS and ("param", "seed", "3") in mlflow.CALLS
    assert mlflow.CALLS[-1] == ("end", "run 1")


def test_a_tracker_that_fails_is_left_out(fakes, workdir, capsys):
    writer = MetricsWriter(
        str(workdir), start_step=0, total_steps=9, images_per_step=4, trackers=("wandb", "tensorboard")
    )
    for step, loss in ((1, 0.5), (2, 666.0), (3, 0.5)):
        writer.write(step, {"loss": loss})
    writer.close()
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert warnings == ["warning: cannot write Weights & Biases (the network is gone); training continues without."]
    assert "[3" not in (workdir / "fake_wandb.jsonl").read_text()
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 3
    assert list((workdir / "tensorboard").iterdir())


def test_a_tracker_that_cannot_start_is_left_out(fakes, workdir, capsys, monkeypatch):
    import mlflow

    monkeypatch.setattr(mlflow, "MlflowClient", lambda tracking_uri: 1 / 0)
    write(workdir, ("mlflow",), (1,))
    assert "warning: cannot write MLflow (division by zero); training continues" in capsys.readouterr().err
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_tracker_that_is_not_installed_is_one_line(workdir, capsys, monkeypatch, tmp_path):
    """Neither is a folder of its name, which Python would import, an installation."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    find = importlib.util.find_spec
    hidden = lambda name: None if name == "mlflow" else find(name)
    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    names = ["mlflow"] if find("wandb").origin else ["mlflow", "wandb"]
    write(workdir, names, (1,))
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    expected = "warning: train.trackers has {!r}, which is not installed; pip install {}."
    install = {"mlflow": "mlflow-skinny", "wandb": "wandb"}
    assert warnings == [expected.format(name, install[name]) for name in names]


def test_trackers_are_a_table_with_names_for_the_config():
    from gradmix_jax.training.train import Spec

    assert Spec().trackers == ("tensorboard",)
    assert Spec(trackers=tuple(trackers.TRACKERS)).trackers == ("tensorboard", "wandb", "mlflow")
    with pytest.raises(
        ValueError, match=r"each element of train\.trackers must be one of .*got 'wandbb'; did you mean"
    ):
        Spec(trackers=("wandbb",))


def leveldb_records(data):
    """The records of an offline file: after a header of 7 bytes, blocks of 32 KiB with parts of (crc, length, type)."""
    place, parts = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def test_weights_and_biases_offline(workdir):
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    write(workdir, ("wandb",), (2, 4))
    write(workdir, ("wandb",), (6,), start=4)
    files = sorted((workdir / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1, "one id, two starts"
    found = []
    for file in files:
        for data in leveldb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
                found.append({name: json.loads(value) for name, value in items.items()})
    assert [(each["_step"], each["loss"]) for each in found] == [(2, 0.2), (4, 0.4), (6, 0.6)]
    assert wandb.run is None, "finished"


def test_mlflow_in_files(workdir):
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    write(workdir, ("mlflow",), (2, 4, 6))
    write(workdir, ("mlflow",), (6, 8), start=4)
    client = MlflowClient(tracking_uri=f"file://{workdir}/mlruns")
    (run,) = client.search_runs([client.get_experiment_by_name("gradmix_jax").experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(step, step / 10) for step in (2, 4, 6, 8)]
    assert run.data.params["mix.fill"] == '"partner"' and run.info.status == "FINISHED"
