"""The mixed forward pass with mixed activations or attention-weighted labels; maps of several gradients."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow
from programs import shorten_transformers, small_images, small_program, small_state

from gradmix_jax import config as config_lib
from gradmix_jax import models, objectives
from gradmix_jax.config import phase
from gradmix_jax.method import attribution, mix
from gradmix_jax.training import explain
from gradmix_jax.training import step as step_lib
from gradmix_jax.training.forward import apply_model

# These tests spend most of their time compiling.
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
PHASES = (phase("ce", epochs=1, cross_entropy=1.0),)
OVERRIDES = {"model.classifier": "linear", "attribution.loss": "training", "attribution.smoothing": 1}
OVERRIDES |= {"augment.crop_scale": (1.0, 1.0), "augment.flip_prob": 0.0}


@pytest.fixture
def short(monkeypatch):
    shorten_transformers(monkeypatch)


def made(recipe, **overrides):
    """(program, state, uint8 images, labels)."""
    specs, program = small_program(recipe, phases=PHASES, **OVERRIDES | overrides)
    return program, small_state(specs, program), *map(lambda x: jnp.asarray(x[:32]), small_images())


def explained(program, state, images, labels):
    return jax.tree.map(np.asarray, quick(lambda *a: explain.explain(program, *a))(state, images, labels))


def attention_numpy(params, tokens):
    """Softmax of scaled products of one block, float64."""
    norm = lambda x, p: (
        (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]
    )
    x = norm(tokens, params["norm1"])
    project = lambda name: (
        np.einsum("btf,fnd->btnd", x, params["attention"][name]["kernel"]) + params["attention"][name]["bias"]
    )
    query, key = project("query"), project("key")
    scores = np.einsum("btnd,bsnd->bnts", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def test_attentions_are_those_of_the_blocks_in_order(short):
    """The first against NumPy, from the parameters; the others by their count and row sums."""
    spec = models.Spec(name="vit_tiny", width=128, hidden=8, projection=4)
    module = models.create(spec, num_classes=2)
    images = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    variables = module.init(jax.random.key(0), images, train=False)
    assert "intermediates" not in variables
    (_, out), updates = module.apply(variables, images, train=True, mutable=["batch_stats", "intermediates"])
    found = models.attentions(updates["intermediates"])
    assert len(found) == 4 and all(each.shape == (2, 2, 4, 4) for each in found)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"]["encoder"])
    patches = images.astype(np.float64).reshape(2, 2, 4, 2, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 48)
    stem = params["stem_conv"]
    tokens = patches @ stem["kernel"].reshape(48, 128) + stem["bias"]
    tokens = tokens + np.asarray(models.vit.positions(2, 2, 128), np.float64).reshape(1, 4, 128)
    np.testing.assert_allclose(found[0], attention_numpy(params["stage1_block1"], tokens), atol=1e-5)
    for stage in (2, 3, 4):
        tokens = np.asarray(out[f"stage{stage - 1}"], np.float64).reshape(2, 4, 128)
        np.testing.assert_allclose(found[stage - 1], attention_numpy(params[f"stage{stage}_block1"], tokens), atol=1e-5)


@pytest.mark.parametrize("name", ["small_cnn", "vit_tiny_token"])
def test_blends_mix_the_activations_of_a_stage(name, short):
    """A share of 0 at a stage gives the partner's features: nothing of the image bypasses the stage."""
    module = models.create(models.Spec(name=name, width=8, hidden=8, projection=4), num_classes=2)
    images = np.random.default_rng(0).standard_normal((4, 8, 8, 3)).astype(np.float32)
    variables = module.init(jax.random.key(0), images, train=False)
    partner = np.array([2, 3, 1, 0])

    @quick
    def apply(share):
        blends = {"stage2": {"share": share, "partner": partner}}
        return module.apply(variables | {"blends": blends}, images, train=False)[1]

    plain = module.apply(variables, images, train=False)[1]
    np.testing.assert_allclose(apply(jnp.ones(4))["features"], plain["features"], atol=1e-5)
    np.testing.assert_allclose(apply(jnp.zeros(4))["features"], np.asarray(plain["features"])[partner], atol=1e-5)
    share = np.array([0.2, 0.5, 0.9, 1.0])
    own, activations = share.reshape(-1, 1, 1, 1), np.asarray(plain["stage2"], np.float64)
    out = apply(jnp.asarray(share, jnp.float32))
    np.testing.assert_allclose(out["stage2"], own * activations + (1 - own) * activations[partner], atol=1e-5)
    assert np.abs(np.asarray(out["features"] - plain["features"]))[:3].max() > 1e-4
    with pytest.raises(ValueError, match="unknown stage 'stage9'"):
        module.apply(variables | {"blends": {"stage9": {}}}, images, train=False)


