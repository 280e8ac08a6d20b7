"""Micro batches: the step of the whole batch, with the memory of a part."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow_but
from programs import PHASES, shorten_transformers, small_config, small_images, small_order, small_program, small_state

from gradmix_jax import config as config_lib
from gradmix_jax import objectives
from gradmix_jax import run as run_lib
from gradmix_jax.config import phase
from gradmix_jax.training import losses, mapping
from gradmix_jax.training import step as step_lib
from gradmix_jax.training.forward import Outputs, apply_model
from gradmix_jax.training.micro_batches import in_micro_batches, place_in_micro_batch

# Batch norm with its running averages, so that an image's outputs do not depend on other images.
FROZEN = {"model.freeze": ("encoder",)}
CROSS_ENTROPY = {"model.classifier": "linear", "attribution.loss": "training"}
MOCO = {"objective.ssl": "moco", "objective.options.moco.queue_size": 128, "attribution.loss": "moco"}
CE_PHASES = (phase("ce", epochs=1, cross_entropy=1.0),)
ARPL = {"model.classifier": "reciprocal_points", "attribution.loss": "training"}
CASES = {
    "input": ("input", FROZEN, PHASES),
    "layer": ("layer", FROZEN, PHASES),
    "cutmix": ("cutmix", FROZEN, PHASES),
    "none": ("none", FROZEN, PHASES),
    "released": ("released", FROZEN, PHASES),
    "cross-entropy": ("layer", FROZEN | CROSS_ENTROPY, CE_PHASES),
    "moco": ("input", FROZEN | MOCO, PHASES),
    "barlow twins": ("layer", FROZEN | {"objective.ssl": "barlow_twins"}, PHASES),
    "arpl": ("none", FROZEN | ARPL, (phase("arpl", epochs=1, arpl=1.0),)),
    "eigen_cam": ("eigen_cam", FROZEN, PHASES),
    "smoothgrad": ("smoothgrad", FROZEN, PHASES),
    "manifold_mixup": ("manifold_mixup", FROZEN, PHASES),
    "puzzlemix": ("puzzlemix", FROZEN, PHASES),
    "tokens": ("tokens", {"model.width": 128}, PHASES),
    "transmix": ("transmix", {"model.width": 128} | CROSS_ENTROPY, CE_PHASES),
    "rollout": ("rollout", {"model.width": 128}, PHASES),
}
QUICK = ("layer",)


def micro(program, size):
    return dataclasses.replace(program, micro_batch_size=size)


def largest_difference(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.max(np.abs(np.asarray(x) - np.asarray(y)))), a, b)))


def one_batch():
    return map(lambda x: jnp.asarray(x[:32]), small_images())


@functools.partial(jax.jit, static_argnums=0)
def parts_of_step(program, state, images, labels):
    """((gradient, batch statistics, metrics), `Mixed`) of one batch with every objective."""
    views = step_lib.views_of(program, step_lib.step_key(state, "views"), images, None)
    context, _ = step_lib.context_of(program, state, views, labels, None)
    weights = {name: jnp.float32(1.0 + 0.2 * index) for index, name in enumerate(program.objective_names)}
    context = dataclasses.replace(context, weights=weights)
    return step_lib.gradients(context, views), step_lib.clean_half(context, views).mixed


def test_values_and_gradients_in_float64():
    """Views, devices in the rows, outputs with rows and without, and a loss over all of them."""
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        rows = {"x": jnp.array(random.normal(size=(2 * 12, 5))), "scale": jnp.array(random.uniform(size=2 * 12))}
        weights = jnp.array(random.normal(size=(5, 5)))

        def loss(size, weights, rows):
            program = micro(small_program("none")[1], size)
            program = dataclasses.replace(program, devices_in_rows=2)

            def function(rows):
                return {"z": jnp.tanh(rows["x"] @ weights) * rows["scale"][:, None], "shared": weights @ weights}

            out = in_micro_batches(program, function, rows, views=2)
            products = out["z"] @ out["z"].T
            return jnp.sum(jax.nn.logsumexp(products, axis=1)) + jnp.sum(out["shared"] ** 2), out

        whole, parts = (
            jax.value_and_grad(functools.partial(loss, size), (0, 1), has_aux=True)(weights, rows) for size in (0, 3)
        )
        assert whole[0][0].dtype == jnp.float64
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), parts, whole)


def test_a_micro_batch_has_the_same_images_of_every_device_and_view():
    program = dataclasses.replace(small_program("none")[1], micro_batch_size=2, devices_in_rows=3)
    # 3 devices of 4 images, 2 views: row = view, device, image.
    seen = []

    def function(number_R):
        jax.debug.callback(lambda numbers: seen.append(sorted(numbers.tolist())), number_R)
        return number_R

    number_B = jnp.arange(24)
    np.testing.assert_array_equal(in_micro_batches(program, function, number_B, views=2), number_B)
    jax.effects_barrier()
    first = [view * 12 + device * 4 + image for view in range(2) for device in range(3) for image in range(2)]
    assert sorted(seen) == [first, [number + 2 for number in first]]
    place_B = np.asarray(place_in_micro_batch(program, number_B, views=2))
    assert [first[place_B[number]] for number in first] == first
    np.testing.assert_array_equal(place_B[np.array(first) + 2], place_B[first])


@pytest.mark.parametrize("case", slow_but(QUICK, CASES))
def test_the_step_is_that_of_the_whole_batch(case, monkeypatch):
    shorten_transformers(monkeypatch)
    recipe, overrides, phases = CASES[case]
    specs, program = small_program(recipe, phases=phases, **overrides)
    state = small_state(specs, program)
    (whole, whole_mixed), (parts, mixed) = (
        parts_of_step(each, state, *one_batch()) for each in (program, micro(program, 8))
    )
    scale = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(whole[0]))
    assert scale > 1e-3 and largest_difference(parts[0], whole[0]) < 1e-5 * scale
    assert largest_difference(parts[1], whole[1]) == 0 if whole[1] else not parts[1]
    for name, value in whole[2].items():
        np.testing.assert_allclose(parts[2][name], value, rtol=1e-5, err_msg=name)
    if whole_mixed is not None:
        # Draws, maps, and the kept part of every pixel.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), mixed, whole_mixed)


@pytest.mark.slow
def test_batch_norm_normalizes_every_micro_batch_by_itself():
    """Against plain `jax.grad` of a loss of outputs computed one micro batch after the other."""
    specs, program = small_program("cutmix", **{"objective.mixed_supcon": True})
    state = small_state(specs, program)
    images, labels = one_batch()
    (gradient, stats, metrics), mixed = parts_of_step(micro(program, 16), state, images, labels)
    views = step_lib.views_of(program, step_lib.step_key(state, "views"), images, None)
    context, _ = step_lib.context_of(program, state, views, labels, None)
    weights = {name: 1.0 + 0.2 * index for index, name in enumerate(program.objective_names)}

    def forward(params, images):
        found, order = [], []
        for first in (0, 16):
            rows = np.concatenate([np.arange(first, first + 16), 32 + np.arange(first, first + 16)])
            z, _, new = apply_model(program, params, state.batch_stats, images[rows])
            found.append((z, new))
            order.extend(rows)
        z = jnp.concatenate([z for z, _ in found])[np.argsort(order)]
        return z, jax.tree.map(lambda *each: sum(each) / len(each), *[new for _, new in found])

    def loss(params):
        z, new = forward(params, views)
        _, terms = losses.clean_loss(context, Outputs(z, z, None))
        seen = objectives.Mixed(forward(params, mixed.images)[0], None, mixed.weight, mixed.partner)
        _, mixed_terms = losses.mixed_loss(context, Outputs(z, z, None), seen)
        terms = terms | mixed_terms
        return sum(weights[name.removeprefix("mixed_")] * value for name, value in terms.items()), new

    (value, expected_stats), expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(state.params)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    scale = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(expected))
    assert largest_difference(gradient, expected) < 2e-5 * scale
    assert largest_difference(stats, expected_stats) < 1e-6


@functools.cache
def after_two_steps(name):
    """The state on eight devices with two images each per pass, as one device holds it; "one": on one device."""
    mapped = mapping.MAPPINGS[name]() if name != "one" else None
    overrides = {"train.micro_batch_size": 2} if mapped else {}
    specs, program = small_program("layer", mapped=mapped, **overrides)
    images, labels = small_images()
    data = images.reshape(len(images), -1), labels
    if mapped:
        step = mapped.compile_step(step_lib.make_train_step(program, axis_name=mapped.axis_name))
        state = mapped.create(lambda: small_state(specs, program))
        for index in range(2):
            state, _ = step(state, *mapped.replicate(data), mapped.replicate(small_order(program, index)))
        return mapped.to_host(state)
    program = dataclasses.replace(program, micro_batch_size=2, devices_in_rows=8)
    step, state = jax.jit(step_lib.make_train_step(program, axis_name=None)), small_state(specs, program)
    for index in range(2):
        state, _ = step(state, *data, small_order(program, index))
    return jax.device_get(state)


@pytest.mark.slow
@pytest.mark.parametrize("name", mapping.MAPPINGS)
def test_every_mapping_makes_the_same_micro_batches(name, monkeypatch):
    """With batch norm, for which it matters which images share a pass."""
    monkeypatch.setattr(mapping, "SMALLEST_SHARDED", 64)
    one, eight = after_two_steps("one"), after_two_steps(name)
    assert largest_difference(eight.params, one.params) < 2e-5
    assert largest_difference(eight.batch_stats, one.batch_stats) < 1e-5


@pytest.mark.parametrize(
    "recipe, size, message",
    [
        ("input", -1, "train.micro_batch_size must be an integer at least 0, got -1."),
        ("input", 5, "train.micro_batch_size must divide the 32 images of one device, got 5."),
        ("input", 64, "train.micro_batch_size must divide the 32 images of one device, got 64."),
        (
            "manifold_mixup",
            2,
            "train.micro_batch_size must be a multiple of mix.group_size 4 with mix.method 'manifold_mixup', which "
            "mixes activations of partners, got 2.",
        ),
    ],
)
def test_unfit_sizes_are_refused(recipe, size, message):
    config = small_config(recipe, **{"train.micro_batch_size": size})
    with pytest.raises(ValueError) as refused:
        run_lib.from_config(config_lib.to_plain(config), num_devices=1)
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)
