"""FLOPs of compiled programs: loops against counts by hand, everything else against XLA's own analysis."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from marks import slow
from programs import shorten_transformers, small_program, small_state

from gradmix_jax.training import cost, program_text


def compiled(function, *shapes):
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()


def test_products_in_loops_count_as_often_as_they_run():
    """Seven iterations of a product and a tanh, and three within each of five."""

    def rounds(x, w, length):
        return lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=length)[0]

    product = 2 * 32 * 64 * 64
    program = compiled(lambda x, w: rounds(x, w, 7), (32, 64), (64, 64))
    found = cost.of(program).flops
    assert program.cost_analysis()["flops"] < 1.01 * product, "XLA counts one round"
    assert 7 * product <= found < 1.01 * 7 * product
    nested = compiled(lambda x, w: lax.fori_loop(0, 5, lambda _, x: rounds(x, w, 3), x), (32, 64), (64, 64))
    assert 15 * product <= cost.of(nested).flops < 1.01 * 15 * product


def test_a_loop_without_a_known_end_counts_once():
    program = compiled(lambda x: lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x), (16, 16))
    assert cost.of(program).flops == program.cost_analysis()["flops"]


@pytest.mark.parametrize("options", [{}, {"strides": 2}, {"dilation": 2}, {"groups": 2}, {"gradient": True}])
def test_convolutions_count_as_xla_counts_them(options):
    def convolve(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (options.get("strides", 1),) * 2,
            ((1, 2), (1, 0)),
            rhs_dilation=(options.get("dilation", 1),) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=options.get("groups", 1),
        )

    shapes = (3, 9, 8, 4), (3, 3, 4 // options.get("groups", 1), 6)
    function = (
        jax.grad(lambda *arrays: jnp.sum(convolve(*arrays) ** 2), (0, 1)) if options.get("gradient") else convolve
    )
    program = compiled(function, *shapes)
    assert program_text.flops(program.as_text()) == program.cost_analysis()["flops"] > 1e4


@pytest.mark.parametrize(
    "recipe, overrides",
    [
        ("none", {}),
        slow("layer", {"attribution.every": 2}),
        slow("tokens", {"model.width": 128}),
        slow("integrated_gradients", {}),
        slow("none", {"augment.policy": "augmix"}),
    ],
)
def test_a_step_counts_as_xla_counts_it_where_no_loop_is_repeated(recipe, overrides, monkeypatch):
    shorten_transformers(monkeypatch)
    specs, program = small_program(recipe, **overrides)
    step = cost.compile_step(program, jax.eval_shape(lambda: small_state(specs, program)))
    once = program_text.flops(step.as_text(), rounds=False)
    np.testing.assert_allclose(once, step.cost_analysis()["flops"], rtol=0.01)


# A forward pass costs a third of a forward and backward pass. With a separate map, three passes are pulled back: clean
# for the map, clean for the parameters, and mixed.
@pytest.mark.parametrize("recipe, least, most", [("none", 1.2, 1.4), slow("layer", 1.3, 1.5)])
def test_micro_batches_cost_a_forward_pass_more_and_less_memory(recipe, least, most):
    specs, whole = small_program(recipe, **{"model.width": 16})
    state = jax.eval_shape(lambda: small_state(specs, whole))
    parts = dataclasses.replace(whole, micro_batch_size=4)
    of_whole, of_parts = (cost.of(cost.compile_step(program, state)) for program in (whole, parts))
    assert least < of_parts.flops / of_whole.flops < most
    assert of_parts.temporary_bytes < 0.6 * of_whole.temporary_bytes
