"""The benchmarks run, at sizes where their numbers mean nothing, and print their tables."""

import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[1]
COMMANDS = {
    "communication": ["--width=4", "--batch=128"],
    "evaluation": ["--scale=0.1", "--repeats=1"],
    "large_batch": ["--width=4", "--step_batches=128"],
    "loop": ["--width=4", "--batch=32", "--steps=4", "--repeats=1"],
    "roofline": ["--width=4", "--batches=16", "--repeats=1"],
    "startup": ["--repeats=1", "--config.model.width=4"],
    "streaming": ["--workers=1", "--seconds=0.2"],
    "step_cost": ["--width=4", "--batch=16", "--repeats=2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_prints_its_table(name):
    # Its own process sets its own flags: the virtual devices of the tests would change what is measured.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    command = [sys.executable, f"benchmarks/{name}.py", *COMMANDS[name]]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=900)
    assert result.returncode == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) >= 2 and all(line.rstrip().endswith("|") for line in rows), result.stdout
    assert re.search(r"\d", rows[-1]) and f"jax {jax.__version__}" in result.stdout
    assert "nan" not in result.stdout


def test_every_benchmark_is_run_here():
    # scoring.py has no table, hlo.py and resnet18.py are what others share, and torch is not among the tests'
    # requirements (tests/test_against_torch.py), nor are compilers for devices that are not here (tests/test_hlo.py).
    names = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert names - {"ahead_of_time", "against_torch", "hlo", "resnet18", "scoring", "torch_gradmix"} == set(COMMANDS)
