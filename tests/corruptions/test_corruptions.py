"""Corruptions against SciPy, Pillow, colorsys and NumPy loops; independence of the batch; effect of severity."""

import colorsys
import functools
import io
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from gradmix_jax import corruptions
from gradmix_jax.corruptions import blur, digital, filters, weather

SIZE, BATCH = 32, 4
KEY = 7
RANDOM = [name for name in corruptions.NAMES if name not in ("defocus_blur", "zoom_blur", "brightness", "contrast")]
RANDOM = [name for name in RANDOM if name not in ("pixelate", "jpeg_compression")]


def smooth_images(count, size, channels, seed=0):
    """Like photographs where it matters here: power at low frequencies, edges, correlated channels, full range."""
    noise = np.random.default_rng(seed).normal(size=(count, size, size, channels + 1))
    field = sum(
        sigma * scipy.ndimage.gaussian_filter(noise, (0, sigma * size / 32, sigma * size / 32, 0), mode="wrap")
        for sigma in (0.7, 1.5, 3.0, 6.0)
    )
    field = field[..., :1] + 0.5 * field[..., 1:] + 0.4 * (field[..., :1] > 0)
    field -= field.min(axis=(1, 2, 3), keepdims=True)
    return np.uint8(np.round(255 * field / field.max(axis=(1, 2, 3), keepdims=True)))


IMAGES = smooth_images(BATCH + 2, SIZE, 3)
GREYS = smooth_images(3, 16, 1)


def corrupt(images, name, severity, *, first=0, key=KEY):
    return np.asarray(corruptions.corrupt(jax.random.key(key), images, name=name, severity=severity, first=first))


@functools.cache
def corrupted(name, severity):
    return corrupt(IMAGES[:BATCH], name, severity)


def by_severity(constants):
    return list(zip(corruptions.SEVERITIES, constants, strict=True))


def constant(*levels):
    return np.broadcast_to(np.uint8(levels or (100,) * 3), (BATCH, SIZE, SIZE, 3)).copy()


def image_key(index):
    """The key of one image; the tests below repeat the draws that the docstrings describe."""
    return jax.random.fold_in(jax.random.key(KEY), index)


def truncated(levels):
    return np.floor(np.clip(levels, 0, 255) + 1e-3)


def assert_same_levels(actual, expected, *, share=0.005):
    """Assert equality with a truncated float64 reference in [0, 255]; float32 may be off by one level."""
    difference = np.abs(actual.astype(int) - truncated(expected).astype(int))
    assert difference.max() <= 1
    assert np.mean(difference > 0) <= share


# Every corruption


@pytest.mark.parametrize("name", corruptions.NAMES)
def test_shape_type_and_one_program_for_all_severities(name):
    before = corruptions._corrupt._cache_size()
    for severity in corruptions.SEVERITIES:
        images = corrupted(name, severity)
        assert images.shape == (BATCH, SIZE, SIZE, 3) and images.dtype == np.uint8
    assert corruptions._corrupt._cache_size() - before <= 1


@pytest.mark.parametrize("name", corruptions.NAMES)
def test_deterministic_in_the_key_and_random_where_it_should_be(name):
    np.testing.assert_array_equal(corrupt(IMAGES[:BATCH], name, 4), corrupted(name, 4))
    other = corrupt(IMAGES[:BATCH], name, 4, key=8)
    changed = np.any(other != corrupted(name, 4), axis=(1, 2, 3))
    assert changed.all() if name in RANDOM else not changed.any()
    if name in RANDOM:
        same = np.repeat(IMAGES[:1], BATCH, axis=0)
        draws = corrupt(same, name, 4)
        assert not any(np.array_equal(draws[0], draws[i]) for i in range(1, BATCH))


@pytest.mark.parametrize("name", corruptions.NAMES)
def test_an_image_depends_only_on_its_place_in_the_dataset(name):
    shifted = corrupt(IMAGES[2:], name, 5, first=2)
    np.testing.assert_array_equal(shifted[: BATCH - 2], corrupted(name, 5)[2:])


