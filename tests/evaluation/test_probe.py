"""Probes against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gradmix_jax.evaluation import probes

NUM_CLASSES = 4


def blobs(seed, size=240):
    """Overlapping classes, features of very different scales, one of them constant."""
    random = np.random.default_rng(seed)
    labels = np.arange(size) % NUM_CLASSES
    centres = np.random.default_rng(0).normal(size=(NUM_CLASSES, 8))
    features = (centres[labels] + random.normal(size=(size, 8))) * np.geomspace(0.01, 100, 8) + 3
    features[:, 5] = 3.0
    return features.astype(np.float32), labels


@pytest.mark.parametrize("l2", [1e-1, 1e-3])
def test_linear_equals_logistic_regression(l2):
    (features, labels), (test, _) = blobs(1), blobs(2)
    ours = probes.fit_linear(features, labels, num_classes=NUM_CLASSES, l2=l2)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (l2 * len(labels)), tol=1e-8, max_iter=10000))
    theirs.fit(features.astype(np.float64), labels)
    # Logits are unique up to a number a class shares with no other image: compare probabilities.
    exponentials = np.exp(ours.logits(test) - ours.logits(test).max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, theirs.predict_proba(test.astype(np.float64)), atol=2e-3)


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
    assert best > min(accuracy.values())  # else nothing was chosen


def test_neighbours_equal_scikit_learn():
    train, validation, (test, _) = blobs(1), blobs(2), blobs(3)
    ours = probes.neighbours(train, validation, num_classes=NUM_CLASSES, ks=(1, 3, 7, 500))
    accuracy = {}
    for k in (1, 3, 7):
        theirs = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(*train)
        accuracy[k] = theirs.score(*validation)
        if k == ours.k:
            np.testing.assert_array_equal(ours.predict(test), theirs.predict(test))
    assert ours.k == min(k for k, value in accuracy.items() if value == max(accuracy.values()))


def test_what_probes_refuse():
    (features, labels), validation = blobs(1), blobs(2)
    nothing = (validation[0][:0], validation[1][:0])
    with pytest.raises(ValueError, match="no validation images"):
        probes.linear((features, labels), nothing, num_classes=NUM_CLASSES)
    with pytest.raises(ValueError, match="0 validation images"):
        probes.neighbours((features, labels), nothing, num_classes=NUM_CLASSES)
    with pytest.raises(ValueError, match="values of k"):
        probes.neighbours((features, labels), validation, num_classes=NUM_CLASSES, ks=(0, 1000))
    with pytest.raises(ValueError, match="not finite"):
        probes.fit_linear(np.full_like(features, np.nan), labels, num_classes=NUM_CLASSES, l2=1.0)
    with pytest.raises(ValueError, match="Every known class"):
        probes.fit_linear(features, labels % 2, num_classes=NUM_CLASSES, l2=1.0)
