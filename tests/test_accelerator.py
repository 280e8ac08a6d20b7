"""launch/accelerator.sh: the plan and its order, failures, and a miniature of the whole script."""

import os
import re
import runpy
import shlex
import subprocess
import sys

import pytest
from test_launch import ROOT, Checkout, assert_refused

from gradmix_jax.data import class_names

SCRIPT = "launch/accelerator.sh"
RECIPES = ("none", "cutmix", "random", "layer", "input")


@pytest.fixture
def checkout(tmp_path):
    found = Checkout(tmp_path)
    found.fake_python("python")
    return found


def run(checkout, *words, **environment):
    return checkout.run("bash", SCRIPT, "--python=python", *words, **environment)


def commands(result, module):
    """The words of the printed commands that call a module."""
    lines = [shlex.split(line) for line in result.stdout.splitlines() if not line.startswith("#")]
    return [words for words in lines if module in words]


def test_the_dry_run_prints_the_plan_and_every_command_and_calls_none(checkout):
    result = checkout.run("bash", SCRIPT, "--dry_run", "--tiny_imagenet=folder:/my data", "--price=2.5")
    assert (result.returncode, result.stderr) == (0, "") and checkout.calls() == []
    assert not (checkout.root / "runs").exists()
    lines = result.stdout.splitlines()
    assert "at an assumed 2.5 $ an hour" in lines[0] and "may take twice as long" in lines[0]
    trained = commands(result, "gradmix_jax.protocol")
    order = [(trial, recipe) for trial in range(5) for recipe in RECIPES]
    value = lambda words, flag: next(word.partition("=")[2] for word in words if word.startswith(f"{flag}="))
    assert [value(words, "--config") for words in trained] == [
        f"configs/{config}.py:{recipe}" for config in ("cifar_osr", "tiny_imagenet_osr") for _, recipe in order
    ]
    assert [value(words, "--trials") for words in trained] == [str(trial) for trial, _ in 2 * order]
    assert {value(words, "--seeds") for words in trained} == {"0"}
    assert value(trained[-1], "--config.dataset.name") == "folder:/my data"
    assert len({(value(words, "--workdir"), value(words, "--trials")) for words in trained}) == 50
    assert commands(result, "benchmarks/everything.py") == [shlex.split(lines[-1])]
    assert len(commands(result, "gradmix_jax.report")) == 50
    # Every config and recipe exists.
    assert all((ROOT / value(words, "--config").partition(":")[0]).exists() for words in trained)


def test_hours_and_money_add_up(checkout):
    plan = lambda *words: checkout.run("bash", SCRIPT, "--dry_run", "--without=tiny_imagenet", *words).stdout
    first = re.findall(r"^# cifar10, (\w+), trial 0: ([\d.]+) h", plan(), re.MULTILINE)
    assert [recipe for recipe, _ in first] == [*RECIPES] and float(first[0][1]) < float(first[1][1]) < float(
        first[4][1]
    )
    # 71,370 steps of 17 ms and two minutes more.
    assert abs(float(first[1][1]) - (71_370 * 0.017 + 120) / 3600) < 0.1
    totals = lambda text: [float(each) for each in re.search(r"# Total: (\S+) h to \S+ h, (\S+) \$", text).groups()]
    hours, dollars = totals(plan())
    assert dollars == pytest.approx(3 * hours, abs=0.4)
    assert totals(plan("--price=12.34"))[1] == pytest.approx(12.34 * hours, abs=1.3)
    assert totals(plan("--dtype=bfloat16"))[0] < hours < totals(plan("--device=v5e"))[0]
    assert totals(plan("--without=tiny_imagenet,cifar10")) == [2.0, 6.0]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], ["--tiny_imagenet is missing", "--without=tiny_imagenet"]),
        (["--without=cifar"], ["--without='cifar'", "cifar10,tiny_imagenet,benchmarks"]),
        (["--price=free"], ["--price='free' must be dollars"]),
        (["--device=a100"], ["--device must be h100 or v5e, got 'a100'"]),
        (["--dtype=int8"], ["--dtype must be float32 or bfloat16, got 'int8'"]),
        (["--workdir=gs://b/x"], ["--workdir='gs://b/x' must be a folder of this machine", "copied to a bucket"]),
        (["--trials=3"], ["unknown argument '--trials=3'"]),
    ],
)
def test_wrong_arguments_are_reported_before_anything_runs(checkout, arguments, words):
    assert_refused(run(checkout, *arguments), *words)
    assert checkout.calls() == []


