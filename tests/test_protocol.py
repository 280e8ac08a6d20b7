"""All trials of an experiment: run, skipped when finished, printed for a scheduler."""

import json
import os
import pathlib
import subprocess
import sys
import types

import commands
import jax
import numpy as np
import pytest
import untrained_runs
from evaluated_runs import ENVIRONMENT
from programs import final_state, small_config

from gradmix_jax import assembly, protocol, run_many
from gradmix_jax import config as config_lib
from gradmix_jax import run as run_lib
from gradmix_jax.config import from_config, phase
from gradmix_jax.training import train as train_lib
from gradmix_jax.training.checkpoint import SaveError
from gradmix_jax.workdir import lock, storage

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def pretended(monkeypatch):
    """`run.run` that leaves results behind without training; returns the list of its calls."""
    calls = []

    def run(config, workdir, *, last):
        calls.append((config.dataset.trial, config.seed))
        os.makedirs(workdir, exist_ok=True)
        values = {"accuracy": 0.9, "oscr": 0.8, "auroc": 0.5 + 0.1 * config.dataset.trial, "fpr95_known_positive": 0.3}
        results = {
            "step": 2,
            "num_train": 70,
            "score": "s",
            "environment": ENVIRONMENT,
            "by_feature": {"features": values},
        }
        for name, content in {"results.json": results, "config.json": json.loads(config.to_json())}.items():
            pathlib.Path(workdir, name).write_text(json.dumps(content))

    monkeypatch.setattr(run_lib, "run", run)
    return calls


def test_runs_everything_once_and_skips_what_is_finished(pretended, tmp_path):
    config = small_config(phases=(phase("ssl", epochs=1, ssl=1.0),))
    table = protocol.run_protocol(config, str(tmp_path), [0, 2], [0, 1])
    assert pretended == [(0, 0), (0, 1), (2, 0), (2, 1)]
    # Split 0 has .5 twice, split 2 has .7 twice: the mean and sample standard deviation of the two splits.
    assert "| 0.6000 ± 0.1414 |" in table and "| 2 | 4 |" in table
    assert (tmp_path / "summary.md").read_text() == table + "\n"
    (tmp_path / "trial2_seed0" / "results.json").unlink()
    os.rename(tmp_path / "trial2_seed0", tmp_path / "gone")
    protocol.run_protocol(config, str(tmp_path), [0, 2], [0, 1])
    assert pretended[4:] == [(2, 0)]
    assert (config.dataset.trial, config.seed) == (0, 0), "the caller's config is left alone"


def test_results_of_another_config_are_refused_before_anything_is_run(pretended, tmp_path):
    config = small_config(phases=(phase("ssl", epochs=1, ssl=1.0),))
    protocol.run_protocol(config, str(tmp_path), [1], [0])
    config.optimizer.learning_rate = 0.5
    with pytest.raises(ValueError, match="trial1_seed0 holds a run with optimizer.learning_rate=0.001, not 0.5"):
        protocol.run_protocol(config, str(tmp_path), [0, 1], [0])
    assert pretended == [(1, 0)]
    # Keys that do not change the model may differ, as for a resumed run.
    config.optimizer.learning_rate, config.train.keep_checkpoints = 1e-3, 7
    protocol.run_protocol(config, str(tmp_path), [1], [0])
    assert pretended == [(1, 0)]


def test_a_stopped_run_continues_and_one_evaluated_differently_is_evaluated_again(pretended, tmp_path):
    config = small_config(phases=(phase("ssl", epochs=1, ssl=1.0),))
    protocol.run_protocol(config, str(tmp_path), [0], [0])
    protocol.run_protocol(config, str(tmp_path), [0], [0])
    assert len(pretended) == 1
    path = tmp_path / "trial0_seed0" / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 1}))  # of 2: evaluated before it was finished
    protocol.run_protocol(config, str(tmp_path), [0], [0])
    assert len(pretended) == 2
    config.evaluate.score = "knn"
    protocol.run_protocol(config, str(tmp_path), [0], [0])
    assert len(pretended) == 3


