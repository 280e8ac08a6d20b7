"""The train step: one shared clean forward pass, agreement between devices, and its cost."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow
from programs import NUM_IMAGES, PHASES, SIZE, small_images, small_order, small_program, small_state

from gradmix_jax import models, objectives
from gradmix_jax.config import phase
from gradmix_jax.method import attribution
from gradmix_jax.training import explain, losses, optimizer
from gradmix_jax.training import phases as phases_lib
from gradmix_jax.training import step as step_lib
from gradmix_jax.training.forward import Outputs, apply_model
from gradmix_jax.training.program import Context

RECIPES = ("input", "layer")


def largest_difference(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.max(np.abs(np.asarray(x) - np.asarray(y)))), a, b)))


def resident_images():
    """In the step's input layout: the pixels of each image in one row."""
    images, labels = small_images()
    return images.reshape(len(images), -1), labels


def run_steps(program, state, steps):
    step = jax.jit(step_lib.make_train_step(program, axis_name=None))
    images, labels = map(jnp.asarray, resident_images())
    history = []
    for index in range(steps):
        order_N = small_order(program, index)
        # No hidden transfers between host and device.
        with jax.transfer_guard("disallow"):
            state, metrics = step(state, images, labels, order_N)
        history.append(jax.device_get(metrics))
    return state, history, step


MOCO = {
    "objective.ssl": "moco",
    "objective.options.moco.queue_size": 128,
    "objective.options.moco.momentum": 0.5,
    "optimizer.ema": 0.5,
}


def weighted_sum(terms, weights):
    """The phase's weighted sum of named losses."""
    return sum(weights[name.removeprefix("mixed_")] * value for name, value in terms.items())


def normalized_forward(program, params, batch_stats, images):
    """(z, out, new statistics) of images in [0, 1], normalized here."""
    mean, std = (np.float32(values).reshape(1, 1, 1, -1) for values in (program.mean, program.std))
    variables = {"params": params, "batch_stats": batch_stats}
    (z, out), new = program.model.apply(variables, (images - mean) / std, train=True, mutable=["batch_stats"])
    return z, out, new["batch_stats"]


def reference_gradient(context, mixed, views):
    """The gradient by plain `jax.grad` of the whole loss, with the mixed images as constants."""
    forward = partial(normalized_forward, context.program)

    def loss(params):
        z, out, stats = forward(params, context.batch_stats, views)
        outputs = Outputs(z, z, out.get("logits"))
        _, terms = losses.clean_loss(context, outputs)
        z_mixed, out_mixed, _ = forward(params, context.batch_stats, mixed.images)
        seen = objectives.Mixed(z_mixed, out_mixed.get("logits"), mixed.weight, mixed.partner)
        _, mixed_terms = losses.mixed_loss(context, outputs, seen)
        return weighted_sum(terms | mixed_terms, context.weights), stats

    return jax.value_and_grad(loss, has_aux=True)(context.params)


@pytest.mark.parametrize(
    "recipe, overrides",
    [
        ("input", {}),
        ("layer", {}),
        ("layer", {"objective.mixed_supcon": True, "attribution.loss": "supcon"}),
        slow("released", {}),
        ("input", {"objective.ssl": "moco", "objective.options.moco.queue_size": 128, "attribution.loss": "moco"}),
        slow("layer", {"objective.ssl": "barlow_twins", "attribution.loss": "barlow_twins"}),
        ("input", {"model.classifier": "linear", "attribution.loss": "training", "train.num_views": 1}),
    ],
)
def test_gradient_equals_plain_grad_of_the_whole_loss(recipe, overrides):
    phases = PHASES if overrides.get("train.num_views") != 1 else (phase("ce", epochs=1, cross_entropy=1.0),)
    specs, program = small_program(recipe, phases=phases, **overrides)
    state = small_state(specs, program)
    images, labels = map(lambda x: jnp.asarray(x[:32]), small_images())
    weights = {"supcon": jnp.float32(0.8), "cross_entropy": jnp.float32(0.7), specs.objective.ssl: jnp.float32(1.2)}
    views = step_lib.views_of(program, step_lib.step_key(state, "views"), images, None)

    @jax.jit
    def both(state):
        context, _ = step_lib.context_of(program, state, views, labels, None)
        context = dataclasses.replace(context, weights=weights)
        mixed = step_lib.clean_half(context, views).mixed
        (loss, stats), expected = reference_gradient(context, mixed, views)
        return step_lib.gradients(context, views), expected, loss, stats

    (gradient, stats, metrics), expected, loss, expected_stats = both(state)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    terms = {name: value for name, value in metrics.items() if name not in ("loss", "kept_share")}
    np.testing.assert_allclose(metrics["loss"], weighted_sum(terms, weights), rtol=1e-5)
    scale = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(expected))
    assert scale > 1e-3
    assert largest_difference(gradient, expected) < 2e-5 * scale
    # Running statistics come only from the clean forward pass.
    assert largest_difference(stats, expected_stats) < 1e-6


