"""Losses against float64 loops, published values, finite differences, and one device against eight."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from gradmix_jax import objectives
from gradmix_jax.config import default_config

DEFAULTS = default_config().objective.to_dict()
SPEC = objectives.Spec(**DEFAULTS | {"temperature": 0.5, "base_temperature": 0.07, "mixed_supcon": True})
LABELS = np.array([0, 1, 0, 2], np.int32)


def unit(*rows):
    rows = np.array(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def features(rows, seed=0, dimension=5):
    return unit(*np.random.default_rng(seed).standard_normal((rows, dimension)))


Z, MIXED = features(8), features(8, seed=1)  # two views of four images, view-major
WEIGHTS = np.linspace(0.5, 0.9, 8)


def reference_contrastive(anchors, contrast, positives, temperature, base, mixed=None, weights=None, first=0):
    """Loss of every anchor, in loops over the formula."""
    features_of_positives = contrast if mixed is None else mixed
    weights = np.ones(len(features_of_positives)) if weights is None else weights
    losses = []
    for index, anchor in enumerate(anchors):
        denominator = logsumexp([anchor @ n / temperature for row, n in enumerate(contrast) if row != first + index])
        terms = [
            weights[p] * (anchor @ features_of_positives[p] / temperature - denominator)
            for p in np.flatnonzero(positives[index])
        ]
        losses.append(-(temperature / base) * np.mean(terms) if terms else 0.0)
    return np.array(losses)


def positive_mask(name, labels, views):
    """Bool [rows, rows]: the other views of the same image (simclr), or all other rows of the class (supcon)."""
    owner = np.arange(len(labels)) if name.endswith("simclr") else np.asarray(labels)
    owner = np.tile(owner, views)
    return (owner[:, None] == owner[None, :]) & ~np.eye(len(owner), dtype=bool)


def reference_loss(name, z, mixed, weights, labels, views, spec):
    positives = positive_mask(name, labels, views)
    options = dict(mixed=mixed, weights=weights) if name.startswith("mixed") else {}
    if options:
        positives = positives[:, : len(mixed)]
    loss = reference_contrastive(z, z, positives, spec.temperature, spec.base_temperature, **options)
    return loss[positives.any(axis=1)].mean()


@partial(jax.jit, static_argnames=("views", "spec", "axis_name"))
def losses(z, mixed, weights, labels, *, views=2, spec=SPEC, axis_name=None):
    """Every loss that makes sense for these views, by name."""
    contrast = objectives.gather(z, axis_name)
    batch = objectives.make_batch(z, contrast, labels, views=views, axis_name=axis_name)
    result = {"supcon": objectives.supcon(batch, spec)}
    if views > 1:
        result["simclr"] = objectives.simclr(batch, spec)
        result["mixed_simclr"] = objectives.mixed_simclr(batch, mixed, weights, spec)
    if mixed.shape == z.shape:
        result["mixed_supcon"] = objectives.mixed_supcon(batch, mixed, weights, spec)
    return result


NAMES = ("simclr", "supcon", "mixed_simclr", "mixed_supcon")
contrastive = jax.jit(objectives.contrastive)


def single(x):
    return np.asarray(x, np.float32)


@pytest.mark.parametrize(
    "name, base, expected",
    [
        ("simclr", 0.07, 15.11779817),
        ("supcon", 0.07, 13.21303627),
        ("mixed_simclr", 0.07, 16.11829653),
        ("mixed_supcon", 0.07, 16.17355185),
        ("simclr", 0.5, 2.11649174),
    ],
)
def test_published_values(name, base, expected):
    """For the public function, the named loss, and the float64 reference of these tests."""
    clean = np.concatenate([unit([1, 0], [0, 1], [1, 1]), unit([0.8, 0.6], [0.6, -0.8], [1, 2])])
    mixed = np.concatenate([unit([0.6, 0.8], [-1, 1], [2, 1]), unit([1, 0.1], [0.1, -1], [0, 1])])
    labels, spec = np.array([0, 0, 1], np.int32), dataclasses.replace(SPEC, base_temperature=base)
    assert abs(reference_loss(name, clean, mixed, np.ones(6), labels, 2, spec) - expected) < 1e-8
    positives = positive_mask(name, labels, 2)
    other = single(mixed) if name.startswith("mixed") else None
    loss_N = contrastive(
        single(clean), single(clean), positives, temperature=0.5, base_temperature=base, positive_features_NxD=other
    )
    np.testing.assert_allclose(loss_N.mean(), expected, rtol=2e-6)
    all_losses = losses(single(clean), single(mixed), np.ones(6, np.float32), labels, spec=SPEC)
    np.testing.assert_allclose(all_losses[name] * (0.07 / base), expected, rtol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_losses_match_numpy(name):
    expected = reference_loss(name, Z, MIXED, WEIGHTS, LABELS, 2, SPEC)
    np.testing.assert_allclose(losses(*map(single, (Z, MIXED, WEIGHTS)), LABELS)[name], expected, rtol=1e-5)


def test_three_views():
    z, mixed, weights = features(9), features(9, seed=1), np.linspace(0.5, 0.9, 9)
    labels = LABELS[:3]
    result = losses(*map(single, (z, mixed, weights)), labels, views=3)
    for name in NAMES:
        expected = reference_loss(name, z, mixed, weights, labels, 3, SPEC)
        np.testing.assert_allclose(result[name], expected, rtol=1e-5)


def test_mixed_images_of_the_first_view_only():
    """Only rows of view 1 then have a positive: the mixed view 0 of their image."""
    result = losses(single(Z), single(MIXED[:4]), single(WEIGHTS[:4]), LABELS)["mixed_simclr"]
    positives = np.eye(4, dtype=bool)
    loss = reference_contrastive(Z[4:], Z, positives, 0.5, 0.07, MIXED[:4], WEIGHTS[:4], first=4)
    np.testing.assert_allclose(result, loss.mean(), rtol=1e-5)
    np.testing.assert_allclose(result, reference_loss("mixed_simclr", Z, MIXED[:4], WEIGHTS[:4], LABELS, 2, SPEC), 1e-5)


def test_contrastive_of_a_slice_of_anchors_with_other_positives():
    """3 anchors from row 2 on, 8 contrast features, 6 positive features, a weight each; one anchor has none.

    Also uncompiled, because the CPU compiler may hide a division 0 / 0.
    """
    positives = np.random.default_rng(0).random((3, 6)) < 0.5
    positives[1] = False
    expected = reference_contrastive(Z[2:5], Z, positives, 0.2, 0.4, MIXED[:6], WEIGHTS[:6], first=2)
    options = dict(temperature=0.2, base_temperature=0.4, first_anchor=2)
    options |= dict(positive_features_NxD=single(MIXED[:6]), positive_weights_N=single(WEIGHTS[:6]))
    for function in (contrastive, objectives.contrastive):
        result = function(single(Z[2:5]), single(Z), positives, **options)
        np.testing.assert_allclose(result, expected, rtol=1e-5)
        assert result[1] == 0 and result.dtype == jnp.float32


def test_the_default_is_nt_xent():
    """Equation 1 of SimCLR, written out."""
    similarity = Z @ Z.T / 0.2
    expected = []
    for row in range(8):
        others = [column for column in range(8) if column != row]
        expected.append(np.log(np.exp(similarity[row, others]).sum()) - similarity[row, (row + 4) % 8])
    result = contrastive(single(Z), single(Z), positive_mask("simclr", LABELS, 2), temperature=0.2)
    np.testing.assert_allclose(result, expected, rtol=1e-5)


@partial(jax.jit, static_argnames="spec")
def weighted_sum(z, mixed, factors, *, spec=SPEC):
    """Value of the sum of factor times loss, and its gradient with respect to clean and mixed features."""

    def total(z, mixed):
        result = losses(z, mixed, single(WEIGHTS), LABELS, spec=spec)
        return sum(factor * result[name] for factor, name in zip(factors, NAMES))

    return jax.value_and_grad(total, argnums=(0, 1))(z, mixed)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_matches_finite_differences_of_the_reference(name):
    reference = lambda z, mixed: reference_loss(name, z, mixed, WEIGHTS, LABELS, 2, SPEC)
    slopes = weighted_sum(single(Z), single(MIXED), [float(other == name) for other in NAMES])[1]
    random, step = np.random.default_rng(3), 1e-5
    for _ in range(4):
        directions = random.standard_normal((2, *Z.shape))
        ahead, behind = (reference(*(np.stack([Z, MIXED]) + sign * step * directions)) for sign in (1, -1))
        found = sum(np.sum(slope * direction) for slope, direction in zip(slopes, directions))
        np.testing.assert_allclose(found, (ahead - behind) / (2 * step), rtol=1e-4, atol=1e-4)


def test_detached_anchors_keep_the_value_and_the_gradient_of_the_mixed_images():
    detached = partial(weighted_sum, single(Z), single(MIXED), spec=dataclasses.replace(SPEC, detach_anchors=True))
    attached = partial(weighted_sum, single(Z), single(MIXED))
    for factors in ([0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]):
        (value, (of_clean, of_mixed)), (expected, slopes) = detached(factors), attached(factors)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(of_mixed, slopes[1], atol=1e-6)
        assert np.all(of_clean == 0) and np.abs(slopes[0]).max() > 0.01
    # The clean losses are unaffected.
    (_, (of_clean, _)), (_, slopes) = detached([1.0, 2.0, 0.0, 0.0]), attached([1.0, 2.0, 0.0, 0.0])
    np.testing.assert_allclose(of_clean, slopes[0], atol=1e-6)


@jax.jit
def value_and_slopes(z, mixed, positives, temperature):
    def total(z, mixed):
        clean = objectives.contrastive(z, z, positives, temperature=temperature)
        return jnp.mean(
            clean + objectives.contrastive(z, z, positives, temperature=temperature, positive_features_NxD=mixed)
        )

    return jax.value_and_grad(total, argnums=(0, 1))(z, mixed)


@pytest.mark.parametrize("name", ["simclr", "supcon"])
@pytest.mark.parametrize(
    "kind", ["zero features", "equal features", "one class", "opposite views", "cold", "no positive"]
)
def test_extreme_batches_have_finite_values_and_gradients(kind, name):
    z, mixed, positives, temperature = Z, MIXED, positive_mask(name, LABELS, 2), 0.5
    if kind == "zero features":
        z, mixed = np.zeros_like(Z), np.zeros_like(Z)
    elif kind == "equal features":
        z = mixed = np.repeat(Z[:1], 8, axis=0)
    elif kind == "one class":
        positives = positive_mask(name, np.zeros_like(LABELS), 2)
    elif kind == "opposite views":
        z = np.concatenate([Z[:4], -Z[:4]])
    elif kind == "cold":
        temperature = 1e-4  # exp(1 / T) is far beyond float32
    else:
        positives = np.zeros_like(positives)
    value, slopes = value_and_slopes(single(z), single(mixed), positives, temperature)
    bases = dict(temperature=temperature, base=temperature)
    expected = sum(reference_contrastive(z, z, positives, **bases, mixed=other) for other in (None, mixed)).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    assert all(np.all(np.isfinite(slope)) for slope in slopes)


def test_bfloat16_features_give_float32_losses():
    low = [jnp.asarray(x, jnp.bfloat16) for x in (Z, MIXED)]
    result = losses(*low, single(WEIGHTS), LABELS)
    expected = losses(*(x.astype(jnp.float32) for x in low), single(WEIGHTS), LABELS)
    for name in NAMES:
        assert result[name].dtype == jnp.float32
        np.testing.assert_allclose(result[name], expected[name], rtol=1e-6)


def test_batch_by_batch_and_mapped_agree():
    batches = [(single(features(8, seed)), single(features(8, seed + 10)), single(WEIGHTS), LABELS) for seed in (2, 3)]
    mapped = jax.jit(jax.vmap(lambda *batch: losses(*batch)))(*(np.stack(x) for x in zip(*batches)))
    for index, batch in enumerate(batches):
        for name, value in losses(*batch).items():
            np.testing.assert_allclose(mapped[name][index], value, rtol=1e-5)


def on_devices(x, views):
    """[views * images, ...] view-major -> [8 devices, views * images of a device, ...], view-major on each."""
    by_view = x.reshape(views, 8, -1, *x.shape[1:])
    return by_view.swapaxes(0, 1).reshape(8, -1, *x.shape[1:])


@pytest.mark.parametrize("views", [1, 2])
def test_eight_devices_equal_one_in_value_and_gradient(views):
    """Even if some devices have no anchor with a positive: single-view classes, few of which occur twice."""
    images = 16
    random = np.random.default_rng(views)
    x, y = random.standard_normal((2, views * images, 6)).astype(np.float32)
    weights = random.uniform(0.5, 1, views * images).astype(np.float32)
    labels = np.array([0, 1, 2, 3, 4, 5, 0, 7, 8, 9, 0, 11, 12, 13, 14, 13], np.int32)
    matrix = random.standard_normal((6, 4)).astype(np.float32)

    def values(matrix, x, y, weights, labels, axis_name=None):
        project = lambda x: x @ matrix / jnp.linalg.norm(x @ matrix, axis=1, keepdims=True)
        result = losses(project(x), project(y), weights, labels, views=views, axis_name=axis_name)
        return sum((index + 1) * value for index, value in enumerate(result.values())), result

    def on_device(*arguments):
        part = partial(values, axis_name="batch")
        (_, result), slope = jax.value_and_grad(part, has_aux=True)(matrix, *arguments)
        return jax.lax.pmean((result, slope), "batch")

    (_, expected), slope = jax.jit(jax.value_and_grad(values, has_aux=True))(matrix, x, y, weights, labels)
    result, mean_slope = jax.pmap(on_device, axis_name="batch")(
        on_devices(x, views), on_devices(y, views), on_devices(weights, views), labels.reshape(8, 2)
    )
    for name in expected:
        np.testing.assert_allclose(result[name], np.full(8, expected[name]), rtol=1e-5)
    np.testing.assert_allclose(mean_slope[0], slope, rtol=1e-4, atol=1e-5)
    assert np.abs(slope).max() > 0.1


def reference_cross_entropy(logits, targets, smoothing):
    targets = (1 - smoothing) * targets + smoothing / targets.shape[1]
    shifted = logits - logits.max(axis=1, keepdims=True)
    return -(targets * (shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))).sum(axis=1).mean()


cross_entropy = jax.jit(jax.value_and_grad(objectives.cross_entropy), static_argnums=2)


@pytest.mark.parametrize("smoothing, scale", [(0.0, 1.0), (0.1, 1.0), (0.1, 1e4)])
def test_cross_entropy_matches_numpy(smoothing, scale):
    random = np.random.default_rng(0)
    logits, targets = scale * random.standard_normal((6, 5)), random.dirichlet(np.ones(5), 6)
    spec = dataclasses.replace(SPEC, label_smoothing=smoothing)
    value, slope = cross_entropy(single(logits), single(targets), spec)
    np.testing.assert_allclose(value, reference_cross_entropy(logits, targets, smoothing), rtol=1e-5)
    assert np.all(np.isfinite(slope)) and np.any(slope != 0)


def test_cross_entropy_of_bfloat16_logits_is_float32():
    logits, targets = jnp.asarray(np.random.default_rng(0).standard_normal((6, 5)), jnp.bfloat16), np.eye(6, 5)
    result = cross_entropy(logits, single(targets), SPEC)[0]
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, reference_cross_entropy(np.asarray(logits, np.float64), targets, 0.0), rtol=1e-5)


def test_mixed_targets_are_area_weighted_and_sum_to_one():
    labels, partner = np.array([0, 1, 2, 2, 1, 0]), np.array([1, 0, 3, 2, 4, 5])
    weight = single([0.5, 0.7, 0.6, 1.0, 0.9, 0.0])
    result = np.asarray(objectives.mixed_targets(labels, weight, partner, num_classes=4))
    expected = [
        [0.5, 0.5, 0, 0],
        [0.3, 0.7, 0, 0],
        [0, 0, 1, 0],  # of one class
        [0, 0, 1, 0],
        [0, 1, 0, 0],  # filled without a partner: the original label, whatever was kept
        [1, 0, 0, 0],
    ]
    np.testing.assert_allclose(result, expected, atol=1e-6)
    np.testing.assert_allclose(result.sum(axis=1), np.ones(6), atol=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(temperature=0.0), r"objective\.temperature must be a positive number, got 0\.0"),
        (dict(temperature=float("nan")), r"objective\.temperature must be a positive number, got nan"),
        (dict(base_temperature=-1.0), r"objective\.base_temperature must be a positive number, got -1\.0"),
        (dict(label_smoothing=1.0), r"objective\.label_smoothing must be a number at least 0 and below 1, got 1\.0"),
        (dict(label_smoothing=-0.1), r"objective\.label_smoothing must be a number at least 0 and below 1, got -0\.1"),
    ],
)
def test_spec_errors_name_key_value_and_range(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SPEC, **change)


LOSSES = {
    "simclr": lambda z, mixed, spec: objectives.simclr(batch_of(z), spec),
    "supcon": lambda z, mixed, spec: objectives.supcon(batch_of(z), spec),
    "mixed_simclr": lambda z, mixed, spec: objectives.mixed_simclr(batch_of(z), mixed, jnp.asarray(WEIGHTS), spec),
    "mixed_supcon": lambda z, mixed, spec: objectives.mixed_supcon(batch_of(z), mixed, jnp.asarray(WEIGHTS), spec),
}


def batch_of(z, labels=LABELS):
    return objectives.make_batch(z, z, jnp.asarray(labels), views=2)


@pytest.mark.parametrize("block_size", [1, 3])
@pytest.mark.parametrize("name", LOSSES)
def test_blocks_change_neither_value_nor_gradient(name, block_size):
    arrays = [jnp.asarray(x, jnp.float32) for x in (Z, MIXED)]
    blocked = dataclasses.replace(SPEC, block_size=block_size)
    plain, in_blocks = (
        jax.value_and_grad(lambda *arrays, spec=spec: LOSSES[name](*arrays, spec), (0, 1))(*arrays)
        for spec in (SPEC, blocked)
    )
    assert float(plain[0]) != 0
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(in_blocks)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_memory_of_blocks_grows_linearly():
    def temporary_bytes(images, block_size):
        spec = dataclasses.replace(SPEC, block_size=block_size)
        z = jax.ShapeDtypeStruct((2 * images, 16), jnp.float32)
        labels = jnp.zeros(images, jnp.int32)
        loss = jax.grad(lambda z: objectives.simclr(batch_of(z, labels), spec))
        return jax.jit(loss).lower(z).compile().memory_analysis().temp_size_in_bytes

    small, large = temporary_bytes(512, 128), temporary_bytes(1024, 128)
    assert large < 2.2 * small
    assert temporary_bytes(1024, 2048) > 4 * large
