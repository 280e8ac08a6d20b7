"""Objectives of published methods against float64 loops written from their papers: values, slopes, devices, keys."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_objectives
import test_self_supervised
from programs import small_config
from scipy.special import logsumexp

from gradmix_jax import config as config_lib
from gradmix_jax import models, objectives
from gradmix_jax.config import phase
from gradmix_jax.models import heads, prototypes

VIEWS, IMAGES, K, D = 2, 6, 4, 5
LABELS = {False: np.array([0, 1, 2, 3, 0, 2], np.int32), True: np.array([0, -1, 2, -1, 0, 3], np.int32)}
# In pairs, view v with view 1 - v, so that three devices with two images each have the same partners.
PARTNER = np.array([VIEWS * IMAGES // 2 * (1 - view) + (image ^ 1) for view in (0, 1) for image in range(IMAGES)])
WEIGHTS = np.linspace(0.5, 0.95, VIEWS * IMAGES)
OPTIONS = {
    "arpl": {"temperature": 2.0, "radius_weight": 0.7, "margin": 0.5},
    "gcpl": {"gamma": 1.5, "prototype_weight": 0.3},
    "sphor": {"temperature": 0.4, "smoothing": 0.1, "orthogonality": 0.2},
    "soft_supcon": {"smoothing": 0.2},
    "logit_norm": {"temperature": 0.3},
    "cross_entropy": {"temperature": 0.5},
}
DEFAULTS = config_lib.default_config().objective.to_dict()
SPEC = objectives.Spec(
    **DEFAULTS | {"temperature": 0.5, "base_temperature": 0.25, "label_smoothing": 0.1, "options": OPTIONS}
)
FACTOR = 1.5
KEY = jax.random.key(17)  # with this key, pairs count both with and without negatives


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def draw(seed):
    """A model's outputs for a batch: float64 z, logits, and the outputs of the heads."""
    random = np.random.default_rng(seed)
    rows = VIEWS * IMAGES
    points = unit(random.standard_normal((K, D)))
    head = {
        "distance": random.uniform(0.2, 2.0, (rows, K)),
        "radius": np.float64(0.6),
        "cosine": random.uniform(-1, 1, (rows, K)),
        "between": points @ points.T,
    }
    return {"z": unit(random.standard_normal((rows, D))), "logits": random.standard_normal((rows, K)), "head": head}


CLEAN, MIXED = draw(0), draw(1)
# Most images are classified correctly, because only those count in the ranking loss.
CLEAN["logits"] += 2.5 * np.eye(K)[np.tile(LABELS[False], VIEWS)]
MIXED["head"] |= {name: CLEAN["head"][name] for name in ("radius", "between")}


def targets(negatives, mixed):
    labels = np.tile(LABELS[negatives], VIEWS)
    one_hot = np.array([[float(label == k) for k in range(K)] for label in labels])
    return WEIGHTS[:, None] * one_hot + (1 - WEIGHTS[:, None]) * one_hot[PARTNER] if mixed else one_hot


def log_softmax(x):
    return x - logsumexp(x, axis=-1, keepdims=True)


def smoothed_among_all(q):
    return 0.9 * q + 0.1 * q.sum(axis=1, keepdims=True) / K


def smoothed_among_others(q, share):
    return np.array([[(1 - share) * row[k] + share * (row.sum() - row[k]) / (K - 1) for k in range(K)] for row in q])


def over_known(losses, q):
    """The mean of losses that are linear in their targets, weighted by the sum of the targets."""
    return losses.sum() / q.sum()


def arpl(x, q, first):
    head, o = x["head"], OPTIONS["arpl"]
    ce = -(smoothed_among_all(q) * log_softmax(x["logits"] / (o["temperature"] * FACTOR))).sum(axis=1)
    beyond = np.maximum(head["distance"] - head["radius"] + o["margin"], 0)
    return over_known(ce + o["radius_weight"] * (q * beyond).sum(axis=1), q)


def gcpl(x, q, first):
    distance, o = x["head"]["distance"], OPTIONS["gcpl"]
    ce = -(smoothed_among_all(q) * log_softmax(-o["gamma"] * distance / FACTOR)).sum(axis=1)
    return over_known(ce + o["prototype_weight"] * (q * distance).sum(axis=1), q)


