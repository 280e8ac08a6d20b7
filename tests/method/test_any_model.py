"""GradMix for any model: analytic maps, gradients against plain `jax.grad`, devices, and rejected input."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradmix_jax import explain_and_mix, mix, no_tap
from gradmix_jax.method import any_model, attribution

RANDOM = np.random.default_rng(0)
IMAGES = jnp.asarray(RANDOM.random((8, 6, 6, 2)), jnp.float32)
PARAMS = {
    "first": jnp.asarray(RANDOM.normal(size=(2, 5)), jnp.float32),
    "last": jnp.asarray(RANDOM.normal(size=(3, 3, 5, 4)), jnp.float32),
}
KEY = jax.random.key(5)


def forward(params, images, tap=no_tap):
    """Products of 2 channels and 5 features, means of 2 x 2 pixels, products of all 45 and 4 outputs."""
    x = tap("wide", jax.nn.relu(images @ params["first"]))
    x = tap("small", x.reshape(-1, 3, 2, 3, 2, 5).mean((2, 4)))
    return jnp.einsum("bhwf,hwfk->bk", x, params["last"])


def loss_of(outputs):
    return jnp.mean(jnp.sum(jnp.square(outputs), axis=1))


def low_high(raw):
    return (raw - raw.min((1, 2), keepdims=True)) / np.ptp(raw, axis=(1, 2), keepdims=True)


def float64_gradients():
    """(gradient at the images, activations of "small", gradient there) by hand."""
    first, last, images = (np.asarray(x, np.float64) for x in (PARAMS["first"], PARAMS["last"], IMAGES))
    before = images @ first
    small = np.maximum(before, 0).reshape(8, 3, 2, 3, 2, 5).mean((2, 4))
    outputs = np.einsum("bhwf,hwfk->bk", small, last)
    at_small = np.einsum("bk,hwfk->bhwf", 2 * outputs / 8, last)
    at_wide = at_small.repeat(2, axis=1).repeat(2, axis=2) / 4 * (before > 0)
    return at_wide @ first.T, small, at_small


def explain(map="input", forward=forward, **options):
    return explain_and_mix(KEY, forward, PARAMS, IMAGES, loss=loss_of, map=map, **options)


def arrays_of(map, **options):
    """(outputs, maps, loss) of a compiled call; a `Mixing` is not a pytree."""
    made = jax.jit(lambda: (lambda made: (made.outputs, made.maps, made.loss))(explain(map, **options)))()
    return [np.asarray(x) for x in made]


def test_the_map_of_the_input_is_that_of_the_loss_and_needs_no_taps():
    outputs, maps, loss = arrays_of("input", forward=lambda params, images: forward(params, images), smoothing=1)
    np.testing.assert_allclose(maps, low_high(np.abs(float64_gradients()[0]).sum(-1)), atol=1e-5)
    np.testing.assert_allclose(outputs, forward(PARAMS, IMAGES), rtol=1e-5)
    np.testing.assert_allclose(loss, loss_of(forward(PARAMS, IMAGES)), rtol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_map_of_a_stage_is_layer_cam(sign):
    _, small, gradient = float64_gradients()
    raw = (small * np.maximum(sign * gradient, 0)).sum(-1)
    expected = jax.image.resize(jnp.asarray(low_high(raw), jnp.float32), (8, 6, 6), "bilinear")
    _, maps, _ = arrays_of("layer", stages=("small",), sign=sign)
    np.testing.assert_allclose(maps, expected, atol=1e-5)


def test_without_names_all_taps_count():
    each = [arrays_of("layer", stages=(name,))[1] for name in ("wide", "small")]
    np.testing.assert_allclose(arrays_of("layer")[1], (each[0] + each[1]) / 2, atol=1e-6)


@pytest.mark.parametrize("map, stages", [("input", ()), ("layer", ("wide",))])
def test_values_and_gradients_are_those_of_plain_grad(map, stages):
    def clean_and_mixed(outputs, mixed):
        return loss_of(outputs) + jnp.mean(jnp.abs(outputs - mixed))

    @jax.jit
    def both():
        made = explain(map, stages=stages)
        general = made.value_and_grad(clean_and_mixed)
        shared, aux = made.value_and_grad_shared(lambda mixed: (loss_of(mixed), jnp.sum(mixed)), has_aux=True)[0]
        return made.images, general, made.value_and_grad_shared(loss_of), shared, aux

    images, general, shared, value_with_aux, aux = both()
    again = lambda params: (forward(params, IMAGES), forward(params, images))
    expected = jax.value_and_grad(lambda params: clean_and_mixed(*again(params)))(PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), general, expected)
    expected = jax.value_and_grad(lambda params: sum(loss_of(each) for each in again(params)))(PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), shared, expected)
    np.testing.assert_allclose(value_with_aux, expected[0], rtol=1e-4)
    np.testing.assert_allclose(aux, jnp.sum(forward(PARAMS, images)), rtol=1e-4)


def test_aux_is_that_of_the_clean_pass():
    with_mean = lambda params, images: (forward(params, images), jnp.mean(images))
    made = explain_and_mix(KEY, with_mean, PARAMS, IMAGES, loss=loss_of, has_aux=True)
    np.testing.assert_allclose(made.aux, jnp.mean(IMAGES), rtol=1e-6)
    assert made.forward(PARAMS, made.images).shape == (8, 4)


def test_the_weight_is_the_kept_share_and_the_rest_is_the_partners():
    made = explain(views=2)
    replaced = np.any(np.asarray(made.images) != np.asarray(IMAGES), axis=-1)
    np.testing.assert_allclose(made.weight, 1 - replaced.mean((1, 2)), atol=1e-6)
    theirs = np.asarray(IMAGES)[np.asarray(made.partner)]
    np.testing.assert_array_equal(np.asarray(made.images)[replaced], theirs[replaced])
    assert all((row < 4) != (partner < 4) for row, partner in enumerate(np.asarray(made.partner))), "crossed over views"
    # The mask follows the map: every masked pixel has a larger value than every kept one.
    maps = np.asarray(made.maps)
    assert all(maps[i][replaced[i]].min() >= maps[i][~replaced[i]].max() for i in range(8))


def test_two_devices_mix_as_one():
    options = dict(loss=loss_of, group_size=4, norm="batch")

    def parts(images, axis_name=None):
        made = explain_and_mix(KEY, forward, PARAMS, images, axis_name=axis_name, **options)
        return made.images, made.weight, made.maps

    one = jax.jit(parts)(IMAGES)
    two = jax.jit(jax.vmap(partial(parts, axis_name="d"), axis_name="d"))(IMAGES.reshape(2, 4, 6, 6, 2))
    for expected, found in zip(one, two):
        np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-6)


@pytest.mark.parametrize("map", any_model._MAPS)
def test_every_map_has_the_size_of_the_image(map):
    shape = jax.eval_shape(lambda: explain(map, views=2).maps)
    assert shape.shape == (8, 6, 6) and shape.dtype == jnp.float32


@pytest.mark.parametrize("method", any_model._METHODS)
def test_every_method_mixes(method):
    options = {"puzzlemix": {"grid": 3}, "attentive_cutmix": {"grid": 3}}.get(method)
    arrays = lambda made: (made.images, made.weight, made.partner)
    found = jax.eval_shape(lambda: arrays(explain(method=method, method_options=options, patch_size=2)))
    assert [each.shape for each in found] == [IMAGES.shape, (8,), (8,)]


def test_tables():
    assert {*attribution.MAPS} - {*any_model._MAPS} == {"rollout"}
    assert {*mix.METHODS} - {*any_model._METHODS} == {"none", "transmix", "manifold_mixup"}
    assert explain(method="cutmix").maps is None


@pytest.mark.parametrize(
    "images, options, message",
    [
        ((IMAGES * 255).astype(jnp.uint8), {}, r"images must be float in \[0, 1\], got uint8; divide by 255\."),
        (IMAGES - 0.5, {}, r"images must be in \[0, 1\], got values from -0\.\d+ to 0\.\d+; normalize inside"),
        (jnp.full_like(IMAGES, jnp.nan), {}, r"images must be in \[0, 1\], got values from nan to nan"),
        (IMAGES[..., 0], {}, r"images must have the axes \[B, H, W, C\], got the shape \(8, 6, 6\)"),
        (IMAGES[:1], {}, r"images must be 2 or more for each of views=1, view-major, got 1 rows"),
        (IMAGES, {"views": 3}, r"views=3, view-major, got 8 rows"),
        (IMAGES, {"group_size": 3}, r"mix\.group_size must divide the 8 images of one device, got 3"),
        (IMAGES, {"map": "rollout"}, r"map must be one of input, .*got 'rollout'"),
        (IMAGES, {"method": "transmix"}, r"method must be one of gradmix, .*got 'transmix'"),
        (IMAGES, {"mask": "boxes"}, r"mask must be one of .*got 'boxes'; did you mean 'box'\?"),
        (IMAGES, {"fill": "blur"}, r"fill must be one of .*got 'blur'"),
        (IMAGES, {"keep_range": (0.9, 0.5)}, r"mix\.keep_range must be \(low, high\)"),
        (IMAGES, {"stages": ("wide",)}, r"map 'input' looks at no stages, got \('wide',\); leave them out"),
        (IMAGES, {"map": "layer", "stages": ("wid",)}, r"each of stages must be one of wide, small, got 'wid'"),
    ],
)
def test_rejected_arguments(images, options, message):
    with pytest.raises(ValueError, match=message):
        explain_and_mix(KEY, forward, PARAMS, images, loss=loss_of, **options)


@pytest.mark.parametrize(
    "names, x, message",
    [
        ((), None, r"a map of activations needs taps, got none; call x = tap"),
        (("a", "a"), None, r"tap names must differ, got 'a' twice"),
        (("a",), jnp.ones((8, 3)), r"tap\('a', x\) must be given activations \[B, h, w, F\], got the shape \(8, 3\)"),
    ],
)
def test_rejected_taps(names, x, message):
    def model(params, images, tap=no_tap):
        for name in names:
            tap(name, images if x is None else x)
        return forward(params, images)

    with pytest.raises(ValueError, match=message):
        explain_and_mix(KEY, model, PARAMS, IMAGES, loss=loss_of, map="layer")


def test_traced_images_are_checked_by_their_type():
    mixed = lambda images: explain_and_mix(KEY, forward, PARAMS, images, loss=loss_of).images
    assert jax.eval_shape(mixed, IMAGES).shape == IMAGES.shape
    with pytest.raises(ValueError, match="got uint8; divide by 255"):
        jax.eval_shape(mixed, jax.ShapeDtypeStruct(IMAGES.shape, jnp.uint8))


@pytest.mark.parametrize("function", [mix.gradmix, partial(mix.mixup, alpha=1.0, views=1)])
def test_the_functions_of_mix_take_the_same_images(function):
    maps = jnp.ones((8, 6, 6))
    with pytest.raises(ValueError, match=r"images must be float in \[0, 1\], got uint8; divide by 255\."):
        function(KEY, (IMAGES * 255).astype(jnp.uint8), maps)
    with pytest.raises(ValueError, match=r"images must be in \[0, 1\], got values from 0\.\d+ to 2\d\d"):
        function(KEY, IMAGES * 255, maps)