def mixed_of(program, state, images, labels):
    """(context, mixed, input of the losses) of the step."""

    @quick
    def run(state):
        views = step_lib.views_of(program, step_lib.step_key(state, "views"), images, None)
        context, _ = step_lib.context_of(program, state, views, labels, None)
        mixed = step_lib.clean_half(context, views).mixed
        return mixed, step_lib.forward_mixed(context, state.params, mixed)

    return run(state)


def test_transmix_weighs_labels_by_the_attention_of_the_mixed_images(short):
    program, state, images, labels = made("transmix")
    mixed, seen = mixed_of(program, state, images, labels)
    _, out, _ = quick(lambda x: apply_model(program, state.params, {}, x, with_attention=True))(mixed.images)
    attention = np.asarray(out["attentions"][-1], np.float64).mean(axis=1)[:, 0, 1:]
    kept = 1 - np.asarray(mixed.extra["mask"], np.float64).reshape(-1, 2, 4, 2, 4).mean(axis=(2, 4)).reshape(-1, 4)
    np.testing.assert_allclose(seen.weight, (attention * kept).sum(1) / attention.sum(1), atol=1e-5)
    assert np.abs(np.asarray(seen.weight - mixed.weight)).max() > 1e-4
    np.testing.assert_array_equal(seen.partner, mixed.partner)


def test_manifold_mixup_reaches_the_model():
    program, state, images, labels = made(
        "manifold_mixup", **{"mix.options": {"manifold_mixup": {"stages": ("stage2",)}}}
    )
    mixed, seen = mixed_of(program, state, images, labels)
    np.testing.assert_array_equal(mixed.extra["stage2"], mixed.weight)
    blends = {"stage2": {"share": mixed.weight, "partner": mixed.partner}}
    apply = quick(
        lambda x, blends: apply_model(program, state.params, state.batch_stats, x, blends=blends)[1]["logits"]
    )
    np.testing.assert_allclose(seen.logits, apply(mixed.images, blends), atol=1e-5)
    assert np.abs(np.asarray(seen.logits - apply(mixed.images, {}))).max() > 1e-3


@pytest.mark.parametrize("recipe", ["tokens", slow("rollout")])
def test_masks_of_token_maps_are_whole_patches(recipe, short):
    """The map comes from the model's own activations, gradients or attention, and is constant over a patch."""
    program, state, images, labels = made(recipe)
    found = explained(program, state, images, labels)
    maps, mask = found.mixed.maps, found.mask
    for each in (maps, mask):
        cells = each.reshape(-1, 2, 4, 2, 4)
        np.testing.assert_allclose(cells, np.broadcast_to(cells[:, :, :1, :, :1], cells.shape), atol=1e-6)
    views = jnp.asarray(found.views)
    if recipe == "tokens":

        def loss(taps):
            _, out, _ = apply_model(program, state.params, {}, views, taps)
            targets = jax.nn.one_hot(jnp.tile(labels, 2), program.num_classes)
            return objectives.cross_entropy(out["logits"], targets, program.objective), out

        taps = {stage: jnp.zeros((64, 2, 2, 4)) for stage in ("stage3", "stage4")}
        gradients, out = quick(jax.grad(loss, has_aux=True))(taps)
        parts = [attribution.token_map(out[stage], gradients[stage], image_size=8) for stage in taps]
        expected = np.mean(parts, axis=0)
        # Why the map clips at 0: after the layer norm of the last block, a token's length does not matter.
        products = np.asarray(out["stage4"] * gradients["stage4"])
        assert np.abs(products.sum(-1)).max() < 0.05 * np.abs(products).sum(-1).max()
    else:
        _, out, _ = quick(lambda x: apply_model(program, state.params, {}, x, with_attention=True))(views)
        options = dict(image_size=(8, 8), patch_size=4, class_token=True)
        expected = attribution.attention_rollout(out["attentions"], **options)
    np.testing.assert_allclose(maps, expected, atol=1e-3)