@pytest.mark.parametrize("name", corruptions.NAMES)
def test_gray_images_in_batches_of_any_size(name):
    for severity in (1, 5):
        images = corrupt(GREYS, name, severity)
        assert images.shape == GREYS.shape and images.dtype == np.uint8
        assert np.all(np.any(images != GREYS, axis=(1, 2, 3)))
        np.testing.assert_array_equal(corrupt(GREYS[2:], name, severity, first=2), images[2:])


@pytest.mark.parametrize("name", corruptions.NAMES)
def test_stronger_with_severity(name):
    errors = [np.mean((corrupted(name, s) - IMAGES[:BATCH].astype(float)) ** 2) for s in corruptions.SEVERITIES]
    if name == "elastic_transform":  # the constants trade a shrinking affine map for a rougher displacement
        errors = errors[::-1]
    assert errors[4] > 1.2 * errors[0] > 0


@pytest.mark.parametrize("name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "contrast"])
@pytest.mark.parametrize("severity", corruptions.SEVERITIES)
def test_blurs_keep_a_constant_image(name, severity):
    images = constant(0, 100, 255)
    np.testing.assert_array_equal(corrupt(images, name, severity), images)


@pytest.mark.parametrize("name", ["elastic_transform", "pixelate"])
def test_warps_keep_a_constant_image(name):
    images = constant(0, 100, 255)
    np.testing.assert_array_equal(corrupt(images, name, 5), images)


def test_only_the_images_move_between_host_and_device():
    images = jax.device_put(IMAGES[:BATCH])
    key = jax.random.key(KEY)
    with jax.transfer_guard("disallow"):
        for name in ("fog", "jpeg_compression"):
            corruptions.corrupt(key, images, name=name, severity=1, first=3)


# Noise


@pytest.mark.parametrize("severity, std", by_severity((0.04, 0.06, 0.08, 0.09, 0.10)))
def test_gaussian_noise_has_its_mean_and_std(severity, std):
    noise = corrupt(constant(), "gaussian_noise", severity) - 100.0
    assert abs(noise.mean() + 0.5) < 5 * 255 * std / math.sqrt(noise.size)  # truncation costs half a level
    assert noise.std() == pytest.approx(255 * std, rel=0.03)


@pytest.mark.parametrize("severity, rate", by_severity((500, 250, 100, 75, 50)))
def test_shot_noise_is_poisson(severity, rate):
    levels = np.array([20, 80, 128])
    images = corrupt(constant(*levels), "shot_noise", severity).astype(float)
    variance = levels * 255 / rate
    mean_error = images.mean(axis=(0, 1, 2)) + 0.5 - levels
    assert np.all(np.abs(mean_error) < 5 * np.sqrt(variance / images[..., 0].size) + 0.5)
    np.testing.assert_allclose(images.var(axis=(0, 1, 2)), variance, rtol=0.1)
    assert len(np.unique(images[..., 0])) <= rate * 255 // 20  # integer counts, not a continuum
    assert np.all(corrupt(constant(0, 0, 0), "shot_noise", severity) == 0)


@pytest.mark.parametrize("severity, share", by_severity((0.01, 0.02, 0.03, 0.05, 0.07)))
def test_impulse_noise_changes_its_share_to_black_and_white(severity, share):
    images = corrupt(constant(), "impulse_noise", severity)
    assert set(np.unique(images)) == {0, 100, 255}
    for level in (0, 255):
        expected = images.size * share / 2
        assert abs(np.sum(images == level) - expected) < 4 * math.sqrt(expected)
    assert np.any(images[..., 0] != images[..., 1])  # of values, not of pixels


# Blur


@pytest.mark.parametrize("severity, c", by_severity([(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)]))
def test_defocus_blur_is_correlation_with_a_disk(severity, c):
    radius, sigma = c
    y, x = np.mgrid[-8:9, -8:9]
    disk = np.float64(y**2 + x**2 <= radius**2)
    kernel = scipy.ndimage.gaussian_filter(disk / disk.sum(), sigma, radius=1)
    expected = scipy.ndimage.correlate(IMAGES[:BATCH].astype(float), kernel[None, :, :, None], mode="mirror")
    assert_same_levels(corrupted("defocus_blur", severity), expected)


@pytest.mark.parametrize("severity, c", by_severity([(0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2)]))
def test_glass_blur_is_the_sequential_loop_over_pixels(severity, c):
    sigma, rounds = c

    def smooth(image):
        return scipy.ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest", truncate=4)

    for i in range(2):
        image = truncated(smooth(IMAGES[i].astype(float)))
        for index in range(rounds):
            draw = jax.random.randint(jax.random.fold_in(image_key(i), index), (2, SIZE, SIZE), -1, 1)
            offsets = np.asarray(draw)
            for h in range(SIZE - 1, 1, -1):
                for w in range(SIZE - 1, 1, -1):
                    image[h, w] = image[h + offsets[0, h, w], w + offsets[1, h, w]]
        # A level that the first blur rounds the other way may be copied further.
        assert_same_levels(corrupted("glass_blur", severity)[i], smooth(image), share=0.02)


@pytest.mark.parametrize("severity, c", by_severity([(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)]))
def test_motion_blur_is_half_a_gaussian_along_a_line(severity, c):
    radius, sigma = c
    taps = np.arange(2 * radius + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    for i in range(2):
        angle = float(jax.random.uniform(image_key(i), minval=-math.pi / 4, maxval=math.pi / 4))
        total = np.zeros((SIZE, SIZE, 3))
        for t, weight in zip(taps, weights / weights.sum()):
            y = np.clip(np.arange(SIZE) + math.ceil(t * math.sin(angle) - 0.5), 0, SIZE - 1)
            x = np.clip(np.arange(SIZE) + math.ceil(t * math.cos(angle) - 0.5), 0, SIZE - 1)
            total += weight * IMAGES[i][y][:, x]
        assert_same_levels(corrupted("motion_blur", severity)[i], total)


@pytest.mark.parametrize("severity, stop", by_severity((1.06, 1.11, 1.16, 1.21, 1.26)))
def test_zoom_blur_is_the_mean_of_scipy_zooms(severity, stop):
    image = IMAGES[0].astype(float)
    total, factors = image, np.arange(1, stop, 0.01)
    for factor in factors:
        crop = math.ceil(SIZE / factor)
        top = (SIZE - crop) // 2
        zoomed = scipy.ndimage.zoom(image[top : top + crop, top : top + crop], (factor, factor, 1), order=1)
        trim = (len(zoomed) - SIZE) // 2
        total = total + zoomed[trim : trim + SIZE, trim : trim + SIZE]
    assert_same_levels(corrupted("zoom_blur", severity)[0], total / (len(factors) + 1))


def test_lengths_grow_only_with_large_images():
    """Radius 3 and sigma 0.1 at 64 pixels are 6 and 0.2 at 128; CIFAR-10-C's 1.5 are 2.25 at 48."""
    for size, radius in ((48, 2.25), (64, 3), (128, 6)):
        (kernel,) = blur.defocus_blur_constants(5, size)
        reach = range(-int(radius), int(radius) + 1)
        assert np.count_nonzero(kernel > 0.005) == sum(y**2 + x**2 <= radius**2 for y in reach for x in reach)
    weights, _ = blur.motion_blur_constants(5, 128)
    assert len(weights) == 2 * 24 + 1 and weights[6] / weights[0] == pytest.approx(math.exp(-0.5))
    for constants in (blur.defocus_blur_constants, blur.glass_blur_constants, blur.motion_blur_constants):
        jax.tree.map(np.testing.assert_array_equal, constants(4, 16), constants(4, 32))


# TinyImageNet-C


LARGE = smooth_images(2, 64, 3)


def test_which_constants_are_used():
    assert [corruptions.published_set(size) for size in (8, 32, 63)] == ["cifar10_c"] * 3
    assert [corruptions.published_set(size) for size in (64, 224)] == ["tiny_imagenet_c"] * 2


@pytest.mark.parametrize("severity", corruptions.SEVERITIES)
def test_noise_and_levels_at_64_pixels_are_those_of_tiny_imagenet_c(severity):
    at = lambda values: values[severity - 1]
    gray = np.full((8, 64, 64, 3), 128, np.uint8)
    level = 128 / 255
    noise = corrupt(gray, "gaussian_noise", severity) / 255
    assert np.std(noise) == pytest.approx(at((0.04, 0.08, 0.12, 0.15, 0.18)), rel=0.03)
    rate = at((250, 100, 50, 30, 15))
    shot = np.minimum(np.random.default_rng(0).poisson(rate * level, 100_000) / rate, 1)
    assert np.std(corrupt(gray, "shot_noise", severity) / 255) == pytest.approx(shot.std(), rel=0.03)
    share = np.mean(corrupt(gray, "impulse_noise", severity) != 128)
    assert share == pytest.approx(at((0.01, 0.02, 0.05, 0.08, 0.14)), abs=0.004)
    bright = corrupt(gray, "brightness", severity)
    assert np.all(bright == np.floor(255 * min(level + at((0.1, 0.2, 0.3, 0.4, 0.5)), 1) + 1e-3))
    mean = LARGE.mean(axis=(1, 2), keepdims=True)
    expected = (LARGE - mean) * at((0.4, 0.3, 0.2, 0.1, 0.05)) + mean
    assert_same_levels(corrupt(LARGE, "contrast", severity), expected)
    black = corrupt(np.zeros_like(gray), "snow", severity)
    keep = at((0.8, 0.8, 0.7, 0.65, 0.6))
    assert black.min() == math.floor((1 - keep) * 0.5 * 255 + 1e-3)


@pytest.mark.parametrize("severity", corruptions.SEVERITIES)
def test_resampling_at_64_pixels_is_that_of_tiny_imagenet_c(severity):
    at = lambda values: values[severity - 1]
    image, small = Image.fromarray(LARGE[0]), int(64 * at((0.9, 0.8, 0.7, 0.6, 0.5)))
    expected = np.asarray(image.resize((small, small), Image.BOX).resize((64, 64), Image.BOX))
    np.testing.assert_array_equal(corrupt(LARGE, "pixelate", severity)[0], expected)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=at((65, 58, 50, 40, 25)))
    np.testing.assert_array_equal(corrupt(LARGE, "jpeg_compression", severity)[0], np.asarray(Image.open(encoded)))
    displacement, taps, shift = digital.elastic_transform_constants(severity, 64)
    sides = at(((0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)))
    assert (displacement, shift) == pytest.approx((64 * sides[0], 64 * sides[2]), rel=1e-6)
    offsets = np.arange(len(taps)) - len(taps) // 2
    # The published transform cuts its Gaussian at three sigmas, where its standard deviation is 0.986 of sigma.
    assert np.sqrt(np.sum(taps * offsets**2)) == pytest.approx(64 * sides[1], rel=0.05)


@pytest.mark.parametrize("severity", corruptions.SEVERITIES)
def test_blurs_at_64_pixels_are_those_of_tiny_imagenet_c(severity):
    at = lambda values: values[severity - 1]
    radius, sigma = at(((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)))
    offset = np.arange(-5, 6)
    disk = (offset[:, None] ** 2 + offset**2 <= radius**2).astype(float)
    taps = np.exp(-0.5 * (np.arange(-1, 2) / sigma) ** 2)
    kernel = scipy.ndimage.convolve1d(
        scipy.ndimage.convolve1d(disk, taps, 0, mode="constant"), taps, 1, mode="constant"
    )
    blurred = scipy.ndimage.correlate(LARGE[0].astype(float), kernel[..., None] / kernel.sum(), mode="mirror")
    assert_same_levels(corrupt(LARGE, "defocus_blur", severity)[0], blurred)
    radius, sigma = at(((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)))
    weights, _ = blur.motion_blur_constants(severity, 64)
    expected = np.exp(-0.5 * (np.arange(2 * radius + 1) / sigma) ** 2)
    np.testing.assert_allclose(weights[: 2 * radius + 1], expected / expected.sum(), atol=1e-6)
    taps, reach, rounds = blur.glass_blur_constants(severity, 64)
    sigma, *expected = at(((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)))
    assert [reach, rounds] == expected
    impulse = scipy.ndimage.gaussian_filter1d(np.eye(1, 21, 10)[0], sigma, truncate=4)
    np.testing.assert_allclose(np.pad(taps, (21 - len(taps)) // 2), impulse, atol=1e-6)


def test_frost_and_fog_at_64_pixels_have_the_weights_of_tiny_imagenet_c():
    weights = [tuple(map(float, weather.frost_constants(s, 64))) for s in corruptions.SEVERITIES]
    np.testing.assert_allclose(weights, [(1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)], rtol=1e-6)
    weights = [tuple(map(float, weather.fog_constants(s, 64))) for s in corruptions.SEVERITIES]
    np.testing.assert_allclose(weights, [(0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)], rtol=1e-6)


# Weather


@pytest.mark.parametrize("severity, keep", by_severity((0.95, 0.9, 0.9, 0.85, 0.8)))
def test_snow_whitens_and_falls_steeply(severity, keep):
    images = corrupt(constant(0, 0, 0), "snow", severity)[..., 0].astype(int)
    assert images.min() == math.floor((1 - keep) * 0.5 * 255 + 1e-3)
    flakes = images - images.min()
    assert np.mean(flakes > 0) > 0.005 * severity
    np.testing.assert_allclose(flakes, flakes[:, ::-1, ::-1], atol=1)  # once as it fell, once turned
    # Streaks are closer to vertical than to horizontal; clipped flakes would not show it.
    rough = [np.mean(np.diff(flakes, axis=axis) ** 2.0) for axis in (1, 2)]
    assert rough[0] < rough[1]
    colors = corrupt(constant(40, 120, 200), "snow", severity).reshape(-1, 3).min(axis=0)
    gray = 0.299 * 40 + 0.587 * 120 + 0.114 * 200
    white = np.maximum([40, 120, 200], 1.5 * gray + 127.5)
    np.testing.assert_allclose(colors, keep * np.array([40, 120, 200]) + (1 - keep) * white, atol=1)


@pytest.mark.parametrize("severity, c", by_severity([(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)]))
def test_frost_adds_a_weighted_texture(severity, c):
    keep, weight = c
    texture = corrupt(constant(0, 0, 0), "frost", severity).astype(float)
    assert texture.max() <= 255 * weight
    assert 0.4 < texture.mean() / (255 * weight) < 0.7 and texture.std() > 0.1 * 255 * weight
    assert np.all(texture[..., 0] <= texture[..., 2]) and np.any(texture[..., 0] < texture[..., 2])  # bluish
    expected = np.minimum(keep * IMAGES[:BATCH] + texture, 255)
    np.testing.assert_allclose(corrupted("frost", severity), expected, atol=1)


def reference_plasma(draws, size, decay):
    """Diamond-square in place, point by point."""
    heights, step, amplitude, used = np.zeros((size, size)), size, 1.0, 0
    while step > 1:
        half, side = step // 2, size // step
        noise = amplitude * draws[used : used + 3 * side**2].reshape(3, side, side)
        corners = range(0, size, step)
        at = lambda y, x: heights[y % size, x % size]
        for kind, (down, right) in enumerate([(half, half), (0, half), (half, 0)]):
            reach = half if kind else 0
            for i, y in enumerate(corners):
                for j, x in enumerate(corners):
                    y0, x0 = y + down, x + right
                    if reach:
                        around = at(y0 - half, x0) + at(y0 + half, x0) + at(y0, x0 - half) + at(y0, x0 + half)
                    else:
                        around = sum(at(y0 + a, x0 + b) for a in (-half, half) for b in (-half, half))
                    heights[y0, x0] = around / 4 + noise[kind, i, j]
        used, step, amplitude = used + 3 * side**2, half, amplitude / decay**2
    return (heights - heights.min()) / (heights.max() - heights.min())


@pytest.mark.parametrize("severity, c", by_severity([(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)]))
def test_fog_is_diamond_square_noise(severity, c):
    weight, decay = c
    for i in range(2):
        draws = np.asarray(jax.random.uniform(image_key(i), (SIZE**2 - 1,), minval=-1, maxval=1), np.float64)
        fog = reference_plasma(draws, SIZE, decay)[..., None]
        image = IMAGES[i] / 255
        expected = (image + weight * fog) * image.max() / (image.max() + weight)
        assert_same_levels(corrupted("fog", severity)[i], 255 * expected)


def test_plasma_spans_the_range_and_is_cropped_to_any_size():
    for size in (8, 12):
        noise = np.asarray(filters.plasma(jax.random.key(1), size, 2.0))
        assert noise.shape == (size, size) and noise.min() >= 0 and noise.max() <= 1
    assert np.ptp(filters.plasma(jax.random.key(1), 8, 2.0)) == pytest.approx(1)


@pytest.mark.parametrize("severity, shift", by_severity((0.05, 0.1, 0.15, 0.2, 0.3)))
def test_brightness_shifts_the_value_of_hsv(severity, shift):
    pixels = np.concatenate([IMAGES[0, ::4, ::4].reshape(-1, 3), [[0, 0, 0], [255, 0, 9], [0, 0, 1]]])
    images = np.zeros((BATCH, SIZE, SIZE, 3), np.uint8)
    images.reshape(-1, 3)[: len(pixels)] = pixels
    expected = []
    for pixel in pixels / 255:
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        expected.append(colorsys.hsv_to_rgb(hue, saturation, min(value + shift, 1)))
    actual = corrupt(images, "brightness", severity).reshape(-1, 3)[: len(pixels)]
    assert_same_levels(actual, 255 * np.array(expected), share=0.02)


def test_brightness_shifts_a_gray_level():
    expected = np.minimum(GREYS.astype(float) + 255 * 0.3, 255)
    assert_same_levels(corrupt(GREYS, "brightness", 5), expected)


# Digital


@pytest.mark.parametrize("severity, factor", by_severity((0.75, 0.5, 0.4, 0.3, 0.15)))
def test_contrast_scales_the_distance_to_the_mean_of_each_channel(severity, factor):
    images = IMAGES[:BATCH].astype(float)
    mean = images.mean(axis=(1, 2), keepdims=True)
    assert_same_levels(corrupted("contrast", severity), (images - mean) * factor + mean)


ELASTIC = [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)]


@pytest.mark.parametrize("severity, c", by_severity(ELASTIC))
def test_elastic_transform_is_an_affine_map_and_a_smooth_displacement(severity, c):
    displacement, sigma, shift = np.array(c) * SIZE
    for i in range(2):
        affine_key, displacement_key = jax.random.split(image_key(i))
        corners = np.array([[26, 26], [6, 26], [6, 6]], np.float64)
        moved = corners + np.asarray(jax.random.uniform(affine_key, (3, 2), minval=-shift, maxval=shift))
        assert np.abs(moved - corners).max() <= shift
        # [y, x, 1] @ back = source, the inverse of the map from corners to moved corners.
        back = np.linalg.solve(np.c_[moved, np.ones(3)], corners)
        y, x = np.mgrid[:SIZE, :SIZE].astype(float)
        source = np.einsum("chw,cd->dhw", np.stack([y, x, np.ones_like(y)]), back)
        noise = np.asarray(jax.random.uniform(displacement_key, (SIZE, SIZE, 2), minval=-1, maxval=1), np.float64)
        smooth = scipy.ndimage.gaussian_filter(noise, (sigma, sigma, 0), mode="reflect", truncate=3)
        moves = displacement * smooth
        assert np.abs(moves).max() <= displacement
        channels = []
        for channel in np.moveaxis(IMAGES[i].astype(float), -1, 0):
            warped = scipy.ndimage.map_coordinates(channel, source, order=1, mode="mirror")
            at = [y + moves[..., 0], x + moves[..., 1]]
            channels.append(scipy.ndimage.map_coordinates(warped, at, order=1, mode="reflect"))
        assert_same_levels(corrupted("elastic_transform", severity)[i], np.stack(channels, axis=-1), share=0.01)


@pytest.mark.parametrize("severity, share", by_severity((0.95, 0.9, 0.85, 0.75, 0.65)))
@pytest.mark.parametrize("images", [IMAGES[:BATCH], GREYS], ids=["32x32x3", "16x16x1"])
def test_pixelate_is_pillows_box_resize(severity, share, images):
    size = images.shape[1]
    small = int(size * share)
    for image, actual in zip(images, corrupt(images, "pixelate", severity)):
        picture = Image.fromarray(image.squeeze()).resize((small, small), Image.BOX).resize((size, size), Image.BOX)
        np.testing.assert_array_equal(actual.squeeze(), np.asarray(picture))


@pytest.mark.parametrize("severity, quality", by_severity((80, 65, 58, 50, 40)))
def test_jpeg_is_pillows(severity, quality):
    for image, actual in zip(IMAGES, corrupted("jpeg_compression", severity)):
        encoded = io.BytesIO()
        Image.fromarray(image).save(encoded, format="JPEG", quality=quality)
        np.testing.assert_array_equal(actual, np.asarray(Image.open(encoded)))
    assert digital.jpeg_compression(IMAGES[:0], quality=quality).shape == (0, SIZE, SIZE, 3)


# Arguments


def test_names_are_the_fifteen():
    assert len(set(corruptions.NAMES)) == 15 and corruptions.SEVERITIES == (1, 2, 3, 4, 5)
    tables = [table for module in (weather, digital) for table in vars(module).values()]
    assert all(len(table) == 5 for table in tables if isinstance(table, tuple) and isinstance(table[0], tuple))


@pytest.mark.parametrize("name", ["fog", "jpeg_compression", "gaussian_noise"])
def test_float_images_give_the_same_in_0_to_1(name):
    images = np.float32(IMAGES[:BATCH] / 255)
    found = corrupt(images, name, 3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, corrupted(name, 3) / 255, atol=1.01 / 255)
    assert np.mean(np.abs(found - corrupted(name, 3) / 255) > 1e-6) < 0.005


@pytest.mark.parametrize(
    "change, words",
    [
        ({"name": "gaussian"}, "name of a corruption must be one of gaussian_noise, .*, jpeg_compression"),
        ({"severity": 0}, "must be an integer from 1 to 5, got 0"),
        ({"severity": 6}, "from 1 to 5, got 6"),
        ({"severity": 2.0}, "must be an integer from 1 to 5, got 2.0"),
        ({"severity": True}, "from 1 to 5, got True"),
        ({"first": -1}, "first must be an integer at least 0, got -1"),
        ({"first": 0.5}, "first must be an integer at least 0, got 0.5"),
        ({"images": np.zeros((2, 32, 32, 3), np.int32)}, r"images must be float in \[0, 1\], got int32"),
        ({"images": np.full((2, 32, 32, 3), 255, np.float32)}, r"must be in \[0, 1\], got values from 255 to 255"),
        ({"images": np.zeros((32, 32, 3), np.uint8)}, r"square images .*, got \(32, 32, 3\)"),
        ({"images": np.zeros((2, 32, 24, 3), np.uint8)}, r"got \(2, 32, 24, 3\)"),
        ({"images": np.zeros((2, 7, 7, 3), np.uint8)}, "8x8 or more"),
        ({"images": np.zeros((2, 32, 32, 4), np.uint8)}, "C = 1 or 3"),
        ({"key": jax.random.split(jax.random.key(0))}, r"one typed JAX key of shape \(\), got .*\(2,\)"),
        ({"key": jnp.zeros(2, jnp.uint32)}, "one typed JAX key"),
    ],
)
@pytest.mark.parametrize("name", ["fog", "jpeg_compression"])
def test_errors_name_the_value_and_the_range(change, words, name):
    arguments = {"key": jax.random.key(0), "images": IMAGES[:BATCH], "name": name, "severity": 1, **change}
    key, images = arguments.pop("key"), arguments.pop("images")
    with pytest.raises(ValueError, match=words):
        corruptions.corrupt(key, images, **arguments)
