"""A run in a bucket: stopped, failed, resumed, evaluated and reported, it has the bits of one on a disk."""

import os
import signal

import fake_bucket
import jax
import numpy as np
import pytest
from programs import final_state, small_config

from gradmix_jax import compare, figure, report, run_many, stored
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
    """What a run says, but for what depends on time and place."""
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
