"""Masks against sorting (threshold) and loops over pixels (box), with ties, borders and extreme values."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradmix_jax.method import masks

threshold = jax.jit(masks.threshold)
box = jax.jit(masks.box)
box_at = jax.jit(masks.box_at, static_argnames="image_size")
HEIGHT, WIDTH = 6, 7  # in most tests, to compile little
KEEPS = np.array([0.0, 0.1, 0.37, 0.5, 0.66, 0.9, 0.99, 1.0], np.float32)


def random_maps(seed=0):
    return np.random.default_rng(seed).standard_normal((len(KEEPS), HEIGHT, WIDTH)).astype(np.float32)


def reference_threshold(maps, keeps):
    """The first pixels of a stable sort from the largest value down."""
    result = np.zeros(maps.shape, bool)
    for mask, values, keep in zip(result, maps, keeps):
        count = round((1 - float(keep)) * values.size)
        order = np.argsort(-values.reshape(-1).astype(np.float64), stable=True)
        mask.reshape(-1)[order[:count]] = True
    return result


def reference_box(center, keep, height, width):
    mask = np.zeros((height, width), bool)
    sides = [round(size * np.sqrt(1 - float(keep))) for size in (height, width)]
    starts = [position - side // 2 for position, side in zip(center, sides)]
    for row in range(starts[0], starts[0] + sides[0]):
        for column in range(starts[1], starts[1] + sides[1]):
            if 0 <= row < height and 0 <= column < width:
                mask[row, column] = True
    return mask


def peak_at(*positions, height=HEIGHT, width=WIDTH, value=1.0, base=0.0):
    values = np.full((1, height, width), base, np.float32)
    for row, column in positions:
        values[0, row, column] = value
    return values


def one_box(values, keep):
    return np.asarray(box(np.repeat(values, len(KEEPS), axis=0), np.full(len(KEEPS), keep, np.float32)))[0]


def rows_and_columns(mask):
    """(first row, rows, first column, columns) of a mask, which must be a full rectangle."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert mask.sum() == len(rows) * len(columns)
    return rows[0], len(rows), columns[0], len(columns)


TINY = np.float32(1e-45)
MAPS = {
    "normal": random_maps(),
    "unit interval": np.random.default_rng(1).random((8, HEIGHT, WIDTH)).astype(np.float32),
    "all negative": -np.exp(random_maps(2)),
    "huge": random_maps(3) * np.float32(1e37),
    "tiny": random_maps(4) * np.float32(1e-37),
    "subnormal": np.random.default_rng(5).integers(-50, 50, (8, HEIGHT, WIDTH)).astype(np.float32) * TINY,
    "every scale": random_maps(6) * np.float32(10.0) ** np.linspace(-36, 36, 42, dtype=np.float32).reshape(1, 6, 7),
    "many ties": np.random.default_rng(7).integers(-1, 2, (8, HEIGHT, WIDTH)).astype(np.float32),
    "two neighbors": np.random.default_rng(8).choice(np.float32([1, np.nextafter(np.float32(1), 2)]), (8, 6, 7)),
    "constant": np.full((8, HEIGHT, WIDTH), 0.25, np.float32),
    "zeros of both signs": np.random.default_rng(9).choice(np.float32([0.0, -0.0]), (8, HEIGHT, WIDTH)),
    "infinite": np.random.default_rng(10).choice(np.float32([-np.inf, -1, 1, np.inf]), (8, HEIGHT, WIDTH)),
}


@pytest.mark.parametrize("kind", MAPS)
def test_threshold_takes_what_a_stable_sort_takes(kind):
    for keeps in (KEEPS, KEEPS[::-1], np.full(8, 0.5, np.float32)):
        expected = reference_threshold(MAPS[kind], keeps)
        np.testing.assert_array_equal(threshold(MAPS[kind], keeps), expected)


def test_threshold_eager_and_image_by_image():
    maps = MAPS["many ties"]
    expected = reference_threshold(maps, KEEPS)
    np.testing.assert_array_equal(masks.threshold(maps, KEEPS), expected)
    one = jax.jit(jax.vmap(lambda values, keep: masks.threshold(values[None], keep[None])[0]))
    np.testing.assert_array_equal(one(maps, KEEPS), expected)


