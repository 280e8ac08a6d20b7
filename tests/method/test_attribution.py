"""Attribution maps against float64 NumPy, published vectors, and inputs that break careless code."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradmix_jax.method import attribution

SPEC = attribution.Spec(
    method="layer", stages=("stage3", "stage4"), sign=1, norm="image", smoothing=1, loss="simclr", every=1
)
GOLDEN_A = np.stack([[[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]]], axis=-1)[None]
GOLDEN_G = np.stack([[[1.0, -1.0], [0.5, 0.0]], [[-1.0, 2.0], [3.0, -4.0]]], axis=-1)[None]

# One shape and one map size for most tests: few compilations.
SIZE = (12, 10)
X, G = np.random.default_rng(0).standard_normal((2, 3, 4, 5, 6)).astype(np.float32)
A = np.maximum(X, 0)

layer_cam = jax.jit(attribution.layer_cam, static_argnames=("image_size", "norm"))
grad_cam = jax.jit(attribution.grad_cam, static_argnames=("image_size", "norm"))
input_gradient = jax.jit(attribution.input_gradient, static_argnames=("norm", "smoothing"))
smooth = jax.jit(attribution.smooth, static_argnames="window")
CAMS = {"layer": layer_cam, "grad_cam": grad_cam}


def reference_min_max(maps, norm):
    axes = (1, 2) if norm == "image" else None
    low, high = maps.min(axis=axes, keepdims=True), maps.max(axis=axes, keepdims=True)
    return (maps - low) / (high - low)


def bilinear_matrix(size_in, size_out):
    """Row: weights of the inputs for one output, samples at pixel centers, edges repeated."""
    matrix = np.zeros((size_out, size_in))
    for out in range(size_out):
        position = (out + 0.5) * size_in / size_out - 0.5
        first = int(np.floor(position))
        for index, weight in ((first, first + 1 - position), (first + 1, position - first)):
            matrix[out, min(max(index, 0), size_in - 1)] += weight
    return matrix


def reference_upsample(maps, image_size):
    rows, columns = bilinear_matrix(maps.shape[1], image_size[0]), bilinear_matrix(maps.shape[2], image_size[1])
    return np.einsum("Hh,bhw,Ww->bHW", rows, maps, columns)


def reference_raw(method, activations, gradients, sign):
    if method == "layer":
        return (activations * np.maximum(sign * gradients, 0)).sum(axis=-1)
    weights = gradients.mean(axis=(1, 2), keepdims=True)
    return np.maximum(sign * (activations * weights).sum(axis=-1), 0)


def reference_smooth(maps, window):
    result, reach = np.zeros_like(maps), window // 2
    for row in range(maps.shape[1]):
        for column in range(maps.shape[2]):
            rows, columns = (
                slice(max(row - reach, 0), row + reach + 1),
                slice(max(column - reach, 0), column + reach + 1),
            )
            result[:, row, column] = maps[:, rows, columns].mean(axis=(1, 2))
    return result


@pytest.mark.parametrize(
    "method, sign, raw",
    [
        ("layer", 1, [[1.0, 0.0], [1.5, 0.0]]),
        ("layer", -1, [[1.0, 2.0], [0.0, 4.0]]),
        ("grad_cam", 1, [[0.125, 0.25], [0.375, 0.5]]),
    ],
)
def test_published_vectors(method, sign, raw):
    sums = {"layer": attribution.layer_cam_raw, "grad_cam": attribution.grad_cam_raw}
    activations, gradients = GOLDEN_A.astype(np.float32), GOLDEN_G.astype(np.float32)
    np.testing.assert_allclose(sums[method](activations, gradients, sign=sign)[0], raw, rtol=1e-6)
    expected = reference_min_max(np.array([raw]), "image")
    np.testing.assert_allclose(CAMS[method](activations, gradients, image_size=2, sign=sign), expected, rtol=1e-6)


@pytest.mark.parametrize("norm", attribution.NORMS)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("method", ["layer", "grad_cam"])
def test_cams_match_numpy(method, sign, norm):
    raw = reference_min_max(reference_raw(method, A.astype(np.float64), G.astype(np.float64), sign), norm)
    result = CAMS[method](A, G, image_size=SIZE, sign=sign, norm=norm)
    np.testing.assert_allclose(result, reference_upsample(raw, SIZE), atol=2e-6)
    assert result.dtype == jnp.float32 and result.min() >= 0 and result.max() <= 1 + 1e-6


@pytest.mark.parametrize("norm, smoothing, images", [("image", 1, None), ("batch", 3, None), ("image", 3, X)])
def test_input_gradient_matches_numpy(norm, smoothing, images):
    raw = np.abs(G.astype(np.float64) * (1.0 if images is None else images)).sum(axis=-1)
    result = input_gradient(G, norm=norm, images_BxHxWxC=images, smoothing=smoothing)
    np.testing.assert_allclose(result, reference_min_max(reference_smooth(raw, smoothing), norm), atol=5e-6)
    assert result.dtype == jnp.float32


def test_smooth_matches_numpy_and_window_of_one_changes_nothing():
    maps = X[..., 0]
    for window in (5, 15):
        np.testing.assert_allclose(smooth(maps, window=window), reference_smooth(maps, window), atol=1e-6)
    np.testing.assert_array_equal(smooth(maps, window=1), maps)


@pytest.mark.parametrize("scale", [1e-20, 1e-12, 1e12])
def test_maps_do_not_depend_on_the_scale_of_the_gradient(scale):
    scaled = G * np.float32(scale)
    for cam in CAMS.values():
        expected = cam(A, G, image_size=SIZE)
        assert expected.max() > 0.5
        np.testing.assert_allclose(cam(A, scaled, image_size=SIZE), expected, atol=1e-5)
    np.testing.assert_allclose(input_gradient(scaled), input_gradient(G), atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 1e-12, 3e20])
def test_a_constant_gradient_gives_a_map_of_zeros(value):
    """Even when smoothed: scaling would otherwise blow rounding errors of the window's sum up to all of [0, 1]."""
    gradients = np.full_like(G, value)
    for smoothing in (1, 3):
        assert np.all(np.asarray(input_gradient(gradients, smoothing=smoothing)) == 0)
    for cam in CAMS.values():
        assert np.all(np.asarray(cam(np.ones_like(A), gradients, image_size=SIZE)) == 0)


