"""Files of a run: each is read once; older versions; runs with a thousand classes."""

import collections
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from evaluated_runs import ENVIRONMENT, KNOWN, open_set, write_run
from test_report_page import Page

from gradmix_jax import report, workdir
from gradmix_jax.report import conditions, contents, curves, drawing, matrix, runs, sections
from gradmix_jax.report import gallery as gallery_lib
from gradmix_jax.report import page as page_lib


def test_every_file_is_read_once(tmp_path):
    """Counted by an audit hook for opened files; members of .npz files are counted by name."""
    paths = [write_run(tmp_path / name, recipe, trial=t) for name, recipe, t in (("a", "input", 0), ("b", "none", 1))]
    members, opened, listening = [], [], [True]
    blocks = runs.Arrays._blocks
    names = (workdir.CONFIG, workdir.RESULTS, workdir.METRICS)

    def listen(event, arguments):
        if listening and event == "open" and os.path.basename(str(arguments[0])) in names:
            opened.append(str(arguments[0]))

    sys.addaudithook(listen)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            runs.Arrays, "_blocks", lambda self, *rest: members.append((self._path, rest[0])) or blocks(self, *rest)
        )
        report.write(paths, str(tmp_path / "out"))
    listening.clear()  # an audit hook cannot be removed
    assert collections.Counter(opened) == {os.path.join(path, name): 1 for path in paths for name in names}
    assert members and set(collections.Counter(members).values()) == {1}


def test_names_that_are_not_utf_8_can_be_written(tmp_path):
    """Of a folder named in Latin-1, say, which Python reads with surrogates; and control characters."""
    known = {name: {"accuracy": 0.9, "auroc": 0.8} for name in (*KNOWN[:5], "caf\udce9\x1b")}
    names = dict(label="caf\udce9 \x1b[31m", results={"known_classes": list(known), "per_class": known})
    path = write_run(tmp_path / "a", **names, **{"dataset.name": "folder:/caf\udce9\x1b"})
    report.write_summary([path], str(tmp_path))
    for each in (*report.write([path], str(tmp_path / "out")), f"{tmp_path}/summary.md"):
        text = pathlib.Path(each).read_text(encoding="utf-8")
        assert "caf" in text and ("\x1b" not in text or each.endswith((".html", ".csv")))


def test_rows_of_an_array_are_those_of_the_array(tmp_path):
    values = np.random.default_rng(0).normal(size=(9001, 3)).astype(np.float32)
    np.savez_compressed(tmp_path / "a.npz", **{"a/b": values, "n": np.arange(4)})
    arrays = runs.Arrays(str(tmp_path / "a.npz"))
    chosen = np.array([0, 4095, 4096, 9000])
    np.testing.assert_array_equal(arrays.rows("a/b", chosen), values[chosen])
    np.testing.assert_array_equal(arrays["a/b"], values)
    assert arrays.length("a/b") == 9001 and list(arrays) == ["a/b", "n"] and "a/c" not in arrays


def test_results_of_an_older_version_have_defaults(tmp_path):
    """With only what the first version wrote: the headline metrics and their description."""
    path = write_run(tmp_path / "a", "none")
    file = tmp_path / "a" / "results.json"
    results = json.loads(file.read_text())
    kept = (*report.ROWS, "step", "known_classes", "score", "feature", "score_name")
    file.write_text(json.dumps({name: results[name] for name in kept}))
    for name in (workdir.SCORES, workdir.FEATURES, workdir.GALLERY, workdir.METRICS):
        (tmp_path / "a" / name).unlink()
    report.write([path], str(tmp_path / "out"))
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert f"{results['auroc']:.4f}" in page.text["overall"]
    assert "unknown number of training" in page.text["conditions"] and "jax unknown" in page.text["conditions"]
    assert "no AUROC by class" in page.text["method-0-classes"]
    # A null part counts as missing too.
    file.write_text(json.dumps(results | dict.fromkeys(("duplicates", "ood", "corruptions", "failed", "diversity"))))
    assert [table.name for table in contents.all_tables(runs.load([path]))] == [
        *("overall", "by-feature", "by-score", "closed-set", "probes")
    ]


