"""Augmentation against Pillow, SciPy and float64 NumPy; distributions of the draws; independence of layout."""

import colorsys
import dataclasses
import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from jax.sharding import Mesh, PartitionSpec
from PIL import Image, ImageEnhance

from gradmix_jax import augment

SPEC = augment.Spec(
    crop_scale=(0.2, 1.0),
    crop_ratio=(3 / 4, 4 / 3),
    jitter=(0.4, 0.4, 0.4, 0.1),
    jitter_prob=0.8,
    flip_prob=0.5,
    gray_prob=0.2,
    rotation_degrees=5.0,
    blur_prob=0.5,
    policy="standard",
    num_ops=2,
    magnitude=9,
)
OFF = augment.Spec(
    crop_scale=(1.0, 1.0),
    crop_ratio=(3 / 4, 4 / 3),
    jitter=(0.0, 0.0, 0.0, 0.0),
    jitter_prob=0.0,
    flip_prob=0.0,
    gray_prob=0.0,
    rotation_degrees=0.0,
    blur_prob=0.0,
    policy="standard",
    num_ops=2,
    magnitude=9,
)
views = jax.jit(augment.views, static_argnames=("spec", "num_views"))


def random_bytes(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def random_image(*shape, seed=0):
    return random_bytes(*shape, seed=seed).astype(np.float32) / np.float32(255)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def assert_share(hits, expected):
    """Assert that the share of `hits` is within 4 standard errors of the probability `expected`."""
    hits = np.asarray(hits)
    assert abs(hits.mean() - expected) < 4 * math.sqrt(expected * (1 - expected) / hits.size)


def assert_uniform(values, low, high):
    values = np.asarray(values, np.float64)
    assert low <= values.min() and values.max() <= high
    assert scipy.stats.kstest((values - low) / (high - low), "uniform").pvalue > 1e-3


# Spec


@pytest.mark.parametrize(
    "name, value",
    [
        ("crop_scale", (0.0, 1.0)),
        ("crop_scale", (0.5, 1.1)),
        ("crop_scale", (0.9, 0.2)),
        ("crop_scale", 0.2),
        ("crop_ratio", (4 / 3, 3 / 4)),
        ("crop_ratio", (0.0, 1.0)),
        ("crop_ratio", (1.0, math.inf)),
        ("jitter", (0.4, 0.4, 0.4)),
        ("jitter", (0.4, 0.4, 0.4, 0.6)),
        ("jitter", (-0.1, 0.4, 0.4, 0.1)),
        ("jitter", (0.4, 0.4, 0.4, "0.1")),
        ("jitter_prob", 1.5),
        ("flip_prob", -0.1),
        ("gray_prob", math.nan),
        ("blur_prob", True),
        ("rotation_degrees", 181),
        ("rotation_degrees", -5),
    ],
)
def test_spec_names_the_wrong_key(name, value):
    with pytest.raises(ValueError, match=rf"augment.{name} must "):
        dataclasses.replace(SPEC, **{name: value})


@pytest.mark.parametrize(
    "name, value, allowed",
    [
        ("policy", "autoaugment", "one of standard, randaugment, augmix"),
        ("num_ops", 0, "a positive integer"),
        ("num_ops", 1.5, "a positive integer"),
        ("num_ops", True, "a positive integer"),
        ("magnitude", -1, "an integer from 0 to 30"),
        ("magnitude", 31, "an integer from 0 to 30"),
        ("magnitude", math.nan, "an integer from 0 to 30"),
    ],
)
def test_spec_errors_name_key_value_and_range(name, value, allowed):
    with pytest.raises(ValueError, match=f"augment.{name} must be {allowed}, got {value!r}"):
        dataclasses.replace(SPEC, **{name: value})


def test_spec_is_hashable_and_takes_lists():
    from_lists = dataclasses.replace(SPEC, jitter=[0.4, 0.4, 0.4, 0.1], crop_scale=[0.2, 1])
    assert from_lists == SPEC and hash(from_lists) == hash(SPEC)


# Color


def gray_reference(image):
    return image[..., 0] if image.shape[-1] == 1 else image @ np.array([0.299, 0.587, 0.114])


def hue_reference(image, shift):
    def one_pixel(pixel):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        return colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)

    return np.apply_along_axis(one_pixel, -1, image)


