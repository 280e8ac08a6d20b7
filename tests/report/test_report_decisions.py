"""Decisions at every threshold of the page's slider against counting; the embedded data."""

import json
import re

import numpy as np
import pytest
from evaluated_runs import KNOWN, UNKNOWN, write_run

from gradmix_jax import metrics
from gradmix_jax.evaluation import open_set
from gradmix_jax.report import decisions, matrix, runs, threshold


def _run(tmp_path, **options):
    """A run with scores on a coarse grid, most of which tie with each other and with thresholds."""
    path = write_run(tmp_path / "run", "none", size=20, **options)
    arrays = dict(np.load(tmp_path / "run" / "scores.npz"))
    for side in ("known", "unknown"):
        arrays[f"{side}_scores"] = np.round(arrays[f"{side}_scores"] * 3).astype(np.float32) / 3
    np.savez(tmp_path / "run" / "scores.npz", **arrays)
    return runs.read(path), arrays


def _count(run, arrays, at):
    """(macro-F1, confusion matrix) at a threshold, as an evaluation computes them."""
    decide = lambda side, predicted: np.where(arrays[f"{side}_scores"] >= at, arrays[predicted], len(KNOWN))
    decided = np.concatenate([decide("known", "predicted"), decide("unknown", "predicted_unknown")])
    unknown = len(arrays["unknown_scores"])
    truth = np.concatenate([arrays["labels"], np.full(unknown, len(KNOWN))])
    counts = open_set.confusion(
        arrays["known_scores"],
        arrays["unknown_scores"],
        arrays["predicted"],
        arrays["predicted_unknown"],
        classes_N=np.array(KNOWN)[arrays["labels"]],
        classes_M=np.array(sorted(UNKNOWN))[arrays["unknown_classes"]],
        known_names=KNOWN,
        threshold=at,
    )["counts"]
    return metrics.macro_f1(decided, truth, num_classes=len(KNOWN)), np.array(counts)


@pytest.mark.parametrize("threshold_of_run", [1 / 3, None])
def test_every_threshold_against_counting(tmp_path, threshold_of_run):
    own = None if threshold_of_run is None else float(np.float32(threshold_of_run))
    results = {"threshold": own} | ({} if own else {"confusion": None, "threshold_rule": None, "macro_f1": None})
    run, arrays = _run(tmp_path, results=results)
    found = decisions.of(run)
    summary = decisions.summary(found)
    assert summary["own"] == (None if own is None else found.thresholds_T.tolist().index(own))
    assert np.all(np.diff(found.thresholds_T) > 0) and summary["accepted"][-1] == summary["false"][-1] == 0
    assert summary["accepted"][0] == 120 and summary["false"][0] == 80
    right = arrays["predicted"] == arrays["labels"]
    for place, at in enumerate(found.thresholds_T):
        accepted = arrays["known_scores"] >= at
        assert summary["accepted"][place] == accepted.sum() and summary["right"][place] == (accepted & right).sum()
        assert summary["false"][place] == (arrays["unknown_scores"] >= at).sum()
        macro_f1, counts = _count(run, arrays, at)
        assert summary["f1"][place] == pytest.approx(macro_f1, abs=1e-12)
        np.testing.assert_array_equal(found.confusion(place), counts)
    if own is None:
        share = np.array(summary["accepted"]) / 120
        assert share[summary["start"]] >= decisions.START > share[summary["start"] + 1]


def test_macro_f1_leaves_out_classes_that_neither_occur_nor_are_predicted(tmp_path):
    run, arrays = _run(tmp_path)
    for name in ("labels", "predicted", "predicted_unknown"):
        arrays[name] = run.headline[name] = np.minimum(arrays[name], len(KNOWN) - 2)
    # The last class is predicted for a single image, which has the lowest score.
    arrays["predicted"][arrays["known_scores"].argmin()] = len(KNOWN) - 1
    found = decisions.of(run)
    expected = [_count(run, arrays, at)[0] for at in found.thresholds_T]
    np.testing.assert_allclose(found.macro_f1(), expected, atol=1e-12)


