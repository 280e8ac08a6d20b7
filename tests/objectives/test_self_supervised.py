"""MoCo and Barlow Twins against float64 references written from their papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradmix_jax import objectives
from gradmix_jax.config import default_config
from gradmix_jax.objectives.moco import Keys, enqueue, initial_queue

b, D, Q = 6, 8, 24
SPEC = objectives.Spec(**default_config().objective.to_dict() | {"temperature": 0.2, "base_temperature": 0.5})


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def draw(seed, rows):
    return unit(np.random.default_rng(seed).normal(size=(rows, D)))


def batch_of(z, views=2):
    z = jnp.asarray(z, jnp.float32)
    return objectives.make_batch(z, z, jnp.arange(len(z) // views), views=views)


def cast(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def moco_reference(queries, keys, queue, weights):
    """One explicit softmax over (positive, queue) for each query."""
    losses = []
    for row, query in enumerate(queries):
        positive = keys[(row + b) % (2 * b)]
        logits = np.r_[query @ positive, queue @ query] / SPEC.temperature
        losses.append(-weights[row] * (logits[0] - np.log(np.exp(logits).sum())))
    return SPEC.temperature / SPEC.base_temperature * np.mean(losses)


@pytest.mark.parametrize("rows", [2 * b, b])
def test_moco_equals_the_softmax_over_positive_and_queue(rows):
    queries, keys, queue = draw(0, rows), draw(1, 2 * b), draw(2, Q)
    weights = np.random.default_rng(3).uniform(0.5, 1, rows)
    carried = Keys(*cast(keys, queue))
    batch = batch_of(draw(4, 2 * b))
    loss = objectives.moco(batch, *cast(queries), carried, SPEC, *cast(weights))
    assert float(loss) == pytest.approx(moco_reference(queries, keys, queue, weights), rel=1e-5)
    loss = objectives.moco(batch, *cast(queries), carried, SPEC)
    assert float(loss) == pytest.approx(moco_reference(queries, keys, queue, np.ones(rows)), rel=1e-5)


def test_moco_takes_the_mean_over_the_other_views():
    views, (queries, keys, queue) = 3, (draw(seed, rows) for seed, rows in ((0, 3 * b), (1, 3 * b), (2, Q)))
    carried = Keys(*cast(keys, queue))
    batch = batch_of(draw(4, views * b), views)
    losses = []
    for row, query in enumerate(queries):
        for other in range(1, views):
            logits = np.r_[query @ keys[(row + other * b) % (views * b)], queue @ query] / SPEC.temperature
            losses.append(np.log(np.exp(logits).sum()) - logits[0])
    expected = SPEC.temperature / SPEC.base_temperature * np.mean(losses)
    assert float(objectives.moco(batch, *cast(queries), carried, SPEC)) == pytest.approx(expected, rel=1e-5)


def barlow_reference(first, second, weights):
    share = weights / weights.sum()

    def standardized(x):
        mean = share @ x
        return (x - mean) / np.sqrt(share @ (x - mean) ** 2 + 1e-5)

    correlation = (standardized(first) * share[:, None]).T @ standardized(second)
    on = ((1 - np.diag(correlation)) ** 2).sum()
    off = (correlation**2).sum() - (np.diag(correlation) ** 2).sum()
    return (on + SPEC.options["barlow_twins"]["off_diagonal_weight"] * off) / D


def test_barlow_twins_equals_its_equation():
    z = draw(0, 2 * b)
    loss = objectives.barlow_twins(batch_of(z), SPEC)
    assert float(loss) == pytest.approx(barlow_reference(z[:b], z[b:], np.ones(b)), rel=1e-5)


@pytest.mark.parametrize("mixed_views", [1, 2])
def test_mixed_barlow_twins_pairs_a_mixed_view_with_the_other_clean_one(mixed_views):
    z, mixed = draw(0, 2 * b), draw(1, mixed_views * b)
    weights = np.random.default_rng(2).uniform(0.5, 1, mixed_views * b)
    loss = objectives.mixed_barlow_twins(batch_of(z), *cast(mixed, weights), SPEC)
    clean = [z[b:], z[:b]]
    parts = [slice(view * b, (view + 1) * b) for view in range(mixed_views)]
    expected = np.mean([barlow_reference(mixed[part], clean[view], weights[part]) for view, part in enumerate(parts)])
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_detached_anchors_get_no_gradient():
    z, mixed = cast(draw(0, 2 * b), draw(1, 2 * b))
    weights = jnp.ones(2 * b)

    def loss(z, spec):
        return objectives.mixed_barlow_twins(batch_of(z), mixed, weights, spec)

    detached = objectives.Spec(**vars(SPEC) | {"detach_anchors": True})
    assert float(jnp.abs(jax.grad(loss)(z, SPEC)).max()) > 1e-3
    assert float(jnp.abs(jax.grad(loss)(z, detached)).max()) == 0


def test_the_queue_forgets_the_oldest_keys():
    queue = initial_queue(jax.random.key(0), 3 * 2 * b, D)
    np.testing.assert_allclose(np.linalg.norm(queue, axis=1), 1, rtol=1e-5)
    keys = [jnp.full((2 * b, D), float(step)) for step in range(4)]
    for step in range(4):
        queue = enqueue(queue, keys[step], jnp.int32(step), views=2, axis_name=None)
    assert sorted(set(np.asarray(queue)[:, 0].tolist())) == [1.0, 2.0, 3.0]


def test_the_queue_is_the_same_on_any_number_of_devices():
    keys = np.random.default_rng(0).normal(size=(2, 8, D)).astype(np.float32)  # views, images
    queue = np.zeros((32, D), np.float32)
    one = enqueue(queue, keys.reshape(16, D), jnp.int32(1), views=2, axis_name=None)
    spread = keys.reshape(2, 4, 2, D).transpose(1, 0, 2, 3).reshape(4, 4, D)
    on_device = lambda keys: enqueue(queue, keys, jnp.int32(1), views=2, axis_name="batch")
    four = jax.vmap(on_device, axis_name="batch")(spread)
    np.testing.assert_array_equal(four[0], one)


@pytest.mark.parametrize("kind", ["zeros", "equal"])
def test_extreme_features_have_finite_gradients(kind):
    z = jnp.zeros((2 * b, D)) if kind == "zeros" else jnp.ones((2 * b, D)) / np.sqrt(D)
    carried = Keys(z, z)
    losses = {
        "moco": lambda z: objectives.moco(batch_of(z), z, carried, SPEC),
        "barlow": lambda z: objectives.barlow_twins(batch_of(z), SPEC),
        "mixed": lambda z: objectives.mixed_barlow_twins(batch_of(z), z, jnp.zeros(2 * b), SPEC),
    }
    for name, loss in losses.items():
        value, gradient = jax.value_and_grad(loss)(z)
        assert np.isfinite(value) and np.isfinite(gradient).all(), name


def test_follow():
    moved = objectives.follow({"kernel": jnp.ones(2)}, {"kernel": jnp.zeros(2)}, 0.9)
    np.testing.assert_allclose(moved["kernel"], 0.9, rtol=1e-6)
