"""report.html and the files beside it are complete, well formed and self-contained."""

import copy
import csv
import html
import html.parser
import json
import os
import pathlib
import re
import warnings

import commands
import jax
import numpy as np
import pytest
from evaluated_runs import KNOWN, UNKNOWN, write_run
from programs import small_images

from gradmix_jax import assembly, report
from gradmix_jax import config as config_lib
from gradmix_jax.report import classes, drawing, labels, matrix, overlays, plots, runs
from gradmix_jax.report.prepared import prepare
from gradmix_jax.training import explain as explain_lib
from gradmix_jax.training.checkpoint import Checkpoints

VOID = {"meta", "img", "br", "input"}


class Page(html.parser.HTMLParser):
    """Checks that tags are balanced and collects ids, addresses, pictures and text by section."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.sources, self.alts = [], [], [], [], []
        self.text, self.section, self.policy = {}, None, ""
        self.feed(text)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag, attributes):
        self._note(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self._note(tag, attributes)

    def _note(self, tag, attributes):
        attributes = dict(attributes)
        if "id" in attributes:
            self.ids.append(attributes["id"])
            self.section = attributes["id"] if tag == "section" else self.section
        if attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = attributes["content"]
        if tag == "img":
            self.alts.append(attributes["alt"])
        self.links += [attributes["href"]] if tag in ("a", "use", "link") else []
        self.sources += [attributes[name] for name in ("src", "data", "srcset") if name in attributes]
        self.sources += [attributes["href"]] if tag == "image" else []

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        self.text[self.section] = self.text.get(self.section, "") + data


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(folder, text of report.html, its Page) for three runs of two methods."""
    folder = tmp_path_factory.mktemp("page")
    paths = [
        write_run(folder / "a", "input", gap=2.0),
        write_run(folder / "b", "input", trial=1, gap=2.2),
        write_run(
            folder / "c", "none", gap=1.5, results={"confusion": None, "threshold": None, "threshold_rule": None}
        ),
    ]
    out = folder / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    (out / "results.md").write_text("old")
    files = report.write(paths, str(out))
    assert sorted(os.listdir(out)) == ["mine.txt", "report.html", "results.md", "results.tex", "runs.csv"]
    assert sorted(map(os.path.basename, files)) == ["report.html", "results.md", "results.tex", "runs.csv"]
    text = (out / "report.html").read_text()
    return out, text, Page(text)


def test_the_page_needs_nothing_else(written):
    _, text, page = written
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    # Only our one script may run; the others are data.
    assert [kind for kind in re.findall(r"<script([^>]*)>", text) if "application/json" not in kind] == [""]
    assert page.policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-")
    assert page.sources and all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert len(set(page.ids)) == len(page.ids)
    references = set(re.findall(r"url\(#([^)]+)\)", text))
    assert references <= set(page.ids)


def test_the_page_has_every_part(written):
    out, text, page = written
    assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text
    wanted = ("overall", "by-score", "ood", "corruptions", "probes", "diversity", "comparison", "conditions")
    parts = ("curves", "threshold", "classes", "embedding", "gallery", "maps", "training", "diversity", "config")
    for name in (*wanted, *(f"method-{index}-{part}" for index in (0, 1) for part in parts)):
        assert name in page.ids, name
    assert "2 runs: trial 0, seed 0; trial 1, seed 0." in page.text["method-0"]
    assert "ROC curve (thick: mean of n = 2 runs" in page.text["method-0-curves"]
    assert "t-SNE" in page.text["method-0-embedding"] and "all 100" in page.text["method-0-embedding"]
    # The config: the width is 4 here and 0 by default.
    assert re.search(r'<tr class=changed><th scope="row">model.width</th><td>4</td><td>0</td></tr>', text)
    assert '<tr><th scope="row">seed</th><td>0</td></tr>' in text
    assert "no checkpoint in" in page.text["method-0-maps"]
    assert "mix.method is none" in page.text["method-1-maps"]
    assert "at the threshold that accepts 95 % of the known test images" in page.text["method-1-classes"]
    assert "AUROC and accuracy of all classes" in page.text["method-0-classes"]
    auroc = json.loads((out.parent / "a" / "results.json").read_text())["per_class"][KNOWN[2]]["auroc"]
    row = f'<tr><th scope="row">{html.escape(KNOWN[2])}</th><td>known</td><td data-v="{auroc!r}">{auroc:.4f}</td>'
    assert row in text


def test_names_are_escaped_on_the_page(written):
    _, text, page = written
    assert "<b>&" not in text and "a&lt;b&gt;&amp;$x$" in text
    assert KNOWN[2] in page.text["method-0-gallery"] and KNOWN[2] in page.text["conditions"]
    assert KNOWN[2] in page.text["method-0-classes"] and f"{UNKNOWN[1]} (unknown)" in page.text["method-0-classes"]
    # At most 16 of each of the three kinds that have any, for two methods with ten images per class; neighbors for one.
    tests = [alt for alt in page.alts if alt.startswith("test image of class ")]
    assert len(tests) == 2 * 3 * 10 and page.alts[0] == "test image of class six"
    assert len(page.alts) - len(tests) == 2 * 10 * 3
    assert {alt.removeprefix("training image of class ") for alt in set(page.alts) - set(tests)} <= set(KNOWN[:5])
    assert "None." in page.text["method-0-gallery"]


