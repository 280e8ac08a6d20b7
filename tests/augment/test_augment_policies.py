"""RandAugment and AugMix: operations against Pillow, their draws and combinations, and extreme images."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image, ImageEnhance, ImageOps
from test_augment import SPEC, keys, random_bytes

from gradmix_jax import augment
from gradmix_jax.augment import operations, policies

# Not square, and more than 255 pixels, so that equalize does something.
HEIGHT, WIDTH = 30, 41
STRENGTHS = (0.0, 0.3, 0.77, 1.0)
SETTINGS = {
    "randaugment": (operations.OPERATIONS, policies.RANDAUGMENT, 3),
    "randaugment, gray": (operations.OPERATIONS, policies.RANDAUGMENT, 1),
    "augmix": (policies.AUGMIX_OPERATIONS, policies.AUGMIX, 3),
}
# Largest difference in bytes. Pillow truncates in autocontrast, rounds the gray image, its mean and the smooth image
# before weighting them by up to 0.9, then truncates or rounds the result. It truncates interpolated pixels as well.
TOLERANCE = dict.fromkeys(operations.ENHANCE, 1.6) | dict.fromkeys(operations.GEOMETRY, 1.001) | {"autocontrast": 1.001}


@partial(jax.jit, static_argnames=("names", "ranges"))
def apply_all(images, numbers, strengths, signs, names, ranges):
    return jax.vmap(partial(operations.apply, names=names, ranges=ranges))(images, numbers, strengths, signs)


def cases(names):
    """Every operation at every strength and sign."""
    grid = [(n, s, sign) for n in range(len(names)) for s in STRENGTHS for sign in (1, -1)]
    numbers, strengths, signs = zip(*grid)
    return np.array(numbers, np.int32), np.array(strengths, np.float32), np.array(signs, np.float32)


def applied(setting, image):
    """(name, strength, sign, result) of all cases on one uint8 image."""
    names, ranges, _ = SETTINGS[setting]
    drawn = cases(names)
    images = np.broadcast_to(image.astype(np.float32) / np.float32(255), (len(drawn[0]), *image.shape))
    results = np.asarray(apply_all(images, *drawn, names, ranges))
    return [(names[n], s, sign, result) for n, s, sign, result in zip(*map(np.ndarray.tolist, drawn), results)]


def pillow(name, image, strength, sign, ranges):
    image = Image.fromarray(image.squeeze())
    width, height = image.size
    amount, lost = sign * strength, math.floor(4 * strength + ranges.bits_rounding + 1e-6)
    shift = int(amount * ranges.translate * width + sign * 1e-6), int(amount * ranges.translate * height + sign * 1e-6)
    affine = lambda *matrix: image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    enhanced = lambda of: of(image).enhance(1 + amount * ranges.enhance)
    result = {
        "identity": lambda: image,
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "posterize": lambda: ImageOps.posterize(image, max(1, ranges.bits - lost)),
        "solarize": lambda: ImageOps.solarize(image, 255 * (1 - strength)),
        "color": lambda: enhanced(ImageEnhance.Color),
        "contrast": lambda: enhanced(ImageEnhance.Contrast),
        "brightness": lambda: enhanced(ImageEnhance.Brightness),
        "sharpness": lambda: enhanced(ImageEnhance.Sharpness),
        "rotate": lambda: image.rotate(amount * ranges.degrees, Image.Resampling.BILINEAR),
        "shear_x": lambda: affine(1, amount * ranges.shear, 0, 0, 1, 0),
        "shear_y": lambda: affine(1, 0, 0, amount * ranges.shear, 1, 0),
        "translate_x": lambda: affine(1, 0, shift[0], 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, shift[1]),
    }[name]()
    return np.asarray(result).reshape(height, width, -1).astype(np.float64)


@pytest.mark.parametrize("setting", SETTINGS)
def test_operations_match_pillow(setting):
    names, ranges, channels = SETTINGS[setting]
    # From a dark corner to a bright one, with few pixels of the lowest and highest values.
    ramp = np.linspace(30, 150, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1).astype(np.uint8)
    image = ramp + random_bytes(HEIGHT, WIDTH, channels) // 3
    changed = set()
    for name, strength, sign, result in applied(setting, image):
        expected = pillow(name, image, strength, sign, ranges)
        what = f"{name}, strength {strength}, sign {sign}"
        np.testing.assert_allclose(result * 255, expected, atol=TOLERANCE.get(name, 1e-3), err_msg=what)
        if np.abs(expected - image).max() > 3:
            changed.add(name)
    same = {"identity", "color"} if channels == 1 else {"identity"}
    assert changed == set(names) - same


@pytest.mark.parametrize("pixels", [256, 300, 510, 1230])
def test_equalize_is_pillows_to_the_byte(pixels):
    """Including images with too few pixels, which it leaves alone, and tables that exceed 255."""
    random = np.random.default_rng(pixels)
    for values in (
        random.integers(0, 256, pixels),
        random.integers(100, 110, pixels),
        random.binomial(20, 0.2, pixels),
    ):
        image = np.stack([values, values // 2, np.full(pixels, 7)], axis=-1).astype(np.uint8).reshape(2, -1, 3)
        expected = np.asarray(ImageOps.equalize(Image.fromarray(image)))
        result = jax.jit(operations.equalize)(image.astype(np.float32) / np.float32(255))
        np.testing.assert_array_equal(np.round(np.asarray(result) * 255), expected)


EXTREMES = {
    "black": np.zeros((HEIGHT, WIDTH, 3), np.uint8),
    "white": np.full((HEIGHT, WIDTH, 3), 255, np.uint8),
    "constant": np.full((HEIGHT, WIDTH, 3), 100, np.uint8),
    "pure colors": random_bytes(HEIGHT, WIDTH, 3) // 128 * 255,
}


@pytest.mark.parametrize("kind", EXTREMES)
def test_operations_on_extreme_images_stay_in_range(kind):
    for name, strength, sign, result in applied("randaugment", EXTREMES[kind]):
        assert np.isfinite(result).all() and result.min() >= 0 and result.max() <= 1, (kind, name, strength, sign)
        if kind != "pure colors" and name in ("autocontrast", "equalize"):
            np.testing.assert_allclose(result, EXTREMES[kind] / 255, atol=1e-6)


def test_operations_on_the_smallest_images():
    numbers, ones = np.arange(14, dtype=np.int32), np.ones(14, np.float32)
    images = np.full((14, 1, 2, 3), 0.4, np.float32)
    assert np.isfinite(apply_all(images, numbers, ones, -ones, *SETTINGS["randaugment"][:2])).all()


# Draws


def record(image, number, strength, sign, *, names, ranges):
    """A stand-in for an operation, on an "image" of N rows that records the calls so far."""
    row = jnp.stack([number.astype(jnp.float32), strength, sign])[None, :, None]
    return jnp.concatenate([image[1:], row])


def test_randaugment_draws_operations_and_signs_uniformly(monkeypatch):
    monkeypatch.setattr(operations, "apply", record)
    draw = jax.jit(jax.vmap(partial(policies.randaugment, num_ops=3, magnitude=12), (0, None)))
    drawn = np.asarray(draw(keys(4000), jnp.full((3, 3, 1), -9.0)))[..., 0]
    numbers, signs = drawn[:, :, 0].astype(int), drawn[:, :, 2]
    np.testing.assert_allclose(drawn[:, :, 1], 12 / 30)
    assert set(signs.reshape(-1)) == {1.0, -1.0}
    for column in numbers.T:
        values, counts = np.unique(column, return_counts=True)
        np.testing.assert_array_equal(values, np.arange(14))
        assert scipy.stats.chisquare(counts).pvalue > 1e-3
    correlations = np.corrcoef(np.concatenate([numbers, signs], axis=1).T)
    assert np.abs(correlations[np.triu_indices(6, 1)]).max() < 4 / math.sqrt(4000)
    assert np.abs(signs.mean(axis=0)).max() < 4 / math.sqrt(4000)


def test_augmix_is_the_papers_algorithm(monkeypatch):
    """Against float64 loops with the same uniform draws and non-commuting operations."""

    def apply(image, number, strength, sign, *, names, ranges):
        moved = image * (1 - 0.03 * number) + 0.2 * strength * sign
        return jnp.where(number == 0, image, moved) if isinstance(image, jax.Array) else moved

    monkeypatch.setattr(operations, "apply", apply)
    image = np.full((2, 2, 1), 0.5, np.float32)
    draw = jax.jit(jax.vmap(partial(policies.augmix, magnitude=9), (0, None)))
    results = np.asarray(draw(keys(200), image))
    uniforms = jax.vmap(lambda key: jax.random.uniform(key, (36,)))(keys(200))
    for uniform, result in zip(np.asarray(uniforms, np.float64), results):
        number, strength, sign = uniform[:27].reshape(3, 3, 3)
        weights = -np.log(1 - uniform[30:33])
        mixed = np.zeros(image.shape)
        for k in range(3):
            chain = image.astype(np.float64)
            for d in range(1 + int(3 * uniform[27 + k])):
                operation = 1 + int(9 * number[k, d])
                chain = apply(chain, operation, 0.3 * strength[k, d], 1 if sign[k, d] < 0.5 else -1, names=0, ranges=0)
            mixed += weights[k] / weights.sum() * chain
        np.testing.assert_allclose(result, uniform[33] * image + (1 - uniform[33]) * mixed, atol=1e-5)


# Views

LOUD = {
    "randaugment": dataclasses.replace(SPEC, policy="randaugment", rotation_degrees=0.0, num_ops=3, magnitude=30),
    "augmix": dataclasses.replace(SPEC, policy="augmix", rotation_degrees=0.0, magnitude=30),
}
SIZE = 17
views = jax.jit(augment.views, static_argnames=("spec", "num_views"))


@pytest.mark.parametrize("policy, channels", [("randaugment", 3), ("augmix", 1)])
def test_views_of_a_policy(policy, channels):
    """Views stay in range for extreme images, differ, and depend only on key and image."""
    images = random_bytes(8, SIZE, SIZE, channels)
    images[0], images[1], images[2] = 0, 255, 100
    images[3] = images[3] // 128 * 255
    result = np.asarray(views(keys(8), images, LOUD[policy])).reshape(2, 8, SIZE, SIZE, channels)
    assert result.dtype == np.float32 and np.isfinite(result).all() and result.min() >= 0 and result.max() <= 1
    assert (result[0, 3:] != result[1, 3:]).any(axis=(1, 2, 3)).all()
    order = np.array([6, 1, 3, 0, 7, 2, 5, 4])
    moved = np.asarray(views(keys(8)[order], images[order], LOUD[policy])).reshape(result.shape)
    np.testing.assert_allclose(moved, result[:, order], atol=1e-5)


@pytest.mark.parametrize("policy", LOUD)
def test_a_policy_replaces_jitter_gray_and_blur_only(policy, monkeypatch):
    """Rotation, crop and flip equal those of the standard view of the same key, and come first."""
    calls = []

    def stand_in(key, image, **options):
        calls.append(options)
        return image

    monkeypatch.setattr(augment, policy, stand_in)
    images = random_bytes(4, SIZE, SIZE, 3)
    quiet = dataclasses.replace(LOUD[policy], policy="standard", jitter_prob=0.0, gray_prob=0.0, blur_prob=0.0)
    make = lambda spec: jax.jit(lambda keys, images: augment.views(keys, images, spec))(keys(4), images)
    np.testing.assert_allclose(make(LOUD[policy]), make(quiet), atol=1e-6)
    assert calls == [{"num_ops": 3, "magnitude": 30} if policy == "randaugment" else {"magnitude": 30}]
