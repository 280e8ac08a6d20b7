"""Every score against a float64 NumPy reference written from its paper, and what all of them have in common."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradmix_jax import metrics, scores
from gradmix_jax.scores import fitted, neighbours

K, F, N = 3, 8, 180
# Classes of different sizes: the last one has half of the images.
LABELS = np.minimum(np.random.default_rng(1).permutation(np.arange(N) % 4), K - 1)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def logsumexp(x):
    return np.log(np.exp(x - x.max(axis=1, keepdims=True)).sum(axis=1)) + x.max(axis=1)


class Toy:
    """Features >= 0 around one centre per known class, unknown ones weaker and between; a nearest-centre head."""

    rng = np.random.default_rng(0)
    centres = 3 * unit(np.abs(rng.normal(size=(K, F))))
    noise = lambda self, size: self.rng.normal(size=(size, F)) * 0.4

    def __init__(self):
        self.train = self.known(LABELS)
        self.validation = self.known(LABELS[:40])
        self.test = self.known(LABELS[:35])
        self.unknown = np.abs(0.4 * self.centres.mean(axis=0) + self.noise(35))
        self.head = self.centres.T, np.array([0.1, -0.3, 0.2])

    def known(self, labels):
        return np.abs(self.centres[labels] + self.noise(len(labels)))

    def logits(self, features):
        return features @ self.head[0] + self.head[1]

    def outputs(self, features):
        features = features.astype(np.float32)
        return scores.Outputs(features, self.logits(features).astype(np.float32))

    def reference(self):
        outputs = self.outputs
        return scores.Reference(outputs(self.train), LABELS, K, self.head, outputs(self.validation))


toy = Toy()
MEANS = np.stack([toy.train[k == LABELS].mean(axis=0) for k in range(K)])
CENTRED = toy.train - MEANS[LABELS]
SHARED = CENTRED.T @ CENTRED / N


def class_sums(x, k=3):
    cosine = unit(x) @ unit(toy.train).T
    return np.stack([np.sort(cosine[:, c == LABELS], axis=1)[:, -k:].sum(axis=1) for c in range(K)], axis=1)


def mahalanobis(x, mean, covariance):
    return np.einsum("nf,fg,ng->n", x - mean, np.linalg.inv(covariance), x - mean)


def to_shared(x):
    return np.min([mahalanobis(x, mean, SHARED) for mean in MEANS], axis=0)


def relative(x):
    return mahalanobis(x, toy.train.mean(axis=0), np.cov(toy.train.T, bias=True)) - to_shared(x)


def per_class(x):
    own = [np.cov(toy.train[c == LABELS].T, bias=True) for c in range(K)]
    return -np.min([mahalanobis(x, MEANS[c], 0.9 * own[c] + 0.1 * SHARED) for c in range(K)], axis=0)


def kl_matching(x):
    p, train = softmax(toy.logits(x)), softmax(toy.logits(toy.train))
    templates = [train[train.argmax(axis=1) == c].mean(axis=0) for c in range(K)]
    return -np.min([(p * np.log(p / template)).sum(axis=1) for template in templates], axis=0)


def vim(x):
    origin = -np.linalg.pinv(toy.head[0].T) @ toy.head[1]
    _, _, rows = np.linalg.svd(toy.train - origin)
    virtual = lambda features: np.linalg.norm((features - origin) @ rows[F // 2 :].T, axis=1)
    scale = toy.logits(toy.train).max(axis=1).sum() / virtual(toy.train).sum()
    return logsumexp(toy.logits(x)) - scale * virtual(x)


def z_scored(score, x):
    validation = score(toy.validation)
    return (score(x) - validation.mean()) / validation.std()


REFERENCES = {
    "topk_cosine": lambda x: class_sums(x).max(axis=1),
    "topk_cosine_normalized": lambda x: (class_sums(x) / class_sums(x).sum(axis=1, keepdims=True)).max(axis=1),
    "knn": lambda x: -np.sort(np.linalg.norm(unit(x)[:, None] - unit(toy.train), axis=2), axis=1)[:, 49],
    "class_mean_cosine": lambda x: np.max(
        unit(x) @ unit(np.stack([unit(toy.train[c == LABELS]).mean(axis=0) for c in range(K)])).T, axis=1
    ),
    "class_mean_l1": lambda x: -np.abs(x[:, None] - MEANS).sum(axis=2).min(axis=1),
    "mahalanobis": lambda x: -to_shared(x),
    "mahalanobis_per_class": per_class,
    "relative_mahalanobis": relative,
    "feature_norm": lambda x: np.sqrt((x**2).sum(axis=1)),
    "msp": lambda x: np.log(softmax(toy.logits(x)).max(axis=1)),
    "max_logit": lambda x: toy.logits(x).max(axis=1),
    "energy": lambda x: logsumexp(toy.logits(x)),
    "entropy": lambda x: (softmax(toy.logits(x)) * np.log(softmax(toy.logits(x)))).sum(axis=1),
    "kl_matching": kl_matching,
    "react": lambda x: logsumexp(toy.logits(np.minimum(x, np.percentile(toy.train, 90)))),
    "vim": vim,
    "ensemble": lambda x: (z_scored(lambda y: class_sums(y).max(axis=1), x) + z_scored(relative, x)) / 2,
}


def test_every_score_has_a_reference():
    assert set(REFERENCES) == set(scores.SCORES)


@pytest.mark.parametrize("name", list(scores.SCORES))
def test_a_score_is_few_programs(name, programs):
    # Sizes that no other test has: nothing of it is compiled yet, whatever ran before.
    features, labels = np.random.default_rng(0).random((61, 5), np.float32), np.repeat([0, 1, 2], [7, 23, 31])
    outputs = scores.Outputs(features, features[:, :3])
    head = np.eye(5, 3, dtype=np.float32), np.ones(3, np.float32)
    state = scores.fit(name, scores.Reference(outputs, labels, 3, head, outputs))
    scores.score(name, state, outputs)
    assert len(programs) <= (12 if name == "ensemble" else 4), programs


@pytest.mark.parametrize("name", list(scores.SCORES))
def test_score(name):
    state = scores.fit(name, toy.reference())
    known, unknown = (np.asarray(scores.score(name, state, toy.outputs(x))) for x in (toy.test, toy.unknown))
    np.testing.assert_allclose(known, REFERENCES[name](toy.test), rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(unknown, REFERENCES[name](toy.unknown), rtol=2e-4, atol=2e-5)
    # Higher means known, and no image's score depends on the other test images.
    assert metrics.auroc(known, unknown) > 0.65
    alone = scores.score(name, state, jax.tree.map(lambda part: part[:1], toy.outputs(toy.test)))
    np.testing.assert_allclose(alone, known[:1], rtol=1e-5, atol=1e-5)


def numpy_topk(features, bank, labels, k, num_classes):
    cosine = unit(features.astype(np.float64)) @ unit(bank.astype(np.float64)).T
    sums = [np.sort(cosine[:, labels == c], axis=1)[:, ::-1][:, :k].sum(axis=1) for c in range(num_classes)]
    return np.stack(sums, axis=1)


@pytest.mark.parametrize(
    "sizes, k",
    [
        ((10, 10, 10, 10), 3),
        ((10, 12, 9, 11), 3),
        ((1, 2, 40, 5), 3),  # classes smaller than k, and one cut into parts
        ((1, 30, 1, 1, 1, 1), 7),  # k larger than a part
        ((20,), 1),
    ],
)
@pytest.mark.parametrize("tile", [(4, 1), (5, 16), (64, 640)])
def test_topk_cosine_for_any_class_sizes(sizes, k, tile):
    rng = np.random.default_rng(sum(sizes))
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    features, bank = rng.normal(size=(13, 5)) * 3, rng.normal(size=(len(labels), 5))
    got = scores.topk_cosine(features, bank, labels, k=k, num_classes=len(sizes), tile=tile)
    np.testing.assert_allclose(got, numpy_topk(features, bank, labels, k, len(sizes)), atol=1e-5)


def test_bank_padding_is_bounded():
    rng = np.random.default_rng(0)
    for sizes in ([1000, *[1] * 199], [5] * 200, [7, 5, 6], [1]):
        labels = np.repeat(np.arange(len(sizes)), sizes)
        bank = scores.class_bank(rng.normal(size=(len(labels), 2)), labels, num_classes=len(sizes))
        assert bank.valid_PxL.sum() == len(labels)
        assert bank.valid_PxL.size <= 2 * len(labels) + 2 * len(sizes)


def test_topk_cosine_memory_is_that_of_a_tile():
    bank = scores.class_bank(np.ones((2048, 4)), np.arange(2048) % 2, num_classes=2)
    features = jax.ShapeDtypeStruct((4096, 4), jnp.float32)
    compiled = scores.class_similarities.lower(bank, features, tile=(32, 512)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4096 * 2048 * 4 / 8


def test_topk_cosine_normalized_divides_by_the_sum_over_classes():
    rng = np.random.default_rng(0)
    features, bank, labels = rng.normal(size=(6, 4)), rng.normal(size=(20, 4)), np.arange(20) % 2
    raw, normalized = (
        np.asarray(scores.topk_cosine(features, bank, labels, num_classes=2, normalized=flag)) for flag in (False, True)
    )
    np.testing.assert_allclose(normalized, raw / raw.sum(axis=1, keepdims=True), rtol=1e-4)


def test_bank_ignores_scale_and_order():
    rng = np.random.default_rng(0)
    features, bank, labels = rng.normal(size=(6, 4)), rng.normal(size=(20, 4)), np.arange(20) % 4
    shuffle = rng.permutation(20)
    expected = scores.topk_cosine(features, bank, labels, num_classes=4)
    got = scores.topk_cosine(9 * features, 5 * bank[shuffle], labels[shuffle], num_classes=4)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_knn_takes_the_whole_of_a_small_training_set():
    reference = scores.Reference(scores.Outputs(toy.train[:6]), np.arange(6) % K, K)
    state = scores.fit("knn", reference)
    distances = np.linalg.norm(unit(toy.test)[:, None] - unit(toy.train[:6]), axis=2)
    np.testing.assert_allclose(scores.score("knn", state, scores.Outputs(toy.test)), -distances.max(axis=1), rtol=1e-4)


def test_mahalanobis_ignores_dead_features():
    dead = np.concatenate([toy.train, np.zeros((N, 2))], axis=1)
    alive = scores.fit("mahalanobis", scores.Reference(scores.Outputs(toy.train), LABELS, K))
    padded = scores.fit("mahalanobis", scores.Reference(scores.Outputs(dead), LABELS, K))
    np.testing.assert_allclose(
        scores.score("mahalanobis", padded, scores.Outputs(np.pad(toy.test, ((0, 0), (0, 2))))),
        scores.score("mahalanobis", alive, scores.Outputs(toy.test)),
        rtol=1e-3,
    )


def test_kl_matching_without_a_class_that_is_never_predicted():
    logits = np.float32([[5, 0, 0], [4, 0, 1], [0, 5, 0]])
    reference = scores.Reference(scores.Outputs(np.ones((3, 2)), logits), [0, 1, 2], K)
    state = scores.fit("kl_matching", reference)
    score_N = scores.score("kl_matching", state, scores.Outputs(None, logits))
    assert len(state) == 2 and np.isfinite(score_N).all() and score_N[2] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["msp", "entropy"])
def test_sure_images_do_not_tie(name):
    # Softmax probabilities of all of these round to 1 in float32.
    logits = np.stack([np.arange(20.0, 60.0), np.zeros(40)], axis=1).astype(np.float32)
    assert np.all(np.diff(scores.score(name, (), scores.Outputs(None, logits))) > 0)


def test_options_reach_the_fit():
    reference = toy.reference()
    one = scores.score("topk_cosine", scores.fit("topk_cosine", reference, k=1), toy.outputs(toy.test))
    np.testing.assert_allclose(one, class_sums(toy.test, k=1).max(axis=1), rtol=1e-5)
    plain = scores.score("react", scores.fit("react", reference, percentile=100.0), toy.outputs(toy.train))
    np.testing.assert_allclose(plain, logsumexp(toy.logits(toy.train)), rtol=1e-4)
    assert scores.fit("vim", reference, dimension=6).residual_FxR.shape == (F, 2)


def test_usable_are_those_whose_parts_exist():
    features_only = scores.Reference(scores.Outputs(toy.train), LABELS, K)
    assert "topk_cosine" in scores.usable(features_only) and "ensemble" not in scores.usable(features_only)
    assert {"msp", "kl_matching", "react", "vim"}.isdisjoint(scores.usable(features_only))
    assert scores.usable(toy.reference()) == tuple(scores.SCORES)


def test_matching_precision_is_not_left_to_the_accelerator():
    # TF32 or bfloat16 products cannot tell cosines near 1 apart; the CPU of the tests would not show it.
    assert "HIGHEST" in str(
        jax.make_jaxpr(neighbours.score_knn)(neighbours.fit_knn(toy.reference()), toy.outputs(toy.test))
    )


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: scores.fit("softmax", toy.reference()), "score must be one of topk_cosine, .*, got 'softmax'"),
        (lambda: scores.score("softmax", (), toy.outputs(toy.test)), "score must be one of"),
        (lambda: scores.fit("energy", scores.Reference(scores.Outputs(toy.train), LABELS, K)), "needs logits"),
        (lambda: scores.fit("vim", scores.Reference(scores.Outputs(toy.train), LABELS, K)), "needs head"),
        (lambda: scores.fit("vim", toy.reference(), dimension=F), "dimension must be in 1 .. 7"),
        (
            lambda: scores.fit(
                "ensemble",
                scores.Reference(scores.Outputs(unit(toy.train)), LABELS, K, None, scores.Outputs(np.ones((4, F)))),
            ),
            r"must vary over the validation images, \['topk_cosine', 'relative_mahalanobis'\]",
        ),
        (lambda: scores.Reference(scores.Outputs(toy.train), LABELS[:-1], K), r"integers \[180\], one per feature"),
        (lambda: scores.Reference(scores.Outputs(toy.train), LABELS * 1.0, K), "integers"),
        (lambda: scores.Reference(scores.Outputs(toy.train), LABELS, K + 1), r"none for class \[3\]"),
        (lambda: scores.Reference(scores.Outputs(toy.train), LABELS - 1, K), "0 .. 2, got -1 .. 1"),
        (lambda: scores.topk_cosine(toy.test, toy.train, LABELS, num_classes=2), "0 .. 1, got 0 .. 2"),
        (lambda: scores.topk_cosine(toy.test, toy.train, LABELS, k=0, num_classes=3), "k must be at least 1"),
    ],
)
def test_bad_input_raises_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


NAMES = ("topk_cosine", "relative_mahalanobis", "ensemble")


@pytest.mark.parametrize(
    "num_classes, validation, left, words",
    [
        (3, toy.validation, NAMES, ""),
        (1, toy.validation, NAMES[:1], "relative_mahalanobis got 1 known class; allowed: 2 or more"),
        (3, toy.validation[:1], NAMES[:2], "members must vary over the validation images"),
        (3, np.ones((4, F)), NAMES[:2], "members must vary over the validation images"),
    ],
)
def test_scores_that_cannot_be_fitted_are_left_out_unless_required(num_classes, validation, left, words):
    given = dict(num_classes=num_classes, features=["features"], names=NAMES, k=3)
    outputs = {"validation": {"features": validation}}
    fit = lambda **more: fitted.fit_all({"features": toy.train}, LABELS % num_classes, **given, **outputs, **more)
    found = fit()
    assert tuple(found.states["features"]) == left
    assert all(np.isfinite(x).all() for x in found.scores({"features": toy.test})["features"].values())
    assert tuple(fit(required=("features", "topk_cosine")).states["features"]) == left
    for name in set(NAMES) - set(left):
        with pytest.raises(ValueError, match=words):
            fit(required=("features", name))


def test_the_length_of_unit_features_is_no_score(caplog):
    given = dict(num_classes=K, features=["features"], names=("topk_cosine", "feature_norm"), k=3)
    train = {"features": unit(toy.train).astype(np.float32)}
    # As it must be with a projection: no warning.
    assert list(fitted.fit_all(train, LABELS, **given).states["features"]) == ["topk_cosine"] and not caplog.records
    with pytest.raises(ValueError, match="feature_norm got features of one length, 1; allowed: of different lengths"):
        fitted.fit_all(train, LABELS, **given, required=("features", "feature_norm"))


def test_the_ensemble_uses_what_is_fitted_already_but_with_neighbours_of_its_own():
    outputs = toy.outputs(toy.test)
    given = dict(num_classes=K, features=["features"], names=NAMES, k=7, validation={"features": toy.validation})
    found = fitted.fit_all({"features": toy.train.astype(np.float32)}, LABELS, **given)
    states = found.states["features"]
    assert states["ensemble"].states[1] is states["relative_mahalanobis"]
    expected = scores.score("ensemble", scores.fit("ensemble", toy.reference()), outputs)
    np.testing.assert_allclose(found.score("features", "ensemble", outputs._asdict()), expected, rtol=1e-4, atol=1e-4)