@pytest.mark.parametrize("recipe", [slow("input"), "layer"])
def test_maps_are_random_between_fresh_ones(recipe):
    """Every second step has a fresh map; the others equal, up to rounding, the recipe with random maps."""
    specs, program = small_program(recipe, **{"attribution.every": 2})
    start = small_state(specs, program)
    same_mix = {f"mix.{key}": getattr(specs.mix, key) for key in ("mask", "fill")}
    _, fresh = small_program(recipe)
    _, random = small_program("random", **same_mix)
    for step, expected in ((0, fresh), (1, random)):
        state = start.replace(step=jnp.int32(step))
        (ours, _, _), (theirs, _, _) = (run_steps(each, state, 1) for each in (program, expected))
        assert largest_difference(ours.params, theirs.params) < 1e-6
    assert largest_difference(run_steps(fresh, state, 1)[0].params, ours.params) > 1e-5


def test_attribution_leaves_parameters_and_statistics_alone():
    # In this phase the mixed loss has weight 0, so only a leak from the attribution could make a difference.
    phases = (phase("supcon", epochs=2, supcon=1.0), phase("later", epochs=1, ssl=1.0))
    results = []
    for recipe in ("none", "input", "layer"):
        specs, program = small_program(recipe, phases=phases)
        results.append(run_steps(program, small_state(specs, program), 2)[0])
    for other in results[1:]:
        assert largest_difference(results[0].params, other.params) == 0
        assert largest_difference(results[0].batch_stats, other.batch_stats) == 0


@pytest.mark.parametrize(
    "recipe, overrides",
    [
        ("saliencymix", {}),
        slow("cutmix", {"mix.mixed_views": "first"}),
        slow("released", {}),
        ("mixup", {}),
        ("input", {"attribution.every": 2}),
    ],
)
def test_an_explanation_shows_what_the_step_does(recipe, overrides, monkeypatch):
    specs, program = small_program(recipe, **overrides)
    # The second step, which has a random map where fresh ones are made every other step.
    state = small_state(specs, program).replace(step=jnp.int32(1))
    images, labels = map(lambda x: jnp.asarray(x[:32]), small_images())
    seen = []

    def watched(*arguments):
        seen.append(make_mixed(*arguments))
        return seen[-1]

    make_mixed = step_lib.make_mixed
    monkeypatch.setattr(step_lib, "make_mixed", watched)
    step = step_lib.make_train_step(program, axis_name=None)
    done = jax.jit(lambda *arrays: (step(*arrays), seen[-1])[1])(state, images, labels)
    shown = jax.jit(lambda *arrays: explain.explain(program, *arrays))(state, images, labels)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), shown.mixed, done)
    mixed, mask = np.asarray(done.images), np.asarray(shown.mask)
    if recipe == "mixup":
        assert not mask.any()
        return
    views = np.asarray(shown.views)[: len(mixed)]
    np.testing.assert_allclose(1 - mask.mean((1, 2)), done.weight, atol=1e-6)
    assert not (mixed != views).any(-1)[mask == 0].any() and mask.any()