def test_a_trial_that_does_not_exist_is_found_before_the_first_one_is_run(pretended, tmp_path):
    config = small_config(phases=(phase("ssl", epochs=1, ssl=1.0),))
    with pytest.raises(ValueError, match=r"dataset\.trial .*must be an integer from 0 to 4, got 9"):
        protocol.run_protocol(config, str(tmp_path), [0, 9], [0])
    assert pretended == [] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["--trials=0,0"], "--trials must name every number once, got '0,0'."),
        (
            ["--trials=0,9", "--print_commands"],
            "dataset.trial (of benchmark 'mnist') must be an integer from 0 to 4, got 9.",
        ),
        (["seeds=1"], "unexpected argument 'seeds=1'; did you mean --seeds=1?"),
    ],
)
def test_mistakes_on_the_command_line(words, complaint):
    command = ["gradmix_jax.protocol", "--config=configs/digits_osr.py", "--workdir=w", *words]
    result = commands.run(*command)
    assert (result.returncode, result.stderr) == (2, f"error: {complaint}\n")


def test_prints_commands_that_a_shell_reads_back(tmp_path):
    arguments = ["--config=configs/digits_osr.py:layer", "--config.mix.keep_range=(0.4, 0.9)", "--workdir=runs/a b"]
    # A flag and its value may be two words.
    arguments[:1] = ["--config", "configs/digits_osr.py:layer"]
    command = ["gradmix_jax.protocol", *arguments, "--trials=1,3", "--print_commands"]
    result = commands.run(*command)
    assert result.stdout.splitlines() == [
        "python -m gradmix_jax.main --config=configs/digits_osr.py:layer '--config.mix.keep_range=(0.4, 0.9)' "
        f"--config.dataset.trial={trial} --config.seed=0 '--workdir=runs/a b/trial{trial}_seed0'"
        for trial in (1, 3)
    ]


def test_numbers_are_checked():
    command = ["gradmix_jax.protocol", "--config=configs/digits_osr.py", "--workdir=w"]
    result = commands.run(*command, "--trials=0,x")
    assert (
        result.returncode == 2 and result.stderr == "error: --trials must be numbers separated by commas, got '0,x'.\n"
    )


def _failing(monkeypatch, trial, error):
    """Make the pretended `run.run` fail on a trial; emptying the returned list makes the trial work again."""
    pretend, broken = run_lib.run, [trial]

    def run(config, workdir, *, last):
        if config.dataset.trial in broken:
            raise error
        return pretend(config, workdir, last=last)

    monkeypatch.setattr(run_lib, "run", run)
    return broken


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("the loss of step 3 is nan."), "the loss of step 3 is nan."),
        (MemoryError("so large\nindeed"), "MemoryError: so large indeed"),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)
def test_a_run_that_fails_is_kept_with_its_reason_and_the_others_go_on(
    pretended, tmp_path, monkeypatch, capsys, error, reason
):
    broken = _failing(monkeypatch, 1, error)
    config = small_config(phases=(phase("ssl", epochs=1, ssl=1.0),))
    table = protocol.run_protocol(config, str(tmp_path), [0, 1, 2], [0])
    assert pretended == [(0, 0), (2, 0)]
    assert "| 2 | 2 |" in table and "failed: trial1" in table.replace("\\", "")
    assert (tmp_path / "summary.md").read_text() == table + "\n"
    assert json.loads((tmp_path / "trial1_seed0" / "failed.json").read_text())["error"] == reason
    said = capsys.readouterr().err
    assert f"trial1_seed0 failed: {reason}\n" in said and "1 of 3 runs failed; rerun the command" in said
    assert [run_many.complete(str(tmp_path / f"trial{trial}_seed0")) for trial in (0, 1, 2)] == [True, False, True]
    broken.clear()
    table = protocol.run_protocol(config, str(tmp_path), [0, 1, 2], [0])
    assert pretended[2:] == [(1, 0)] and "failed" not in table and "| 3 | 3 |" in table
    assert not (tmp_path / "trial1_seed0" / "failed.json").exists()


@pytest.mark.parametrize("kind", [ValueError, SaveError])
def test_where_every_run_fails_the_reason_is_the_error(pretended, tmp_path, monkeypatch, kind):
    _failing(monkeypatch, 0, kind("no data."))
    config = small_config(phases=(phase("ssl", epochs=1, ssl=1.0),))
    with pytest.raises(ValueError, match=r"^none of the 2 runs has results; .*trial0_seed0: no data\.$") as raised:
        protocol.run_protocol(config, str(tmp_path), [0], [0, 1])
    assert storage.may_pass(raised.value) == (kind is SaveError)