COLOR_REFERENCE = {
    "brightness": lambda image, factor: image * factor,
    "contrast": lambda image, factor: image * factor + (1 - factor) * gray_reference(image).mean(),
    "saturation": lambda image, factor: image * factor + (1 - factor) * gray_reference(image)[..., None],
    "hue": hue_reference,
}


def jitter_reference(image, operations, factors, order):
    image = image.astype(np.float64)
    for index in order:
        image = np.clip(COLOR_REFERENCE[operations[index]](image, factors[index]), 0, 1)
    return image


@pytest.mark.parametrize(
    "operations, channels",
    [
        (augment.JITTER, 3),
        (augment.JITTER[:3], 3),
        (("saturation", "hue"), 3),
        (("hue",), 3),
        (augment.JITTER[:2], 1),
    ],
)
def test_jitter_in_every_order_matches_the_formulas(operations, channels):
    image = random_image(6, 5, channels)
    image[0, 0] = 0  # colors without a hue
    image[0, 1] = 1
    image[0, 2] = 0.5
    strong = {"brightness": 1.5, "contrast": 1.4, "saturation": 1.6, "hue": -0.3}  # strong enough to clip
    factors = [strong[name] for name in operations]
    orders = list(itertools.permutations(range(len(operations))))
    apply = jax.jit(jax.vmap(lambda order: augment.jitter_in_order(image, operations, factors, order)))
    expected = [jitter_reference(image, operations, factors, order) for order in orders]
    np.testing.assert_allclose(apply(jnp.array(orders)), expected, atol=3e-6)


@pytest.mark.parametrize("factor", [0.6, 1.4])
@pytest.mark.parametrize(
    "operation, enhance",
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
    ],
)
def test_color_operation_matches_pillow(operation, enhance, factor):
    image = random_bytes(8, 8, 3)
    ours = augment.jitter_in_order(jnp.asarray(image / 255, jnp.float32), (operation,), [factor], jnp.array([0]))
    pillow = np.asarray(enhance(Image.fromarray(image)).enhance(factor))
    np.testing.assert_allclose(np.asarray(ours) * 255, pillow, atol=1.5)  # Pillow rounds gray, then the result


def test_gray_matches_pillow():
    image = random_bytes(8, 8, 3)
    pillow = np.asarray(Image.fromarray(image).convert("L"))
    np.testing.assert_allclose(augment.gray(image / 255) * 255, pillow, atol=0.51)


STRENGTHS = (0.4, 1.5, 0.2, 0.1)


def draw_jitter(monkeypatch, count, strengths, prob=1.0):
    """The factors and the order [count, N] drawn by color_jitter, captured by stand-ins for the operations."""
    seen = lambda image, operations, factors, order: jnp.stack([jnp.stack(factors), order])[:, :, None]
    monkeypatch.setattr(augment.steps, "jitter_in_order", seen)
    number = sum(strength > 0 for strength in strengths)
    apply = partial(augment.color_jitter, strengths=strengths, prob=prob)
    drawn = jax.jit(jax.vmap(apply, (0, None)))(keys(count), jnp.full((2, number, 3), -9.0))[..., 0]
    return np.asarray(drawn[:, 0], np.float64), np.asarray(drawn[:, 1], int)


def test_jitter_draws_are_uniform_and_independent(monkeypatch):
    factors, orders = draw_jitter(monkeypatch, 4800, STRENGTHS)
    for factor, (low, high) in zip(factors.T, ((0.6, 1.4), (0, 2.5), (0.8, 1.2), (-0.1, 0.1))):
        assert_uniform(factor, low - 1e-6, high + 1e-6)
    rounds = np.argsort(orders, axis=1)  # when each operation is applied
    correlations = np.corrcoef(factors.T, rounds.T)
    assert np.abs(correlations[:4, :4][np.triu_indices(4, 1)]).max() < 4 / math.sqrt(4800)
    assert np.abs(correlations[:4, 4:]).max() < 4 / math.sqrt(4800)
    permutations, counts = np.unique(orders, axis=0, return_counts=True)
    assert (np.sort(permutations, axis=1) == np.arange(4)).all()
    assert len(counts) == 24 and scipy.stats.chisquare(counts).pvalue > 1e-3