def logit_norm(x, q, first):
    normalized = unit(x["logits"]) / (OPTIONS["logit_norm"]["temperature"] * FACTOR)
    return over_known(-(smoothed_among_all(q) * log_softmax(normalized)).sum(axis=1), q)


def cross_entropy(x, q, first):
    tempered = x["logits"] / (OPTIONS["cross_entropy"]["temperature"] * FACTOR)
    return over_known(-(smoothed_among_all(q) * log_softmax(tempered)).sum(axis=1), q)


def sphor(x, q, first):
    o, head = OPTIONS["sphor"], x["head"]
    temperature = o["temperature"] * FACTOR
    soft = smoothed_among_others(q, o["smoothing"])
    loss = over_known(-(soft * log_softmax(head["cosine"] / temperature)).sum(axis=1), q)
    if not first:
        return loss
    for i in range(K):
        others = [np.exp(head["between"][i, j] ** 2 / temperature) for j in range(K) if j != i]
        loss += o["orthogonality"] * np.log(np.mean(others))
    return loss


def soft_supcon_of(z, q):
    temperature = SPEC.temperature * FACTOR
    soft = smoothed_among_others(q, OPTIONS["soft_supcon"]["smoothing"])
    norms = np.linalg.norm(soft, axis=1)
    soft = soft / np.where(norms > 0, norms, 1)[:, None]
    losses = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        weights = np.array([soft[i] @ soft[j] for j in others])
        similarity = np.array([z[i] @ z[j] / temperature for j in others])
        if weights.sum() > 0:
            losses.append(-(weights * log_softmax(similarity)).sum() / weights.sum())
    return temperature / SPEC.base_temperature * np.array(losses)


def soft_supcon(x, q, first):
    return soft_supcon_of(x["z"], q).mean()


def soft_supcon_mixed(clean, mixed, negatives):
    """One mean over the clean and the mixed rows that are of a known class, minus that over the clean rows alone."""
    q = [targets(negatives, mixed=False), targets(negatives, mixed=True)]
    together = soft_supcon_of(np.concatenate([clean["z"], mixed["z"]]), np.concatenate(q))
    return together.mean() - soft_supcon(clean, q[0], True)


def uniform(x):
    return -log_softmax(x["logits"]).mean(axis=1)


def outlier_exposure(x, q, first):
    """The share of a row that belongs to no known class."""
    share = 1 - q.sum(axis=1)
    return (share * uniform(x)).sum() / share.sum() if share.sum() > 1e-9 else 0.0


def open_auc(x, q, first):
    """Loops over the halves, with the draws of the step's key."""
    of_partner, of_share = jax.random.split(jax.random.fold_in(KEY, 0))
    half = len(q) // 2
    partner = np.asarray(jax.random.permutation(of_partner, half))
    share = float(jax.random.beta(of_share, 2.0, 2.0))
    label = lambda row: int(q[row].argmax()) if q[row].sum() else -1
    total, count = 0.0, 0
    for i in range(half):
        a, b = half + i, half + partner[i]
        mix = share * x["logits"][a] + (1 - share) * x["logits"][b]
        if label(a) != label(b) and min(label(a), label(b)) >= 0 and x["logits"][i].argmax() == label(i):
            total, count = total + (1 + mix.max() - x["logits"][i].max()) ** 2, count + 1
    assert count, "the case must have pairs that count"
    return total / count


REFERENCES = {
    "arpl": arpl,
    "gcpl": gcpl,
    "logit_norm": logit_norm,
    "cross_entropy": cross_entropy,
    "sphor": sphor,
    "soft_supcon": soft_supcon,
    "outlier_exposure": outlier_exposure,
    "open_auc": open_auc,
}
CASES = [(name, mixed, negatives) for name in REFERENCES for mixed in (False, True) for negatives in (False, True)]
CASES = [case for case in CASES if case[0] != "open_auc" or not case[1]]


def reference(name, clean, mixed, negatives):
    if name == "soft_supcon" and mixed is not None:
        return soft_supcon_mixed(clean, mixed, negatives)
    q = targets(negatives, mixed is not None)
    return REFERENCES[name](clean if mixed is None else mixed, q, mixed is None)