@pytest.mark.parametrize("loss", [slow("training"), "simclr"])
def test_maps_of_several_gradients_in_the_step(loss):
    overrides = {"attribution.loss": loss, "attribution.options": {"integrated_gradients": {"steps": 2}}}
    program, state, images, labels = made("integrated_gradients", **overrides)
    found = explained(program, state, images, labels)

    def target(views):
        z, out, _ = apply_model(program, state.params, state.batch_stats, views)
        if loss == "simclr":
            return objectives.simclr(objectives.make_batch(z, z, labels, views=2), program.objective)
        targets = jax.nn.one_hot(jnp.tile(labels, 2), program.num_classes)
        return objectives.cross_entropy(out["logits"], targets, program.objective)

    expected = quick(lambda views: attribution.integrated_gradients(jax.grad(target), views, steps=2))(found.views)
    np.testing.assert_allclose(found.mixed.maps, expected, atol=2e-3)


@pytest.mark.slow
def test_gradients_are_skipped_between_fresh_maps():
    program, state, images, labels = made("smoothgrad", **{"attribution.every": 2})
    fresh, random = (explained(program, state.replace(step=jnp.int32(step)), images, labels) for step in (0, 1))
    key = step_lib.step_key(state.replace(step=jnp.int32(1)), "map")
    keys = jnp.concatenate([step_lib._keys(jax.random.fold_in(key, view), 0, 32) for view in range(2)])
    np.testing.assert_allclose(random.mixed.maps, attribution.random_map(keys, image_size=(8, 8)), atol=1e-5)
    assert np.abs(fresh.mixed.maps - random.mixed.maps).max() > 0.1


@pytest.mark.parametrize(
    "recipe, overrides, message",
    [
        ("input", {"mix.mask": "patches"}, r"mix\.patch_size must be given with model\.name 'small_cnn'"),
        ("input", {"mix.mask": "patches", "mix.patch_size": 3}, r"mix\.patch_size must divide dataset\.image_size 8"),
        ("transmix", {"model.name": "small_cnn"}, r"mix\.method 'transmix' needs attention, of a model\.name such as"),
        ("rollout", {"model.name": "small_cnn"}, r"attribution\.method 'rollout' needs attention, .* got 'small_cnn'"),
        ("transmix", {"mix.patch_size": 2}, r"mix\.patch_size must be that of 'vit_tiny_token', 4, got 2"),
        (
            "manifold_mixup",
            {"mix.options": {"manifold_mixup": {"stages": ("stage7",)}}},
            r"each element of mix\.options\.manifold_mixup\.stages must be one of input, stage1, .*, got 'stage7'",
        ),
        ("eigen_cam", {"attribution.stages": ("stage5",)}, r"each element of attribution\.stages must be one of"),
    ],
)
def test_models_without_what_the_method_needs_are_refused(recipe, overrides, message):
    with pytest.raises(ValueError, match=message):
        small_program(recipe, phases=PHASES, **OVERRIDES | overrides)


def test_the_patch_size_defaults_to_that_of_the_model():
    for overrides, expected in (({}, 4), ({"mix.patch_size": 2}, 2)):
        specs, _ = small_program("tokens", phases=PHASES, **OVERRIDES | overrides)
        assert specs.mix.patch_size == expected
    assert config_lib.default_config().mix.patch_size == 0
    assert dataclasses.replace(specs.mix, mask="box").uses_patches is False and mix.METHODS["tokenmix"].has_mask