def test_the_runs_threshold_gives_the_numbers_of_the_results(tmp_path):
    path = write_run(tmp_path / "a", "none", size=30)
    run = runs.read(path)
    found = decisions.of(run)
    assert decisions.summary(found)["f1"][found.own] == pytest.approx(run.results["macro_f1"], abs=1e-12)
    np.testing.assert_array_equal(found.confusion(found.own), run.results["confusion"]["counts"])
    html, _ = threshold.parts(run, "m")
    assert f'data-number="f1">{run.results["macro_f1"]:.4f}<' in html


def test_cells_give_the_matrix_at_every_threshold(tmp_path):
    run, _ = _run(tmp_path)
    found = decisions.of(run)
    _, data = matrix.confusion(run, found)
    groups = matrix.grouping(list(found.rows), found.confusion(found.start))
    for place in range(len(found.thresholds_T)):
        counts = np.zeros((len(groups.rows), len(groups.columns)), int)
        for row, column, *pairs in data["cells"]:
            counts[row, column] = sum(n for above, n in zip(pairs[::2], pairs[1::2]) if above > place)
        counts[:, -1] = np.array(data["totals"]) - counts.sum(axis=1)
        np.testing.assert_array_equal(counts, groups.sum(found.confusion(place)))


def test_what_unknown_classes_are_taken_for(tmp_path):
    run, arrays = _run(tmp_path)
    found = decisions.of(run)
    html, data = matrix.taken_for(run, found)
    counts = run.results["confusion"]["counts"][len(KNOWN) :]
    order = np.argsort(-counts[:, :-1].sum(axis=1), kind="stable")
    row = r'<tr><th scope="row">([^<]*)</th><td class="said">[^<]*</td><td>(\d+)</td><td>[\d.]+ %</td><td>(\d+)</td>'
    assert re.findall(row, html) == [(sorted(UNKNOWN)[u], str(counts[u, :-1].sum()), "20") for u in order]
    first = np.sort(counts[order[0], :-1])[::-1][:3]
    assert re.findall(r"\((\d+)\)", html)[: np.count_nonzero(first)] == [str(n) for n in first if n]
    # In the script's data, column K holds all predictions together.
    totals = {row: sum(pairs[1::2]) for row, column, *pairs in data["cells"] if column == len(KNOWN)}
    assert totals == {row: 20 for row in range(len(UNKNOWN))}


def test_runs_without_predictions_of_unknown_images_say_so(tmp_path):
    path = write_run(tmp_path / "a", "none")
    arrays = dict(np.load(tmp_path / "a" / "scores.npz"))
    del arrays["predicted_unknown"], arrays["unknown_classes"]
    np.savez(tmp_path / "a" / "scores.npz", **arrays)
    run = runs.read(path)
    assert decisions.of(run) is None
    html, tables = threshold.parts(run, "m")
    assert "Evaluate the run again (--mode=eval)" in html and "<script" not in html and "<input" not in html
    assert f"{run.results['macro_f1']:.4f}" in html and 'class="confusion"' in tables


@pytest.mark.parametrize("damage", ["class", "prediction", "length"])
def test_arrays_that_do_not_match_give_no_decisions(tmp_path, damage):
    run, _ = _run(tmp_path)
    arrays = run.headline
    if damage == "class":
        arrays["unknown_classes"] = arrays["unknown_classes"] + len(UNKNOWN)
    elif damage == "prediction":
        arrays["predicted"] = arrays["predicted"] + len(KNOWN)
    else:
        arrays["predicted"] = arrays["predicted"][:-1]
    assert decisions.of(run) is None


def test_embedded_data_cannot_end_its_element():
    content = {"</script><!--": "a & b ]]> \u2028 é <script>"}
    text = threshold.embedded(content)
    assert json.loads(text) == content and not re.search(r"[<>&]", text) and text.isascii()


def test_the_grid_is_as_fine_as_the_page_has_room_for():
    assert decisions.thresholds_for(10) == decisions.MOST_THRESHOLDS
    assert decisions.thresholds_for(1_000) * 1_000 <= decisions.MOST_ENTRIES
    assert decisions.thresholds_for(10**9) == decisions.FEWEST_THRESHOLDS