def loss(name, clean, mixed, labels, weights, partner, negatives, *, axis_name=None, factor=FACTOR, spec=SPEC):
    """Of the objective's entry, as the step asks for it."""
    contrast = objectives.gather(clean["z"], axis_name)
    more = dict(views=VIEWS, axis_name=axis_name, temperature_factor=factor)
    batch = objectives.make_batch(clean["z"], contrast, labels, **more)
    same = batch, clean["logits"], labels, K, spec
    given = objectives.Given(*same, head=clean["head"], key=KEY, has_negatives=negatives)
    entry = objectives.OBJECTIVES[name]
    if mixed is None:
        return entry.clean(given)
    return entry.mixed(given, objectives.Mixed(mixed["z"], mixed["logits"], weights, partner, mixed["head"]))


def single(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def directions(inputs, seed):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: random.standard_normal(np.shape(x)), inputs)


@pytest.mark.parametrize(("name", "is_mixed", "negatives"), CASES)
def test_values_and_slopes_are_those_of_float64_loops(name, is_mixed, negatives):
    inputs = (CLEAN, MIXED) if is_mixed else (CLEAN, None)

    @jax.jit
    def both(inputs, labels, weights, partner):
        return jax.value_and_grad(lambda inputs: loss(name, *inputs, labels, weights, partner, negatives))(inputs)

    value, slope = both(single(inputs), LABELS[negatives], jnp.asarray(WEIGHTS, jnp.float32), PARTNER)
    np.testing.assert_allclose(value, reference(name, *inputs, negatives), rtol=2e-5, atol=1e-6)
    for seed in range(3):
        direction = directions(inputs, seed)
        moved = [jax.tree.map(lambda x, d, h=step: x + h * d, inputs, direction) for step in (1e-5, -1e-5)]
        ends = [reference(name, *each, negatives) for each in moved]
        along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (np.float64(g) * d).sum(), slope, direction)))
        np.testing.assert_allclose(along, (ends[0] - ends[1]) / 2e-5, rtol=2e-3, atol=2e-4)


# The others average as cross-entropy does.
SPREAD = [("soft_supcon", True), ("open_auc", False), ("outlier_exposure", True), ("cross_entropy", True)]


@pytest.mark.parametrize(("name", "is_mixed"), [*SPREAD, ("sphor", False)])
def test_three_devices_have_the_loss_and_the_slope_of_one(name, is_mixed):
    """Negatives are spread unevenly over the devices."""
    devices, b = 3, IMAGES // 3
    inputs = single((CLEAN, MIXED) if is_mixed else (CLEAN, None))

    def spread(x):
        shape = np.shape(x)
        if not shape or shape[0] != VIEWS * IMAGES:
            return np.broadcast_to(x, (devices, *shape))
        return np.moveaxis(np.reshape(x, (VIEWS, devices, b, *shape[1:])), 1, 0).reshape(devices, VIEWS * b, *shape[1:])

    place = np.array([[view * b + image % b for image in range(IMAGES)] for view in range(VIEWS)]).ravel()
    labels, weights, partner = LABELS[True], np.float32(WEIGHTS), place[PARTNER]
    of = lambda inputs, *rest: loss(name, *inputs, *rest, True)
    one = jax.jit(jax.value_and_grad(of))(inputs, labels, weights, PARTNER)
    on_device = lambda inputs, *rest: jax.value_and_grad(
        lambda inputs: loss(name, *inputs, *rest, True, axis_name="batch")
    )(inputs)
    given = jax.tree.map(spread, inputs), labels.reshape(devices, b), spread(weights), spread(partner)
    value, slope = jax.jit(jax.vmap(on_device, axis_name="batch"))(*given)
    np.testing.assert_allclose(np.mean(value), one[0], rtol=1e-5)
    for own, whole in zip(jax.tree.leaves(slope), jax.tree.leaves(one[1])):
        whole = np.asarray(whole)
        if whole.ndim and whole.shape[0] == VIEWS * IMAGES:
            # Each row is on one device, and the gradient of parameters is a mean over devices.
            np.testing.assert_allclose(np.asarray(own) / devices, spread(whole), rtol=1e-4, atol=1e-6)
        else:
            np.testing.assert_allclose(np.mean(own, axis=0), whole, rtol=1e-4, atol=1e-6)


ELSEWHERE = {
    "simclr": test_objectives.test_losses_match_numpy,
    "supcon": test_objectives.test_losses_match_numpy,
    "moco": test_self_supervised.test_moco_equals_the_softmax_over_positive_and_queue,
    "barlow_twins": test_self_supervised.test_barlow_twins_equals_its_equation,
}


