"""A whole trial estimated from a stretch of it; run times are made up here, so the answer is known."""

import os
import re
import subprocess

import pytest
import startup
import trial

EPOCHS = {"ssl": 600, "joint": 10}  # of the paper's recipe


def run_of(steps, before=100.0, step=0.5, after=40.0, longer=()):
    """What a run reports: `steps` steps of `step` seconds; those in `longer` take a second more."""
    ends, now = [], before
    for index in range(steps):
        now += (step if index else 0) + (index in longer)
        ends.append(now)
    return {"first step": before, "steps": ends, "results": ends[-1] + after}


def answer(monkeypatch, capsys, marks, *words):
    given = []
    monkeypatch.setattr(startup, "run_main", lambda config, overrides, cache: given.append(overrides) or marks)
    monkeypatch.setattr("sys.argv", ["trial.py", *words])
    trial.main()
    printed = capsys.readouterr().out
    rows = dict(re.findall(r"^\| ([a-z ]+)(?:, [\d.]+ min)? \| ([\d.]+) \|", printed, re.MULTILINE))
    return given[0], {name: float(seconds) for name, seconds in rows.items()}, printed


def test_a_stretch_is_extrapolated_to_all_epochs(monkeypatch, capsys):
    # 20 + 1 epochs of 3 steps, and a checkpoint of a second in the middle: 60 intervals from the third step on.
    overrides, seconds, printed = answer(monkeypatch, capsys, run_of(63, longer=[40]), "--epochs=20", "--config.seed=1")
    assert overrides == ["--config.phases[0].epochs=20", "--config.phases[1].epochs=1", "--config.seed=1"]
    step = 0.5 + 1 / 60
    assert seconds["training"] == pytest.approx((3 * sum(EPOCHS.values()) - 1) * step, abs=0.06)
    assert seconds["until the first step"] == 100.0 and seconds["last step to results"] == 40.0
    assert seconds["whole trial"] == pytest.approx(140 + seconds["training"], abs=0.2)
    assert "an epoch: 1.50 s, median" in printed and "longest step in excess of the median: 1.00 s" in printed


def test_a_whole_trial_is_measured(monkeypatch, capsys):
    words = "--config=configs/digits_osr.py", "--epochs=60"
    overrides, seconds, _ = answer(monkeypatch, capsys, run_of(60, longer=[1]), *words)
    assert overrides == ["--config.phases[0].epochs=60"]
    # Everything, including the slow second step, which a stretch leaves out.
    assert seconds["training"] == pytest.approx(59 * 0.5 + 1)


@pytest.mark.parametrize("steps, enough", [(3, False), (4, True)])
def test_a_stretch_of_too_few_steps_is_rejected(monkeypatch, capsys, steps, enough):
    words = "--config=configs/digits_osr.py", "--epochs=2"
    if enough:
        assert answer(monkeypatch, capsys, run_of(steps), *words)[1]["whole trial"] > 0
        return
    with pytest.raises(SystemExit) as stopped:
        answer(monkeypatch, capsys, run_of(steps), *words)
    assert stopped.value.code == 2
    assert "the stretch has 3 steps but needs 4; raise --epochs" in capsys.readouterr().err


@pytest.mark.parametrize("epochs", [0, 601])
def test_more_epochs_than_the_config_has_are_rejected(monkeypatch, capsys, epochs):
    with pytest.raises(SystemExit) as stopped:
        answer(monkeypatch, capsys, run_of(4), f"--epochs={epochs}")
    assert stopped.value.code == 2
    assert f"--epochs must be from 1 to 600, the config's, got {epochs}." in capsys.readouterr().err


def test_the_child_process_imports_what_its_parent_imports(monkeypatch):
    seen = {}

    def run(command, *, env, **_):
        seen.update(env)
        return subprocess.CompletedProcess(command, 1, "", "stopped here")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("PYTHONPATH", "/packages")
    with pytest.raises(SystemExit, match="stopped here"):
        startup.run_main("configs/digits_osr.py", [], cache="/cache")
    assert seen["PYTHONPATH"] == f"{os.getcwd()}{os.pathsep}/packages" and seen["JAX_COMPILATION_CACHE_DIR"] == "/cache"