def test_parts_that_failed_are_named(tmp_path):
    reason = "cannot open <folder:/a/b>"
    results = {"failed": {"ood a/b": reason}, "pending": ["probes"], "left_out": {"logits": {}}}
    results["left_out"]["logits"] = {"vim": "vim needs features.", "ash": "ash needs features.", "odin": "no model"}
    path = write_run(tmp_path / "a", "none", results=results | {"ood": {"near": {}, "far": {}}, "num_negative": 7})
    lines = conditions.details(runs.load([path]))
    assert f"not evaluated: none, trial 0, seed 0: ood a/b ({reason})" in lines
    assert "not evaluated: none, trial 0, seed 0: probes (interrupted)" in lines
    assert "scores left out, vim, ash of logits: needs features" in lines
    assert "scores left out, odin of logits: no model" in lines
    assert lines[0].startswith("images: ") and lines[0].endswith(", 7 negative training")


def test_a_run_without_labels_has_roc_curves_but_no_oscr(tmp_path):
    path = write_run(tmp_path / "a", "none", results=dict.fromkeys(("accuracy", "oscr", "macro_f1", "ccr_at_fpr_01")))
    arrays = dict(np.load(tmp_path / "a" / workdir.SCORES))
    del arrays["labels"]
    np.savez(tmp_path / "a" / workdir.SCORES, **arrays)
    method = runs.load([path])[0]
    with drawing.style():
        assert "ROC curve (one run)" in curves.runs_curve(method, "roc")
        for kind in ("oscr", "risk"):
            assert "curves cannot be shown: there is no array of labels in " in curves.runs_curve(method, kind)
        assert "Precision-recall curve (one run)" in curves.runs_curve(method, "pr")
    text = report.table(method.example.results, path)
    assert "AUROC" in text and "OSCR  " not in text


def test_a_large_confusion_matrix_is_summarized():
    """It shows the 30 of 40 known classes with the most errors; the sums lose nothing."""
    random = np.random.default_rng(0)
    counts = random.integers(0, 5, (55, 41))
    counts[np.arange(40), np.arange(40)] = 100
    counts[:10, 40] = 0
    counts[:10, :40] = np.eye(10, 40) * 7  # without errors, so these ten are left out
    names = [f"c{i}" for i in range(55)]
    groups = matrix.grouping(names, counts)
    found, note = groups.sum(counts), groups.note
    assert groups.known == 31 and found.shape == (32, 32)
    assert groups.rows == [*names[10:40], "10 other known", "15 unknown classes"]
    assert groups.columns == [*names[10:40], "10 other known", "unknown"]
    assert found.sum() == counts.sum() and found[30, 30] == 70
    np.testing.assert_array_equal(found[:30, :30], counts[10:40, 10:40])
    np.testing.assert_array_equal(found[31, :30], counts[40:, 10:40].sum(axis=0))
    assert "40 known classes the 30" in note and "The 15 unknown classes" in note


def test_large_thumbnails_are_scaled_down():
    image = np.random.default_rng(0).integers(0, 255, (224, 224, 3), np.uint8)
    uri = drawing.thumbnail(image)
    assert uri.startswith("data:image/jpeg;base64,") and len(uri) < 30_000
    assert drawing.thumbnail(image[:32, :32]).startswith("data:image/png;base64,")


