"""Running all benchmarks: nothing is lost when one fails or time runs out, and nothing is done twice."""

import re
import time

import against_torch
import everything
import pytest

from gradmix_jax import config

SCRIPTS = {
    "good": "import os, sys; print('| table |', sys.argv[1:], os.environ['XLA_FLAGS'])",
    "bad": "print('| half |'); raise SystemExit('no such device')",
    "slow": "import subprocess; child = subprocess.Popen(['sleep', '60']); print(child.pid); child.wait()",
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    for name, text in SCRIPTS.items():
        (tmp_path / "benchmarks" / f"{name}.py").write_text(text)
    listed = {
        "bad": everything.Benchmark("bad"),
        "good": everything.Benchmark("good", "--only='as it is'", "--xla_some_flag=1"),
        "slow": everything.Benchmark("slow", cold=True),
        "trial": everything.Benchmark("good"),
    }
    monkeypatch.setattr(everything, "ROOT", tmp_path)
    monkeypatch.setattr(everything.workdir_lib, "commit", lambda: ("1234abc", True))
    monkeypatch.setattr(everything, "BENCHMARKS", {"cpu": listed, "gpu": listed})
    monkeypatch.setenv("XLA_FLAGS", "--xla_mine=2")
    return tmp_path


def alive(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["everything.py", *words])
    return everything.main()


def test_a_failure_is_reported_and_the_others_run(root, monkeypatch, capsys):
    out = root / "out"
    assert run(monkeypatch, str(out), "--platform=cpu", "--only=bad,good") == 1
    printed = capsys.readouterr().out
    assert "bad: failed (no such device)" in printed and "good: done" in printed
    table = (out / "good.md").read_text().splitlines()
    assert table[0] == ("XLA_FLAGS='--xla_mine=2 --xla_some_flag=1' python benchmarks/good.py '--only=as it is'")
    assert table[1].endswith(", commit 1234abc, with changes")
    assert table[3] == "| table | ['--only=as it is'] --xla_mine=2 --xla_some_flag=1"
    assert (out / "bad.part").read_text().endswith("| half |\n")
    assert "no such device" in (out / "bad.log").read_text()
    # The output of this command includes the tables.
    assert "| half |\nno such device\nbad: failed" in printed and "\n".join(table) in printed
    assert {path.name for path in out.iterdir()} == {"good.md", "bad.part", "bad.log"}


def test_finished_benchmarks_are_not_run_again(root, monkeypatch, capsys):
    out = root / "out"
    out.mkdir()
    (out / "good.md").write_text("mine")
    assert run(monkeypatch, str(out), "--platform=cpu", "--only=good") == 0
    assert (out / "good.md").read_text() == "mine" and "good: done before" in capsys.readouterr().out


def test_when_time_runs_out_the_running_one_and_its_children_are_stopped(root, monkeypatch, capsys):
    out = root / "out"
    started = time.monotonic()
    assert run(monkeypatch, str(out), "--platform=cpu", "--only=slow,good", "--minutes=0.05") == 1
    assert time.monotonic() - started < 30
    printed = capsys.readouterr().out
    assert "slow: stopped" in printed and "good: not started, time is over" in printed
    child = int((out / "slow.part").read_text().split()[-1])
    # It was killed with its parent, but may take a moment to die.
    while alive(child) and time.monotonic() - started < 30:
        time.sleep(0.05)
    assert not alive(child) and not (out / "good.part").exists()
    # The same command continues with what is missing.
    assert run(monkeypatch, str(out), "--platform=cpu", "--only=good") == 0


def test_none_uses_up_the_time_of_the_others_and_stopped_ones_come_last(root, monkeypatch, capsys):
    out = root / "out"
    assert run(monkeypatch, str(out), "--platform=cpu", "--only=slow,good", "--each=0.03") == 1
    printed = capsys.readouterr().out
    assert printed.index("slow: stopped") < printed.index("good: done")
    (out / "good.md").unlink()
    assert run(monkeypatch, str(out), "--platform=cpu", "--only=slow,good", "--each=0.03") == 1
    printed = capsys.readouterr().out
    assert printed.index("good: done") < printed.index("slow: stopped")


def test_warnings_of_a_successful_benchmark_are_kept(root, monkeypatch, capsys):
    (root / "benchmarks" / "good.py").write_text("import sys; print('| fast |'); print('slowly', file=sys.stderr)")
    assert run(monkeypatch, str(root / "out"), "--platform=cpu", "--only=good") == 0
    assert (root / "out" / "good.log").read_text() == "slowly\n"
    assert "| fast |\nslowly\ngood: done" in capsys.readouterr().out


def test_on_a_gpu_kernels_are_autotuned_once_except_where_compilation_is_timed(root):
    flags = lambda name, platform: everything.environment_of(
        everything.BENCHMARKS[platform][name], root / "out", platform
    )["XLA_FLAGS"]
    assert f"--xla_gpu_per_fusion_autotune_cache_dir={root / 'out' / 'autotune'}" in flags("good", "gpu")
    assert "autotune" not in flags("slow", "gpu") and "autotune" not in flags("good", "cpu")


def test_flags_that_affect_autotuning_do_not_reuse_kernels_chosen_without_them():
    for name, benchmark in everything.GPU.items():
        assert bool(benchmark.xla_flags) == name.startswith("flag_")
        assert benchmark.cold or not benchmark.xla_flags


def test_an_unknown_name_is_rejected(root, monkeypatch, capsys):
    with pytest.raises(SystemExit) as refused:
        run(monkeypatch, str(root / "out"), "--platform=cpu", "--only=goood")
    assert refused.value.code == 2 and not (root / "out").exists()
    assert "--only must be from bad, good, slow, trial on a cpu, got 'goood'." in capsys.readouterr().err


def test_the_list_runs_nothing(root, monkeypatch, capsys):
    assert run(monkeypatch, str(root / "out"), "--platform=cpu", "--list") == 0
    assert "good: benchmarks/good.py '--only=as it is' --xla_some_flag=1" in capsys.readouterr().out
    assert not (root / "out").exists()


@pytest.mark.parametrize("platform", everything.BENCHMARKS)
def test_every_command_is_accepted_by_its_script(platform):
    """Flags match those that the scripts declare: a run of hours should not end in a usage message."""
    keys = {f"--config.{key}" for key in config.flatten(config.to_plain(config.default_config()))}
    for benchmark in everything.BENCHMARKS[platform].values():
        words = everything.command_of(benchmark, "folder:images")
        source = (everything.ROOT / words[1]).read_text()
        for word in words[2:]:
            name = word.split("=")[0]
            assert re.search(rf'add_argument\(\s*"{name}"', source) or name in keys, (benchmark, name)
        assert words[-1] == "--config.dataset.name=folder:images" or benchmark.script != "trial"
        if benchmark.script == "against_torch":
            against_torch.parse(words[2:])
