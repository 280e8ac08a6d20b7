"""Fitting all scores together: shared work, and scores that are left out."""

import jax
import numpy as np
import pytest
from marks import slow_but
from scored_toy import (
    LABELS,
    F,
    K,
    class_sums,
    relative,
    toy,
    unit,
    z_scored,
)

from gradmix_jax import scores
from gradmix_jax.scores import fitted, neighbors, odin

NAMES = ("topk_cosine", "relative_mahalanobis", "ensemble")


@pytest.mark.parametrize(
    "num_classes, validation, left, words",
    [
        (3, toy.validation, NAMES, ""),
        (1, toy.validation, NAMES[:1], "relative_mahalanobis needs at least 2 known classes, got 1"),
        (3, toy.validation[:1], NAMES[:2], "must vary over the validation images"),
        (3, np.ones((4, F)), NAMES[:2], "must vary over the validation images"),
    ],
)
def test_scores_that_cannot_be_fitted_are_left_out_unless_required(num_classes, validation, left, words):
    given = dict(num_classes=num_classes, features=["features"], names=NAMES, k=3)
    outputs = {"validation": {"features": validation}}
    fit = lambda **more: fitted.fit_all({"features": toy.train}, LABELS % num_classes, **given, **outputs, **more)
    found = fit()
    assert tuple(found.states["features"]) == left
    assert all(np.isfinite(x).all() for x in found.scores({"features": toy.test})["features"].values())
    assert tuple(fit(required=("features", "topk_cosine")).states["features"]) == left
    for name in set(NAMES) - set(left):
        with pytest.raises(ValueError, match=words):
            fit(required=("features", name))


def test_the_norm_of_unit_features_is_left_out(caplog):
    given = dict(num_classes=K, features=["features"], names=("topk_cosine", "feature_norm"), k=3)
    train = {"features": unit(toy.train).astype(np.float32)}
    # Expected for a projection, so there is no warning.
    assert list(fitted.fit_all(train, LABELS, **given).states["features"]) == ["topk_cosine"] and not caplog.records
    with pytest.raises(ValueError, match="feature_norm needs features of different lengths, got 1 for all of them"):
        fitted.fit_all(train, LABELS, **given, required=("features", "feature_norm"))


def test_the_ensemble_is_of_the_fitted_scores_with_their_options():
    given = dict(num_classes=K, features=["features"], names=NAMES, k=7, validation={"features": toy.validation})
    outputs = {"features": toy.test.astype(np.float32)}
    found = fitted.fit_all({"features": toy.train.astype(np.float32)}, LABELS, **given)
    states = found.states["features"]
    assert all(states["ensemble"].states[name] is states[name] for name in NAMES[:2])
    sums = lambda x: class_sums(x, k=7).max(axis=1)
    expected = (z_scored(sums, toy.test) + z_scored(relative, toy.test)) / 2
    np.testing.assert_allclose(found.score("features", "ensemble", outputs), expected, rtol=1e-3, atol=1e-4)

    options = {"ensemble": {"members": ("knn", "topk_cosine")}, "topk_cosine": {"k": 2}, "knn": {"k": 4}}
    found = fitted.fit_all({"features": toy.train.astype(np.float32)}, LABELS, **given, options=options)
    expected = (z_scored(lambda x: class_sums(x, k=2).max(axis=1), toy.test) + z_scored(knn_4, toy.test)) / 2
    np.testing.assert_allclose(found.score("features", "ensemble", outputs), expected, rtol=1e-3, atol=1e-4)


def knn_4(x):
    return -np.sort(np.linalg.norm(unit(x)[:, None] - unit(toy.train), axis=2), axis=1)[:, 3]


def test_predictions_and_scores_share_similarities(monkeypatch):
    calls, compute = [], neighbors.class_similarities
    monkeypatch.setattr(neighbors, "class_similarities", lambda *args: calls.append(1) or compute(*args))
    names = ("topk_cosine", "topk_cosine_normalized", "ensemble")
    given = dict(num_classes=K, features=["features"], names=names, k=5, validation={"features": toy.validation})
    found = fitted.fit_all({"features": toy.train.astype(np.float32)}, LABELS, **given)
    calls.clear()
    outputs = {"features": toy.test.astype(np.float32)}
    found.scores(outputs)
    np.testing.assert_array_equal(found.predict("features", outputs), class_sums(toy.test, k=5).argmax(axis=1))
    assert len(calls) == 1
    other = {"features": toy.unknown.astype(np.float32)}
    np.testing.assert_array_equal(found.predict("features", other), class_sums(toy.unknown, k=5).argmax(axis=1))


def fit_every_score(train, labels, validation, **more):
    """All scores of features and of logits that are random linear functions of them, and the outputs to score."""
    num_classes = int(labels.max()) + 1
    kernel = np.random.default_rng(5).normal(size=(train.shape[1], num_classes)).astype(np.float32)
    head = kernel, np.zeros(num_classes, np.float32)
    perturbed = lambda x: odin.perturbed_logits(lambda x: x @ kernel, jax.numpy.asarray(np.float32(x)))
    of = lambda x: {"features": np.float32(x), "logits": np.float32(x) @ kernel, "perturbed_logits": perturbed(x)}
    given = dict(num_classes=num_classes, features=["features"], names=tuple(scores.SCORES), k=3, head=head)
    return fitted.fit_all(of(train), labels, **given, validation=of(validation), **more), of


