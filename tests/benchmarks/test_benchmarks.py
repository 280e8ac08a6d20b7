"""Every benchmark runs at a tiny size, where its numbers mean nothing, and prints its table."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import ahead_of_time
import jax
import pytest

ROOT = pathlib.Path(__file__).parents[2]
COMMANDS = {
    "communication": ["--width=4", "--batch=128"],
    "evaluation": ["--scale=0.1", "--repeats=1"],
    "huge_pages": ["--recipes=none", "--width=4", "--batch=16", "--repeats=2", "--steps=1"],
    "large_batch": ["--width=4", "--step_batches=128"],
    "loop": ["--width=4", "--batch=32", "--steps=4", "--repeats=1", "--images=400"],
    "maps": ["--folder={tmp}", "--data=digits", "--models=small_cnn", "--seeds=0,1", "--images=16", "--epochs=1"],
    "overview_cost": ["--only=CutMix"],
    "roofline": ["--width=4", "--batches=16", "--repeats=1"],
    "scoring": [
        "--images=500",
        "--bank=600",
        "--scores=1000",
        "--class_images=500",
        "--known_classes=25",
        "--repeats=1",
    ],
    "soak": ["--minutes=0.01"],
    "startup": ["--repeats=1", "--config.model.width=4"],
    "streaming": ["--workers=1", "--seconds=0.2"],
    "step_cost": ["--width=4", "--batch=16", "--repeats=2", "--steps=2"],
    "trial": ["--config=configs/digits_osr.py", "--epochs=2", "--config.model.width=4"],
    "weight_gradient": ["--repeats=1", "--most_gflop=1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_prints_its_table(name, tmp_path):
    # Each runs in its own process with its own flags, because the tests' virtual devices would change the measurement.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    arguments = [argument.replace("{tmp}", str(tmp_path)) for argument in COMMANDS[name]]
    command = [sys.executable, f"benchmarks/{name}.py", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=900)
    assert result.returncode == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) >= 2 and all(line.rstrip().endswith("|") for line in rows), result.stdout
    assert re.search(r"\d", rows[-1]) and f"jax {jax.__version__}" in result.stdout
    assert "nan" not in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("target", ahead_of_time.TARGETS)
def test_the_step_is_compiled_for_absent_devices(target, tmp_path):
    package = ahead_of_time.TARGETS[target].module.split(".")
    # Any one of its plugins makes the namespace package importable.
    if importlib.util.find_spec(package[0]) is None or importlib.util.find_spec(".".join(package)) is None:
        pytest.skip(f"needs {ahead_of_time.TARGETS[target].package}")
    command = [
        sys.executable,
        "benchmarks/ahead_of_time.py",
        target,
        "--width=4",
        "--batch=32",
        "--only=layer, stage 4",
        f"--save={tmp_path}",
    ]
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=900)
    assert result.returncode == 0, result.stderr
    rows = [line.split("|")[1:-1] for line in result.stdout.splitlines() if line.startswith("| ")]
    assert [row[0].strip() for row in rows] == ["step", "cutmix", "layer, stage 4"], result.stdout
    numbers = [float(cell.strip().removesuffix(" x")) for cell in rows[2][1:]]
    assert all(number > 0 for number in numbers) and 0.9 < numbers[6] < 1.1
    text = (tmp_path / "layer, stage 4.txt").read_text()
    whole = rf"u8\[1,{ahead_of_time.TRIAL_IMAGES},[\d,]+\]"
    assert re.search(rf"{whole}\S* parameter\(", text), "the step takes all training images"
    assert not re.search(rf"= {whole}\S* copy\(", text), "and does not copy them to pick a batch"


def test_every_benchmark_is_run_here():
    # hlo.py, resnet18.py, turns.py and both sides of evaluation.py are shared helpers. everything.py has its own tests,
    # torch is not a requirement of the tests (test_against_torch.py is skipped without it), and neither are the
    # compilers of ahead_of_time.py.
    others = {"ahead_of_time", "against_torch", "everything", "resnet18", "hlo", "torch_gradmix", "turns"}
    # published_checkpoints.py and map_study.py have their own tests.
    others |= {"evaluation_data", "evaluation_numpy", "map_study", "published_checkpoints"}
    names = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert names - others == set(COMMANDS)
