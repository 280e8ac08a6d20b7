"""The notebooks match their sources, have small saved outputs, run top to bottom, and set themselves up."""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "notebooks"))
import make

NAMES = sorted(path.stem for path in (ROOT / "notebooks" / "source").glob("*.md"))
SLOW = {"maps_and_masks", "own_images", "your_model"}  # compile many programs


def read(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_four_and_no_others():
    assert NAMES == ["maps_and_masks", "own_images", "quickstart", "your_model"]
    assert sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_matches_its_source_and_has_small_outputs(name):
    notebook = read(name)
    nbformat.validate(notebook)
    made = make.make(name)
    assert [(c.id, c.source) for c in notebook.cells] == [(c.id, c.source) for c in made.cells], "run notebooks/make.py"
    assert "\n## " not in notebook.cells[0].source and notebook.cells[2].id == "setup", (
        "the setup precedes all sections"
    )
    file = ROOT / "notebooks" / f"{name}.ipynb"
    assert file.stat().st_size < 300_000
    outputs = [output for cell in code_of(notebook) for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs), "run notebooks/make.py --execute"
    assert [cell.execution_count for cell in code_of(notebook)] == list(range(1, len(code_of(notebook)) + 1))
    assert not any(output.output_type == "error" for output in outputs)
    assert str(ROOT) not in file.read_text() and "Warning" not in file.read_text()


@pytest.mark.timeout(600)  # compiles programs, on machines that may be busy
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in NAMES])
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADMIX_QUICK", "1")
    monkeypatch.setenv("GRADMIX_WORKDIR", str(tmp_path / "run"))
    # One device, as the reader of the notebook has.
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    monkeypatch.setenv("XLA_FLAGS", " ".join(flags))
    monkeypatch.delenv("MPLBACKEND")  # plots go into the notebook
    notebook = make.make(name)
    # Opened from its own folder, as Jupyter does.
    resources = {"metadata": {"path": str(ROOT / "notebooks")}}
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources).execute()

    outputs = {cell.id: cell.outputs for cell in code_of(notebook)}
    pictures = [cell for cell, each in outputs.items() if any("image/png" in o.get("data", {}) for o in each)]
    text = {cell: "".join(o.get("text", "") for o in each) for cell, each in outputs.items()}
    if name == "quickstart":
        table = outputs["results"][0]["data"]["text/markdown"]
        assert all(word in table for word in ("Accuracy", "AUROC", "OSCR")) and table.count("%") == 3
        assert pictures == ["figure", "curve", "scores"]
        assert {"results.json", "metrics.jsonl", "scores.npz", "figure.png"} <= set(os.listdir(tmp_path / "run"))
    elif name == "own_images":
        assert pictures == ["look", "explained"]
        assert "four" in text["images"] and text["predict"].count("threshold") == 6
    elif name == "maps_and_masks":
        assert pictures == ["maps", "masks", "fills", "keep"]
        assert "loss" in text["train"] and "'threshold': 0.301" in text["masks"]
    else:
        assert pictures == ["plots"] and "topk_cosine of features *" in text["scores"]
        assert text["library"].startswith("AUROC 0.9")


def setup_code(repository=""):
    (code,) = [cell.source for cell in make.make("quickstart", repository).cells if cell.id == "setup"]
    return code


def test_a_command_that_fails_stops_the_notebook(monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    names = {}
    exec(setup_code(), names)
    names["run"]("-c", "print('fine')")
    with pytest.raises(RuntimeError, match="see its output above"):
        names["run"]("-c", "raise SystemExit(3)")


@pytest.fixture
def calls(monkeypatch):
    """Records the commands of the setup cell without running them; a clone creates a folder."""
    calls = []

    def record(command, check):
        assert check
        calls.append(command)
        if command[0] == "git":
            os.mkdir(command[-1])

    monkeypatch.setattr(subprocess, "run", record)
    return calls


def test_outside_a_checkout_it_clones_the_address_and_keeps_jax(tmp_path, monkeypatch, calls):
    monkeypatch.chdir(tmp_path)
    exec(setup_code("https://example.com/a"), {})
    clone, install = calls
    assert clone == ["git", "clone", "--quiet", "--depth=1", "https://example.com/a", "gradmix_jax"]
    assert Path.cwd() == tmp_path / "gradmix_jax"
    assert install[:4] == [sys.executable, "-m", "pip", "install"]
    kept = {f"{name}=={metadata.version(name)}" for name in ("jax", "jaxlib", "numpy")}
    assert kept | {"--editable", "."} <= set(install)


def test_outside_a_checkout_without_an_address_it_unpacks_the_copy_or_asks_for_it(tmp_path, monkeypatch, calls):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"gradmix_jax\.zip is not here; upload it as the text above says"):
        exec(setup_code(), {})
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "pyproject.toml").write_text("")
    shutil.make_archive("gradmix_jax", "zip", "copy")
    exec(setup_code(), {})
    assert Path.cwd() == tmp_path / "gradmix_jax" and Path("pyproject.toml").exists()
    assert [call[1:4] for call in calls] == [["-m", "pip", "install"]]


def test_a_jax_that_is_too_old_is_not_kept(tmp_path, monkeypatch, calls):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(metadata, "version", lambda name: "0.7.2")
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    exec(setup_code("https://example.com/a"), {})
    assert calls[1][4:] == ["--quiet", "--editable", ".[cuda12]"]


@pytest.mark.parametrize("name", NAMES)
def test_the_address_is_one_setting_and_none_is_invented(name):
    for repository in ("", "https://github.com/someone/gradmix"):
        text = "\n".join(cell.source for cell in make.make(name, repository).cells)
        assert text.count("https://github.com") == bool(repository) and "Open in Colab" in text
        assert ("upload `gradmix_jax.zip`" in text) == (not repository)
        link = f"https://colab.research.google.com/github/someone/gradmix/blob/main/notebooks/{name}.ipynb"
        assert (link in text) == bool(repository)
    assert make.address() == make.project().get("urls", {}).get("Repository", "")
    assert "github.com" not in (ROOT / "notebooks" / "source" / f"{name}.md").read_text()
    assert make.least_jax() == (0, 10)