def zeros_of(x):
    """Features with dead channels, and images with only zero features."""
    x = np.maximum(x - 0.5, 0)
    x[:, ::3] = 0
    x[::7] = 0
    return x


NORMAL = lambda seed, size, channels: np.random.default_rng(seed).normal(size=(size, channels))
# name: (training features, labels, other features, scores that cannot be computed)
ENCODERS = {
    "zeros": (zeros_of(NORMAL(0, 90, 12)), np.arange(90) % 3, zeros_of(NORMAL(1, 40, 12)), {"topk_cosine_normalized"}),
    "one image a class": (
        NORMAL(0, 5, 4),
        np.arange(5),
        NORMAL(1, 40, 4),
        {"mahalanobis", "mahalanobis_plus_plus", "mahalanobis_per_class", "relative_mahalanobis", "ensemble"},
    ),
    "fewer images than dimensions": (NORMAL(0, 20, 64), np.arange(20) % 4, NORMAL(1, 40, 64), {"vim"}),
    "collapsed": (
        np.ones((30, 8)),
        np.arange(30) % 3,
        np.ones((20, 8)),
        set(scores.SCORES),
    ),
}


@pytest.mark.parametrize("name", slow_but(["zeros", "one image a class"], ENCODERS))
def test_scores_of_a_poor_encoder_are_finite_or_left_out_by_name(name):
    train, labels, other, lacking = ENCODERS[name]
    found, of = fit_every_score(train, labels, other[: len(other) // 2])
    values = {score: x for by_score in found.scores(of(other)).values() for score, x in by_score.items()}
    reasons = {score: reason for by_score in found.left_out.values() for score, reason in by_score.items()}
    assert all(np.isfinite(x).all() and np.ptp(x) > 0 for x in values.values())
    assert set(values).isdisjoint(reasons) and set(values) | set(reasons) == set(scores.SCORES)
    assert set(reasons) == lacking
    assert all(len(reason) > 20 and "\n" not in reason for reason in reasons.values())
    if name == "one image a class":
        assert "vary within a class, got 5 training images of 5 classes" in reasons["mahalanobis"]


def broken(value):
    return lambda state, outputs: np.full(len(outputs.features), value)


@pytest.mark.parametrize(
    "replaced, reason",
    [
        (dict(fit=lambda reference: np.linalg.inv(np.zeros((2, 2)))), "Singular matrix"),
        (dict(score=broken(np.nan)), "knn is not a finite number for 35 of 35 images"),
        (dict(score=broken(np.inf)), "knn is not a finite number"),
        (dict(score=broken(1.5)), "knn is 1.5 for all of 35 images"),
        (dict(needs=("features", "head")), "needs the weights of a linear classifier; not given"),
    ],
)
def test_the_failure_of_one_score_does_not_affect_others(monkeypatch, replaced, reason):
    monkeypatch.setitem(scores.SCORES, "knn", scores.SCORES["feature_norm"]._replace(**replaced))
    monkeypatch.setattr(fitted, "works_on_logits", lambda name: False)
    given = dict(num_classes=K, features=["features"], names=("topk_cosine", "knn", "class_mean_l1"), k=3)
    train, outputs = {"features": toy.train.astype(np.float32)}, {"features": toy.test.astype(np.float32)}
    found = fitted.fit_all(train, LABELS, **given)
    assert list(found.scores(outputs)["features"]) == ["topk_cosine", "class_mean_l1"]
    assert reason in found.left_out["features"]["knn"]
    with pytest.raises(scores.Unfit, match=reason):
        fitted.fit_all(train, LABELS, **given, required=("features", "knn")).scores(outputs)


def test_a_score_that_is_left_out_stays_out(monkeypatch):
    """Otherwise two calls would return different scores."""
    often = lambda state, outputs: (
        np.linalg.norm(outputs.features, axis=1) + (np.nan if len(outputs.features) == 5 else 0)
    )
    monkeypatch.setitem(scores.SCORES, "knn", scores.SCORES["feature_norm"]._replace(score=often))
    given = dict(num_classes=K, features=["features"], names=("knn",), k=3)
    found = fitted.fit_all({"features": toy.train.astype(np.float32)}, LABELS, **given)
    of = lambda size: found.scores({"features": toy.test[:size].astype(np.float32)})["features"]
    assert list(of(6)) == ["knn"] and not of(5) and not of(6)


def test_a_set_of_equal_images_may_have_a_constant_score():
    given = dict(num_classes=K, features=["features"], names=("knn",), k=3)
    found = fitted.fit_all({"features": toy.train.astype(np.float32)}, LABELS, **given)
    equal = {"features": np.ones((4, F), np.float32)}
    assert len(found.scores(equal, constant=True)["features"]["knn"]) == 4 and not found.left_out
    assert not found.scores(equal)["features"]


def test_names_and_options_that_do_not_exist_are_errors():
    given = dict(num_classes=K, features=["features"], k=3)
    train = {"features": toy.train.astype(np.float32)}
    with pytest.raises(ValueError, match="The score must be one of topk_cosine.*'cosine'"):
        fitted.fit_all(train, LABELS, names=("cosine",), **given)
    with pytest.raises(ValueError, match=r"evaluate.options.knn.k must be a positive integer, got 0"):
        fitted.fit_all(train, LABELS, names=("knn",), options={"knn": {"k": 0}}, **given)