def test_dead_features_give_finite_zeros():
    for norm in attribution.NORMS:
        for cam in CAMS.values():
            assert np.all(np.asarray(cam(np.zeros_like(A), G, image_size=SIZE, norm=norm)) == 0)


def test_one_constant_image_leaves_the_others_alone():
    with_constant = G.copy()
    with_constant[1] = 0.3
    result, expected = np.asarray(input_gradient(with_constant)), np.asarray(input_gradient(G))
    assert np.all(result[1] == 0)
    np.testing.assert_array_equal(result[[0, 2]], expected[[0, 2]])


def test_norm_batch_scales_the_batch_together_and_norm_image_each_image():
    gradients = G * np.array([1, 10, 100], np.float32).reshape(3, 1, 1, 1)
    of_image, of_batch = (np.asarray(input_gradient(gradients, norm=norm, smoothing=3)) for norm in attribution.NORMS)
    np.testing.assert_array_equal(of_image.max(axis=(1, 2)), [1, 1, 1])
    np.testing.assert_array_equal(of_image.min(axis=(1, 2)), [0, 0, 0])
    assert of_batch.max() == 1 and of_batch.min() == 0 and of_batch[0].max() < 0.2


def test_norm_batch_over_8_devices_equals_one_device_and_stops_gradients():
    """pmin and pmax cannot be differentiated: the gradient must be stopped before them."""
    gradients = np.random.default_rng(1).standard_normal((8, 1, 4, 5, 2)).astype(np.float32)

    def on_device(x):
        make = lambda x: attribution.input_gradient(x, norm="batch", axis_name="batch")
        return make(x), jax.grad(lambda x: make(x).sum())(x)

    maps, slope = jax.pmap(on_device, axis_name="batch")(gradients)
    expected = input_gradient(gradients.reshape(8, 4, 5, 2), norm="batch")
    np.testing.assert_allclose(np.asarray(maps).reshape(8, 4, 5), expected, atol=1e-6)
    assert np.all(np.asarray(slope) == 0)


def test_no_gradient_flows_through_a_map():
    def weighted_sum(x, g):
        maps = [attribution.layer_cam(x, g, image_size=SIZE), attribution.grad_cam(x, g, image_size=SIZE)]
        input_map = attribution.input_gradient(g, images_BxHxWxC=x, smoothing=3)
        return jnp.sum(attribution.average(maps) ** 2) + jnp.sum(input_map**2)

    for slope in jax.jit(jax.grad(weighted_sum, argnums=(0, 1)))(A, G):
        assert np.all(np.asarray(slope) == 0)


def test_bfloat16_inputs_are_summed_in_float32():
    low = [A.astype(jnp.bfloat16), G.astype(jnp.bfloat16)]
    high = [x.astype(np.float32) for x in low]
    for cam in CAMS.values():
        result = cam(*low, image_size=SIZE)
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, cam(*high, image_size=SIZE), atol=2e-6)
    result = input_gradient(low[1], smoothing=3)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, input_gradient(high[1], smoothing=3), atol=2e-6)
    assert smooth(low[0][..., 0], window=1).dtype == jnp.float32