def _change(folder, name, **entries):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / "results.json").write_text('{"st'), "is damaged: Unterminated string"),
        (lambda folder: _change(folder, "results.json", seed=7), "is of seed 7, and config.json of seed 1; restore"),
        (lambda folder: _change(folder, "results.json", trial=7), "is of trial 7, and config.json of trial 0; restore"),
    ],
)
def test_results_that_cannot_count_are_named_and_kept(pretended, tmp_path, change, reason):
    config = small_config(phases=(phase("ssl", epochs=1, ssl=1.0),))
    protocol.run_protocol(config, str(tmp_path), [0], [0, 1, 2])
    folder = tmp_path / "trial0_seed1"
    change(folder)
    before = (folder / "results.json").read_text()
    table = protocol.run_protocol(config, str(tmp_path), [0], [0, 1, 2])
    assert "| 1 | 2 |" in table and len(pretended) == 3 and (folder / "results.json").read_text() == before
    said = json.loads((folder / "failed.json").read_text())["error"]
    assert reason in said and said.endswith(f"; delete {folder}/results.json to evaluate the run again.")
    (folder / "results.json").unlink()
    assert "| 1 | 3 |" in protocol.run_protocol(config, str(tmp_path), [0], [0, 1, 2]) and len(pretended) == 4


def test_results_without_a_number_of_images_are_made_again(pretended, tmp_path):
    config = small_config(phases=(phase("ssl", epochs=1, ssl=1.0),))
    protocol.run_protocol(config, str(tmp_path), [0], [0])
    _change(tmp_path / "trial0_seed0", "results.json", num_train=None)
    protocol.run_protocol(config, str(tmp_path), [0], [0])
    assert len(pretended) == 2


def test_runs_of_two_machines_are_averaged(pretended, tmp_path):
    """Paths and other keys that a resumed run may change do not matter."""
    config = small_config(phases=(phase("ssl", epochs=1, ssl=1.0),))
    protocol.run_protocol(config, str(tmp_path), [0], [0])
    config.dataset.data_dir, config.train.workers = "/elsewhere", 3
    assert "| 1 | 2 |" in protocol.run_protocol(config, str(tmp_path), [0], [0, 1])


@pytest.mark.parametrize("is_link", [False, True])
def test_a_file_in_place_of_a_run_is_found_before_anything_is_run(pretended, tmp_path, is_link):
    path = tmp_path / "trial1_seed0"
    path.symlink_to("nowhere") if is_link else path.write_text("x")
    config = small_config(phases=(phase("ssl", epochs=1, ssl=1.0),))
    kind = "dangling link" if is_link else "file"
    with pytest.raises(ValueError, match=f"^--workdir must be a directory, got the {kind} '{path}'.$"):
        protocol.run_protocol(config, str(tmp_path), [0, 1], [0])
    assert pretended == []


def test_ctrl_c_ends_all_of_them(pretended, tmp_path, monkeypatch):
    _failing(monkeypatch, 0, KeyboardInterrupt())
    config = small_config(phases=(phase("ssl", epochs=1, ssl=1.0),))
    with pytest.raises(KeyboardInterrupt):
        protocol.run_protocol(config, str(tmp_path), [0, 1], [0])
    assert pretended == [] and not list(tmp_path.iterdir())


def test_a_run_of_another_process_is_left_alone(pretended, tmp_path, monkeypatch):
    _failing(monkeypatch, 1, lock.LockedError("in use."))
    config = small_config(phases=(phase("ssl", epochs=1, ssl=1.0),))
    assert "in use." in protocol.run_protocol(config, str(tmp_path), [0, 1], [0])
    assert not (tmp_path / "trial1_seed0").exists()


@pytest.mark.parametrize(("failed", "status"), [([], None), ([1], 3)])
def test_the_status_says_that_a_run_failed(failed, status, pretended, tmp_path, monkeypatch, capsys):
    broken = _failing(monkeypatch, 1, ValueError("no disk."))
    broken[:] = failed
    config = small_config(phases=(phase("ssl", epochs=1, ssl=1.0),))
    options = dict(config=config, workdir=str(tmp_path), trials=["0", "1"], seeds=["0"], print_commands=False)
    monkeypatch.setattr(protocol.flags, "FLAGS", types.SimpleNamespace(**options))
    if status is None:
        protocol.main(["protocol"])
    else:
        with pytest.raises(SystemExit) as ended:
            protocol.main(["protocol"])
        assert ended.value.code == status
    assert "| 1 | 1 |" in capsys.readouterr().out or not failed


