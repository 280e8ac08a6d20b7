"""Soft masks: weights and blends against float64 NumPy; boolean masks are a special case."""

import jax
import numpy as np
import pytest

from gradmix_jax.method import fills, masks

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(5, 6, 7, 3)).astype(np.float32)
SOFT = RNG.uniform(size=(5, 6, 7)).astype(np.float32)
PARTNER = np.array([3, 4, 0, 1, 2], np.int32)


def content_of(fill, key):
    """What each fill inserts, in float64."""
    noise = np.asarray(jax.random.uniform(key, IMAGES.shape), np.float64)
    images = IMAGES.astype(np.float64)
    return {
        "partner": images[PARTNER],
        "noise": noise,
        "mean": np.broadcast_to(images.mean(axis=(1, 2), keepdims=True), images.shape),
        "zeros": np.zeros_like(images),
        "ones": np.ones_like(images),
    }[fill]


@pytest.mark.parametrize("fill", [name for name in fills.FILLS if name != "partner_resized"])
@pytest.mark.parametrize("kind", ["soft", "boolean"])
def test_a_mask_blends_by_its_share(fill, kind, key):
    mask = SOFT if kind == "soft" else SOFT > 0.4
    mixed, weight, partner = jax.jit(fills.fill_masked, static_argnames="fill")(
        key, IMAGES, mask, fill, partner_B=PARTNER
    )
    share = mask.astype(np.float64)
    expected = share[..., None] * content_of(fill, key) + (1 - share[..., None]) * IMAGES
    np.testing.assert_allclose(mixed, expected, atol=1e-6)
    np.testing.assert_allclose(weight, 1 - share.mean(axis=(1, 2)), atol=1e-6)
    np.testing.assert_array_equal(partner, PARTNER if fill == "partner" else np.arange(5))
    assert mixed.dtype == IMAGES.dtype and weight.dtype == np.float32


def test_a_soft_mask_of_zeros_and_ones_is_a_boolean_one(key):
    mask = np.asarray(masks.threshold(SOFT, np.full(5, 0.6, np.float32)))
    for fill in fills.FILLS:
        found = [
            fills.fill_masked(key, IMAGES, each, fill, partner_B=PARTNER) for each in (mask, mask.astype(np.float32))
        ]
        for hard, soft in zip(*found):
            np.testing.assert_allclose(hard, soft, atol=1e-6, err_msg=fill)


def test_the_partner_is_resized_to_what_a_soft_mask_touches(key):
    """The box includes a border of small shares."""
    mask = np.zeros((5, 6, 7), np.float32)
    mask[:, 1:5, 2:6] = 0.01
    mask[:, 2:4, 3:5] = 1.0
    box = np.zeros((5, 6, 7), bool)
    box[:, 1:5, 2:6] = True
    whole = fills.fill_masked(key, IMAGES, box, "partner_resized", partner_B=PARTNER)[0]
    soft = fills.fill_masked(key, IMAGES, mask, "partner_resized", partner_B=PARTNER)[0]
    np.testing.assert_allclose(soft[:, 2:4, 3:5], whole[:, 2:4, 3:5], atol=1e-6)


def test_an_unknown_fill_is_named(key):
    with pytest.raises(ValueError, match="fill must be one of partner, .*, got 'black'"):
        fills.fill_masked(key, IMAGES, SOFT, "black", partner_B=PARTNER)