def _write_large_run(folder: pathlib.Path, *, num_classes: int, num_images: int, width: int) -> None:
    """A made-up run with equally many known and unknown classes, markup in names, and 224-pixel gallery images."""
    random = np.random.default_rng(0)
    write_run(folder, "none", size=2)
    known, unknown = ([f"{s}/<{i}>$x|{'y' * 20}" for i in range(num_classes)] for s in ("known", "unknown"))
    half = num_images // 2
    labels = np.arange(half) % num_classes
    predicted = np.where(random.uniform(size=half) < 0.7, labels, random.integers(0, num_classes, half))
    scores = {
        f"{feature}/{score}/{side}": random.normal(side == "known", 1, half)
        for feature in ("features", "logits")
        for score in [f"score{i}" for i in range(6)] + ["topk_cosine"]
        for side in ("known", "unknown")
    }
    of = {side: scores[f"features/topk_cosine/{side}"] for side in ("known", "unknown")}
    headline = open_set(of["known"], of["unknown"], predicted == labels)
    np.savez(
        folder / workdir.SCORES,
        **{"known_scores": of["known"], "unknown_scores": of["unknown"], "predicted": predicted, "labels": labels},
        **{"predicted_unknown": random.integers(0, num_classes, half), "unknown_classes": labels.astype(np.int32)},
        **scores,
    )
    features = random.normal(size=(half, width)).astype(np.float32)
    sides = {f"test_{side}/features": features for side in ("known", "unknown")}
    np.savez(folder / workdir.FEATURES, **{"test_known/labels": labels, "test_unknown/labels": -labels}, **sides)
    kinds = tuple(gallery_lib.KINDS)
    gallery = {f"{kind}/images": random.integers(0, 255, (16, 224, 224, 3), np.uint8) for kind in kinds}
    for kind in kinds:
        gallery |= {f"{kind}/scores": np.arange(16.0), f"{kind}/truth": known[:16], f"{kind}/predicted": known[:16]}
        gallery |= {f"{kind}/nearest": random.integers(0, 300, (16, 3)), f"{kind}/similarity": np.ones((16, 3))}
    gallery |= {
        "train/images": random.integers(0, 255, (300, 224, 224, 3), np.uint8),
        "train/classes": (known * 9)[:300],
    }
    np.savez(folder / workdir.GALLERY, **gallery)
    results = json.loads((folder / workdir.RESULTS).read_text()) | headline
    by_score = {f: {s: headline for s in ("topk_cosine", "score0", "score1")} for f in ("features", "logits")}
    dimensions = dict(zip(known, random.uniform(2, 9, num_classes)))
    counts = random.integers(0, 50, (2 * num_classes, num_classes + 1)).tolist()
    results |= {
        **{"by_score": by_score, "by_feature": {"features": headline}, "known_classes": known},
        **{"num_known": half, "num_unknown": half, "environment": ENVIRONMENT},
        "per_class": {name: {"accuracy": 0.7, "auroc": random.uniform(0.5, 1)} for name in known},
        "per_unknown_class": {name: {"auroc": random.uniform(0.5, 1), "n": 50} for name in unknown},
        "confusion": {"rows": known + unknown, "columns": [*known, "unknown"], "counts": counts},
        "diversity": {"features": {"effective_rank": 7.5, "intrinsic_dimension": dimensions}},
    }
    (folder / workdir.RESULTS).write_text(json.dumps(results))
    lines = (json.dumps({"step": step, "loss": 5 / (1 + step)}) + "\n" for step in range(20_000))
    (folder / workdir.METRICS).write_text("".join(lines))


@pytest.mark.slow
def test_a_thousand_classes_and_a_hundred_thousand_images(tmp_path):
    """The report of such a run takes less than a minute and 1.5 GB, and its page stays small."""
    _write_large_run(tmp_path / "run", num_classes=1000, num_images=100_000, width=512)
    # The process reports its own peak, because wait4 includes that of the process it was forked from.
    code = (
        "import runpy, sys\n"
        "try:\n    runpy.run_module('gradmix_jax.report', run_name='__main__', alter_sys=True)\n"
        "finally:\n    print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0], file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run"), f"--out={tmp_path / 'out'}"]
    with open(tmp_path / "said", "w+") as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        status, used = os.wait4(process.pid, 0)[1:]
        process.returncode = status
        said.seek(0)
        lines = said.read().splitlines()
    assert status == 0, lines
    assert int(lines[-1]) < 1.5e6  # kB
    # CPU time, which does not depend on other load.
    assert used.ru_utime + used.ru_stime < 60
    text = (tmp_path / "out" / "report.html").read_text()
    assert len(text) < 5e6
    page = Page(text)
    assert "The 30 lowest of 1000 known and of 1000 unknown classes." in page.text["method-0-classes"]
    assert "Of 1000 known classes the 30 with the most errors" in page.text["method-0-classes"]
    assert "the 200 of 2000 classes with the lowest AUROC" in page.text["method-0-classes"]
    assert "lowest of 1000 classes" in page.text["method-0-diversity"]
    assert "and 960 more" in page.text["conditions"]
    assert "1000 of 100000" in page.text["method-0-embedding"]
    assert "Averaged to 1000 points" in page.text["method-0-training"]


@pytest.mark.parametrize("limit", [(sections, "MOST_IN_FULL"), (page_lib, "MOST_LETTERS")])
def test_later_methods_go_without_the_large_parts(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(*limit, 1)
    paths = [write_run(tmp_path / f"m{i}", "none", label=f"method {i}/{KNOWN[2]}") for i in range(2)]
    report.write(paths, str(tmp_path / "out"))
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert all(f"method {i}/{KNOWN[2]}" in page.text["overall"] for i in range(2))
    assert "method-0-embedding" in page.ids and "method-1-curves" in page.ids and "method-1-embedding" not in page.ids
    assert "these are shown for the first 1 methods only" in page.text["method-1"]


def test_the_encoding_of_the_locale_does_not_matter(tmp_path):
    paths = write_run(tmp_path / "a"), str(tmp_path / "out")
    locale = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    command = [sys.executable, "-m", "gradmix_jax.report", paths[0], f"--out={paths[1]}"]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | locale)
    assert result.returncode == 0, result.stderr
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    report.write([paths[0]], paths[1])
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
