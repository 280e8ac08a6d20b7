"""`gradmix compare`: which runs it finds, how it names them, and when it opens a browser."""

import os

import commands
import pytest
from evaluated_runs import write_run

from gradmix_jax import compare
from gradmix_jax.report import runs


def test_folders_are_searched_for_evaluated_runs(tmp_path):
    one = write_run(tmp_path / "all" / "digits" / "input" / "trial0", "input")
    two = write_run(tmp_path / "all" / "digits" / "none" / "trial0", "none")
    unfinished = write_run(tmp_path / "all" / "digits" / "none" / "trial1", "none", trial=1)
    os.remove(os.path.join(unfinished, "results.json"))
    assert compare.expand([str(tmp_path / "all")]) == [one, two]
    assert compare.expand([two, str(tmp_path / "all" / "digits")]) == [two, one]
    # A run named explicitly must be finished; the reader says what is missing.
    assert compare.expand([unfinished]) == [unfinished]
    os.mkdir(tmp_path / "empty")
    with pytest.raises(ValueError, match="empty holds no evaluated run"):
        compare.expand([str(tmp_path / "empty")])


def test_runs_that_cannot_be_averaged_become_separate_methods(tmp_path):
    paths = [
        write_run(tmp_path / "a", "input"),
        write_run(tmp_path / "b", "input", trial=1),
        write_run(tmp_path / "c", "input", **{"model.width": 8}),
        write_run(tmp_path / "d", "none"),
        write_run(tmp_path / "e" / "none", "none"),
        write_run(tmp_path / "f", "none", **{"dataset.name": "mnist"}),
    ]
    found = runs.load_groups(paths, apart=True)
    assert [group.label for group in found] == ["digits", "mnist"]
    labels = {method.label: [run.workdir for run in method.runs] for method in found[0].methods}
    assert labels == {
        "input (model.width=4)": paths[:2],
        "input (model.width=8)": [paths[2]],
        "none (d)": [paths[3]],
        "none (e/none)": [paths[4]],
    }
    assert [method.label for method in found[1].methods] == ["none"]


def test_datasets_of_one_name_are_distinguished_by_their_splits(tmp_path):
    paths = [
        write_run(tmp_path / "a", "input"),
        write_run(tmp_path / "b", "input", **{"dataset.benchmark": "random"}),
        write_run(tmp_path / "c", "input", **{"dataset.name": "mnist"}),
    ]
    labels = [group.label for group in runs.load_groups(paths)]
    assert len(set(labels)) == 3 and labels[1] == "digits, benchmark random" and labels[2] == "mnist"


def test_the_command(tmp_path):
    first = write_run(tmp_path / "a", "none")
    write_run(tmp_path / "more" / "b", "none", **{"dataset.name": "mnist"})
    for path in (tmp_path / "a", tmp_path / "more" / "b"):
        (path / "features.npz").unlink()
    words = ("gradmix_jax", "compare", first, tmp_path / "more", "--noopen", f"--out={tmp_path / 'out'}")
    result = commands.run(*words)
    assert result.returncode == 0, result.stderr
    assert "## digits" in result.stdout and "## mnist" in result.stdout and "report.html" in result.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'id="across"' in page and 'id="data-1-method-0"' in page and 'id="data-1-overall"' in page
    latex, markdown = ((tmp_path / "out" / f"results.{kind}").read_text() for kind in ("tex", "md"))
    assert r"\label{tab:data-1-overall}" in latex and "mnist: Open set recognition" in latex
    assert markdown.count("## Conditions") == 2 and "# Data: mnist" in markdown
    result = commands.run("gradmix_jax", "compare")
    assert result.returncode == 2 and result.stderr.startswith("error: compare got no runs")


def test_a_browser_is_started_only_where_there_is_a_screen(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compare.sys, "platform", "linux")
    assert not compare.can_open()
    monkeypatch.setenv("DISPLAY", ":0")
    assert compare.can_open()
