"""Batch norm with a custom backward pass: values, gradients and variables equal those of Flax and `nn.relu`."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradmix_jax.models.batch_norm import BatchNorm, normalize, relu

OPTIONS = dict(momentum=0.9, epsilon=1e-5)


def inputs(dtype="float32", rows=8):
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 4, 4, 6)) * np.arange(1, 7) + np.arange(-3, 3)
    weights = random.normal(size=x.shape)
    return jnp.asarray(x, dtype), jnp.asarray(weights, jnp.float32)


def variables():
    random = np.random.default_rng(1)
    draw = lambda low: jnp.asarray(random.uniform(low, 1.5, 6), jnp.float32)
    return {"params": {"scale": draw(-0.5), "bias": draw(-1.0)}, "batch_stats": {"mean": draw(-1.0), "var": draw(0.1)}}


def ours(x, variables, *, train, with_relu, axis_name=None):
    module = BatchNorm(use_running_average=not train, dtype=x.dtype, axis_name=axis_name, **OPTIONS)
    return module.apply(variables, x, with_relu=with_relu, mutable=["batch_stats"] if train else [])


def flax(x, variables, *, train, with_relu, axis_name=None):
    module = nn.BatchNorm(use_running_average=not train, dtype=x.dtype, axis_name=axis_name, **OPTIONS)
    y, updates = module.apply(variables, x, mutable=["batch_stats"] if train else [])
    return nn.relu(y) if with_relu else y, updates


def all_of(layer, x, weights, variables, **options):
    """(y, updates, gradients of the input and of the parameters) of a weighted sum of squares of the outputs."""

    def loss(x, params):
        y, updates = layer(x, {**variables, "params": params}, **options)
        return jnp.sum(weights * jnp.square(y.astype(jnp.float32))), (y, updates)

    gradients, aux = jax.grad(loss, (0, 1), has_aux=True)(x, variables["params"])
    return *aux, *gradients


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("with_relu", [True, False])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-5), ("bfloat16", 3e-2)])
def test_values_gradients_and_averages_are_those_of_flax(train, with_relu, dtype, tolerance):
    given = (*inputs(dtype), variables())
    results = [jax.jit(partial(all_of, layer, train=train, with_relu=with_relu))(*given) for layer in (ours, flax)]
    for own, reference in zip(*map(jax.tree.leaves, results), strict=True):
        assert own.dtype == reference.dtype and own.shape == reference.shape
        wide = np.asarray(reference, np.float32)
        np.testing.assert_allclose(np.asarray(own, np.float32), wide, rtol=0, atol=tolerance * np.abs(wide).max())
    assert (dtype == "float32") or results[0][0].dtype == jnp.bfloat16


@pytest.mark.parametrize("with_relu", [True, False])
def test_devices_share_their_statistics_as_those_of_flax_do(with_relu):
    x, weights = (array.reshape(4, 2, 4, 4, 6) for array in inputs())
    options = dict(train=True, with_relu=with_relu, axis_name="batch")
    results = [
        jax.vmap(partial(all_of, layer, **options), axis_name="batch", in_axes=(0, 0, None))(x, weights, variables())
        for layer in (ours, flax)
    ]
    for own, reference in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(own, reference, rtol=0, atol=2e-5 * np.abs(reference).max())
    # The statistics cover all devices and are the same on each.
    mean = results[0][1]["batch_stats"]["mean"]
    expected = 0.9 * variables()["batch_stats"]["mean"] + 0.1 * jnp.mean(inputs()[0], (0, 1, 2))
    np.testing.assert_allclose(mean, np.stack([expected] * 4), rtol=1e-5, atol=1e-6)


def test_variables_are_those_of_flax(key):
    x = inputs()[0]
    for axis_name in (None, "batch"):  # `init` needs no such axis
        own = BatchNorm(use_running_average=False, dtype=jnp.float32, axis_name=axis_name, **OPTIONS).init(key, x)
        reference = nn.BatchNorm(use_running_average=False, **OPTIONS).init(key, x)
        jax.tree.map(np.testing.assert_array_equal, own, reference)


def test_channels_whose_variance_rounds_below_zero_stay_finite():
    scale, bias = jnp.ones(5), jnp.zeros(5)
    narrow = 1e4 + 1e-3 * np.random.default_rng(0).normal(size=(64, 3, 3, 5)).astype(np.float32)
    rounded = jnp.mean(jnp.square(narrow), (0, 1, 2)) - jnp.square(jnp.mean(narrow, (0, 1, 2)))
    assert (np.asarray(rounded) < 0).all(), "float32 cannot tell them from constants"
    y, _, variance = normalize(narrow, scale, bias, 1e-5, False, None)
    assert np.isfinite(y).all() and (np.asarray(variance) >= 0).all()
    gradient = jax.grad(lambda x: jnp.sum(jnp.square(normalize(x, scale, bias, 1e-5, True, None)[0])))(narrow)
    assert np.isfinite(gradient).all()


def test_relu_equals_flax_and_has_zero_gradient_at_zero():
    x = jnp.asarray([-2.0, -0.0, 0.0, 1e-30, 3.0])
    for own, reference in zip(jax.vjp(relu, x), jax.vjp(nn.relu, x)):
        pulled = [f(jnp.arange(1.0, 6.0))[0] if callable(f) else f for f in (own, reference)]
        np.testing.assert_array_equal(*pulled)


def test_the_backward_pass_can_be_differentiated():
    x, weights = inputs(rows=2)

    def penalty(layer, x):
        gradient = jax.grad(lambda x: jnp.sum(weights * layer(x, variables(), train=True, with_relu=True)[0] ** 2))(x)
        return jnp.sum(gradient**2)

    own, reference = (jax.grad(partial(penalty, layer))(x) for layer in (ours, flax))
    np.testing.assert_allclose(own, reference, rtol=0, atol=1e-4 * np.abs(reference).max())