@pytest.mark.parametrize("method", ["input", slow("gradient_x_input"), "layer", slow("grad_cam")])
def test_maps_come_from_the_gradient_of_the_attribution_loss(method):
    specs, program = small_program("layer", **{"attribution.method": method, "attribution.smoothing": 1})
    state = small_state(specs, program)
    images, labels = map(lambda x: jnp.asarray(x[:32]), small_images())
    explanation = jax.jit(lambda s: explain.explain(program, s, images, labels))(state)
    views = explanation.views

    def loss_of(views, taps):
        z, out, _ = apply_model(program, state.params, state.batch_stats, views, taps)
        batch = objectives.make_batch(z, z, labels, views=2)
        return objectives.simclr(batch, program.objective), out

    shapes = models.stage_shapes(specs.model, 8)
    taps = {name: jnp.zeros((64, *shapes[name])) for name in ("stage3", "stage4")}
    (view_gradient, tap_gradients), out = jax.jit(jax.grad(loss_of, (0, 1), has_aux=True))(views, taps)
    low_high = lambda x: (x - x.min((1, 2), keepdims=True)) / np.ptp(x, axis=(1, 2), keepdims=True)
    if method in ("input", "gradient_x_input"):
        factor = np.asarray(views) if method == "gradient_x_input" else 1.0
        expected = low_high(np.abs(np.asarray(view_gradient) * factor).sum(-1))
    else:
        expected = 0.0
        for name in taps:
            a, g = np.asarray(out[name]), np.asarray(tap_gradients[name])
            if method == "layer":
                raw = (a * np.maximum(g, 0)).sum(-1)
            else:
                raw = np.maximum((a * g.mean((1, 2), keepdims=True)).sum(-1), 0)
            span = np.ptp(raw, axis=(1, 2), keepdims=True)
            scaled = np.where(span > 0, (raw - raw.min((1, 2), keepdims=True)) / np.where(span > 0, span, 1), 0)
            expected = expected + np.asarray(jax.image.resize(scaled, (64, 8, 8), "bilinear")) / 2
    np.testing.assert_allclose(explanation.mixed.maps, expected, atol=2e-4)
    inside = np.asarray(explanation.mask)
    weight = np.asarray(explanation.mixed.weight)
    np.testing.assert_allclose(1 - inside.mean((1, 2)), weight, atol=1e-6)


def test_one_backward_pass_serves_map_and_training_when_anchors_are_detached():
    only_ssl = (phase("ssl", epochs=2, ssl=1.0),)
    results = []
    for loss in ("training", "simclr"):
        overrides = {"objective.detach_anchors": True, "attribution.loss": loss}
        specs, program = small_program("layer", phases=only_ssl, **overrides)
        assert program.shares_backward == (loss == "training")
        results.append(run_steps(program, small_state(specs, program), 3)[0].params)
    assert largest_difference(*results) < 1e-5


def lowered(recipe, phases=PHASES, **overrides):
    """The lowered text of a step before XLA, and the number of parameter arrays."""
    specs, program = small_program(recipe, phases=phases, **overrides)
    state = jax.eval_shape(lambda: small_state(specs, program))
    images = jax.ShapeDtypeStruct((NUM_IMAGES, SIZE * SIZE * 3), jnp.uint8)
    numbers = jax.ShapeDtypeStruct((NUM_IMAGES,), jnp.int32)
    step = jax.jit(step_lib.make_train_step(program, axis_name=None))
    return step.lower(state, images, numbers, numbers).as_text(), len(jax.tree.leaves(state.params))


def test_a_step_without_a_fresh_map_skips_the_backward_pass():
    assert "stablehlo.case" in lowered("input", **{"attribution.every": 2})[0]
    assert "stablehlo.case" not in lowered("input")[0]


def test_the_mixed_pass_waits_for_the_clean_gradient():
    # It saves memory on a GPU, whose scheduler would run both passes at once; no result on a CPU shows it.
    only_ssl = (phase("ssl", epochs=2, ssl=1.0),)
    shared = {"objective.detach_anchors": True, "attribution.loss": "training"}
    assert "stablehlo.optimization_barrier" in lowered("layer", phases=only_ssl, **shared)[0]
    assert "stablehlo.optimization_barrier" not in lowered("input")[0], "there is no gradient to wait for yet"


