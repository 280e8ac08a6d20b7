"""Weights & Biases and MLflow: against fakes, and against the packages offline where they are installed."""

import importlib.util
import json
import sys
import textwrap
import time

import pytest

from gradmix_jax.training import trackers, tracking
from gradmix_jax.training.metrics_writer import MetricsWriter

FAKES = {
    "wandb.py": """
        import json, os, types
        class Settings(dict):
            def __init__(self, **options): super().__init__(options)
        class Run:
            def __init__(self, options):
                self.file = open(os.path.join(options["dir"], "fake_wandb.jsonl"), "a")
                self.say({name: options[name] for name in ("project", "name", "id", "resume", "mode", "config")})
                self.summary = types.SimpleNamespace(update=lambda what: self.say({"summary": what}))
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
            def get_run(self, run):
                params = {call[1]: call[2] for call in CALLS if call[0] == "param"}
                return types.SimpleNamespace(data=types.SimpleNamespace(params=params))
            def log_batch(self, run, metrics=(), params=()):
                assert run == "run 1" and not {p.key for p in params} & self.get_run(run).data.params.keys()
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
    """Fakes of the two packages, as far as they are used; removed after the test."""
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
    # Also undo what the trackers set themselves.
    for name in ("WANDB_ERROR_REPORTING", "MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(name, "true" if name.startswith("MLFLOW") else "false")


def write(workdir, names, steps, start=0):
    """Train these steps, with a loss of a tenth of the step."""
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


RESULTS = {"feature": "features", "score_name": "msp", "step": 6, "macro_f1": None, "accuracy": 0.9}
RESULTS |= {"by_score": {"features": {"msp": {"accuracy": 0.9, "auroc": 0.8, "oscr": float("nan")}}}}
HEADLINE = {"evaluation/accuracy": 0.9, "evaluation/auroc": 0.8}


def test_the_headline_of_an_evaluation_reaches_every_tracker(fakes, workdir, capsys):
    names = ("tensorboard", "wandb", "mlflow")
    write(workdir, names, (2, 4, 6))
    (workdir / "config.json").write_text(json.dumps({**CONFIG, "evaluate": {"k": 3}}))
    tracking.track_results(names, str(workdir), RESULTS)
    tracking.track_results(names, str(workdir), RESULTS | {"macro_f1": 0.7})
    import mlflow

    found = [(m.key, m.value, m.step) for m in mlflow.HISTORY if m.key.startswith("evaluation/")]
    once = [(name, value, 6) for name, value in HEADLINE.items()]
    assert found == [*once, *once, ("evaluation/macro_f1", 0.7, 6)]
    assert ("param", "evaluate.k", "3") in mlflow.CALLS
    said = [json.loads(line) for line in (workdir / "fake_wandb.jsonl").read_text().splitlines()]
    summaries = [each["summary"] for each in said if "summary" in each]
    at_step = HEADLINE | {"evaluated_step": 6}
    assert summaries == [at_step, at_step | {"evaluation/macro_f1": 0.7}]
    assert len({each["id"] for each in said if "id" in each}) == 1 and said[-1] == "finished"
    assert len(list((workdir / "tensorboard").iterdir())) >= 1
    assert "warning" not in capsys.readouterr().err


def test_a_tracker_that_fails_is_left_out(fakes, workdir, capsys):
    writer = MetricsWriter(
        str(workdir), start_step=0, total_steps=9, images_per_step=4, trackers=("wandb", "tensorboard")
    )
    for step, loss in ((1, 0.5), (2, 666.0), (3, 0.5)):
        writer.write(step, {"loss": loss})
    writer.close()
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert warnings == ["warning: cannot write Weights & Biases (the network is gone); the run continues without it."]
    assert "[3" not in (workdir / "fake_wandb.jsonl").read_text()
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 3
    assert list((workdir / "tensorboard").iterdir())


def test_a_tracker_that_cannot_start_is_left_out(fakes, workdir, capsys, monkeypatch):
    import mlflow

    monkeypatch.setattr(mlflow, "MlflowClient", lambda tracking_uri: 1 / 0)
    write(workdir, ("mlflow",), (1,))
    assert "warning: cannot write MLflow (division by zero); the run continues" in capsys.readouterr().err
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_tracker_that_is_not_installed_is_one_line(workdir, capsys, monkeypatch, tmp_path):
    """Nor does a folder of that name, which Python would import, count as an installation."""
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


def records_of(file):
    """The records of a file whose run has finished; the package's own process may still be writing it."""
    from wandb.proto import wandb_internal_pb2

    end = time.monotonic() + 20
    while True:
        found = [wandb_internal_pb2.Record.FromString(data) for data in leveldb_records(file.read_bytes())]
        if any(record.WhichOneof("record_type") == "exit" for record in found) or time.monotonic() > end:
            return found
        time.sleep(0.1)


def test_weights_and_biases_offline(workdir):
    wandb = pytest.importorskip("wandb")
    write(workdir, ("wandb",), (2, 4))
    write(workdir, ("wandb",), (6,), start=4)
    tracking.track_results(("wandb",), str(workdir), RESULTS)
    files = sorted((workdir / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 3 and len({file.name for file in files}) == 1, "one id, three starts"
    found, summary = [], {}
    for file in files:
        for record in records_of(file):
            if record.WhichOneof("record_type") == "history":
                items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
                found.append({name: json.loads(value) for name, value in items.items()})
            for item in record.summary.update:
                summary[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
    assert HEADLINE.items() <= summary.items() and summary["evaluated_step"] == 6
    assert [(each["_step"], each["loss"]) for each in found] == [(2, 0.2), (4, 0.4), (6, 0.6)]
    assert wandb.run is None, "finished"


def test_mlflow_in_files(workdir):
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    write(workdir, ("mlflow",), (2, 4, 6))
    (workdir / "config.json").write_text(json.dumps({**CONFIG, "seed": 4}))  # as an evaluation may change a key
    write(workdir, ("mlflow",), (6, 8), start=4)
    tracking.track_results(("mlflow",), str(workdir), RESULTS)
    client = MlflowClient(tracking_uri=f"file://{workdir}/mlruns")
    (run,) = client.search_runs([client.get_experiment_by_name("gradmix_jax").experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(step, step / 10) for step in (2, 4, 6, 8)]
    assert HEADLINE.items() <= run.data.metrics.items() and run.data.params["seed"] == "3"
    assert run.data.params["mix.fill"] == '"partner"' and run.info.status == "FINISHED"