def test_turning_one_operation_off_leaves_the_other_draws_alone(monkeypatch):
    factors, orders = draw_jitter(monkeypatch, 4800, STRENGTHS)
    without, orders_without = draw_jitter(monkeypatch, 4800, (0.4, 0.0, 0.2, 0.1))
    np.testing.assert_allclose(without, factors[:, [0, 2, 3]], atol=1e-6)
    renumbered = np.array([0, -1, 1, 2])[orders]
    np.testing.assert_array_equal(orders_without, renumbered[renumbered >= 0].reshape(4800, 3))


def test_jitter_changes_its_share_of_the_images():
    image = jnp.full((1, 1, 3), 0.5)
    apply = partial(augment.color_jitter, strengths=(0.4, 0, 0, 0), prob=0.8)
    factor = np.asarray(jax.jit(jax.vmap(apply, (0, None)))(keys(4000), image))[:, 0, 0, 0] / 0.5
    assert_share(factor != 1, 0.8)
    assert_uniform(factor[factor != 1], 0.6, 1.4)


def test_gray_replaces_its_share_of_the_images():
    image = random_image(2, 2, 3)
    apply = jax.jit(jax.vmap(partial(augment.random_gray, prob=0.2), (0, None)))
    result = np.asarray(apply(keys(4000), image))
    is_gray = (result == result[..., :1]).all(axis=(1, 2, 3))
    assert_share(is_gray, 0.2)
    np.testing.assert_array_equal(result[~is_gray], np.broadcast_to(image, result[~is_gray].shape))
    np.testing.assert_allclose(result[is_gray][0, ..., 0], gray_reference(image.astype(np.float64)), atol=1e-6)


# Geometry


def test_crop_matches_pillow():
    """Whole and fractional boxes of a non-square image, from the whole image down to single pixels."""
    height, width = 13, 10
    boxes = np.array(
        [[0, 0, 13, 10], [2, 3, 7, 5], [0, 0, 4, 10], [10, 7, 3, 3], [5, 5, 1, 1], [1.25, 0.5, 6.5, 8.75]],
        np.float32,
    )
    image = random_image(height, width, 3)
    cropped = jax.jit(jax.vmap(augment.resized_crop, (None, 0)))(image, boxes)
    for (top, left, box_height, box_width), ours in zip(boxes.tolist(), cropped):
        box = (left, top, left + box_width, top + box_height)
        for channel in range(3):
            pillow = Image.fromarray(image[..., channel]).resize(
                (width, height), Image.Resampling.BILINEAR, box=box, reducing_gap=None
            )
            np.testing.assert_allclose(ours[..., channel], np.asarray(pillow), atol=2e-6)
    np.testing.assert_array_equal(cropped[0], image)