def test_every_objective_has_a_reference():
    assert {*REFERENCES, *ELSEWHERE} == set(objectives.OBJECTIVES)


def value_of(name, clean, negatives=False, **others):
    """Of the clean views."""
    of = lambda clean, labels: loss(name, clean, None, labels, None, None, negatives, **others)
    return float(jax.jit(of)(single(clean), LABELS[negatives]))


def with_option(name, **values):
    return dataclasses.replace(SPEC, options={**SPEC.options, name: {**SPEC.options[name], **values}})


def test_soft_labels_that_are_hard_are_supcon():
    hard = value_of("soft_supcon", CLEAN, spec=with_option("soft_supcon", smoothing=0.0))
    assert hard == pytest.approx(value_of("supcon", CLEAN), rel=1e-5)


def test_symmetries():
    scaled = CLEAN | {"logits": 100 * CLEAN["logits"]}
    assert value_of("logit_norm", scaled) == pytest.approx(value_of("logit_norm", CLEAN), rel=1e-5)
    # Outlier exposure ignores known images, and cross-entropy ignores negative ones.
    is_negative = np.tile(LABELS[True] < 0, VIEWS)[:, None]
    changed = [CLEAN | {"logits": CLEAN["logits"] + 9 * MIXED["logits"] * rows} for rows in (is_negative, ~is_negative)]
    assert value_of("cross_entropy", changed[0], True) == pytest.approx(
        value_of("cross_entropy", CLEAN, True), rel=1e-5
    )
    exposed = value_of("outlier_exposure", CLEAN, True)
    assert value_of("outlier_exposure", changed[1], True) == pytest.approx(exposed, rel=1e-5)
    assert exposed > np.log(K)
    assert value_of("outlier_exposure", CLEAN | {"logits": np.zeros((12, K))}, True) == pytest.approx(np.log(K))
    assert value_of("outlier_exposure", CLEAN, False) == 0
    # Within the radius there is no constraint, whatever the weight of the margin.
    inside = CLEAN | {"head": CLEAN["head"] | {"radius": np.float64(99.0)}}
    tempered = CLEAN["logits"] / (2.0 * FACTOR)
    assert value_of("arpl", inside) == pytest.approx(
        float(objectives.cross_entropy(tempered, targets(False, False), SPEC)), rel=1e-5
    )


def test_label_embeddings_repel_until_they_are_orthogonal():
    repulsion = partial(objectives.repulsion, temperature=0.5)
    assert float(repulsion(jnp.eye(K))) == pytest.approx(0, abs=1e-6)
    close = 0.3 * (1 - np.eye(K)) + np.eye(K)
    assert float(repulsion(close)) == pytest.approx(K * 0.09 / 0.5, rel=1e-5)
    assert float(repulsion(2 * np.eye(K) - close)) == pytest.approx(float(repulsion(close)), rel=1e-6)
    assert float(repulsion(jnp.ones((1, 1)))) == 0


def test_zero_logits_have_a_finite_slope():
    slope = jax.grad(lambda x: objectives.logit_norm(x, jnp.eye(K), temperature=0.04).sum())(jnp.zeros((K, K)))
    assert np.isfinite(slope).all()


def test_temperature_follows_the_negative_cosine():
    """The published formula for lowest and highest temperature 0.1 and 0.4, 600 epochs, period 200."""
    keys = {"temperature_schedule": "negative_cosine"}
    spec = objectives.Spec(**DEFAULTS | keys)
    factor = jax.jit(lambda epoch: objectives.temperature_factor(spec, epoch, 600))
    for epoch in (0, 1, 50, 99, 100, 150, 200, 333, 499, 500, 501, 555, 599):
        wave = 0.1 + 0.3 * (1 + np.cos(2 * np.pi * (epoch - 100) / 200)) / 2
        assert 0.1 * float(factor(epoch)) == pytest.approx(wave if epoch < 500 else 0.4, rel=1e-4)
    assert float(factor(0)) == 1 and objectives.temperature_factor(objectives.Spec(**DEFAULTS), 0, 600) == 1.0


