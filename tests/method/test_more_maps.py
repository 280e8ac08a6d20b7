"""Maps of tokens, attention, principal components and several gradients against float64 NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradmix_jax.method import attribution, path_maps

BATCH, GRID, CHANNELS, SIZE = 3, 4, 6, 8
RANDOM = np.random.default_rng(0)
A, G = RANDOM.standard_normal((2, BATCH, GRID, GRID, CHANNELS)).astype(np.float32)
IMAGES = RANDOM.random((BATCH, SIZE, SIZE, 2), np.float32)


def min_max(maps):
    low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
    return (maps - low) / (high - low)


def blocks(maps):
    """Each value repeated over the pixels of its patch."""
    return np.kron(maps, np.ones((1, SIZE // GRID, SIZE // GRID)))


@pytest.mark.parametrize("sign", [1, -1])
def test_token_map_matches_numpy(sign):
    raw = np.maximum(sign * A.astype(np.float64) * G, 0).sum(axis=-1)
    found = attribution.token_map(A, G, image_size=SIZE, sign=sign)
    np.testing.assert_allclose(found, blocks(min_max(raw)), atol=1e-5)
    positive = np.abs(A)
    same = attribution.token_map(positive, G, image_size=GRID, sign=sign)
    np.testing.assert_allclose(same, attribution.layer_cam(positive, G, image_size=GRID, sign=sign), atol=1e-6)


@pytest.mark.parametrize("class_token", [True, False])
def test_attention_rollout_matches_numpy(class_token):
    """Two blocks of three heads; with a class token and a register, or with patches alone."""
    others = 2 if class_token else 0
    number = GRID**2 + others
    attentions = np.random.default_rng(1).random((2, BATCH, 3, number, number))
    attentions /= attentions.sum(axis=-1, keepdims=True)
    first, second = (0.5 * attention.mean(axis=1) + 0.5 * np.eye(number) for attention in attentions)
    rollout = second @ first
    raw = (rollout[:, 0] if class_token else rollout.mean(axis=1))[:, others:].reshape(BATCH, GRID, GRID)
    options = dict(image_size=(SIZE, SIZE), patch_size=SIZE // GRID, class_token=class_token)
    found = attribution.attention_rollout(tuple(attentions.astype(np.float32)), **options)
    np.testing.assert_allclose(found, blocks(min_max(raw)), atol=2e-5)


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e18])
def test_eigen_cam_matches_the_singular_value_decomposition(scale):
    activations = np.maximum(A, 0) + np.array([0.5, 0, 0, 0, 0, 0.2], np.float32)
    expected = []
    for one in activations.astype(np.float64).reshape(BATCH, -1, CHANNELS):
        component = np.linalg.svd(one, full_matrices=False)[2][0]
        projection = one @ component
        expected.append((projection * np.sign(projection.sum())).reshape(GRID, GRID))
    found = attribution.eigen_cam(activations * np.float32(scale), image_size=GRID, iterations=30)
    np.testing.assert_allclose(found, min_max(np.stack(expected)), atol=1e-4)
    flat = attribution.eigen_cam(np.zeros_like(activations), image_size=SIZE)
    assert flat.shape == (BATCH, SIZE, SIZE) and np.all(np.asarray(flat) == 0)


WEIGHTS = np.random.default_rng(2).standard_normal(IMAGES.shape)


def loss(images, xp=jnp):
    """A loss that couples the images: a cubic, and a square over the batch."""
    return xp.sum(WEIGHTS * images**3) + xp.sum(images * xp.mean(images, axis=0, keepdims=True) * WEIGHTS)


def numpy_gradient(images):
    """The gradient written out, because central differences are exact enough only in float64."""
    mean, products = images.mean(axis=0, keepdims=True), (images * WEIGHTS).mean(axis=0, keepdims=True)
    return 3 * WEIGHTS * images**2 + WEIGHTS * mean + products


@pytest.mark.parametrize("baseline", path_maps.BASELINES)
def test_integrated_gradients_match_numpy_and_sum_to_the_difference(baseline):
    images, steps = IMAGES.astype(np.float64), 3
    start = np.zeros_like(images) if baseline == "zeros" else np.ones_like(images) * images.mean((1, 2), keepdims=True)
    points = [start + (step + 0.5) / steps * (images - start) for step in range(steps)]
    expected = (images - start) * np.mean([numpy_gradient(point) for point in points], axis=0)
    options = dict(steps=steps, baseline=baseline)
    found = jax.jit(partial(path_maps.path_attributions, jax.grad(loss), **options))(IMAGES)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    map_BxHxW = attribution.integrated_gradients(jax.grad(loss), IMAGES, **options)
    np.testing.assert_allclose(map_BxHxW, min_max(np.abs(expected.sum(axis=-1))), atol=1e-4)
    # The midpoint rule's error for a cubic falls with the square of the number of steps.
    many = path_maps.path_attributions(jax.grad(loss), IMAGES, steps=40, baseline=baseline)
    difference = loss(images, np) - loss(start, np)
    assert float(jnp.sum(many)) == pytest.approx(difference, abs=5e-3 * np.abs(expected).sum())


def test_smoothgrad_matches_numpy():
    keys = jax.random.split(jax.random.key(3), BATCH)
    samples, scale = 3, 0.15
    found = attribution.smoothgrad(keys, jax.grad(loss), IMAGES, samples=samples, noise=scale)
    noise = np.stack([np.asarray(jax.random.normal(key, (samples, SIZE, SIZE, 2))) for key in keys]).astype(np.float64)
    gradients = [numpy_gradient(IMAGES + scale * noise[:, sample]) for sample in range(samples)]
    expected = min_max(np.abs(np.mean(gradients, axis=0)).sum(axis=-1))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_an_unknown_baseline_is_refused():
    with pytest.raises(ValueError, match="baseline must be one of zeros, mean, got 'black'"):
        attribution.integrated_gradients(jax.grad(loss), IMAGES, baseline="black")
