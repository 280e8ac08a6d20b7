"""The command `gradmix`: its subcommands, their help pages, and the wheel that installs it."""

import logging
import os
import pathlib
import re
import subprocess
import sys
import types
import venv
import zipfile

import commands
import pytest

from gradmix_jax import cli, list_names, models, objectives, scores
from gradmix_jax.__main__ import COMMANDS
from gradmix_jax.cli import help_text
from gradmix_jax.config.recipes import RECIPES
from gradmix_jax.config.rivals import RIVALS
from gradmix_jax.data.protocols import PROTOCOLS
from gradmix_jax.method import attribution, fills, masks, mix

POD = {"[no]multihost", "coordinator", "num_processes", "process_id"}
EXPERIMENT, PLAN = {"config", "workdir"}, {"trials", "seeds", "[no]print_commands"}
FLAGS = {
    "train": EXPERIMENT | {"mode", *POD},
    "eval": EXPERIMENT | {"mode", *POD},
    "predict": {"threshold", "keep", "[no]json", "[no]csv", "top", "neighbors", "explain"},
    "score": {"out"},
    "export": {"out"},
    "report": {"out"},
    "compare": {"out", "[no]open"},
    "protocol": EXPERIMENT | PLAN,
    "sweep": EXPERIMENT | PLAN,
    "figure": {"out"},
    "data": {"out", "background", "[no]download", "data_dir"},
    "config": {"config", "[no]changed"},
    "list": set(),
}


def test_the_usage_describes_each_command():
    for words in ((), ("--help",)):
        result = commands.run("gradmix_jax", *words)
        lines = dict(re.findall(r"^  (\w+) +(\S.*\.)$", result.stdout, re.MULTILINE))
        assert result.returncode == 0 and list(lines) == list(COMMANDS)
        assert lines["data"].startswith("Describe a dataset") and lines["report"].startswith("Print a table")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_lists_its_flags(name):
    result = commands.run("gradmix_jax", name, "--help")
    assert result.returncode == 0 and not re.search(r"\.py:$", result.stdout, re.MULTILINE)
    listed = set(re.findall(r"^  --([\w\[\]]+):", result.stdout, re.MULTILINE))
    assert listed >= FLAGS[name], result.stdout + result.stderr
    module = COMMANDS[name][0]
    assert f"python -m {module} " in result.stdout, "an example"


def test_what_a_config_can_name_is_listed_from_the_tables():
    listed = {}
    for part in list_names.text().split("\n\n"):
        title, *lines = part.splitlines()
        listed[title.partition(" ")[0]] = [line.split()[0] for line in lines if line[2] != " "]
    tables = dict(recipes=RECIPES, methods=RIVALS, losses=objectives.OBJECTIVES, temperatures=objectives.SCHEDULES)
    tables |= dict(mixing=mix.METHODS, masks=masks.MASKS, fills=fills.FILLS, maps=attribution.MAPS)
    tables |= dict(scores=scores.SCORES, models=models.ENCODERS)
    assert listed.pop("protocols") == [protocol.config for protocol in PROTOCOLS.values()]
    assert listed == {name: list(table) for name, table in tables.items()}
    assert list_names.text(["maps"]).startswith("maps (attribution.method)\n  input   ")
    with pytest.raises(ValueError, match="what is listed must be one of protocols, recipes, .*, got 'nothing'"):
        list_names.main(["list", "nothing"])


def test_the_help_of_the_installed_command_has_its_name(monkeypatch):
    main = types.SimpleNamespace(__doc__="Train.\n\npython -m gradmix_jax.main --config=configs/cifar_osr.py:layer --x")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "orig_argv", ["/bin/python", "/bin/gradmix", "train", "--help"])
    assert help_text.text().endswith("\n\ngradmix train --config=cifar_osr:layer --x"), "and no flags"
    monkeypatch.setattr(sys, "orig_argv", ["/bin/python", "-m", "gradmix_jax", "train", "--help"])
    assert "python -m gradmix_jax.main --config=configs/cifar_osr.py:layer" in help_text.text()
    asked = [["x", "-h"], ["x", "a", "--help"], ["x", "--", "--help"], ["x", "--helpfull"], ["--help"]]
    assert list(map(help_text.is_asked, asked)) == [True, True, False, False, False]


def test_a_warning_is_a_line_as_the_commands_print_it():
    record = logging.LogRecord("absl", logging.WARNING, "source.py", 304, "Left out: %d of %d\n images.", (1, 97), None)
    assert cli._Line().format(record) == "warning: Left out: 1 of 97\\n images."
    code = "from absl import logging; from gradmix_jax import cli; cli.run(lambda argv: logging.warning('seen'))"
    assert subprocess.run([sys.executable, "-c", code], cwd=commands.ROOT, capture_output=True, text=True).stderr == (
        "warning: seen\n"
    )


def test_a_reader_that_closes_the_pipe_is_no_error():
    command = f"'{sys.executable}' -m gradmix_jax.show_config --config=digits_osr | true; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], cwd=commands.ROOT, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("141\n", "")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_wheel_in_another_environment(tmp_path):
    """Built from the tracked files, installed into a fresh environment, and run outside a checkout."""
    source, home = tmp_path / "source", tmp_path / "home"
    home.mkdir()
    files = subprocess.run(["git", "ls-files"], cwd=commands.ROOT, capture_output=True, text=True, check=True)
    for name in files.stdout.splitlines():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((commands.ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q", "--no-deps"]
    subprocess.run([*pip, "--wheel-dir", str(tmp_path), str(source)], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("gradmix_jax-*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    _lend_dependencies(python)

    def run(*words):
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [str(python.with_name("gradmix")), *map(str, words)]
        return subprocess.run(command, cwd=home, capture_output=True, text=True, env=environment)

    version = run("--version")
    assert version.returncode == 0 and version.stdout.startswith("gradmix_jax 0."), version.stderr
    assert "commit" not in version.stdout.splitlines()[0]
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("gradmix_jax/configs/")}
    assert shipped == {f"gradmix_jax/configs/{path.name}" for path in (commands.ROOT / "configs").glob("*.py")}
    shown = run("config", "--config=folder_osr:layer")
    assert shown.returncode == 0 and "train.batch_size = 0" in shown.stdout, shown.stderr
    words = [
        "--config=digits_osr",
        "--workdir=run",
        "--config.phases[0].epochs=1",
        "--config.evaluate.scores=('topk_cosine',)",
    ]
    words += ["--config.model.width=4", "--config.train.batch_size=128"]
    trained = run("train", *words)
    assert trained.returncode == 0 and "AUROC" in trained.stdout, trained.stderr
    assert (home / "run" / "results.json").is_file()
    assert run("eval", *words).returncode == 0
    drawn = run("report", "run", "--out=page")
    assert drawn.returncode == 0 and "<script>" in (home / "page" / "report.html").read_text(), drawn.stderr
    assert "usage" in run("--help").stdout


def _lend_dependencies(python):
    """Let an environment import everything installed in this one, except the package itself."""
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    here = [path for path in sys.path if path.endswith("site-packages")]
    (pathlib.Path(site.stdout.strip()) / "lent.pth").write_text("\n".join(here) + "\n")