@pytest.mark.parametrize("kind", ["normal", "constant", "zeros of both signs"])
def test_threshold_count_is_exact_for_every_keep(kind):
    """Every possible count for images of 42 pixels; keep 0 masks all of them, keep 1 none."""
    for counts in np.arange(48).reshape(6, 8) % 43:
        mask = np.asarray(threshold(MAPS[kind], (1 - counts / 42).astype(np.float32)))
        np.testing.assert_array_equal(mask.sum(axis=(1, 2)), counts)


def test_threshold_count_is_exact_even_with_nan():
    maps = random_maps()
    maps[:, 2, 3] = np.nan
    maps[:, 4] = -np.nan
    counts = np.asarray(threshold(maps, KEEPS)).sum(axis=(1, 2))
    np.testing.assert_array_equal(counts, np.round((1 - KEEPS.astype(np.float64)) * 42))


def test_threshold_of_low_precision_inputs():
    """bfloat16 has steps of 0.004 below 1, to which the count must not be rounded."""
    maps, keeps = jnp.asarray(random_maps(), jnp.bfloat16), jnp.asarray(KEEPS, jnp.bfloat16)
    expected = reference_threshold(np.asarray(maps, np.float32), np.asarray(keeps, np.float32))
    mask = threshold(maps, keeps)
    np.testing.assert_array_equal(mask, expected)
    assert mask.dtype == jnp.bool_
    large = jnp.zeros((1, 40, 40), jnp.bfloat16)
    assert np.asarray(threshold(large, jnp.full(1, 0.3, jnp.bfloat16))).sum() == round((1 - 0.30078125) * 1600)


def test_threshold_compiles_without_a_sort():
    def operations(function):
        text = jax.jit(function).lower(random_maps(), KEEPS).compile().as_text()
        return set(re.findall(r" ([a-z][\w-]*)\(", text))

    assert "sort" in operations(lambda maps, keeps: jnp.sort(maps.reshape(8, -1)) + keeps[:, None])
    found = operations(masks.threshold)
    assert "reduce" in found and not found & {"sort", "topk", "custom-call", "while"}


def test_box_matches_a_loop_over_pixels():
    maps = random_maps()
    for keeps in (KEEPS, KEEPS[::-1]):
        result = box(maps, keeps)
        assert result.dtype == jnp.bool_
        for mask, values, keep in zip(np.asarray(result), maps, keeps):
            center = np.unravel_index(values.argmax(), values.shape)
            np.testing.assert_array_equal(mask, reference_box(center, keep, HEIGHT, WIDTH))


def test_box_sides_follow_height_and_width():
    mask = one_box(peak_at((6, 10), height=12, width=20), 0.75)
    assert rows_and_columns(mask) == (3, 6, 5, 10)
    assert mask.mean() == 0.25