@pytest.mark.parametrize("name", ["simclr", "cross_entropy", "logit_norm", "sphor", "arpl"])
def test_the_factor_multiplies_the_temperature(name):
    """A factor of 4 equals 4 times the option (for contrastive losses, `objective.temperature`)."""
    expected = value_of(name, CLEAN, factor=4 * FACTOR)
    assert value_of(name, CLEAN) != pytest.approx(expected, rel=1e-3)
    hotter = dataclasses.replace(SPEC, temperature=4 * SPEC.temperature)
    if "temperature" in SPEC.options.get(name, {}):
        hotter = with_option(name, temperature=4 * SPEC.options[name]["temperature"])
    assert value_of(name, CLEAN, spec=hotter) == pytest.approx(expected, rel=1e-5)


def test_heads_equal_numpy():
    random = np.random.default_rng(0)
    features, points = random.standard_normal((6, 9)), random.standard_normal((K, 9))
    distance = np.array([[np.mean((f - p) ** 2) for p in points] for f in features])
    params = {"params": single({"points": points, "radius": 0.25})}
    said = prototypes.ReciprocalPoints(K).apply(params, single(features))
    np.testing.assert_allclose(said["logits"], distance - features @ points.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(said["distance"], distance, rtol=1e-5)
    assert float(said["radius"]) == 0.25
    said = prototypes.Prototypes(K).apply({"params": single({"points": points})}, single(features))
    np.testing.assert_allclose(said["logits"], -distance, rtol=1e-5)
    said = prototypes.SphericalPrototypes(K).apply({"params": single({"points": points})}, single(unit(features)))
    np.testing.assert_allclose(said["cosine"], unit(features) @ unit(points).T, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(said["between"], unit(points) @ unit(points).T, rtol=1e-4, atol=1e-6)
    assert heads.l2_normalize(jnp.zeros(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("classifier", "logits"), [("spherical", False), ("prototypes", True), ("linear", True)])
def test_which_heads_give_logits(classifier, logits):
    spec = dataclasses.replace(models.Spec(**config_lib.default_config().model.to_dict()), classifier=classifier)
    network = models.create(dataclasses.replace(spec, width=4, hidden=8, projection=4), num_classes=3)
    image = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    (_, out), _ = jax.eval_shape(partial(network.init_with_output, train=False), jax.random.key(0), image)
    assert ("logits" in out) == spec.has_logits == logits
    assert ("head" in out) == (classifier != "linear")


ARPL = {"model.classifier": "reciprocal_points"}


@pytest.mark.parametrize(
    ("weights", "overrides", "message"),
    [
        ({"arpl": 1.0}, {}, r"phases\[0\]\.arpl needs model\.classifier 'reciprocal_points', got 'none'"),
        ({"gcpl": 1.0}, ARPL, r"phases\[0\]\.gcpl needs model\.classifier 'prototypes', got 'reciprocal_points'"),
        ({"sphor": 1.0}, {}, r"phases\[0\]\.sphor needs model\.classifier 'spherical', got 'none'"),
        ({"open_auc": 1.0}, ARPL, r"open_auc needs model\.classifier 'linear' or 'linear_without_bias', got"),
        ({"logit_norm": 1.0}, {"model.classifier": "spherical"}, r"logit_norm needs a model\.classifier that gives"),
        ({"cross_entropy": 1.0}, {}, r"cross_entropy needs a model\.classifier that gives logits"),
        (
            {"outlier_exposure": 1.0},
            {"model.classifier": "linear"},
            r"outlier_exposure needs negative classes; set dataset\.negative or dataset\.num_negative",
        ),
        (
            {"arpl": 1.0},
            {"objective.options": {"arpl": {"margin": -1.0}}},
            r"objective\.options\.arpl\.margin must be a number at least 0, got -1\.0",
        ),
        (
            {"supcon": 1.0},
            {"objective.temperature_schedule": "cosine"},
            r"objective\.temperature_schedule must be one of constant, negative_cosine, got 'cosine'",
        ),
        (
            {"supcon": 1.0},
            {"objective.schedules": {"negative_cosine": {"ratio": 0.5}}},
            r"objective\.schedules\.negative_cosine\.ratio must be a number at least 1, got 0\.5",
        ),
    ],
)
def test_a_wrong_config_is_named(weights, overrides, message):
    config = small_config("none", (phase("only", epochs=1, **weights),), **overrides)
    with pytest.raises(ValueError, match=message):
        config_lib.from_config(config, num_devices=1)