def test_the_optimizer_reads_every_gradient_in_rows():
    # On a CPU they always are; on a GPU, the constraint avoids copies of parameters and moments.
    text, arrays = lowered("input")
    assert text.count("stablehlo.custom_call @LayoutConstraint") == arrays


CROSS_ENTROPY = (phase("ce", epochs=1, cross_entropy=1.0),)
IMAGES, CLASSES = 6, 4


def random_outputs():
    """Outputs for two views of six images, and the images' labels."""
    random = np.random.default_rng(0)
    z = random.normal(size=(2 * IMAGES, 8)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    logits = random.normal(size=(2 * IMAGES, CLASSES)).astype(np.float32)
    return Outputs(jnp.array(z), jnp.array(z), jnp.array(logits)), jnp.array([0, 1, 2, 3, 0, 2])


def test_both_views_have_the_class_of_their_image():
    _, program = small_program("input", phases=CROSS_ENTROPY, **{"model.classifier": "linear"})
    outputs, labels = random_outputs()
    weight, partner = np.linspace(0.5, 0.9, 2 * IMAGES, dtype=np.float32), np.roll(np.arange(2 * IMAGES), 5)
    context = Context(program, None, {}, None, None, labels, {"cross_entropy": 1.0})

    @jax.jit
    def both(outputs):
        clean, _ = losses.clean_loss(context, outputs)
        mixed = objectives.Mixed(outputs.z, outputs.logits, jnp.array(weight), jnp.array(partner))
        return clean, losses.mixed_loss(context, outputs, mixed)[0]

    clean, of_mixed = both(outputs)
    logits, rows = np.asarray(outputs.logits, np.float64), np.arange(2 * IMAGES)
    surprise = np.log(np.exp(logits).sum(1, keepdims=True)) - logits
    class_of = np.asarray(labels)[rows % IMAGES]  # the first views of all images, then the second ones
    np.testing.assert_allclose(clean, surprise[rows, class_of].mean(), rtol=1e-5)
    own, others = surprise[rows, class_of], surprise[rows, class_of[partner]]
    np.testing.assert_allclose(of_mixed, np.mean(weight * own + (1 - weight) * others), rtol=1e-5)


def test_maps_explain_the_loss_named_in_the_config():
    outputs, labels = random_outputs()
    names = ("simclr", "supcon", "cross_entropy")
    programs = {}
    for name in (*names, "training"):
        options = {"model.classifier": "linear", "attribution.loss": name}
        programs[name] = small_program("input", phases=CROSS_ENTROPY, **options)[1]

    def loss_of(name, outputs):
        if name == "cross_entropy":
            chosen = jax.nn.one_hot(jnp.concatenate([labels, labels]), CLASSES)
            return -jnp.mean(jnp.sum(chosen * jax.nn.log_softmax(outputs.logits), axis=1))
        batch = objectives.make_batch(outputs.z, outputs.z_all, labels, views=2)
        return {"simclr": objectives.simclr, "supcon": objectives.supcon}[name](batch, programs[name].objective)

    def cotangent(name, given):
        context = Context(programs[name], None, {}, None, None, labels, {})
        return losses.attribution_cotangent(context, outputs, given)

    expected, found = jax.jit(
        lambda outputs: (
            {name: jax.grad(loss_of, 1)(name, outputs) for name in names},
            {name: cotangent(name, None) for name in names},
        )
    )(outputs)
    for name in names:
        assert largest_difference(found[name], expected[name]) < 1e-6, name
        others = [other for other in names if other != name]
        assert min(largest_difference(found[name], expected[other]) for other in others) > 1e-2
    assert cotangent("training", outputs) is outputs


@pytest.mark.parametrize("method", ["input", "gradient_x_input", "layer", "grad_cam"])
def test_maps_have_the_sign_norm_and_smoothing_of_the_config(method):
    random = np.random.default_rng(0)
    normal = lambda *shape: jnp.array(random.normal(size=shape), jnp.float32)
    images, of_images = normal(4, 8, 8, 3), {"images": normal(4, 8, 8, 3)}
    activations, of_stages = ({"stage3": normal(4, 4, 4, 5), "stage4": normal(4, 2, 2, 6)} for _ in range(2))
    options = {"attribution.sign": -1, "attribution.norm": "batch", "attribution.smoothing": 3}
    _, program = small_program("layer", **options, **{"attribution.method": method})
    if method in ("input", "gradient_x_input"):
        taps = of_images
        times = images if method == "gradient_x_input" else None
        expected = attribution.input_gradient(taps["images"], norm="batch", images_BxHxWxC=times, smoothing=3)
    else:
        taps = of_stages
        make_map = {"layer": attribution.layer_cam, "grad_cam": attribution.grad_cam}[method]
        maps = [make_map(activations[name], taps[name], image_size=8, sign=-1, norm="batch") for name in taps]
        expected = sum(maps) / 2

    # Norm "batch" refers to the batch of all devices.
    make = lambda *shard: attribution.make(attribution.Source(*shard, None, "batch"), program.attribution)
    shards = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), (images, activations, taps))
    found = jax.jit(jax.vmap(make, axis_name="batch"))(*shards)
    np.testing.assert_allclose(found.reshape(4, 8, 8), expected, atol=1e-5)


