"""A run in a bucket that is stopped, fails, is killed, resumed, evaluated and reported has the bits of a local run."""

import os
import signal

import commands
import fake_bucket
import jax
import numpy as np
import pytest
from pods import Pod
from programs import final_state, small_config

from gradmix_jax import compare, figure, report, run_many, stored, sweep
from gradmix_jax import run as run_lib
from gradmix_jax.config import phase
from gradmix_jax.portable import files, from_run
from gradmix_jax.predict import OpenSetClassifier
from gradmix_jax.training.checkpoint import SaveError
from gradmix_jax.workdir import storage

WORKDIR = "gs://b/runs/a"
PHASES = (phase("joint", epochs=3, supcon=1.0, ssl=1.2),)


def digits(**overrides):
    config = small_config(phases=PHASES, **overrides)
    config.dataset.channels, config.seed = 1, 1
    config.normalization.mean, config.normalization.std = (0.5,), (0.25,)
    config.train.batch_size, config.train.log_every_steps = 256, 1
    config.train.checkpoint_every_epochs = 1
    config.evaluate.scores, config.evaluate.stages = ("topk_cosine",), ()
    return config


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The workdir of a run on a disk."""
    workdir = str(tmp_path_factory.mktemp("local") / "a")
    run_lib.run(digits(), workdir)
    return workdir


@pytest.fixture
def bucket(tmp_path):
    with fake_bucket.installed(tmp_path / "bucket") as kind:
        yield kind


def _content(workdir):
    """The output of a run, except what depends on time and place."""
    results = stored.results(workdir)
    for name in ("environment", "seconds"):
        results.pop(name)
    metrics = [{k: v for k, v in line.items() if k != "steps_per_second"} for line in stored.metrics(workdir)]
    config = stored.config(workdir, {}, lambda config: config)
    arrays = {}
    for name in ("scores.npz", "features.npz", "gallery.npz"):
        found = stored.arrays(workdir, name)
        arrays |= {f"{name}/{each}": found[each].tobytes() for each in found}
    return {"results": results, "metrics": metrics, "config": config} | arrays


def _same(workdir, local):
    ours, theirs = _content(workdir), _content(local)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name] == value, name
    first, second = final_state(digits(), workdir), final_state(digits(), local)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(first), jax.device_get(second))


@pytest.mark.slow
def test_stopped_failed_and_resumed_it_has_the_bits_of_a_run_on_a_disk(local, bucket, tmp_path, capsys):
    markers = []

    def fail(operation, name):
        if operation == "put" and "/checkpoints/" in name:
            if markers:
                raise RuntimeError("503")
            markers.extend([name] if name.endswith(".json") else [])

    bucket.fail = staticmethod(fail)
    said = rf"cannot be saved in {WORKDIR}/checkpoints .*RuntimeError: 503.*; step 2 is the newest there; rerun"
    with pytest.raises(SaveError, match=said):
        run_lib.run(digits(), WORKDIR)
    stopped = []

    def stop(operation, name):
        if operation == "put" and "/checkpoints/" in name and name.endswith(".json") and not stopped:
            stopped.append(name)
            os.kill(os.getpid(), signal.SIGTERM)

    bucket.fail = staticmethod(stop)
    with pytest.raises(SystemExit, match="143"):
        run_lib.run(digits(), WORKDIR)
    assert stopped and not storage.exists(f"{WORKDIR}/lock.json") and not storage.exists(f"{WORKDIR}/results.json")
    bucket.fail = staticmethod(lambda operation, name: None)
    run_lib.run(digits(), WORKDIR)
    _same(WORKDIR, local)
    assert {"config.json", "env.json", "parameters.txt", "tensorboard"} <= set(storage.names(WORKDIR))
    assert run_many.is_finished(digits(), WORKDIR) and run_many.complete(WORKDIR)

    # What reads a run reads it there.
    capsys.readouterr()
    page, *_ = report.write([WORKDIR], "gs://b/report")
    assert page == "gs://b/report/report.html" and b"AUROC" in storage.read(page)
    assert compare.expand(["gs://b/runs"]) == [WORKDIR]
    figure.grid(WORKDIR, str(tmp_path / "grid.png"), rows=2)
    classifier = from_run.load(WORKDIR)
    files.write(classifier, str(tmp_path / "model"))
    for name in storage.files_below(str(tmp_path / "model")):
        storage.upload(str(tmp_path / "model" / name), f"gs://b/model/{name}")
    image = np.zeros((1, 8, 8, 1), np.uint8)
    assert (
        OpenSetClassifier.load(WORKDIR, threshold=0.0).predict(image).score_N
        == OpenSetClassifier.load(local, threshold=0.0).predict(image).score_N
    )
    np.testing.assert_allclose(
        OpenSetClassifier.load("gs://b/model", threshold=0.0).predict(image).score_N,
        OpenSetClassifier.load(local, threshold=0.0).predict(image).score_N,
        rtol=1e-5,
    )


ARGUMENTS = [
    "--config=digits_osr",
    "--config.dataset.image_size=8",
    "--config.augment.jitter_prob=0.0",
    "--config.model.width=4",
    "--config.phases[0].epochs=3",
    "--config.train.log_every_steps=1",
    "--config.train.checkpoint_every_epochs=1",
    "--config.evaluate.scores=('topk_cosine',)",
    "--config.evaluate.stages=()",
]
# Of five steps an epoch. Patterns of names, each before whose put a start of the run is killed.
KILLS = (r"/config\.json$", r"/checkpoints/5/model/", r"/checkpoints/10\.json$", r"/results\.json$")


def command(root, module, *arguments, kill="", **environment):
    words = [str(root / "bucket"), kill, module, *arguments]
    return commands.run("fake_bucket", *words, env={"XLA_FLAGS": "", **environment}, cwd=commands.ROOT / "tests")


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_killed_before_uploads_it_resumes_to_the_same_bits_and_leaves_nothing(tmp_path):
    (tmp_path / "tmp").mkdir()

    def start(workdir, kill=""):
        return command(
            tmp_path, "gradmix_jax.main", *ARGUMENTS, f"--workdir={workdir}", kill=kill, TMPDIR=str(tmp_path / "tmp")
        )

    def ours():  # tensorflow-datasets makes directories too
        return [name for name in os.listdir(tmp_path / "tmp") if name.startswith(".gradmix_jax-")]

    whole = start(tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    for kill in KILLS:
        killed = start("s3://b/run", kill)
        assert killed.returncode == -signal.SIGKILL, (kill, killed.stderr)
        assert len(ours()) == 1, "of the one that was killed last"
    left = ours()
    resumed = start("s3://b/run")
    assert resumed.returncode == 0, resumed.stderr
    assert not set(left) & set(ours())  # its own is deleted at exit, which these forks skip
    with fake_bucket.installed(tmp_path / "bucket"):
        found, theirs = _content("s3://b/run"), _content(str(tmp_path / "whole"))
        steps = [each["step"] for each in found["metrics"]]
        assert not storage.exists("s3://b/run/lock.json")
    assert found.keys() == theirs.keys() and steps == sorted(set(steps))
    for name, value in theirs.items():
        assert found[name] == value, name


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_protocol_sweep_and_the_commands_that_read_runs_work_in_a_bucket(tmp_path, monkeypatch):
    words = [*ARGUMENTS, "--config.phases[0].epochs=1", "--trials=0,1", "--workdir=gs://b/p"]
    done = command(tmp_path, "gradmix_jax.protocol", *words)
    assert done.returncode == 0, done.stderr
    again = command(tmp_path, "gradmix_jax.protocol", *words)
    assert again.returncode == 0 and again.stdout == done.stdout and "trial 0" not in again.stderr
    runs = ["gs://b/p/trial0_seed0", "gs://b/p/trial1_seed0/"]
    for module, arguments in {
        "report": [*runs, "--out=gs://b/report"],
        "compare": ["gs://b/p", f"--out={tmp_path / 'page'}", "--noopen"],
        "figure": [runs[0], f"--out={tmp_path / 'grid.png'}"],
        "export": [runs[0], f"--out={tmp_path / 'model'}"],
        "predict": [runs[0], str(tmp_path / "grid.png"), "--threshold=0"],
        "main": [*ARGUMENTS, "--workdir=gs://b/new", f"--config.model.init_from={runs[0]}", "--mode=train"],
    }.items():
        result = command(tmp_path, f"gradmix_jax.{module}", *arguments)
        assert result.returncode == 0, (module, result.stderr)
    assert f"arrays loaded from {runs[0]}" in result.stderr
    with fake_bucket.installed(tmp_path / "bucket"):
        assert storage.names("gs://b/p") == ["summary.md", "trial0_seed0", "trial1_seed0"]
        assert storage.exists("gs://b/report/report.html")
        overview = list(sweep.SWEEPS["overview"].items())[:2]
        monkeypatch.setitem(sweep.SWEEPS, "overview", dict(overview))
        config = digits()
        config.phases = (phase("joint", epochs=1, supcon=1.0, ssl=1.2),)
        table = sweep.run_sweep("overview", config, "gs://b/sweep", [0], [0])
        assert all(label in table for label, _ in overview) and "failed" not in table
        folders = [sweep.folder_of(label) for label, _ in overview]
        assert storage.names("gs://b/sweep") == sorted([*folders, "overview.csv", "overview.md"])
        monkeypatch.setattr(run_lib, "run", None)  # nothing is run again
        assert sweep.run_sweep("overview", config, "gs://b/sweep", [0], [0]) == table


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_of_two_processes_only_the_main_one_writes_to_the_bucket(tmp_path):
    code = f"""
sys.path.append({str(commands.ROOT / "tests")!r})
import fake_bucket
def fail(operation, name):
    if index and operation in ("put", "delete"):
        raise RuntimeError(f"process 1: {{operation}} {{name}}")
fake_bucket.install({str(tmp_path / "bucket")!r}, fail=fail)
"""
    options = ("--config.train.checkpoint_every_epochs=1", "--config.evaluate.scores=('topk_cosine',)")
    for mode in ("train", "train_and_eval"):  # the second start restores
        with Pod(["gs://b/run"] * 2, (*options, f"--mode={mode}"), code=code) as pod:
            ended = pod.wait()
        assert [status for status, _ in ended] == [0, 0], ended
    with fake_bucket.installed(tmp_path / "bucket"):
        assert stored.results("gs://b/run")["failed"] == {}
        steps = [line["step"] for line in stored.metrics("gs://b/run")]
        assert steps == sorted(set(steps)) and not storage.exists("gs://b/run/lock.json")