@pytest.mark.parametrize(("trials", "seeds", "times"), [([0], 12, 2), ([0, 1], 3, 2), ([0], 10, 1)])
def test_programs_are_freed_after_some_seeds_and_every_split(pretended, tmp_path, monkeypatch, trials, seeds, times):
    freed = []
    monkeypatch.setattr(run_many, "forget_programs", lambda: freed.append(len(pretended)))
    config = small_config(**{"dataset.benchmark": "random", "dataset.num_known": 4})
    assert not run_many.run_all(run_many.check_runs(config, str(tmp_path), trials, list(range(seeds)), num_devices=8))
    assert len(freed) == times and freed[-1] == len(trials) * seeds


def test_a_program_is_kept_for_other_seeds_and_for_nothing_else():
    last, sizes = assembly.LastProgram(), dict(num_classes=4, num_images=64)

    def program(seed=0, num_images=64, **keys):
        config = small_config(**keys)
        config.seed = seed
        experiment = from_config(config_lib.to_plain(config), num_devices=8)
        return last.of(experiment, **sizes | {"num_images": num_images})

    kept = program(seed=0)
    assert program(seed=1) == kept and program(seed=0)[1] is kept[1]
    mapped, static = kept
    assert train_lib._compiled(static, mapped, False) is train_lib._compiled(static, mapped, False)
    for keys in ({"mix.method": "cutmix"}, {"dataset.trial": 1}, {"optimizer.learning_rate": 0.5}, {"num_images": 65}):
        other = program(**keys)
        assert other[1] is not kept[1], keys
        assert train_lib._compiled(other[1], other[0], False) is not train_lib._compiled(static, mapped, False)
        kept = mapped, static = program(seed=0)


@pytest.mark.slow
def test_seeds_share_one_compiled_step_and_stay_what_they_are(tmp_path, monkeypatch):
    made = []
    make = train_lib.step_lib.make_train_step
    monkeypatch.setattr(train_lib.step_lib, "make_train_step", lambda *a, **k: made.append(0) or make(*a, **k))
    config = untrained_runs.digits(**{"evaluate.scores": (), "evaluate.stages": ()})
    shared, alone = str(tmp_path / "shared"), str(tmp_path / "alone")
    planned = run_many.check_runs(config, shared, [0], [0, 1], num_devices=8)
    assert not run_many.run_all(planned) and len(made) == 1
    assert not run_many.run_all(run_many.check_runs(config, alone, [0], [1], num_devices=8)) and len(made) == 2
    others = run_many.check_runs(config, str(tmp_path / "others"), [0, 1], [0], num_devices=8)
    assert not run_many.run_all(others) and len(made) == 4
    states = [final_state(planned[1][0], f"{parent}/trial0_seed1") for parent in (shared, alone)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    first = final_state(planned[0][0], f"{shared}/trial0_seed0")
    assert not np.array_equal(jax.tree.leaves(first.params)[0], jax.tree.leaves(states[0].params)[0])


MEMORY = """
import sys, tempfile
from programs import small_config
from gradmix_jax import run_many as run
from gradmix_jax.config import phase
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
config = small_config("input", phases=(phase("joint", epochs=1, supcon=1.0, ssl=1.2),))
config.dataset.channels, config.train.batch_size = 1, 256
config.normalization.mean, config.normalization.std = (0.5,), (0.25,)
config.evaluate.scores = ("topk_cosine",)
workdir, used = tempfile.mkdtemp(), []
for planned in run.runs(config, workdir, [0], list(range(8))):
    assert not run.run_all([planned])
    used.append(int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6)
print(*used)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_runs():
    """385 MB after five runs and 388 MB after eight; it used to grow by 60 MB with every run."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": path, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    command = [sys.executable, "-c", MEMORY]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert result.returncode == 0, result.stderr
    used = [float(word) for word in result.stdout.split()]
    assert len(used) == 8 and used[7] - used[3] < 60, used