def crop_box_reference(rng, height, width, scale, ratio):
    """torchvision's RandomResizedCrop.get_params, restated."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = rng.integers(0, height - box_height + 1)
            return top, rng.integers(0, width - box_width + 1), box_height, box_width
    aspect = min(max(width / height, ratio[0]), ratio[1])
    box_height, box_width = min(height, round(width / aspect)), min(width, round(height * aspect))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def draw_boxes(count, size, scale, ratio):
    draw = jax.jit(jax.vmap(lambda key: augment.crop_box(key, size, scale=scale, ratio=ratio)))
    return np.asarray(draw(keys(count)), np.float64)


@pytest.mark.parametrize("size", [(1000, 1000), (600, 1000), (1000, 300)])
def test_crop_boxes_are_distributed_as_torchvisions(size):
    scale, ratio, count = (0.2, 1.0), (3 / 4, 4 / 3), 4000
    ours = draw_boxes(count, size, scale, ratio)
    rng = np.random.default_rng(0)
    reference = np.array([crop_box_reference(rng, *size, scale, ratio) for _ in range(count)], np.float64)
    np.testing.assert_array_equal(ours, np.round(ours))
    assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= size).all() and (ours[:, 2:] >= 1).all()
    for statistic in (
        lambda boxes: boxes[:, 2] * boxes[:, 3],
        lambda boxes: boxes[:, 3] / boxes[:, 2],
        lambda boxes: boxes[:, 0],
        lambda boxes: boxes[:, 1],
    ):
        assert scipy.stats.ks_2samp(statistic(ours), statistic(reference)).pvalue > 1e-3


def test_crop_area_and_ratio_where_every_box_fits():
    """For areas up to 3/4, every ratio from 3/4 on fits into a square, so nothing is redrawn."""
    size = 4000  # large, so rounding to whole pixels is negligible
    _, _, height, width = draw_boxes(4000, (size, size), (0.2, 0.7), (3 / 4, 1.1)).T
    assert_uniform(height * width / size**2, 0.2 - 1e-3, 0.7 + 1e-3)
    assert_uniform(np.log(width / height), math.log(3 / 4) - 1e-3, math.log(1.1) + 1e-3)


def test_crop_position_is_uniform_to_both_borders():
    boxes = draw_boxes(4000, (8, 8), (0.25, 0.25), (1.0, 1.0))
    assert (boxes[:, 2:] == 4).all()
    for axis in (0, 1):
        values, counts = np.unique(boxes[:, axis], return_counts=True)
        np.testing.assert_array_equal(values, np.arange(5))
        assert scipy.stats.chisquare(counts).pvalue > 1e-3
    assert abs(np.corrcoef(boxes[:, 0], boxes[:, 1])[0, 1]) < 4 / math.sqrt(4000)


@pytest.mark.parametrize(
    "size, box",
    [((4, 64), (0, 29, 4, 5)), ((64, 4), (29, 0, 5, 4)), ((9, 10), (0, 0, 9, 10)), ((1, 1), (0, 0, 1, 1))],
)
def test_a_crop_that_never_fits_becomes_central(size, box):
    scale = (1.0, 1.0) if size == (9, 10) else (0.9, 1.0)
    ratio = (1.3, 4 / 3) if size == (9, 10) else (3 / 4, 4 / 3)
    if size == (9, 10):  # ratio 1.11 is below the range: full width, height cut
        box = (0, 0, 8, 10)
    drawn = draw_boxes(20, size, scale, ratio)
    np.testing.assert_array_equal(drawn, np.broadcast_to(np.array(box, float), drawn.shape))


def test_rotation_matches_scipy():
    image = random_image(9, 12, 3)
    degrees = [-5.0, 0.0, 3.0, 90.0, 130.0]
    rotated = jax.jit(jax.vmap(augment.rotate_by, (None, 0)))(image, jnp.deg2rad(jnp.array(degrees)))
    center = (np.array(image.shape[:2]) - 1) / 2
    for angle, ours in zip(np.deg2rad(degrees), rotated):
        matrix = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        for channel in range(3):
            expected = scipy.ndimage.affine_transform(
                image[..., channel].astype(np.float64),
                matrix,
                center - matrix @ center,
                order=1,
                mode="grid-constant",
            )
            np.testing.assert_allclose(ours[..., channel], expected, atol=1e-5)
    np.testing.assert_array_equal(rotated[1], image)


def test_rotation_turns_counter_clockwise():
    image = random_image(6, 6, 3)
    np.testing.assert_allclose(augment.rotate_by(image, math.pi / 2), np.rot90(image), atol=1e-5)


def test_rotation_angles_are_uniform(monkeypatch):
    monkeypatch.setattr(augment.steps, "rotate_by", lambda image, radians: radians)
    angles = jax.vmap(lambda key: augment.rotate(key, jnp.zeros((2, 2, 1)), degrees=5.0))(keys(4000))
    assert_uniform(np.rad2deg(angles), -5 - 1e-5, 5 + 1e-5)


def test_flip_mirrors_its_share_of_the_images():
    image = random_image(3, 4, 3)
    flipped = np.asarray(jax.jit(jax.vmap(partial(augment.horizontal_flip, prob=0.5), (0, None)))(keys(4000), image))
    is_flipped = (flipped == image[:, ::-1]).all(axis=(1, 2, 3))
    assert_share(is_flipped, 0.5)
    assert (flipped[~is_flipped] == image).all()


def test_blur_matches_scipy():
    image = random_image(12, 9, 3)
    sigmas = [0.1, 0.7, 2.0]
    blurred = jax.jit(jax.vmap(augment.gaussian_blur, (None, 0)))(image, jnp.array(sigmas))
    for sigma, ours in zip(sigmas, blurred):
        blur = partial(scipy.ndimage.gaussian_filter, sigma=sigma, mode="constant", truncate=12)
        inside = blur(np.ones(image.shape[:2]))
        for channel in range(3):
            expected = blur(image[..., channel].astype(np.float64)) / inside
            np.testing.assert_allclose(ours[..., channel], expected, atol=2e-6)


def test_blur_sigma_and_share(monkeypatch):
    monkeypatch.setattr(augment.steps, "gaussian_blur", lambda image, sigma: jnp.broadcast_to(sigma, image.shape))
    result = jax.vmap(lambda key: augment.random_blur(key, jnp.zeros((1, 1, 1)), prob=0.5))(keys(4000)).reshape(-1)
    assert_share(result > 0, 0.5)
    assert_uniform(result[result > 0], 0.1, 2.0)


# Views


DIGITS = dataclasses.replace(OFF, rotation_degrees=5.0, jitter=SPEC.jitter, jitter_prob=0.8)


@pytest.mark.parametrize("channels, spec", [(1, DIGITS), (3, SPEC)])
def test_views_are_float32_in_range_and_differ(channels, spec):
    images = random_bytes(8, 8, 8, channels)
    images[0], images[1] = 0, 255
    result = views(keys(8), images, spec)
    assert result.shape == (16, 8, 8, channels) and result.dtype == jnp.float32
    assert result.min() >= 0 and result.max() <= 1 and jnp.isfinite(result).all()
    first, second = np.asarray(result).reshape(2, 8, 8, 8, channels)[:, 2:]
    assert (first != second).any(axis=(1, 2, 3)).all()


# Pixel (4, 3) of the eight views, computed before policies were added: an old seed still gives the same views.
GOLDEN = {
    3: [
        [0.3203775, 0.3522592, 0.3460058],
        [0.4602215, 0.3083123, 0.5181492],
        [0.3475823, 0.3475823, 0.3475823],
        [0.5028542, 0.5028542, 0.5028542],
        [0.4656806, 0.4656806, 0.4656806],
        [0.3199887, 0.241973, 0.4070421],
        [0.2618892, 0.5616242, 0.687632],
        [0.5490093, 0.406809, 0.4340768],
    ],
    1: [[0.1533741], [0.4633718], [0.3954542], [0.5437491], [0.0653127], [0.2952621], [0.3925931], [0.3833892]],
}


@pytest.mark.parametrize("channels, spec", [(1, DIGITS), (3, SPEC)])
def test_standard_views_of_a_seed_are_unchanged(channels, spec):
    result = views(keys(4), random_bytes(4, 8, 8, channels), spec)
    np.testing.assert_allclose(result[:, 4, 3], GOLDEN[channels], atol=1e-5)


def test_the_standard_program_has_no_keys_of_other_policies():
    program = partial(jax.make_jaxpr(augment.views, static_argnums=2), keys(2), random_bytes(2, 8, 8, 3))
    assert str(program(SPEC)) == str(program(dataclasses.replace(SPEC, num_ops=5, magnitude=30)))


def test_saturated_images_stay_in_range():
    """Weights sum to 1 only up to rounding, which white images and pure colors would show."""
    white = jnp.ones((8, 8, 3))
    boxes = jnp.stack(jnp.meshgrid(*[jnp.linspace(1.0, 2.0, 4)] * 4), axis=-1).reshape(-1, 4)
    colors = jnp.round(random_image(8, 8, 3))
    results = (
        jax.jit(jax.vmap(augment.resized_crop, (None, 0)))(white, boxes),
        jax.jit(jax.vmap(augment.gaussian_blur, (None, 0)))(white, jnp.linspace(0.1, 2, 100)),
        jax.jit(jax.vmap(augment.rotate_by, (None, 0)))(white, jnp.linspace(-1, 1, 100)),
        jax.jit(jax.vmap(lambda shift: augment.jitter_in_order(colors, ("hue",), [shift], jnp.array([0]))))(
            jnp.linspace(-0.5, 0.5, 100)
        ),
    )
    for result in results:
        assert result.min() >= 0 and result.max() <= 1 and result.max() > 0.99


def test_views_are_view_major_and_folded_from_each_images_key(monkeypatch):
    seen = lambda key, image, spec: (jax.random.key_data(key), image)
    monkeypatch.setattr(augment, "view", seen)
    images, image_keys = random_bytes(3, 4, 4, 3), keys(3)
    view_keys, view_images = augment.views(image_keys, images, SPEC, num_views=4)
    for v, i in itertools.product(range(4), range(3)):
        expected = jax.random.key_data(jax.random.fold_in(image_keys[i], v))
        np.testing.assert_array_equal(view_keys[v * 3 + i], expected)
        np.testing.assert_allclose(view_images[v * 3 + i], images[i] / 255, atol=1e-7)


def test_view_applies_the_steps_in_order_each_with_its_own_key_whichever_are_on(monkeypatch):
    calls = []

    def spy(name):
        def step(key, image, **options):
            calls.append((name, jax.random.key_data(key).tolist(), options))
            return image

        monkeypatch.setattr(augment, name, step)

    names = ("color_jitter", "rotate", "random_resized_crop", "horizontal_flip", "random_gray", "random_blur")
    for name in names:
        spy(name)
    augment.view(jax.random.key(0), jnp.zeros((2, 2, 3)), OFF)
    calls_off, calls = calls, []
    augment.view(jax.random.key(0), jnp.zeros((2, 2, 3)), SPEC)
    assert tuple(name for name, _, _ in calls) == names
    assert len({tuple(data) for _, data, _ in calls}) == 6
    assert [data for _, data, _ in calls_off] == [data for _, data, _ in calls]
    assert [options for _, _, options in calls] == [
        {"strengths": SPEC.jitter, "prob": SPEC.jitter_prob},
        {"degrees": SPEC.rotation_degrees},
        {"scale": SPEC.crop_scale, "ratio": SPEC.crop_ratio},
        {"prob": SPEC.flip_prob},
        {"prob": SPEC.gray_prob},
        {"prob": SPEC.blur_prob},
    ]


def test_views_do_not_depend_on_the_place_in_the_batch():
    images, image_keys = random_bytes(8, 8, 8, 3), keys(8)
    whole, again = (np.asarray(views(image_keys, images, SPEC)).reshape(2, 8, 8, 8, 3) for _ in range(2))
    np.testing.assert_array_equal(whole, again)
    order = np.array([6, 1, 3, 0, 7, 2, 5, 4])
    moved = np.asarray(views(image_keys[order], images[order], SPEC)).reshape(2, 8, 8, 8, 3)
    np.testing.assert_allclose(moved, whole[:, order], atol=2e-6)
    others = views(keys(8, seed=1), images, SPEC)
    assert (np.asarray(others).reshape(whole.shape) != whole).any(axis=(2, 3, 4)).all()


def test_eight_devices_with_one_image_each_agree_with_one_device():
    images, image_keys = random_bytes(8, 8, 8, 3), keys(8)
    whole = np.asarray(views(image_keys, images, SPEC)).reshape(2, 8, 8, 8, 3)
    mapped = jax.pmap(lambda key, image: augment.views(key[None], image[None], SPEC))(image_keys, images)
    np.testing.assert_allclose(np.asarray(mapped).swapaxes(0, 1), whole, atol=2e-6)
    mesh, batch = Mesh(np.array(jax.devices()), ("batch",)), PartitionSpec("batch")
    per_device = jax.shard_map(
        lambda key, image: augment.views(key, image, SPEC), mesh=mesh, in_specs=(batch, batch), out_specs=batch
    )
    assert jax.eval_shape(per_device, image_keys, jnp.asarray(images)).shape == (16, 8, 8, 3)


def test_without_jit_the_views_are_the_same():
    spec = dataclasses.replace(OFF, flip_prob=0.5)
    images, image_keys = random_bytes(4, 8, 8, 3), keys(4)
    plain = augment.views(image_keys, images, spec)
    np.testing.assert_allclose(plain, views(image_keys, images, spec), atol=2e-6)


def test_gray_images_skip_the_color_operations():
    images = random_bytes(4, 8, 8, 1)
    without = dataclasses.replace(SPEC, jitter=(0.4, 0.4, 0.0, 0.0), gray_prob=0.0)
    program = partial(jax.make_jaxpr(augment.views, static_argnums=2), keys(4), images)
    assert str(program(SPEC)) == str(program(without))


@pytest.mark.parametrize(
    "field, value, primitive",
    [
        ("jitter", (0.4, 0.0, 0.0, 0.0), "sort"),
        ("crop_scale", (0.2, 1.0), "dot_general"),
        ("rotation_degrees", 5.0, "gather"),
        ("flip_prob", 0.5, "rev"),
        ("gray_prob", 0.2, "0.587"),
        ("blur_prob", 0.5, "exp"),
    ],
)
def test_a_step_of_strength_zero_is_not_in_the_program(field, value, primitive):
    images, image_keys = random_bytes(2, 8, 8, 3), keys(2)
    program = lambda spec: str(jax.make_jaxpr(augment.views, static_argnums=2)(image_keys, images, spec))
    on = dataclasses.replace(OFF, **{field: value}, **({"jitter_prob": 0.8} if field == "jitter" else {}))
    assert primitive in program(on) and primitive not in program(OFF)
    assert "random_bits" in program(on) and "random_bits" not in program(OFF)


def test_zero_probability_or_zero_strengths_turn_jitter_off():
    program = partial(jax.make_jaxpr(augment.views, static_argnums=2), keys(2), random_bytes(2, 8, 8, 3))
    for spec in (dataclasses.replace(OFF, jitter=SPEC.jitter), dataclasses.replace(OFF, jitter_prob=0.8)):
        assert str(program(spec)) == str(program(OFF))


def test_everything_off_is_the_image():
    images = random_bytes(3, 8, 8, 3)
    expected = np.concatenate([images, images]).astype(np.float32) / 255
    np.testing.assert_allclose(views(keys(3), images, OFF), expected, atol=1e-7)


def test_views_rejects_invalid_input():
    images = random_bytes(2, 8, 8, 3)
    for wrong in (images.astype(np.float32), images[0], random_bytes(2, 8, 8, 4)):
        with pytest.raises(ValueError, match="uint8"):
            augment.views(keys(2), wrong, SPEC)
    with pytest.raises(ValueError, match="one key per image"):
        augment.views(keys(3), images, SPEC)
    with pytest.raises(ValueError, match="num_views"):
        augment.views(keys(2), images, SPEC, num_views=0)


def test_normalize():
    images = random_image(2, 4, 4, 3)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    expected = (images.astype(np.float64) - mean) / std
    for normalized in (
        augment.normalize(jnp.asarray(images), mean=mean, std=std),
        jax.vmap(partial(augment.normalize, mean=mean, std=std))(images),
    ):
        assert normalized.dtype == jnp.float32
        np.testing.assert_allclose(normalized, expected, atol=1e-5)
    for wrong in ({"mean": (0.5,), "std": std}, {"mean": mean, "std": (0.2, 0.2, 0.0)}):
        with pytest.raises(ValueError, match="3 means"):
            augment.normalize(images, **wrong)
    with pytest.raises(ValueError, match="floating point"):
        augment.normalize(random_bytes(2, 4, 4, 3), mean=mean, std=std)
