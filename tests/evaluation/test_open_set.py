"""What an evaluation reports for one score."""

import json

import numpy as np

from gradmix_jax import metrics
from gradmix_jax.evaluation import open_set


def test_every_metric_without_a_threshold_comes_from_one_sort(monkeypatch):
    random = np.random.default_rng(0)
    # Rounded, so that there are ties.
    known, unknown = random.normal(1, 1, 300).round(1), random.normal(0, 1, 200).round(1)
    labels = random.integers(0, 4, 300)
    predicted = np.where(random.random(300) < 0.8, labels, 0)
    correct = predicted == labels
    expected = {
        "accuracy": correct.mean(),
        "auroc": metrics.auroc(known, unknown),
        "fpr95_unknown_positive": metrics.fpr_at(known, unknown, positive="unknown"),
        "fpr95_known_positive": metrics.fpr_at(known, unknown, positive="known"),
        "average_precision_known": metrics.average_precision(known, unknown, positive="known"),
        "average_precision_unknown": metrics.average_precision(known, unknown, positive="unknown"),
        "oscr": metrics.oscr(known, unknown, correct),
        "oscr_compat": metrics.oscr(known, unknown, correct, compat=True),
        "ccr_at_fpr_01": metrics.ccr_at_fpr(known, unknown, correct, fpr=0.01),
        "ccr_at_fpr_10": metrics.ccr_at_fpr(known, unknown, correct, fpr=0.1),
    }
    sorts, sort = [], metrics.ranking._points
    monkeypatch.setattr(metrics.ranking, "_points", lambda *arrays: sorts.append(1) or sort(*arrays))
    assert open_set.threshold_free_metrics(known, unknown, predicted, labels) == expected
    assert len(sorts) == 1


def test_every_class_by_name():
    random = np.random.default_rng(0)
    known, unknown = random.normal(1, 1, 300).round(1), random.normal(0, 1, 200).round(1)
    correct = random.random(300) < 0.8
    of_known, of_unknown = random.choice(["dog", "cat", "10", "9", "bee", "ant"], 300), random.choice(["cat", "2"], 200)
    found_known, found_unknown = open_set.per_class(known, unknown, correct, classes_N=of_known, classes_M=of_unknown)
    assert list(found_known) == ["10", "9", "ant", "bee", "cat", "dog"] and list(found_unknown) == ["2", "cat"]
    for name, found in found_known.items():
        at = of_known == name
        assert found == {"accuracy": correct[at].mean(), "auroc": metrics.auroc(known[at], unknown)}
    for name, found in found_unknown.items():
        at = of_unknown == name
        assert found == {"auroc": metrics.auroc(known, unknown[at]), "n": at.sum()}
    json.dumps([found_known, found_unknown])  # written to results


def test_the_gallery_compares_with_images_in_the_right_class():
    correct = np.array([False, True, True, False])
    places = open_set.gallery_places(np.array([4.0, 1.0, 3.0, 2.0]), np.array([0.5, 2.5]), correct)
    places = {kind: (side, found.tolist()) for kind, (side, found) in places.items()}
    assert places["accepted_known"] == ("known", [2, 1]) and places["misclassified"] == ("known", [0, 3])
    assert places["accepted_unknown"] == ("unknown", [1, 0]) and places["rejected_known"] == ("known", [1, 3, 2, 0])
    assert places["known_spread"] == ("known", [0, 2, 3, 1]) and places["unknown_spread"] == ("unknown", [1, 0])
    many = open_set.gallery_places(np.arange(100.0), np.arange(3.0), np.ones(100, bool), size=5)["known_spread"]
    assert many[1].tolist() == [99, 74, 49, 25, 0]


def test_classes_of_the_same_name_on_both_sides_have_a_row_each():
    found = open_set.confusion(
        known_N=np.array([1.0, 0.9, 0.2]),
        unknown_M=np.array([0.1, 0.8]),
        predicted_N=np.array([0, 1, 1]),
        predicted_M=np.array([0, 1]),
        classes_N=np.array(["0", "a", "a"]),
        classes_M=np.array(["0", "b"]),
        known_names=("0", "a"),
        threshold=0.5,
    )
    assert found == {
        "rows": ["known 0", "a", "unknown 0", "b"],
        "columns": ["known 0", "a", "unknown"],
        "counts": [[1, 0, 0], [0, 1, 1], [0, 0, 1], [0, 1, 0]],
    }
