"""Mixing: what is replaced, by what, with which weight, and independence of the batch layout."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gradmix_jax.config import RECIPES
from gradmix_jax.method import masks, mix

SPEC = mix.Spec(
    method="gradmix",
    mask="threshold",
    fill="partner",
    keep_range=(0.5, 0.9),
    keep_draw="image",
    mixed_views="all",
    group_size=2,
)
# 2 views of 4 images of 9 x 7 pixels in all tests, to compile little.
ROWS, IMAGES, HEIGHT, WIDTH = 8, 4, 9, 7
PICTURES = np.random.default_rng(0).random((ROWS, HEIGHT, WIDTH, 3), np.float32)
MAPS = np.random.default_rng(1).random((ROWS, HEIGHT, WIDTH), np.float32)
KEEPS = np.linspace(0.4, 0.95, ROWS, dtype=np.float32)

SPECS = {
    "gradmix": SPEC,
    "box, one draw": dataclasses.replace(SPEC, mask="box", fill="partner_resized", keep_draw="batch"),
    "noise, one draw": dataclasses.replace(SPEC, fill="noise", keep_draw="batch", keep_range=(0.1, 0.9)),
    "cutmix": dataclasses.replace(SPEC, method="cutmix", keep_range=(0.6, 0.8)),
    "cutmix, one draw": dataclasses.replace(SPEC, method="cutmix", fill="zeros", keep_draw="batch"),
    "saliencymix": dataclasses.replace(SPEC, method="saliencymix"),
    "cutout": dataclasses.replace(SPEC, **RECIPES["cutout"]["mix"]),
    "fmix": dataclasses.replace(SPEC, **RECIPES["fmix"]["mix"]),
    "mixup": dataclasses.replace(SPEC, method="mixup", options={"mixup": {"alpha": 5.0}}),
    "soft": dataclasses.replace(SPEC, border=1),
    "patches": dataclasses.replace(SPEC, mask="patches", patch_size=1),
    "backmix": dataclasses.replace(SPEC, method="backmix"),
    "attentive_cutmix": dataclasses.replace(SPEC, method="attentive_cutmix"),
    "keep_cutout": dataclasses.replace(SPEC, method="keep_cutout"),
    "resizemix": dataclasses.replace(SPEC, method="resizemix"),
    "tokenmix": dataclasses.replace(SPEC, method="tokenmix", patch_size=1),
    "transmix": dataclasses.replace(SPEC, method="transmix", patch_size=1),
    "manifold_mixup": dataclasses.replace(SPEC, method="manifold_mixup"),
}
FILLS_OF = {"threshold": tuple(mix.FILLS), **dict.fromkeys(("box", "patches"), ("partner", "partner_resized", "zeros"))}


# Random bits are slow to compile, so two unoptimized programs serve most tests.
@partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def fill_all(key, images, maps, keep):
    """Results by mask and fill, for given keep shares."""
    call = partial(mix.gradmix, key, images, maps, views=2, keep_B=keep, patch_size=1)
    return {mask: {fill: call(mask=mask, fill=fill) for fill in fills} for mask, fills in FILLS_OF.items()}


@partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def apply_all(key, images, maps, first_group):
    """Results by name of the spec."""
    needed = {name: maps if spec.uses_map else None for name, spec in SPECS.items()}
    return {name: mix.apply(key, images, needed[name], SPECS[name], views=2, first_group=first_group) for name in SPECS}


def to_numpy(tree):
    return jax.tree.map(np.asarray, tree)


def filled(mask, fill, key, images=PICTURES, maps=MAPS, keep=KEEPS):
    return to_numpy(fill_all(key, images, maps, keep)[mask][fill])


def applied(name, key, images=PICTURES, maps=MAPS, first_group=0):
    return to_numpy(apply_all(key, images, maps, first_group)[name])


def hole_of(mask, maps=MAPS, keep=KEEPS):
    return np.asarray(masks.MASKS[mask](maps, keep, patch_size=1))


def extent(hole):
    """(first row, end, first column, end) of the bounding box of one mask."""
    rows, columns = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


def crossed(partner, images=IMAGES):
    """Whether partners lie in the opposite view and permute the images without fixed points."""
    views = len(partner) // images
    partner = np.asarray(partner).reshape(views, images)
    image = partner % images
    opposite = np.all(partner // images == np.arange(views)[::-1, None])
    one_permutation = np.all(image == image[0]) and sorted(image[0]) == list(range(images))
    return opposite and one_permutation and np.all(image != np.arange(images))


def test_partners_are_a_permutation_without_fixed_points_crossed_over_views():
    keys = jax.random.split(jax.random.key(0), 20)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: mix.partners(key, 9, views=3)))(keys))
    assert all(crossed(partner, images=3) for partner in drawn)


def test_every_other_image_is_an_equally_likely_partner():
    keys = jax.random.split(jax.random.key(0), 3000)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: mix.partners(key, 4)))(keys))
    assert drawn.dtype == np.int32 and all(crossed(partner) for partner in drawn[:100])
    shares = np.stack([(drawn == image).mean(axis=0) for image in range(4)])
    np.testing.assert_allclose(shares, (1 - np.eye(4)) / 3, atol=4 * np.sqrt(2 / 9 / 3000))


def test_draw_keep_is_uniform_in_its_range(key):
    keep = np.asarray(mix.draw_keep(key, (10_000,), (0.5, 0.9)))
    assert 0.5 <= keep.min() < 0.501 and 0.899 < keep.max() <= 0.9
    np.testing.assert_allclose(np.histogram(keep, bins=4, range=(0.5, 0.9))[0] / 10_000, 0.25, atol=0.02)


def test_keep_range_is_respected_and_mapping_over_keys_changes_nothing():
    keys = jax.random.split(jax.random.key(0), 20)

    @jax.jit
    def draw(images, maps, keep_range):
        mixed = lambda key: mix.gradmix(key, images, maps, keep_range=keep_range)
        return jax.vmap(mixed)(keys), mixed(keys[0]), mix.gradmix(keys[0], images, maps)

    pixel = 0.5 / (HEIGHT * WIDTH) + 1e-6
    for low, high in ((0.5, 0.9), (0.1, 0.2), (0.7, 0.7), (1.0, 1.0), (0.0, 0.0)):
        drawn, one, default = to_numpy(draw(PICTURES, MAPS, (low, high)))
        weight = drawn[1]
        assert low - pixel <= weight.min() and weight.max() <= high + pixel
        assert np.ptp(weight) >= 0.9 * (high - low) - 2 * pixel
        assert low == high or np.all(np.ptp(weight, axis=1) > 0)
        for a, b, c in zip(drawn, one, default):
            np.testing.assert_allclose(a[0], b, atol=1e-6)
            assert (low, high) != (0.5, 0.9) or np.allclose(b, c, atol=1e-6)
    assert len(np.unique(drawn[2], axis=0)) > 3


@pytest.mark.parametrize("mask", masks.MASKS)
def test_pixels_outside_the_mask_stay_and_inside_are_the_partners(mask, key):
    mixed, weight, partner = filled(mask, "partner", key)
    hole = hole_of(mask)
    assert crossed(partner)
    np.testing.assert_array_equal(mixed, np.where(hole[..., None], PICTURES[partner], PICTURES))
    np.testing.assert_allclose(weight, 1 - hole.mean(axis=(1, 2)), atol=1e-6)
    assert weight.dtype == np.float32 and partner.dtype == np.int32 and 0 < weight.min() < weight.max() < 1


def test_weight_is_the_true_kept_area_of_a_clipped_box(key):
    """A box of a quarter of the image, centered on a corner, covers far less than a quarter."""
    corner = np.zeros_like(MAPS)
    corner[:, 0, 0] = 1
    mixed, weight, _ = filled("box", "zeros", key, np.ones_like(PICTURES), corner, np.full(ROWS, 0.75, np.float32))
    # Sides round(9 / 2) = 4 and round(7 / 2) = 4, of which 2 x 2 pixels lie inside.
    np.testing.assert_allclose(weight, np.full(ROWS, 1 - 4 / 63), atol=1e-6)
    np.testing.assert_allclose(mixed.mean(axis=(1, 2, 3)), weight, atol=1e-6)


@pytest.mark.parametrize("fill", ["noise", "mean", "zeros"])
def test_fills_without_a_partner(fill, key):
    mixed, weight, partner = filled("threshold", fill, key)
    hole = hole_of("threshold")
    np.testing.assert_array_equal(partner, np.arange(ROWS))
    np.testing.assert_allclose(weight, 1 - hole.mean(axis=(1, 2)), atol=1e-6)
    np.testing.assert_array_equal(mixed[~hole], PICTURES[~hole])
    if fill == "noise":
        noise = mixed[hole]
        assert noise.min() >= 0 and noise.max() <= 1 and len(np.unique(noise)) > 0.99 * noise.size
        assert abs(noise.mean() - 0.5) < 4 / np.sqrt(12 * noise.size) and abs(noise.std() - 1 / np.sqrt(12)) < 0.03
    else:
        color = PICTURES.astype(np.float64).mean(axis=(1, 2), keepdims=True) * (fill == "mean")
        expected = np.broadcast_to(color, PICTURES.shape)
        np.testing.assert_allclose(mixed[hole], expected[hole], atol=1e-6)


def pillow_resize(picture, height, width):
    """Each channel of a float image, resized by Pillow (bilinear, antialiased)."""
    channels = [Image.fromarray(picture[..., c]).resize((width, height), Image.Resampling.BILINEAR) for c in range(3)]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


@pytest.mark.parametrize("mask", masks.MASKS)
def test_partner_resized_is_the_whole_partner_as_pillow_shrinks_it(mask, key):
    """Resized to the mask's bounding box; a thresholded mask may have empty rows and columns inside it."""
    maps, keep = MAPS, KEEPS
    if mask != "box":
        maps, keep = np.zeros_like(MAPS), np.full(ROWS, 1 - 3 / 63, np.float32)
        maps[:, 1, 2] = maps[:, 6, 5] = maps[:, 7, 5] = 1
    mixed, weight, partner = filled(mask, "partner_resized", key, maps=maps, keep=keep)
    hole = hole_of(mask, maps, keep)
    assert crossed(partner)
    np.testing.assert_allclose(weight, 1 - hole.mean(axis=(1, 2)), atol=1e-6)
    for row in range(ROWS):
        np.testing.assert_array_equal(mixed[row][~hole[row]], PICTURES[row][~hole[row]])
        top, bottom, left, right = extent(hole[row])
        shrunk = np.zeros_like(PICTURES[row])
        shrunk[top:bottom, left:right] = pillow_resize(PICTURES[partner[row]], bottom - top, right - left)
        np.testing.assert_allclose(mixed[row][hole[row]], shrunk[hole[row]], atol=1e-5)


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_partner_resized_into_a_full_and_an_empty_box(keep, key):
    center = np.zeros_like(MAPS)
    center[:, HEIGHT // 2, WIDTH // 2] = 1
    keeps = np.full(ROWS, keep, np.float32)
    mixed, weight, partner = filled("box", "partner_resized", key, maps=center, keep=keeps)
    np.testing.assert_allclose(mixed, PICTURES if keep else PICTURES[partner], atol=1e-6)
    np.testing.assert_allclose(weight, keeps, atol=1e-6)


def test_dtype_of_the_images_is_kept_and_weights_are_float32(key):
    images = jnp.asarray(PICTURES, jnp.bfloat16)
    results = jax.tree.leaves(jax.eval_shape(fill_all, key, images, MAPS, KEEPS))
    results += jax.tree.leaves(jax.eval_shape(apply_all, key, images, MAPS, 0))
    assert len(results) == 3 * (sum(len(fills) for fills in FILLS_OF.values()) + len(SPECS))
    for mixed, weight, partner in zip(results[::3], results[1::3], results[2::3]):
        assert (mixed.dtype, weight.dtype, partner.dtype) == (jnp.bfloat16, jnp.float32, jnp.int32)


def test_constant_images_and_maps_stay_finite(key):
    constant = np.full_like(PICTURES, 0.25)
    for mask, results in fill_all(key, constant, np.zeros_like(MAPS), KEEPS).items():
        for fill, (mixed, weight, _) in to_numpy(results).items():
            assert np.all(np.isfinite(mixed)), (mask, fill)
            assert np.all((weight >= 0.4 - 0.02) & (weight < 1)), (mask, fill)
            if fill not in ("noise", "zeros", "ones"):
                np.testing.assert_allclose(mixed, constant, atol=1e-6)


EXTREMES = {
    "black": np.zeros_like(PICTURES),
    "white": np.ones_like(PICTURES),
    "constant": np.full_like(PICTURES, 0.3),
    "all the same": np.broadcast_to(PICTURES[:1], PICTURES.shape),
}


@pytest.mark.parametrize("kind", EXTREMES)
@pytest.mark.parametrize("name", SPECS)
def test_extreme_images_and_flat_maps_mix_to_images(name, kind, key):
    """Identical or constant images come out unchanged, except with fills that use no partner."""
    images = EXTREMES[kind]
    mixed, weight, partner = applied(name, key, images, np.full_like(MAPS, 0.5))
    assert np.all(np.isfinite(mixed)) and mixed.min() >= 0 and mixed.max() <= 1
    assert np.all((weight >= 0) & (weight <= 1)) and np.all((partner >= 0) & (partner < ROWS))
    resized = SPECS[name].fill == "partner_resized" and kind == "all the same"
    if SPECS[name].fill not in ("noise", "zeros") and not resized and (name, kind) != ("cutout", "all the same"):
        np.testing.assert_allclose(mixed, images, atol=1e-6)


def test_fmix_holes_are_smooth_patches_of_exactly_the_drawn_share():
    options = dict(keep_range=(0.5, 0.9), fill="partner", views=2, keep_B=KEEPS)
    seeds = jax.random.split(jax.random.key(0), 30)

    @jax.jit
    def draw(images, decay):
        return jax.vmap(lambda key: mix.fmix(key, images, None, decay=decay, **options))(seeds)

    agree = {}
    for decay in (0.0, 3.0):
        holes = []
        for mixed, weight, partner in zip(*to_numpy(draw(PICTURES, decay))):
            hole = np.any(mixed != PICTURES, axis=-1)
            np.testing.assert_array_equal(hole.sum(axis=(1, 2)), np.round((1 - KEEPS) * HEIGHT * WIDTH))
            np.testing.assert_allclose(weight, 1 - hole.mean(axis=(1, 2)), atol=1e-6)
            np.testing.assert_array_equal(mixed, np.where(hole[..., None], PICTURES[partner], PICTURES))
            assert crossed(partner)
            holes.append(hole)
        holes = np.stack(holes)
        agree[decay] = np.mean(holes[:, :, 1:] == holes[:, :, :-1])
        # Everywhere in the image, and not the same for any two rows.
        assert np.ptp(holes.mean(axis=(0, 1))) < 0.25
        assert len(np.unique(holes[:, :4].reshape(120, -1), axis=0)) > 100
    chance = np.mean(KEEPS**2 + (1 - KEEPS) ** 2)
    assert abs(agree[0.0] - chance) < 0.03 and agree[3.0] > chance + 0.1


def test_fmix_uses_the_decay_of_its_spec(key, monkeypatch):
    seen = []

    def noise(key, batch, *, image_size, decay):
        seen.append(decay)
        return jnp.zeros((batch, *image_size))

    monkeypatch.setattr(masks, "fourier_noise", noise)
    spec = dataclasses.replace(SPECS["fmix"], options={"fmix": {"decay": 1.5}})
    jax.eval_shape(lambda images: mix.apply(key, images, None, spec, views=2, first_group=0), PICTURES)
    assert seen == [1.5]


def test_cutout_is_a_box_of_the_images_mean_color(key):
    mixed, weight, partner = applied("cutout", key)
    hole = np.any(mixed != PICTURES, axis=-1)
    mean = np.broadcast_to(PICTURES.astype(np.float64).mean(axis=(1, 2), keepdims=True), PICTURES.shape)
    np.testing.assert_allclose(mixed[hole], mean[hole], atol=1e-6)
    np.testing.assert_array_equal(partner, np.arange(ROWS))
    for one, kept in zip(hole, weight):
        top, bottom, left, right = extent(one)
        assert one.sum() == (bottom - top) * (right - left) and kept == pytest.approx(1 - one.mean())


@pytest.mark.parametrize("name", SPECS)
def test_a_group_mixes_the_same_on_any_device(name, key):
    """One device has groups 0 and 1, another 1 and 2: both must agree on group 1."""
    rows = np.random.default_rng(2).random((2, 6, HEIGHT, WIDTH, 3), np.float32)  # [views, images of 3 groups, ...]
    maps = rows[..., 0] + rows[..., 1]
    results = []
    for first in (0, 1):
        mine = slice(2 * first, 2 * first + IMAGES)
        images, scores = rows[:, mine].reshape(PICTURES.shape), maps[:, mine].reshape(MAPS.shape)
        mixed, weight, partner = applied(name, key, images, scores, first)
        # Number the images across all three groups.
        partner = partner // IMAGES * 6 + partner % IMAGES + 2 * first
        group_1 = np.arange(len(weight)).reshape(-1, 2, 2)[:, 1 - first].reshape(-1)
        results.append((mixed[group_1], weight[group_1], partner[group_1]))
        if first == 0:
            group_0 = weight.reshape(-1, 2, 2)[:, 0]
    for a, b in zip(*results):
        np.testing.assert_allclose(a, b, atol=1e-6)
    # Groups draw differently unless one draw serves all.
    if "one draw" not in name:
        assert not np.allclose(np.sort(group_0.reshape(-1)), np.sort(results[0][1]))


def test_one_device_with_two_groups_equals_two_devices_with_one_and_first_is_their_view_0(key):
    spec = dataclasses.replace(SPEC, mixed_views="first")
    one = jax.jit(lambda images, maps, group: mix.apply(key, images, maps, spec, views=2, first_group=group))
    whole = applied("gradmix", key)
    for device, rows in enumerate(np.array([[0, 1, 4, 5], [2, 3, 6, 7]])):
        mixed, weight, partner = to_numpy(one(PICTURES[rows], MAPS[rows], device))
        np.testing.assert_allclose(mixed, whole[0][rows[:2]], atol=1e-6)
        np.testing.assert_allclose(weight, whole[1][rows[:2]], atol=1e-6)
        np.testing.assert_array_equal(rows[partner], whole[2][rows[:2]])


@pytest.mark.parametrize("name", ["gradmix", "box, one draw", "cutmix", "saliencymix", "fmix", "mixup"])
def test_apply_says_which_row_the_fill_came_from(name, key):
    """In groups of two, every partner is the other image of the group in the other view."""
    partner = applied(name, key)[2]
    np.testing.assert_array_equal(partner, [5, 4, 7, 6, 1, 0, 3, 2])
    plain = np.broadcast_to(np.linspace(0.1, 0.9, ROWS, dtype=np.float32).reshape(-1, 1, 1, 1), PICTURES.shape)
    mixed, weight, _ = applied(name, key, images=plain)
    mean = weight * plain[:, 0, 0, 0] + (1 - weight) * plain[partner, 0, 0, 0]
    np.testing.assert_allclose(mixed.mean(axis=(1, 2, 3)), mean, rtol=1e-5)


@pytest.mark.parametrize("name", ["noise, one draw", "cutmix, one draw", "cutout"])
def test_apply_of_a_fill_without_partner_says_its_own_row(name, key):
    mixed, weight, partner = applied(name, key)
    np.testing.assert_array_equal(partner, np.arange(ROWS))
    np.testing.assert_allclose(weight, np.all(mixed == PICTURES, axis=-1).mean(axis=(1, 2)), atol=1e-6)


def test_apply_masks_where_the_map_of_the_same_row_is_largest(key):
    """Even after rows are put into groups and back."""
    maps = np.zeros_like(MAPS)
    for row in range(ROWS):
        maps[row, row : row + 2, row % 6 : row % 6 + 3] = 1
    hole = np.any(applied("gradmix", key, maps=maps)[0] != PICTURES, axis=-1)
    assert np.all(hole[maps > 0])


def test_apply_follows_mask_fill_and_keep_range_of_the_spec():
    seeds = [jax.random.key(seed) for seed in range(10)]
    for key in seeds[:3]:
        for name in ("box, one draw", "saliencymix"):
            mixed, weight, _ = applied(name, key)
            hole = np.any(mixed != PICTURES, axis=-1)
            np.testing.assert_allclose(weight, 1 - hole.mean(axis=(1, 2)), atol=1e-6)
            for one in hole:
                top, bottom, left, right = extent(one)
                assert one.sum() == (bottom - top) * (right - left)
        noisy = applied("noise, one draw", key)[0]
        assert np.isin(noisy[np.any(noisy != PICTURES, axis=-1)], PICTURES).mean() < 0.01
        black = applied("cutmix, one draw", key)[0]
        assert np.all(black[np.any(black != PICTURES, axis=-1)] == 0)
    for name, (low, high) in {"gradmix": (0.5, 0.9), "noise, one draw": (0.1, 0.9), "cutmix": (0.6, 1.0)}.items():
        weight = np.concatenate([applied(name, key)[1] for key in seeds])
        # Rounding the sides of a box may cost half a row and half a column.
        slack = 0.06 if name == "cutmix" else 0.01
        assert low - slack <= weight.min() < low + 0.15 and high - 0.15 < weight.max() <= high + slack


def test_keep_draw_batch_is_one_share_for_all_images_of_all_groups():
    seeds = [jax.random.key(seed) for seed in range(20)]
    shares = np.stack([applied("noise, one draw", key)[1] for key in seeds])
    assert np.all(np.ptp(shares, axis=1) == 0)
    assert len(np.unique(shares)) > 10 and shares.min() < 0.3 and shares.max() > 0.7
    assert all(np.ptp(applied("gradmix", key)[1]) > 0.05 for key in seeds)


def cutmix_boxes(name, count):
    """Bounding boxes of many CutMix holes; each must be a full rectangle with the area given by its weight."""
    boxes = []
    for seed in range(count):
        mixed, weight, _ = applied(name, jax.random.key(seed))
        hole = np.any(mixed != PICTURES, axis=-1)
        np.testing.assert_allclose(weight, 1 - hole.mean(axis=(1, 2)), atol=1e-6)
        boxes.append([extent(one) for one in hole])
        for one, (top, bottom, left, right) in zip(hole, boxes[-1]):
            assert one.sum() == (bottom - top) * (right - left)
    return np.array(boxes)


def test_cutmix_boxes_are_rectangles_all_over_the_image():
    top, bottom, left, right = cutmix_boxes("cutmix", 40).reshape(-1, 4).T
    assert set(top) >= set(range(7)) and set(bottom) >= set(range(3, HEIGHT + 1))
    assert set(left) >= set(range(5)) and set(right) >= set(range(3, WIDTH + 1))


def test_cutmix_of_one_draw_has_boxes_of_one_size():
    """Unless the border clips them; with one draw per image, they differ even within a group."""
    group_0 = [0, 1, 4, 5]
    sizes = {}
    for name, rows in {"cutmix, one draw": slice(None), "cutmix": group_0}.items():
        boxes = cutmix_boxes(name, 60)[:, rows]
        inside = (boxes[..., [0, 2]] > 0).all(axis=-1) & (boxes[..., [1, 3]] < [HEIGHT, WIDTH]).all(axis=-1)
        sizes[name] = [len({(b - t, r - l) for t, b, l, r in of_key[ok]}) for of_key, ok in zip(boxes, inside)]
    assert max(sizes["cutmix, one draw"]) == 1 and max(sizes["cutmix"]) > 1


def test_mixup_is_a_weighted_mean_with_beta_weights():
    """Beta(5, 5) has mean 1/2 and variance 1 / 44."""
    weights = []
    for seed in range(100):
        mixed, weight, partner = applied("mixup", jax.random.key(seed))
        own = weight.astype(np.float64).reshape(-1, 1, 1, 1)
        np.testing.assert_allclose(mixed, own * PICTURES + (1 - own) * PICTURES[partner], atol=1e-6)
        weights.append(weight)
    weights = np.stack(weights)
    assert len(np.unique(weights)) == weights.size and weights.min() >= 0 and weights.max() <= 1
    np.testing.assert_allclose(weights.mean(), 0.5, atol=4 / np.sqrt(44 * weights.size))
    np.testing.assert_allclose(weights.var(), 1 / 44, rtol=0.2)


def test_methods_use_maps_exactly_if_their_entry_says_so(key):
    other = MAPS[::-1]
    for name, spec in SPECS.items():
        same = all(map(np.array_equal, applied(name, key), applied(name, key, maps=other)))
        assert same != spec.uses_map, name


def options(method, **values):
    return dict(options={method: values})


@pytest.mark.parametrize(
    "change, message",
    [
        (
            dict(method="cutout"),
            r"mix\.method must be one of none, gradmix, backmix, .*, manifold_mixup, got 'cutout'; did you mean",
        ),
        (dict(mask="circle"), r"mix\.mask must be one of box, threshold, patches, got 'circle'"),
        (
            dict(fill="black"),
            r"mix\.fill must be one of partner, .*, zeros, ones, got 'black'",
        ),
        (dict(keep_draw="pixel"), r"mix\.keep_draw must be one of image, batch, got 'pixel'"),
        (dict(mixed_views="second"), r"mix\.mixed_views must be one of all, first, got 'second'"),
        (dict(keep_range=(0.9, 0.5)), r"mix\.keep_range must be \(low, high\) with low <= high, got \(0\.9, 0\.5\)"),
        (dict(keep_range=(-0.1, 0.5)), r"each element of mix\.keep_range must be a number from 0 to 1, got -0\.1"),
        (dict(keep_range=(0.5, 1.1)), r"each element of mix\.keep_range must be a number from 0 to 1, got 1\.1"),
        (
            dict(keep_range=(0.5, float("nan"))),
            r"each element of mix\.keep_range must be a number from 0 to 1, got nan",
        ),
        (dict(keep_range=(0.5,)), r"mix\.keep_range must have 2 elements, got \(0\.5,\)"),
        (dict(group_size=1), r"mix\.group_size must be an integer at least 2, got 1"),
        (dict(border=-1), r"mix\.border must be an integer at least 0, got -1"),
        (dict(patch_size=-4), r"mix\.patch_size must be an integer at least 0, got -4"),
        (
            options("resizemix", scale=(0.8, 0.1)),
            r"mix\.options\.resizemix\.scale must be \(low, high\) with low <= high, got \(0\.8, 0\.1\)",
        ),
        (options("keep_cutout", quantile=0.0), r"mix\.options\.keep_cutout\.quantile must be a number above 0"),
        (
            dict(method="manifold_mixup", mixed_views="first"),
            r"mix\.mixed_views must be 'all' with mix\.method 'manifold_mixup', got 'first'",
        ),
        (
            dict(method="manifold_mixup", **options("manifold_mixup", alpha=1.0, stages=("stage1", "stage1"))),
            r"mix\.options\.manifold_mixup\.stages must name at least one stage and each of them once, got \('stage1',",
        ),
        (options("mixup", alpha=0.0), r"mix\.options\.mixup\.alpha must be a positive number, got 0\.0"),
        (options("fmix", decay=-1.0), r"mix\.options\.fmix\.decay must be a number from 0 to 10, got -1\.0"),
        (options("fmix", decay=float("nan")), r"mix\.options\.fmix\.decay must be a number from 0 to 10, got nan"),
        (options("fmix", alpha=1.0), r"the key mix\.options\.fmix\.alpha must be one of decay, got 'alpha'"),
    ],
)
def test_spec_errors_name_key_value_and_choices(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SPEC, **change)


def test_spec_takes_the_list_of_a_json_file():
    assert hash(dataclasses.replace(SPEC, keep_range=[0.5, 0.9])) == hash(SPEC)


def test_invalid_calls_say_why(key):
    with pytest.raises(ValueError, match="mixing needs a multiple of views=3 images, got 8"):
        mix.gradmix(key, PICTURES, MAPS, views=3)
    with pytest.raises(ValueError, match=r"mask must be one of box, threshold, patches, got 'circle'"):
        mix.gradmix(key, PICTURES, MAPS, mask="circle")
    wrong = dict(keep_range=(0.5, 0.9), fill="patner", views=2)
    for method in (mix.gradmix, mix.cutmix, mix.saliencymix, partial(mix.fmix, decay=3.0)):
        with pytest.raises(
            ValueError,
            match=r"fill must be one of partner, .*, got 'patner'; did you mean 'partner'",
        ):
            method(key, PICTURES, MAPS, **wrong)
    with pytest.raises(ValueError, match=r"mix\.group_size must divide the 4 images of one device, got 3"):
        mix.apply(key, PICTURES, MAPS, dataclasses.replace(SPEC, group_size=3), views=2, first_group=0)
    with pytest.raises(ValueError, match=r"mix\.method 'none' mixes nothing"):
        mix.apply(key, PICTURES, MAPS, dataclasses.replace(SPEC, method="none"), views=2, first_group=0)


def test_saliencymix_puts_the_box_on_the_partners_most_salient_point():
    # The spectral residual finds one bright dot on a faint texture.
    random = np.random.default_rng(0)
    images = random.uniform(0.4, 0.45, (6, 16, 16, 3)).astype(np.float32)
    dots = [(3, 4), (8, 12), (12, 5), (5, 9), (10, 10), (4, 11)]
    for index, (row, column) in enumerate(dots):
        images[index, row - 1 : row + 2, column - 1 : column + 2] = 0.9 + 0.01 * index
    keep_B = jnp.full(6, 0.75)
    options = dict(keep_range=(0.5, 0.9), fill="partner", views=1)
    mixed, weight_B, partner_B = jax.jit(partial(mix.saliencymix, **options))(
        jax.random.key(0), images, None, keep_B=keep_B
    )
    partner_B = np.asarray(partner_B)
    assert sorted(partner_B) == list(range(6)) and not np.any(partner_B == np.arange(6))
    for index in range(6):
        row, column = dots[partner_B[index]]
        # sides of round(16 * sqrt(.25)) = 8 pixels; the peak may be a pixel off the dot's center
        changed = np.any(np.asarray(mixed[index]) != images[index], axis=-1)
        assert changed[row - 1 : row + 2, column - 1 : column + 2].all()
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        assert len(rows) <= 8 and len(columns) <= 8
        assert float(weight_B[index]) == pytest.approx(1 - changed.mean(), abs=0.02)
        inside = np.asarray(mixed[index])[changed]
        np.testing.assert_array_equal(inside, images[partner_B[index]][changed])