def test_missing_data_is_reported_before_any_training(checkout):
    result = run(checkout, "--cifar10=folder:a", "--tiny_imagenet=folder:b", FAKE_PYTHON_STATUS="2")
    assert result.returncode == 2
    assert "--cifar10=folder:a, --tiny_imagenet=folder:b" in result.stderr.splitlines()[-1]
    assert [call[2] for call in checkout.calls()] == ["gradmix_jax.data"] * 2


# A fake Python that fails for commands that $FAILING matches, and leaves results for trainings.
PYTHON = """#!/bin/sh
printf '%s\\n' "$*" >>"$CALLS"
if printf '%s' "$*" | sed -n "\\\\|$FAILING|p" | sed -n 1q1; then :; else exit "${STATUS:-1}"; fi
for word in "$@"; do case "$word" in
  --workdir=*) mkdir -p "${word#*=}/trial0_seed0" && : >"${word#*=}/trial0_seed0/results.json" ;;
esac; done
"""


@pytest.fixture
def small(checkout):
    """A checkout in which the miniature takes no time: (checkout, function that runs it)."""
    (checkout.bin / "python").unlink()
    checkout._write("python", PYTHON)

    def run_small(failing="no such word", **environment):
        result = run(checkout, "--miniature", "--without=tiny_imagenet", FAILING=failing, **environment)
        calls = checkout.calls_file.read_text().splitlines()
        checkout.calls_file.unlink()
        return result, calls

    return run_small


def test_after_every_run_the_report_covers_all_runs_with_results(small):
    result, calls = small()
    assert result.returncode == 0, result.stderr
    reports = [call.split() for call in calls if "gradmix_jax.report" in call]
    shown = [[word.split("/")[-2] for word in words if word.endswith("trial0_seed0")] for words in reports]
    assert shown == [sorted(RECIPES[:number]) for number in range(1, 6)]
    assert "everything.py" in calls[-1]


def test_a_failed_step_does_not_stop_the_others_and_is_named_at_the_end(small):
    result, calls = small("cifar_osr.py:random")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "accelerator.sh: failed: cifar10, random, trial 0 (status 1)"
    assert sum("gradmix_jax.protocol" in call for call in calls) == 5 and "everything.py" in calls[-1]


@pytest.mark.parametrize("status", ["130", "143"])
def test_an_interrupted_step_stops_the_script(small, status):
    result, calls = small("cifar_osr.py:cutmix", STATUS=status)
    assert result.returncode == 2 and "stopped during cifar10, cutmix, trial 0; run the same command" in result.stderr
    assert "cutmix" in calls[-1]


@pytest.mark.parametrize("name, published", [("cifar10", "cifar10"), ("tiny_imagenet", "")])
def test_the_classes_of_the_miniature_are_those_of_its_benchmark(name, published):
    classes, _ = runpy.run_path(os.path.join(ROOT, "launch", "miniature.py"))["DATA"][name]
    assert class_names.ids_in(class_names.in_order(classes), published, range(len(classes)), whole=True) == tuple(
        range(len(classes))
    )


@pytest.mark.slow
def test_a_miniature_of_the_whole_script(tmp_path):
    words = ["bash", SCRIPT, "--miniature", f"--workdir={tmp_path}/out", f"--python={sys.executable}"]
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    for number in range(2):  # the second time, nothing is left to do
        result = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500)
        assert result.returncode == 0, result.stderr
        trained = re.findall(r"^trial 0, seed 0: ", result.stderr, re.MULTILINE)
        assert len(trained) == (0 if number else 10)
    for data in ("cifar10", "tiny_imagenet"):
        page = (tmp_path / "out" / data / "report" / "results.md").read_text()
        assert all(re.search(rf"^\| {recipe} ", page, re.MULTILINE) for recipe in RECIPES)
        assert "hardware: " in page and "commit: " in page
    assert "images/s" in (tmp_path / "out/benchmarks/streaming.md").read_text()