def test_markdown_and_latex_files(written):
    out, _, _ = written
    markdown, latex = (out / "results.md").read_text(), (out / "results.tex").read_text()
    assert markdown.startswith("# Results") and "## Conditions" in markdown and r"c_d\|e" in markdown
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == latex.count(r"\toprule") == 9
    assert latex.isascii()


def test_one_row_per_run_has_its_unrounded_numbers(written):
    out, _, _ = written
    rows = list(csv.DictReader((out / "runs.csv").open(encoding="utf-8")))
    assert [(row["method"], row["trial"], row["seed"]) for row in rows] == [
        ("input", "0", "0"),
        ("input", "1", "0"),
        ("none", "0", "0"),
    ]
    for row in rows:
        results = json.loads(pathlib.Path(row["workdir"], "results.json").read_text())
        assert all(float(row[key]) == results[key] for key in ("accuracy", "auroc", "oscr", "fpr95_known_positive"))
        assert row["linear_probe"] == str(results["closed_set"].get("linear_probe", {}).get("accuracy", ""))
        assert int(row["num_unknown"]) == results["num_unknown"] and row["data"] == "digits"
        assert row["commit"] == results["environment"]["commit"][:12] and "jax" in row["versions"]


def test_an_error_leaves_no_half_report(written, tmp_path, monkeypatch):
    out, _, _ = written
    with pytest.raises(ValueError, match="--out must be a directory, got the file"):
        report.write([str(out.parent / "c")], str(out / "mine.txt"))
    from gradmix_jax.report import files

    monkeypatch.setattr(files.page, "page", lambda *_: "new")
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        report.write([str(out.parent / "c")], str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_missing_arrays_are_reported(tmp_path):
    path = write_run(tmp_path / "a", "none")
    for name in ("scores.npz", "features.npz", "gallery.npz", "metrics.jsonl"):
        (tmp_path / "a" / name).unlink()
    report.write([path], str(tmp_path / "out"))
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert f"there is no scores.npz in {path}" in page.text["method-0-curves"]
    for part, what in {"embedding": "features.npz", "gallery": "gallery.npz", "training": "metrics.jsonl"}.items():
        assert f"{what} in {path}" in page.text[f"method-0-{part}"]


def test_figures_take_the_colors_of_the_page():
    with drawing.style():
        drawn, axis = drawing.subplots()
        axis.plot([0, 1], [0, 1], color=drawing.BLUE)
        axis.set_title(labels.plain("$a$ <b>"))
        text = drawing.svg(drawn, 'a "line"')
    assert "var(--ink)" in text and "var(--blue)" in text and drawing.INK not in text
    assert "$a$ &lt;b&gt;" in text and 'aria-label="a &quot;line&quot;"' in text and "xmlns" not in text


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with two checkpoints: step 10 has the parameters of step 0, step 20 has others."""
    folder = tmp_path_factory.mktemp("trained")
    data = folder / "data"
    images, labels = small_images()
    for part in ("train", "test"):
        for index, (image, label) in enumerate(zip(images, labels)):
            place = data / part / f"class{label}"
            place.mkdir(parents=True, exist_ok=True)
            drawing.Image.fromarray(image).save(place / f"{index}.png")
    names = {"dataset.name": f"folder:{data}", "dataset.benchmark": "random", "dataset.num_known": 3}
    path = write_run(folder / "run", "input", **names, **{"dataset.validation_fraction": 0.0})
    config = config_lib.read(path)
    prepared = prepare(config, path)
    state = assembly.initial_state(prepared.experiment, prepared.program)
    checkpoints = Checkpoints(path, of=None)
    checkpoints.save(state.replace(step=state.step + 10))
    other = jax.tree.map(lambda leaf: leaf + 0.3 * np.sin(np.arange(leaf.size)).reshape(leaf.shape), state.params)
    checkpoints.save(state.replace(step=state.step + 20, params=other))
    checkpoints.close()
    return runs.load([path])[0].example, prepared


def test_maps_of_every_checkpoint_from_one_compilation(trained, monkeypatch):
    run, prepared = trained
    traces = []
    explain = explain_lib.explain
    monkeypatch.setattr(explain_lib, "explain", lambda *arguments: traces.append(1) or explain(*arguments))
    checkpoints = Checkpoints(run.workdir, of=None, read_only=True)
    found = overlays._explanations(prepared, checkpoints)
    checkpoints.close()
    assert list(found) == [0, 10, 20] and len(traces) == 1
    first, same, other = found.values()
    np.testing.assert_array_equal(first.views, other.views)
    np.testing.assert_array_equal(first.mixed.maps, same.mixed.maps)
    assert np.abs(first.mixed.maps - other.mixed.maps).max() > 0.1
    assert first.mask.shape == first.mixed.maps.shape == (overlays.ROWS, 8, 8)
    with drawing.style():
        page = Page(overlays._draw(found, ["a", "b", "c", "d", "e", "f"], run))
    text = "".join(page.text.values())
    assert all(f"step {step}" in text for step in found)
    assert len(page.sources) == overlays.ROWS * (1 + len(found))  # matplotlib merges image and map


def test_negative_images_have_their_own_name(trained):
    config = copy.deepcopy(trained[0].config)
    config["dataset"] |= {"num_known": 2, "num_negative": 1}
    prepared = prepare(config, trained[0].workdir)
    _, labels, names = prepared.batch(0, 0)
    known, negative = prepared.data.class_names, prepared.data.stored_names[prepared.data.split.negative[0]]
    assert set(labels) == {0, 1, -1}
    assert names == [known[label] if label >= 0 else f"negative {negative}" for label in labels]
    assert overlays._names(prepared) == names[: overlays.ROWS]


def test_maps_without_their_data(trained, tmp_path):
    run, _ = trained
    config = {**run.config, "dataset": {**run.config["dataset"], "name": f"folder:{tmp_path}/gone"}}
    text = overlays.overlays(runs.Run(run.workdir, config, run.results))
    assert text.startswith("<p>Maps and masks over training cannot be shown: ") and text.count("<p>") == 1
    config = {**run.config, "mix": {key: value for key, value in run.config["mix"].items() if key != "mask"}}
    text = overlays.overlays(runs.Run(run.workdir, config, run.results))
    assert "cannot be shown: missing config key mix.mask." in text
    # Keys of the evaluate section do not matter.
    assert "step 20" in overlays.overlays(runs.Run(run.workdir, {**run.config, "evaluate": {}}, run.results))


def test_the_command(tmp_path):
    path = write_run(tmp_path / "a", "none")
    (tmp_path / "a" / "features.npz").unlink()
    result = commands.run("gradmix_jax.report", path, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("| method | feature |") and "report.html" in result.stdout
    result = commands.run("gradmix_jax.report", tmp_path / "nothing")
    assert result.returncode == 2 and result.stderr.startswith("error: no config.json in")


def test_long_names_leave_room_for_the_plots():
    assert labels.short("a" * 24) == "a" * 24
    assert labels.short("golden_retriever_photographed_at_night") == "golden_retrieve…at_night"
    assert labels.short("$" + "a" * 30, 10) == r"\$aaaaa…aaa"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns if nothing is left for the axes
        classes.bars(_of_long_names())
    assert "known_xxxxxxxxx…xxxxxx_0" in matrix.confusion(_of_long_names(), None)[0]


def _of_long_names() -> runs.Run:
    known, unknown = ([f"{side}_{'x' * 90}_{i}" for i in range(3)] for side in ("known", "unknown"))
    of = lambda names: {name: {"auroc": 0.9} for name in names}
    confusion = {"rows": known + unknown, "columns": [*known, "unknown"], "counts": [[5, 0, 1, 2]] * 6}
    results = {"per_class": of(known), "per_unknown_class": of(unknown), "confusion": confusion}
    return runs.Run("w", {"dataset": {"trial": 0}, "seed": 0}, results)


def test_a_single_logged_point_is_visible(tmp_path):
    count = {}
    for lines in (1, 2):
        path = write_run(tmp_path / str(lines), "none")
        with open(os.path.join(path, "metrics.jsonl"), "w") as file:
            file.writelines(f'{{"step": {step}, "loss": 1.5}}\n' for step in range(lines))
        count[lines] = plots.losses(runs.load([path])[0]).count("<circle")
    assert count == {1: 1, 2: 0}


def test_marks_are_where_the_drawing_has_them():
    """In units of the drawing, whose y goes down: a bar of half the width of its axis, and a point in its corner."""
    drawn, axis = drawing.subplots((2.0, 1.0))
    axis.set_position([0.1, 0.2, 0.8, 0.6])
    drawn.set_layout_engine("none")
    axis.set_xlim(0, 2)
    axis.set_ylim(0, 1)
    marks = drawing.Marks(axis, np.array([[0, 0, 1, 1], [2, 1, 2, 1], [0, 1, 1, 0]]), ["a <b>", "c", "a <b>"])
    text = drawing.svg(drawn, "a drawing", [marks])
    boxes = re.search('data-marks="([^"]+)"', text)[1].split(";")
    # 144 x 72 points.
    assert boxes == ["14.4 14.4 57.6 43.2 0", "129.6 14.4 0.0 0.0 1", "14.4 14.4 57.6 43.2 0"]
    assert text.startswith('<div class="plot"><svg') and "a &lt;b&gt;" in text
    assert "data-marks" not in drawing.svg(drawn, "a drawing")