def test_image_by_image_eager_and_compiled_agree():
    one_cam = lambda a, g: attribution.layer_cam(a[None], g[None], image_size=SIZE)[0]
    one_input = lambda g: attribution.input_gradient(g[None], smoothing=3)[0]
    cams, inputs = jax.jit(lambda a, g: (jax.vmap(one_cam)(a, g), jax.vmap(one_input)(g)))(A, G)
    np.testing.assert_allclose(cams, layer_cam(A, G, image_size=SIZE), atol=1e-6)
    np.testing.assert_allclose(inputs, input_gradient(G, smoothing=3), atol=1e-6)
    with jax.disable_jit():
        np.testing.assert_allclose(attribution.input_gradient(G), input_gradient(G), atol=1e-6)


def test_random_map_is_a_different_lattice_for_every_key():
    keys = jax.random.split(jax.random.key(0), 4)
    make = jax.jit(attribution.random_map, static_argnames=("image_size", "grid"))
    maps = np.asarray(make(keys, image_size=(9, 15), grid=3))
    lattice = maps[:, 1::3, 2::5]  # pixels that lie on lattice points
    np.testing.assert_allclose(lattice.min(axis=(1, 2)), np.zeros(4), atol=1e-6)
    np.testing.assert_allclose(lattice.max(axis=(1, 2)), np.ones(4), atol=1e-6)
    assert len(np.unique(lattice.round(5))) == 4 * 7 + 2
    np.testing.assert_allclose(maps, reference_upsample(lattice, (9, 15)), atol=1e-6)
    np.testing.assert_array_equal(make(keys[::-1], image_size=(9, 15), grid=3), maps[::-1])


def test_average_weighs_every_stage_equally():
    maps = G[..., 0][:, None]
    np.testing.assert_allclose(attribution.average(list(maps)), maps.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            dict(method="saliency"),
            r"attribution\.method must be one of input, gradient_x_input, layer, .*, got 'saliency'",
        ),
        (dict(norm="pixel"), r"attribution\.norm must be one of image, batch, got 'pixel'"),
        (dict(sign=0), r"attribution\.sign must be 1 or -1, got 0"),
        (dict(smoothing=2), r"attribution\.smoothing must be an odd number of pixels, got 2"),
        (dict(smoothing=-1), r"attribution\.smoothing must be a positive integer, got -1"),
        (dict(stages=()), r"attribution\.method 'layer' needs at least one of attribution\.stages, got none"),
    ],
)
def test_spec_errors_name_key_value_and_choices(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SPEC, **change)


def test_spec_reports_what_a_method_needs():
    needs = {m: dataclasses.replace(SPEC, method=m, stages=["stage3"]) for m in attribution.MAPS}
    assert [m for m in needs if needs[m].uses_stages] == ["layer", "grad_cam", "token", "eigen_cam"]
    assert [m for m in needs if not needs[m].uses_loss] == ["rollout", "eigen_cam", "random"]
    assert [m for m in needs if needs[m].needs("gradient")] == ["integrated_gradients", "smoothgrad"]
    assert [m for m in needs if needs[m].uses_input] == ["input", "gradient_x_input"]
    assert needs["layer"].stages == ("stage3",) and hash(needs["layer"])
    assert dataclasses.replace(SPEC, method="input", stages=()).stages == ()


def test_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="norm must be one of image, batch, got 'Image'; did you mean 'image'"):
        attribution.input_gradient(jnp.ones((1, 2, 2, 1)), norm="Image")


def test_spectral_residual_against_numpy():
    images = np.random.default_rng(5).uniform(size=(4, 12, 10, 3))
    images[2] = 0.5
    images[3] = (
        np.linspace(0, 1, 10).reshape(1, 10, 1) ** 2
    )  # most of its spectrum is zero, whose logarithm is not finite

    def mean_3x3(x):
        padded, ones = np.pad(x, 1), np.pad(np.ones_like(x), 1)
        windows = [(i, j) for i in range(3) for j in range(3)]
        total = lambda y: sum(y[i : i + x.shape[0], j : j + x.shape[1]] for i, j in windows)
        return total(padded) / total(ones)

    result = np.asarray(jax.jit(attribution.spectral_residual)(images.astype(np.float32)))
    assert result.dtype == np.float32 and np.isfinite(result).all() and result[3].max() == pytest.approx(1)
    for image, map_HxW in zip(images[:2], result):
        spectrum = np.fft.fft2(image.mean(-1))
        log_amplitude = np.log(np.abs(spectrum))
        residual = log_amplitude - mean_3x3(log_amplitude)
        saliency = mean_3x3(np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2)
        expected = (saliency - saliency.min()) / np.ptp(saliency)
        np.testing.assert_allclose(map_HxW, expected, atol=2e-4)
