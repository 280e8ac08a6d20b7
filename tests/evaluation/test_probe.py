"""Probes against scikit-learn."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gradmix_jax.evaluation import probes

NUM_CLASSES = 4


def blobs(seed, size=240, channels=8):
    """Overlapping classes; features of very different scales, one of them constant."""
    random = np.random.default_rng(seed)
    labels = np.arange(size) % NUM_CLASSES
    centers = np.random.default_rng(0).normal(size=(NUM_CLASSES, channels))
    features = (centers[labels] + random.normal(size=(size, channels))) * np.geomspace(0.01, 100, channels) + 3
    features[:, 5] = 3.0
    return features.astype(np.float32), labels


def probabilities(linear, features):
    """Compare probabilities, since logits are unique only up to a constant per image."""
    exponentials = np.exp(linear.logits(features) - linear.logits(features).max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def scikit_learn(features, labels, l2):
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (l2 * len(labels)), tol=1e-9, max_iter=50000))
    return model.fit(features.astype(np.float64), labels)


@pytest.mark.parametrize("l2", probes.L2)
@pytest.mark.parametrize("size, channels", [(240, 8), (60, 100)], ids=["overlapping", "separable"])
def test_linear_equals_logistic_regression(size, channels, l2):
    (features, labels), (test, _) = (blobs(seed, size, channels) for seed in (1, 2))
    ours = probes.fit_linear(features, labels, num_classes=NUM_CLASSES, l2=l2)
    expected = scikit_learn(features, labels, l2).predict_proba(test.astype(np.float64))
    np.testing.assert_allclose(probabilities(ours, test), expected, atol=1e-3)


@pytest.mark.parametrize("l2", [1e-4, 1e-5])
def test_small_penalties_on_digits(l2):
    """With correlated pixels the loss is so flat that a gradient of 1e-6 can be far from the minimum."""
    features, labels = load_digits(return_X_y=True)
    train, test = slice(None, None, 3), slice(1, None, 3)
    ours = probes.fit_linear(features[train], labels[train], num_classes=10, l2=l2)
    expected = scikit_learn(features[train], labels[train], l2).predict_proba(features[test])
    np.testing.assert_allclose(probabilities(ours, features[test]), expected, atol=2e-3)


def test_the_path_of_penalties_gives_the_same_fits_as_each_penalty_alone():
    train, validation = blobs(1, 60, 100), blobs(2, 60, 100)
    chosen = probes.linear(train, validation, num_classes=NUM_CLASSES, l2_values=(10.0, 1e-2, 1e-5)).l2
    path = probes.linear(train, validation, num_classes=NUM_CLASSES, l2_values=(10.0, 1e-2, chosen))
    alone = probes.fit_linear(*train, num_classes=NUM_CLASSES, l2=chosen)
    np.testing.assert_allclose(path.kernel_FxK, alone.kernel_FxK, rtol=1e-3, atol=1e-4 * abs(alone.kernel_FxK).max())


def test_the_validation_images_choose_the_penalty():
    train, validation = blobs(1, size=48), blobs(2)
    chosen = probes.linear(train, validation, num_classes=NUM_CLASSES)
    accuracy = {
        l2: np.mean(
            probes.fit_linear(*train, num_classes=NUM_CLASSES, l2=l2).logits(validation[0]).argmax(axis=1)
            == validation[1]
        )
        for l2 in probes.L2
    }
    best = max(accuracy.values())
    assert chosen.l2 == max(l2 for l2, value in accuracy.items() if value == best)
    assert best > min(accuracy.values())  # otherwise nothing was chosen


def test_neighbors_equal_scikit_learn():
    train, validation, (test, _) = blobs(1), blobs(2), blobs(3)
    ours = probes.neighbors(train, validation, num_classes=NUM_CLASSES, ks=(1, 3, 7, 500))
    accuracy = {}
    for k in (1, 3, 7):
        theirs = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(*train)
        accuracy[k] = theirs.score(*validation)
        if k == ours.k:
            np.testing.assert_array_equal(ours.predict(test), theirs.predict(test))
    assert ours.k == min(k for k, value in accuracy.items() if value == max(accuracy.values()))


def test_what_probes_reject():
    (features, labels), validation = blobs(1), blobs(2)
    nothing = (validation[0][:0], validation[1][:0])
    with pytest.raises(ValueError, match="needs validation images"):
        probes.linear((features, labels), nothing, num_classes=NUM_CLASSES)
    with pytest.raises(ValueError, match="got 0 images"):
        probes.neighbors((features, labels), nothing, num_classes=NUM_CLASSES)
    with pytest.raises(ValueError, match="and 0 such k"):
        probes.neighbors((features, labels), validation, num_classes=NUM_CLASSES, ks=(0, 1000))
    with pytest.raises(ValueError, match="needs finite features"):
        probes.fit_linear(np.full_like(features, np.nan), labels, num_classes=NUM_CLASSES, l2=1.0)
    with pytest.raises(ValueError, match="Every known class"):
        probes.fit_linear(features, labels % 2, num_classes=NUM_CLASSES, l2=1.0)
