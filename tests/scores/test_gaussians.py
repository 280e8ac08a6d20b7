"""Mahalanobis scores and ViM on ill-conditioned features, against float64 inverses."""

import numpy as np
import pytest
from scored_toy import LABELS, K, N, logsumexp, mahalanobis, toy

from gradmix_jax import scores
from gradmix_jax.scores import gaussians


def test_mahalanobis_ignores_dead_features():
    dead = np.concatenate([toy.train, np.zeros((N, 2))], axis=1)
    alive = scores.fit("mahalanobis", scores.Reference(scores.Outputs(toy.train), LABELS, K))
    padded = scores.fit("mahalanobis", scores.Reference(scores.Outputs(dead), LABELS, K))
    np.testing.assert_allclose(
        scores.score("mahalanobis", padded, scores.Outputs(np.pad(toy.test, ((0, 0), (0, 2))))),
        scores.score("mahalanobis", alive, scores.Outputs(toy.test)),
        rtol=1e-3,
    )


def ill_conditioned(condition, num_classes=3, channels=16, size=3000, seed=0):
    """Features whose within-class covariance has this condition number, along directions other than the axes."""
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(channels, channels)))[0]
    axes = (rotation * np.geomspace(1, condition**-0.5, channels)).T
    centers = rng.normal(size=(num_classes, channels)) @ axes
    labels = np.arange(size) % num_classes
    sample = lambda labels: (centers[labels] + rng.normal(size=(len(labels), channels)) @ axes).astype(np.float32)
    return sample(labels), labels, np.concatenate([sample(labels[:50]), 3 * sample(labels[:50])])


@pytest.mark.parametrize("condition", [1e2, 1e6, 1e10])
@pytest.mark.parametrize("name", ["mahalanobis", "relative_mahalanobis", "mahalanobis_per_class"])
def test_mahalanobis_agrees_with_a_float64_inverse(name, condition):
    train, labels, test = ill_conditioned(condition)
    train64, test64 = train.astype(np.float64), test.astype(np.float64)
    means = np.stack([train64[labels == c].mean(axis=0) for c in range(3)])
    centered = train64 - means[labels]
    shared = centered.T @ centered / len(train)
    own = [0.9 * np.cov(train64[labels == c].T, bias=True) + 0.1 * shared for c in range(3)]
    covariances = own if name == "mahalanobis_per_class" else [shared] * 3
    expected = -np.min([mahalanobis(test64, mean, each) for mean, each in zip(means, covariances)], axis=0)
    if name == "relative_mahalanobis":
        expected += mahalanobis(test64, train64.mean(axis=0), np.cov(train64.T, bias=True))
    got = scores.score(name, scores.fit(name, scores.Reference(scores.Outputs(train), labels, 3)), scores.Outputs(test))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mahalanobis", "relative_mahalanobis", "mahalanobis_per_class"])
def test_mahalanobis_of_fewer_images_than_dimensions_is_that_in_their_subspace(name):
    """Every term omits the same directions, so adding constant, repeated or mixed features changes nothing."""
    train, labels, test = ill_conditioned(1e2, channels=6, size=60)
    mix = np.random.default_rng(1).integers(-2, 3, (6, 100)).astype(np.float64)  # exact in float32
    wide = lambda x: np.concatenate([x @ mix, np.full((len(x), 2), 3.0), x[:, :1]], axis=1)
    score = lambda train, test: scores.score(
        name, scores.fit(name, scores.Reference(scores.Outputs(train), labels, 3)), scores.Outputs(test)
    )
    rounded = lambda x: np.round(x.astype(np.float64) * 2**10) / 2**10
    np.testing.assert_allclose(
        score(wide(rounded(train)), wide(rounded(test))), score(rounded(train), rounded(test)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["mahalanobis", "mahalanobis_per_class"])
def test_mahalanobis_of_a_singular_covariance_takes_its_pseudo_inverse(name):
    """As published code does; a feature outside the subspace of the training images shows other inverses."""
    rng = np.random.default_rng(0)
    train, labels = rng.normal(size=(12, 16)).astype(np.float32), np.arange(12) % 3
    test = rng.normal(size=(20, 16)).astype(np.float32)
    means = np.stack([train[labels == c].mean(axis=0, dtype=np.float64) for c in range(3)])
    centered = train - means[labels]
    shared = centered.T @ centered / len(train)
    own = [0.9 * np.cov(train[labels == c].T.astype(np.float64), bias=True) + 0.1 * shared for c in range(3)]
    inverses = [
        np.linalg.pinv(each, rcond=1e-10) for each in (own if name == "mahalanobis_per_class" else [shared] * 3)
    ]
    expected = [np.einsum("nf,fg,ng->n", test - mean, each, test - mean) for mean, each in zip(means, inverses)]
    got = scores.score(name, scores.fit(name, scores.Reference(scores.Outputs(train), labels, 3)), scores.Outputs(test))
    np.testing.assert_allclose(got, -np.min(expected, axis=0), rtol=1e-6)


def test_mahalanobis_does_not_depend_on_the_scales_of_features():
    train, labels, test = ill_conditioned(1e4)
    scales = np.geomspace(1e-8, 1e8, train.shape[1], dtype=np.float32)
    score = lambda scales: scores.score(
        "mahalanobis",
        scores.fit("mahalanobis", scores.Reference(scores.Outputs(train * scales), labels, 3)),
        scores.Outputs(test * scales),
    )
    np.testing.assert_allclose(score(scales), score(np.float32(1)), rtol=1e-3)


def test_vim_takes_no_origin_from_rounding():
    """The columns of a linear probe's kernel sum to zero up to rounding, so its rank is K - 1."""
    kernel, bias = (weights - weights.mean(axis=-1, keepdims=True) for weights in toy.head)
    exact = -np.linalg.pinv(kernel.T, rcond=1e-9) @ bias
    kernel, bias = kernel.astype(np.float32), bias.astype(np.float32)
    assert np.linalg.svd(kernel.astype(np.float64))[1][-1] > 0  # rounding, which a cutoff of 1e-15 would invert
    state = scores.fit("vim", scores.Reference(scores.Outputs(toy.train), LABELS, K, (kernel, bias)))
    np.testing.assert_allclose(state.origin_F, exact, rtol=1e-4, atol=1e-6)


def test_vim_of_nearly_flat_features_has_the_residual_of_float64():
    train, labels, test = ill_conditioned(1e14)
    head = np.eye(16, 3), np.zeros(3)
    got = scores.score(
        "vim", scores.fit("vim", scores.Reference(scores.Outputs(train), labels, 3, head)), scores.Outputs(test)
    )
    rows = np.linalg.svd(train.astype(np.float64))[2][8:]
    virtual = lambda x: np.linalg.norm(x.astype(np.float64) @ rows.T, axis=1)
    scale = train[:, :3].max(axis=1).mean() / virtual(train).mean()
    np.testing.assert_allclose(got, logsumexp(test[:, :3].astype(np.float64)) - scale * virtual(test), rtol=1e-3)


def test_scatter_is_the_same_in_blocks(monkeypatch):
    train, labels, _ = ill_conditioned(1e2, size=70)
    origins = np.random.default_rng(3).normal(size=(3, 16))
    monkeypatch.setattr(gaussians, "BLOCK_SIZE", 32)
    centered = train.astype(np.float64) - origins[labels]
    np.testing.assert_allclose(gaussians.scatter(train, origins, labels), centered.T @ centered, rtol=1e-12)