def test_loss_falls():
    phases = (phase("joint", epochs=15, supcon=1.0, ssl=1.2),)
    specs, program = small_program("input", phases=phases, **{"optimizer.learning_rate": 1e-2})
    _, history, _ = run_steps(program, small_state(specs, program), 30)
    first, last = (np.mean([m["loss"] for m in part]) for part in (history[:5], history[-5:]))
    assert last < 0.9 * first


def test_weights_and_rate_follow_the_phases():
    phases = tuple(phases_lib.from_entry(entry, "moco") for entry in PHASES)
    weights = [phases_lib.weights_at(phases, 2, step) for step in range(5)]
    assert [float(w["supcon"]) for w in weights] == [0, 0, 1, 1, 1]
    np.testing.assert_allclose([float(w["moco"]) for w in weights], [1, 1, 1.2, 1.2, 1.2])
    long = (phases_lib.Phase("a", 10, {"simclr": 1.0}), phases_lib.Phase("b", 4, {"supcon": 1.0, "simclr": 1.0}))
    spec = optimizer.OptimizerSpec("adam", 1e-3, 0.0, 0.512, True, 0.0, 0.9, 0.0)
    rate = optimizer.learning_rate_schedule(spec, long, 3)
    expected = lambda epoch, epochs: 1e-3 * (0.512 + 0.488 * (1 + np.cos(np.pi * epoch / epochs)) / 2)
    for step in range(30):
        np.testing.assert_allclose(rate(jnp.int32(step)), expected(step // 3, 10), rtol=1e-5)
    for step in range(30, 42):
        np.testing.assert_allclose(rate(jnp.int32(step)), expected((step - 30) // 3, 4), rtol=1e-5)


def test_a_step_with_a_nonfinite_loss_only_counts_itself(monkeypatch):
    views_of = step_lib.views_of

    def spoiled(program, key, images_bxHxWxC, axis_name):
        """Views with one NaN pixel if the first image starts with white."""
        bad = images_bxHxWxC[0, 0, 0, 0] == 255
        return views_of(program, key, images_bxHxWxC, axis_name).at[0, 0, 0, 0].add(jnp.where(bad, jnp.nan, 0.0))

    monkeypatch.setattr(step_lib, "views_of", spoiled)
    specs, program = small_program("none", **{"optimizer.ema": 0.5})
    state = small_state(specs, program)
    images, labels = (each[: program.batch_size] for each in small_images())
    bad = images.copy()
    bad[0, 0, 0, 0] = 255
    for skips in (True, False):
        chosen = dataclasses.replace(program, skips_nonfinite=skips)
        step = jax.jit(step_lib.make_train_step(chosen, axis_name=None))
        good, metrics = step(state, images, labels)
        assert np.isfinite(metrics["loss"]) and largest_difference(good.params, state.params) > 0
        after, metrics = step(good, bad, labels)
        assert not np.isfinite(metrics["gradient_norm"]) and int(after.step) == 2
        kept = [np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (after.replace(step=good.step), good)))]
        assert all(kept) == skips
