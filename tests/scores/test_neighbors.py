"""Scores from nearest neighbors: classes of any size, bounded memory, near images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scored_toy import (
    K,
    toy,
    unit,
)

from gradmix_jax import scores


def numpy_topk(features, bank, labels, k, num_classes):
    cosine = unit(features.astype(np.float64)) @ unit(bank.astype(np.float64)).T
    sums = [np.sort(cosine[:, labels == c], axis=1)[:, ::-1][:, :k].sum(axis=1) for c in range(num_classes)]
    return np.stack(sums, axis=1)


@pytest.mark.parametrize(
    "sizes, k",
    [
        ((10, 10, 10, 10), 3),
        ((10, 12, 9, 11), 3),
        ((1, 2, 40, 5), 3),  # classes smaller than k, and one cut into parts
        ((1, 30, 1, 1, 1, 1), 7),  # k larger than a part
        ((20,), 1),
    ],
)
@pytest.mark.parametrize("tile", [(4, 1), (5, 16), (64, 640)])
def test_topk_cosine_for_any_class_sizes(sizes, k, tile):
    rng = np.random.default_rng(sum(sizes))
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    features, bank = rng.normal(size=(13, 5)) * 3, rng.normal(size=(len(labels), 5))
    got = scores.topk_cosine(features, bank, labels, k=k, num_classes=len(sizes), tile=tile)
    np.testing.assert_allclose(got, numpy_topk(features, bank, labels, k, len(sizes)), atol=1e-5)


def test_bank_padding_is_bounded():
    rng = np.random.default_rng(0)
    for sizes in ([1000, *[1] * 199], [5] * 200, [7, 5, 6], [1]):
        labels = np.repeat(np.arange(len(sizes)), sizes)
        bank = scores.class_bank(rng.normal(size=(len(labels), 2)), labels, num_classes=len(sizes))
        assert bank.valid_PxL.sum() == len(labels)
        assert bank.valid_PxL.size <= 2 * len(labels) + 2 * len(sizes)


def test_topk_cosine_needs_memory_for_one_tile():
    bank = scores.class_bank(np.ones((2048, 4)), np.arange(2048) % 2, num_classes=2)
    features = jax.ShapeDtypeStruct((4096, 4), jnp.float32)
    compiled = scores.class_similarities.lower(bank, features, tile=(32, 512)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4096 * 2048 * 4 / 8


def test_topk_cosine_normalized_divides_by_the_sum_over_classes():
    rng = np.random.default_rng(0)
    features, bank, labels = rng.normal(size=(6, 4)), rng.normal(size=(20, 4)), np.arange(20) % 2
    raw, normalized = (
        np.asarray(scores.topk_cosine(features, bank, labels, num_classes=2, normalized=flag)) for flag in (False, True)
    )
    np.testing.assert_allclose(normalized, raw / raw.sum(axis=1, keepdims=True), rtol=1e-4)


def test_bank_ignores_scale_and_order():
    rng = np.random.default_rng(0)
    features, bank, labels = rng.normal(size=(6, 4)), rng.normal(size=(20, 4)), np.arange(20) % 4
    shuffle = rng.permutation(20)
    expected = scores.topk_cosine(features, bank, labels, num_classes=4)
    got = scores.topk_cosine(9 * features, 5 * bank[shuffle], labels[shuffle], num_classes=4)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_knn_takes_the_whole_of_a_small_training_set():
    reference = scores.Reference(scores.Outputs(toy.train[:6]), np.arange(6) % K, K)
    state = scores.fit("knn", reference)
    distances = np.linalg.norm(unit(toy.test)[:, None] - unit(toy.train[:6]), axis=2)
    np.testing.assert_allclose(scores.score("knn", state, scores.Outputs(toy.test)), -distances.max(axis=1), rtol=1e-4)


def test_knn_distinguishes_near_images():
    """Cosines within 1e-7 of 1 are equal in float32, but distances of 1e-4 are not."""
    distance = np.float32([1e-5, 2e-5, 5e-5, 1e-4, 2e-4])
    test = np.stack([np.ones(5), distance, np.zeros(5)], axis=1).astype(np.float32)
    reference = scores.Reference(scores.Outputs(np.eye(3, dtype=np.float32)), np.arange(3), 3)
    got = scores.score("knn", scores.fit("knn", reference, k=1), scores.Outputs(test))
    np.testing.assert_allclose(got, -distance, rtol=1e-4)
