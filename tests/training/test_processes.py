"""Two processes with four devices each, over loopback, give what one process with eight devices gives."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
JOB = """
import runpy
import sys
import jax
port, index, count, stop_at, *rest = sys.argv[1:]
if int(count) > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", int(count), int(index))
from gradmix_jax.training import mapping
mapping.SMALLEST_SHARDED = 64
if int(stop_at):
    mapping.preempted = lambda step: step == int(stop_at)
sys.argv = ["main", *rest]
runpy.run_module("gradmix_jax.main", run_name="__main__")
"""


def start(workdir, index, count, port, options, stop_at):
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={8 // count} --xla_backend_optimization_level=0"
    arguments = [
        "--config=configs/digits_osr.py",
        f"--workdir={workdir}",
        "--config.dataset.image_size=8",
        "--config.augment.jitter_prob=0.0",
        "--config.model.width=4",
        "--config.phases[0].epochs=2",
        "--config.train.log_every_steps=1",
        *options,
    ]
    command = [sys.executable, "-c", JOB, str(port), str(index), str(count), str(stop_at), *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def run(workdirs, options=(), stop_at=0, timeout=240):
    port = free_port()
    processes = [start(workdir, index, len(workdirs), port, options, stop_at) for index, workdir in enumerate(workdirs)]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=timeout)
            assert process.returncode == (143 if stop_at else 0), errors
    finally:
        # A process that waits for the other one catches SIGTERM and lives on.
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The workdir of one process's run, evaluated."""
    workdir = tmp_path_factory.mktemp("one")
    run([workdir])
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("mapping, storage", [("pmap", "resident"), ("shard_map", "stream"), ("sharded", "stream")])
def test_two_processes_without_a_shared_disk_agree_with_one(mapping, storage, one, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    # Stopped and resumed: the main process alone has the checkpoint. A snapshot in every epoch.
    options = [f"--config.train.mapping={mapping}", "--config.train.checkpoint_every_epochs=1"]
    options += [f"--config.dataset.storage={storage}"]
    run([first, second], [*options, "--mode=train"], stop_at=3)
    assert (first / "checkpoints" / "3").is_dir()
    evaluates = mapping == "pmap"  # the evaluation knows no mapping
    run([first, second], [*options, f"--mode={'train_and_eval' if evaluates else 'train'}"])
    assert not second.exists(), "only the main process writes"
    lines = lambda workdir: [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = lambda workdir: [line["loss"] for line in lines(workdir)]
    assert len(losses(first)) == len(losses(one)) == 10
    np.testing.assert_allclose(losses(first), losses(one), rtol=1e-4)
    if evaluates:
        results = [json.loads((path / "results.json").read_text()) for path in (one, first)]
        assert results[1]["auroc"] == pytest.approx(results[0]["auroc"], abs=1e-3)
        assert results[1]["environment"]["processes"] == 2
