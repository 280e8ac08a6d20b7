"""The gallery of training features: its rows, and the effect of reducing them."""

import numpy as np
import pytest

from gradmix_jax.portable import gallery
from gradmix_jax.portable.functions import split
from gradmix_jax.scores.neighbors import class_bank


def clusters(counts, *, seed=0, spread=0.2):
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    centers = np.random.default_rng(99).normal(size=(len(counts), 6))
    features = (centers[labels] + spread * random.normal(size=(len(labels), 6))).astype(np.float32)
    order = random.permutation(len(labels))
    return features[order], labels[order]


@pytest.mark.parametrize("counts", [(5, 5, 5), (40, 3, 2)])
def test_rows_are_the_training_features_class_by_class(counts):
    features, labels = clusters(counts)
    arrays, _ = split({"gallery": class_bank(features, labels, num_classes=3)})
    found, classes = gallery.rows_of(arrays)
    order = np.argsort(labels, kind="stable")
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_array_equal(classes, labels[order])
    np.testing.assert_allclose(found, unit[order], rtol=1e-6)


def test_the_nearest_by_cosine():
    features, _ = clusters((20, 20))
    asked, _ = clusters((3, 3), seed=1)
    unit = lambda x: x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    expected = unit(asked) @ unit(features).T
    rows, cosine = gallery.nearest(unit(features).astype(np.float32), asked, count=4)
    np.testing.assert_array_equal(rows, np.argsort(-expected, axis=1)[:, :4])
    np.testing.assert_allclose(cosine, -np.sort(-expected, axis=1)[:, :4], rtol=1e-5)


def test_farthest_first_covers_within_twice_the_optimum():
    """For evenly spaced directions the optimum is known: every feature lies within half a gap of a center."""
    angle = np.linspace(0, np.pi / 2, 91)
    features = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    chosen = gallery.farthest_first(features, count=5)
    distance = np.abs(angle[:, None] - angle[chosen]).min(axis=1).max()
    assert len(chosen) == 5
    assert distance <= 2 * (np.pi / 2) / (2 * 5) + 1e-6
    np.testing.assert_array_equal(gallery.farthest_first(features, count=100), np.arange(91))


@pytest.mark.parametrize("rule", gallery.RULES)
def test_reduced_keeps_the_count_and_the_classes(rule):
    features, labels = clusters((50, 4, 30))
    bank, rows = gallery.reduced(features, labels, num_classes=3, k=2, count=10, rule=rule)
    np.testing.assert_array_equal(np.bincount(labels[rows]), [10, 4, 10])
    assert int(np.sum(bank.valid_PxL)) == 24
    assert bank.k == 2
    assert (np.diff(rows) > 0).all()


def test_difference_is_measured_against_all_features():
    features, labels = clusters((60, 60, 60), spread=0.6)
    asked, truth = clusters((40, 40, 40), seed=1, spread=0.6)
    whole = class_bank(features, labels, num_classes=3)
    same = gallery.difference(whole, whole, asked, truth)
    assert same["same_class"] == 1 and same["auroc"][0] == same["auroc"][1] and same["images"] == 120
    # One wrong training feature per class is worse than all of them.
    poor = class_bank(asked[[0, 1, 2]], np.array([0, 1, 2]), num_classes=3, k=3)
    found = gallery.difference(whole, poor, asked, truth)
    assert found["same_class"] < 1 and found["accuracy"][1] < found["accuracy"][0]
    assert gallery.difference(whole, whole, asked[:0], truth[:0]) is None


def test_auroc_with_each_class_treated_as_unknown():
    """By hand: without class 0, its images score lower than the others, except in one pair of four."""
    sums = np.array([[9.0, 1.0], [9.0, 3.0], [2.0, 9.0], [4.0, 9.0]])
    labels = np.array([0, 0, 1, 1])
    # Without class 0, scores are 1, 3 (unknown) and 9, 9; without class 1, they are 9, 9 and 2, 4 (unknown).
    assert gallery.left_out_auroc(sums, labels) == 1
    sums[1, 1], sums[2, 1] = 5, 4
    # Without class 0: 1, 5 (unknown) and 4, 9: 3 of 4 pairs.
    assert gallery.left_out_auroc(sums, labels) == pytest.approx((0.75 + 1) / 2)
    assert gallery.left_out_auroc(sums[:2], labels[:2]) is None
