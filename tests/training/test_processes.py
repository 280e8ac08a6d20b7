"""Two processes with two devices each, over loopback, give what one process with four devices gives."""

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
import sys
import jax
from absl import flags
port, index, count, *rest = sys.argv[1:]
if int(count) > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", int(count), int(index))
from gradmix_jax import command, main
sys.argv = ["main", *rest]
command.run(main.main)
"""


def start(workdir, index, count, port):
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={4 // count} --xla_backend_optimization_level=0"
    arguments = [
        "--config=configs/digits_osr.py",
        f"--workdir={workdir}",
        "--config.dataset.image_size=8",
        "--config.augment.jitter_prob=0.0",
        "--config.model.width=4",
        "--config.phases[0].epochs=2",
        "--config.train.log_every_steps=1",
    ]
    command = [sys.executable, "-c", JOB, str(port), str(index), str(count), *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def run(workdirs, timeout=240):
    port = free_port()
    processes = [start(workdir, index, len(workdirs), port) for index, workdir in enumerate(workdirs)]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=timeout)
            assert process.returncode == 0, errors
    finally:
        # A process that waits for the other one catches SIGTERM and lives on.
        for process in processes:
            process.kill()


@pytest.mark.slow
def test_two_processes_without_a_shared_disk_agree_with_one(tmp_path):
    run([tmp_path / "one"])
    run([tmp_path / "first", tmp_path / "second"])
    assert not (tmp_path / "second").exists(), "only the main process writes"
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "first")
    )
    assert len(one) == len(two) == 10
    np.testing.assert_allclose([line["loss"] for line in two], [line["loss"] for line in one], rtol=1e-4)
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "first")]
    assert results[1]["auroc"] == pytest.approx(results[0]["auroc"], abs=1e-3)
    assert results[1]["environment"]["processes"] == 2
