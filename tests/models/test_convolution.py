"""The convolution against JAX's own: values, gradients, and where the batch is split."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gradmix_jax.models import convolution

NUMBERS = ("NHWC", "HWIO", "NHWC")
PADDING = ((1, 1), (1, 1))


def both(shape, features, stride):
    keys = jax.random.split(jax.random.key(0), 3)
    images, kernel = jax.random.normal(keys[0], shape), jax.random.normal(keys[1], (3, 3, shape[-1], features))

    def pull(function):
        value, back = jax.vjp(
            lambda *a: function(*a, (stride,) * 2, PADDING, dimension_numbers=NUMBERS), images, kernel
        )
        return value, *back(jax.random.normal(keys[2], value.shape))

    return jax.jit(lambda: (pull(convolution.convolve), pull(lax.conv_general_dilated)))


@pytest.mark.parametrize("batch, stride, parts", [(64, 1, 2), (66, 2, 2), (96, 1, 3), (67, 1, 1), (32, 2, 1)])
def test_values_and_gradients_are_those_of_jax(batch, stride, parts, monkeypatch):
    monkeypatch.setattr(convolution, "LEAST_FLOPS", 0)
    assert convolution._parts((batch, 6 // stride, 5, 4), 9 * 3 * 4) == parts
    ours, theirs = both((batch, 6, 5, 3), 4, stride)()
    for one, other in zip(ours, theirs):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * float(jnp.abs(other).max()))


def test_only_large_weight_gradients_are_split_and_only_on_a_cpu(monkeypatch):
    program = lambda: both((64, 8, 8, 2), 4, 1)
    assert program().lower().compile().as_text().count(" convolution(") <= 6
    monkeypatch.setattr(convolution, "LEAST_FLOPS", 0)
    whole, split = (program().trace().lower(lowering_platforms=(name,)).as_text() for name in ("cuda", "cpu"))
    assert whole.count("stablehlo.convolution") == 6 and split.count("stablehlo.convolution") == 7


def test_the_number_of_parts_is_bounded():
    large = 2**31
    assert [convolution._parts((batch, 8, 8, 4), large) for batch in (1, 63, 64, 128, 256, 4096)] == [1, 1, 2, 4, 8, 8]
    assert convolution._parts((4096, 8, 8, 4), 4) == 1


def test_a_batch_over_devices_is_split_without_moving_images(monkeypatch):
    monkeypatch.setattr(convolution, "LEAST_FLOPS", 0)
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    whole, split = (NamedSharding(mesh, PartitionSpec(*names)) for names in ((), ("devices",)))
    images, kernel = jnp.ones((128, 4, 4, 3)), jnp.ones((3, 3, 3, 2))
    loss = lambda kernel, x: jnp.sum(
        jnp.sin(convolution.convolve(x, kernel, (1, 1), PADDING, dimension_numbers=NUMBERS))
    )
    gradient = jax.jit(jax.grad(loss), in_shardings=(whole, split), out_shardings=whole)
    text = gradient.lower(kernel, images).compile().as_text()
    moves = r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
    assert re.findall(moves, text) == ["all-reduce"] and text.count(" convolution(") == 5
