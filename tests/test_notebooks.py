"""The Colab notebook: committed clean, runs from top to bottom, and sets itself up outside a checkout."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def read(name):
    return nbformat.read(ROOT / "notebooks" / name, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_valid_and_has_no_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and not cell.get("execution_count"), cell.id


def test_quickstart_names_the_repository_once():
    sources = [cell.source for cell in read("quickstart.ipynb").cells]
    assert sum("github.com" in source for source in sources) == 1
    assert sources[1].startswith('REPOSITORY = "https://github.com/')


@pytest.mark.timeout(600)  # compiles three programs, on machines that may be busy
def test_quickstart_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADMIX_QUICK", "1")
    monkeypatch.setenv("GRADMIX_WORKDIR", str(tmp_path))
    # One device, as for the reader of the notebook.
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    monkeypatch.setenv("XLA_FLAGS", " ".join(flags))
    monkeypatch.delenv("MPLBACKEND")  # plots go into the notebook
    notebook = read("quickstart.ipynb")
    # Opened from its own folder, as Jupyter does it.
    resources = {"metadata": {"path": str(ROOT / "notebooks")}}
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources).execute()

    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    table = outputs["results"][0]["data"]["text/markdown"]
    assert all(name in table for name in ("Accuracy", "AUROC", "OSCR")) and table.count("%") == 3
    assert any("image/png" in output.get("data", {}) for output in outputs["figure"])
    for name in ("curve", "scores"):
        assert any("image/png" in output.get("data", {}) for output in outputs[name]), name
    assert {"results.json", "metrics.jsonl", "scores.npz", "figure.png"} <= set(os.listdir(tmp_path))


def test_quickstart_stops_where_a_command_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    names = {}
    exec(setup_cell().replace("\nrun(", "\n# run("), names)
    names["run"]("-c", "print('fine')")
    with pytest.raises(RuntimeError, match="see its output above"):
        names["run"]("-c", "raise SystemExit(3)")


def setup_cell():
    (source,) = [cell.source for cell in read("quickstart.ipynb").cells if cell.id == "setup"]
    return source


def test_quickstart_outside_a_checkout_clones_and_keeps_jax(tmp_path, monkeypatch):
    calls = []

    def record(command, check):
        assert check
        calls.append(command)
        if command[0] == "git":
            os.mkdir(command[-1])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", record)
    exec(setup_cell().replace("\nrun(", "\n# run("), {"REPOSITORY": "https://example.com/a"})
    clone, install = calls
    assert clone == ["git", "clone", "--quiet", "--depth=1", "https://example.com/a", "gradmix_jax"]
    assert Path.cwd() == tmp_path / "gradmix_jax"
    assert install[:4] == [sys.executable, "-m", "pip", "install"]
    kept = {f"{name}=={metadata.version(name)}" for name in ("jax", "jaxlib", "numpy")}
    assert kept | {"--editable", "."} <= set(install)