def test_box_of_keep_0_and_1():
    centered = peak_at((HEIGHT // 2, WIDTH // 2))
    assert np.all(one_box(centered, 0.0))
    assert not np.any(one_box(centered, 1.0))


@pytest.mark.parametrize(
    "corner, extent",
    [((0, 0), (0, 2, 0, 2)), ((0, 6), (0, 2, 4, 3)), ((5, 0), (3, 3, 0, 2)), ((5, 6), (3, 3, 4, 3))],
)
def test_box_is_clipped_at_the_border(corner, extent):
    """A side of 4 around row r covers r - 2 ... r + 1: two rows lie inside at the top, three at the bottom."""
    assert rows_and_columns(one_box(peak_at(corner), 0.64)) == extent


def test_box_of_a_plateau_is_centered_on_its_centroid():
    plateau = peak_at(*((row, column) for row in (0, 1, 2) for column in (3, 4, 5)))
    np.testing.assert_array_equal(one_box(plateau, 0.75), reference_box((1, 4), 0.75, HEIGHT, WIDTH))
    far_apart = peak_at((1, 1), (5, 5))
    np.testing.assert_array_equal(one_box(far_apart, 0.75), reference_box((3, 3), 0.75, HEIGHT, WIDTH))
    # The centroid of all 6 rows is 2.5, which rounds to the even 2.
    constant = np.full((1, HEIGHT, WIDTH), 0.5, np.float32)
    np.testing.assert_array_equal(one_box(constant, 0.75), reference_box((2, 3), 0.75, HEIGHT, WIDTH))


def test_box_treats_a_plateau_with_rounding_errors_as_one():
    plateau = peak_at((0, 0), (0, 1), (0, 2), value=1.0)
    plateau[0, 0, 0] = 1 - 2e-7
    np.testing.assert_array_equal(one_box(plateau, 0.75), reference_box((0, 1), 0.75, HEIGHT, WIDTH))
    plateau[0, 0, 0] = 1 - 1e-4
    plateau[0, 0, 1] = 0
    np.testing.assert_array_equal(one_box(plateau, 0.75), reference_box((0, 2), 0.75, HEIGHT, WIDTH))


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_box_does_not_depend_on_the_scale_of_the_map(scale):
    maps = random_maps() * np.float32(scale)
    np.testing.assert_array_equal(box(maps, KEEPS), box(random_maps(), KEEPS))


def test_box_of_bfloat16_and_image_by_image():
    maps = jnp.asarray(random_maps(), jnp.bfloat16)
    expected = box(maps.astype(jnp.float32), KEEPS)
    np.testing.assert_array_equal(box(maps, KEEPS), expected)
    one = jax.jit(jax.vmap(lambda values, keep: masks.box(values[None], keep[None])[0]))
    np.testing.assert_array_equal(one(maps.astype(jnp.float32), KEEPS), expected)


def test_box_at_rounds_its_center():
    centers = np.float32([2.4, 2.6, 4.0, 0.0])
    result = box_at(centers, centers[::-1], np.float32([0.75] * 4), image_size=(HEIGHT, WIDTH))
    for mask, row, column in zip(np.asarray(result), (2, 3, 4, 0), (0, 4, 3, 2)):
        np.testing.assert_array_equal(mask, reference_box((row, column), 0.75, HEIGHT, WIDTH))


@pytest.mark.parametrize("name", ["box", "threshold"])
def test_masked_region_holds_the_peak_and_grows_as_less_is_kept(name):
    make = {"box": box, "threshold": threshold}[name]
    maps = np.repeat(random_maps()[:1], len(KEEPS), axis=0)
    mask = np.asarray(make(maps, np.linspace(0.9, 0.2, len(KEEPS), dtype=np.float32)))
    assert np.all(mask.reshape(len(KEEPS), -1)[:, maps[0].argmax()])
    assert np.all(mask[1:] >= mask[:-1])
    assert mask[0].sum() < mask[-1].sum()


@pytest.mark.parametrize("decay", [0.0, 3.0])
def test_power_of_fourier_noise_falls_with_frequency(decay):
    """The mean squared amplitude of every frequency over many maps, against 1 / frequency ** (2 * decay)."""
    height, width, count = 6, 9, 4000
    make = jax.jit(lambda key: masks.fourier_noise(key, count, image_size=(height, width), decay=decay))
    maps = np.asarray(make(jax.random.key(0)), np.float64)
    assert maps.shape == (count, height, width) and np.isfinite(maps).all()
    power = np.mean(np.abs(np.fft.rfft2(maps)) ** 2, axis=0)
    frequency = np.sqrt(np.fft.fftfreq(height)[:, None] ** 2 + np.fft.rfftfreq(width)[None] ** 2)
    expected = 2 * np.maximum(frequency, 1 / width) ** (-2 * decay)
    # Waves along H alone appear twice, with independent noise; a real image takes the mean of the two.
    expected[:, 0] /= 2
    np.testing.assert_allclose(power / expected, 1, atol=5 * np.sqrt(2 / count))


def test_fourier_noise_of_one_pixel_and_one_column():
    make = jax.jit(masks.fourier_noise, static_argnames=("batch", "image_size", "decay"))
    for size in ((1, 1), (8, 1)):
        assert np.isfinite(make(jax.random.key(0), batch=3, image_size=size, decay=3.0)).all()
