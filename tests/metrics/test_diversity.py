"""Effective rank and intrinsic dimension against float64 references and known manifolds."""

import numpy as np
import pytest

from gradmix_jax.metrics import diversity


def reference_rank(features):
    singular = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)
    share = singular[singular > 1e-9] / singular.sum()
    return np.exp(-np.sum(share * np.log(share)))


def reference_dimension(features, k):
    distances = np.linalg.norm(features[:, None] - features[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    nearest = np.sort(distances, axis=1)[:, :k]
    inverse = np.mean(np.log(nearest[:, -1:] / nearest[:, :-1]), axis=1)
    return 1 / inverse.mean()


def cube(size, dimension, embedded, seed=0):
    """Uniform points of a cube of `dimension`, rotated at random in a space of `embedded` dimensions."""
    random = np.random.default_rng(seed)
    turn = np.linalg.qr(random.normal(size=(embedded, dimension)))[0]
    return random.uniform(size=(size, dimension)) @ turn.T


@pytest.mark.parametrize("shape", [(60, 8), (20, 33)])
def test_effective_rank_is_that_of_float64(shape):
    features = np.random.default_rng(1).normal(size=shape) * np.geomspace(1, 30, shape[1]) + 5
    assert diversity.effective_rank(features) == pytest.approx(reference_rank(features), rel=1e-4)


def test_effective_rank_of_known_spreads():
    even = np.concatenate([np.eye(4), -np.eye(4)])
    assert diversity.effective_rank(3 * even + 7) == pytest.approx(4, rel=1e-5)
    line = np.outer(np.arange(10.0), np.ones(6))
    assert diversity.effective_rank(line) == pytest.approx(1, rel=1e-5)
    # sqrt-of-variance 1 : 3, so the shares are 1/4 and 3/4
    uneven = np.array([[1, 0], [-1, 0], [0, 3], [0, -3]])
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert diversity.effective_rank(uneven) == pytest.approx(np.exp(entropy), rel=1e-5)
    assert diversity.effective_rank(np.full((5, 3), 0.1)) == 0.0


@pytest.mark.parametrize("size, k", [(90, 10), (300, 5)])
def test_intrinsic_dimension_is_that_of_float64(size, k):
    features = np.random.default_rng(2).normal(size=(size, 7)) + 100
    assert diversity.intrinsic_dimension(features, k=k) == pytest.approx(reference_dimension(features, k), rel=1e-4)


@pytest.mark.parametrize("dimension", [1, 2, 4])
def test_a_cube_has_its_dimension(dimension):
    estimate = diversity.intrinsic_dimension(cube(1500, dimension, 20))
    assert estimate == pytest.approx(dimension, rel=0.1)


def test_scale_and_duplicates_do_not_matter():
    features = cube(200, 2, 5).astype(np.float32)
    plain = diversity.intrinsic_dimension(features)
    repeated = np.concatenate([features, features, features[:7]])
    assert diversity.intrinsic_dimension(repeated) == pytest.approx(plain, rel=1e-6)
    assert diversity.intrinsic_dimension(1e-6 * features) == pytest.approx(plain, rel=1e-3)
    # Pairs far closer than the rounding error of |a|^2 + |b|^2 - 2ab still count with their true distance.
    pairs = np.concatenate([features, features + np.float32(1e-5)])
    assert diversity.intrinsic_dimension(pairs) == pytest.approx(reference_dimension(pairs, 10), rel=0.02)


def test_undefined_values():
    assert np.isnan(diversity.intrinsic_dimension(np.random.default_rng(0).normal(size=(10, 3)), k=10))
    assert np.isnan(diversity.intrinsic_dimension(np.eye(8), k=3))  # all equally far apart
    with pytest.raises(ValueError, match="finite, got 1 values"):
        diversity.effective_rank(np.array([[0.0, np.nan], [1.0, 2.0]]))
    with pytest.raises(ValueError, match=r"two images or more, got \(1, 3\)"):
        diversity.intrinsic_dimension(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="k=1"):
        diversity.intrinsic_dimension(np.zeros((4, 3)), k=1)
