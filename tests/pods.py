"""Commands in several processes over loopback, as on several hosts; each is killed at a hard time limit."""

import os
import pathlib
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
# The main job, preceded by the changes of a test.
JOB = """
import runpy, sys
from gradmix_jax import pod
from gradmix_jax.pod import agreement, joining, watching
from gradmix_jax.training import mapping
mapping.SMALLEST_SHARDED = 64
index = next((int(word.partition("=")[2]) for word in sys.argv if word.startswith("--process_id=")), 0)
exec(sys.argv[1])
sys.argv = ["main", *sys.argv[2:]]
runpy.run_module("gradmix_jax.main", run_name="__main__")
"""
DIGITS = (
    "--config=configs/digits_osr.py",
    "--config.dataset.image_size=8",
    "--config.augment.jitter_prob=0.0",
    "--config.model.width=4",
    "--config.phases[0].epochs=2",
    "--config.train.log_every_steps=1",
)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


class Pod:
    """Processes of one command, each with 8 / count devices.

    Args:
      workdirs: one for each process.
      options: arguments of all processes.
      each: {process: its additional arguments}.
      code: executed in each process before the command; knows `index` and the modules of `pod`.
    """

    def __init__(self, workdirs, options=(), each=None, code="", devices=8, port=None):
        count, self.port = len(workdirs), port or free_port()
        flags = f"--xla_force_host_platform_device_count={devices // count} --xla_backend_optimization_level=0"
        environment = dict(os.environ, PYTHONPATH=str(ROOT), XLA_FLAGS=flags)
        self.processes = []
        for index, workdir in enumerate(workdirs):
            joined = [f"--coordinator=localhost:{self.port}", f"--num_processes={count}", f"--process_id={index}"]
            words = [*(joined if count > 1 else ()), *DIGITS, f"--workdir={workdir}", *options]
            words += (each or {}).get(index, [])
            command = [sys.executable, "-c", JOB, code, *words]
            pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            self.processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, **pipes))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def __getitem__(self, index):
        return self.processes[index]

    def wait(self, timeout=240):
        """(exit status, standard error) of each process."""
        deadline, ended = time.monotonic() + timeout, []
        for process in self.processes:
            errors = process.communicate(timeout=max(1, deadline - time.monotonic()))[1]
            ended.append((process.returncode, errors))
        return ended

    def wait_for_steps(self, workdir, count, timeout=240):
        """Wait until metrics of this many steps have been written."""
        metrics, deadline = pathlib.Path(workdir) / "metrics.jsonl", time.monotonic() + timeout
        while not metrics.exists() or len(metrics.read_text().splitlines()) < count:
            for process in self.processes:
                assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)


def run(workdirs, options=(), status=0, timeout=240, **more):
    """Run to the end; returns the standard error of each process."""
    with Pod(workdirs, options, **more) as pod:
        ended = pod.wait(timeout)
    for found, errors in ended:
        assert found == status, "\n---\n".join(errors for _, errors in ended)
    return [errors for _, errors in ended]


def said(errors: str) -> list[str]:
    """The lines of standard error without the progress bar."""
    lines = [line.rpartition("\r")[2].strip() for line in errors.splitlines()]
    return [line for line in lines if line and not line.startswith("training:")]
