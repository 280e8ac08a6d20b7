"""Every score against a float64 NumPy reference written from its paper, and what all of them have in common."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradmix_jax import metrics, scores
from gradmix_jax.scores import fitted, neighbors

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
        # The model of the tests takes features as its images.
        return scores.Outputs(features, self.logits(features).astype(np.float32), features)

    def reference(self):
        outputs, head = self.outputs, tuple(np.float32(weights) for weights in self.head)
        model = jax.tree_util.Partial(lambda head, x: jnp.tanh(x) @ head[0] + head[1][None], head)
        return scores.Reference(outputs(self.train), LABELS, K, self.head, outputs(self.validation), model)


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


def mahalanobis_plus_plus(x):
    train, test = unit(toy.train), unit(x)
    means = np.stack([train[c == LABELS].mean(axis=0) for c in range(K)])
    centered = train - means[LABELS]
    return -np.min([mahalanobis(test, mean, centered.T @ centered / N) for mean in means], axis=0)


def kl_matching(x):
    p, held_out = softmax(toy.logits(x)), softmax(toy.logits(toy.validation))
    templates = [held_out[held_out.argmax(axis=1) == c].mean(axis=0) for c in range(K)]
    return -np.min([(p * np.log(p / template)).sum(axis=1) for template in templates], axis=0)


def entropy(x):
    p = softmax(toy.logits(x))
    return -np.log(-(p * np.log(p)).sum(axis=1))


def gen(x, gamma=0.1, largest=K):
    p = np.sort(softmax(toy.logits(x)), axis=1)[:, ::-1][:, :largest]
    return -np.log((p**gamma * (1 - p) ** gamma).sum(axis=1))


def ash(x, variant="s", percentile=90):
    kept = F - round(F * percentile / 100)
    shaped = []
    for feature in x:
        largest = np.argsort(-feature)[:kept]
        value = feature[largest]
        change = {"s": value * np.exp(feature.sum() / value.sum()), "b": feature.sum() / kept, "p": value}
        shaped.append(np.zeros(F))
        shaped[-1][largest] = change[variant]
    return logsumexp(toy.logits(np.array(shaped)))


def dice(x, percentile=90):
    kernel, bias = toy.head
    contribution = toy.train.mean(axis=0)[:, None] * kernel
    return logsumexp(x @ (kernel * (contribution > np.percentile(contribution, percentile))) + bias)


def she(x):
    correct = toy.logits(toy.train).argmax(axis=1) == LABELS
    pattern = np.stack([toy.train[correct & (c == LABELS)].mean(axis=0) for c in range(K)])
    return (x * pattern[toy.logits(x).argmax(axis=1)]).sum(axis=1)


def gradnorm(x):
    """From the gradient itself, one image at a time: of the kernel, by the chain rule, x_F times d loss / d logit_K."""
    of_logits = softmax(toy.logits(x)) - 1 / K
    return np.array([np.abs(np.outer(feature, gradient)).sum() for feature, gradient in zip(x, of_logits)])


def nnguide(x, k=10, kept=slice(None)):
    bank = (unit(toy.train) * logsumexp(toy.logits(toy.train))[:, None])[kept]
    return np.sort(unit(x) @ bank.T, axis=1)[:, -k:].mean(axis=1) * logsumexp(toy.logits(x))


def odin(x, temperature=1000, noise=0.0014):
    """Of logits = tanh(x) @ kernel + bias; log p_max = logits_max / T - logsumexp(logits / T), its gradient by hand."""
    kernel, bias = toy.head
    logits = lambda x: np.tanh(x) @ kernel + bias
    p, top = softmax(logits(x) / temperature), logits(x).argmax(axis=1)
    gradient = (1 - np.tanh(x) ** 2) * (kernel[:, top].T - p @ kernel.T) / temperature
    return np.log(K * softmax(logits(x + noise * np.sign(gradient)) / temperature).max(axis=1))


def vim(x, dimension=F // 2):
    origin = -np.linalg.pinv(toy.head[0].T) @ toy.head[1]
    _, _, rows = np.linalg.svd(toy.train - origin)
    virtual = lambda features: np.linalg.norm((features - origin) @ rows[dimension:].T, axis=1)
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
    "msp": lambda x: np.log(softmax(toy.logits(x)).max(axis=1) / (1 - softmax(toy.logits(x)).max(axis=1))),
    "max_logit": lambda x: toy.logits(x).max(axis=1),
    "energy": lambda x: logsumexp(toy.logits(x)),
    "entropy": entropy,
    "gen": gen,
    "gradnorm": gradnorm,
    "postmax": lambda x: toy.logits(x).max(axis=1) / np.sqrt((x**2).sum(axis=1)),
    "she": she,
    "nnguide": nnguide,
    "ash": ash,
    "dice": dice,
    "odin": odin,
    "mahalanobis_plus_plus": mahalanobis_plus_plus,
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
    outputs = scores.Outputs(features, features[:, :3], features)
    head = np.eye(5, 3, dtype=np.float32), np.ones(3, np.float32)
    model = jax.tree_util.Partial(lambda head, x: x @ head[0] + head[1][None], head)
    state = scores.fit(name, scores.Reference(outputs, labels, 3, head, outputs, model))
    scores.score(name, state, outputs)
    assert len(programs) <= 4, programs


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


def test_knn_tells_near_images_apart():
    """Cosines within 1e-7 of 1 are equal in float32, distances of 1e-4 are not."""
    distance = np.float32([1e-5, 2e-5, 5e-5, 1e-4, 2e-4])
    test = np.stack([np.ones(5), distance, np.zeros(5)], axis=1).astype(np.float32)
    reference = scores.Reference(scores.Outputs(np.eye(3, dtype=np.float32)), np.arange(3), 3)
    got = scores.score("knn", scores.fit("knn", reference, k=1), scores.Outputs(test))
    np.testing.assert_allclose(got, -distance, rtol=1e-4)


def test_she_is_of_correctly_classified_images():
    features = np.float32([[1, 0], [3, 0], [0, 2], [5, 1], [7, 7]])
    labels, logits = [0, 0, 1, 1, 2], np.eye(3, dtype=np.float32)[[0, 1, 1, 0, 0]]
    pattern = scores.fit("she", scores.Reference(scores.Outputs(features, logits), labels, 3))
    # Of class 2 no image is classified correctly.
    np.testing.assert_array_equal(pattern, [[1, 0], [0, 2], [7, 7]])


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


def test_kl_matching_without_validation_images_takes_training_images():
    train = toy.outputs(toy.train)
    own, other = (scores.Reference(train, LABELS, K, None, held_out) for held_out in (None, train))
    np.testing.assert_array_equal(scores.fit("kl_matching", own), scores.fit("kl_matching", other))


# Softmax probabilities of these images round to 1 in float32, and exp(-200) to 0.
MARGINS = np.arange(20, 600, 20).astype(np.float32)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("msp", MARGINS - np.log(2)),
        ("entropy", -(np.log(2.0 * (1 + MARGINS)) - MARGINS)),  # 2 (margin + 1) exp(-margin), to first order
        ("gen", -0.1 * (np.log(2.0) - MARGINS) - np.log1p(2 * 2**-0.1)),
        ("kl_matching", None),
    ],
)
def test_sure_images_do_not_tie(name, expected):
    logits = np.stack([MARGINS, np.zeros(len(MARGINS)), np.zeros(len(MARGINS))], axis=1).astype(np.float32)
    reference = scores.Reference(scores.Outputs(np.ones((3, 1)), np.eye(3)), [0, 1, 2], 3)
    got = np.asarray(scores.score(name, scores.fit(name, reference), scores.Outputs(None, logits)))
    if expected is None:
        assert np.isfinite(got).all()
    else:
        assert np.all(np.diff(got) > 0)
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def ill_conditioned(condition, num_classes=3, channels=16, size=3000, seed=0):
    """Features whose covariance within classes has this condition number, in directions that are not the axes."""
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(channels, channels)))[0]
    axes = (rotation * np.geomspace(1, condition**-0.5, channels)).T
    centers = rng.normal(size=(num_classes, channels)) @ axes
    labels = np.arange(size) % num_classes
    sample = lambda labels: (centers[labels] + rng.normal(size=(len(labels), channels)) @ axes).astype(np.float32)
    return sample(labels), labels, np.concatenate([sample(labels[:50]), 3 * sample(labels[:50])])


@pytest.mark.parametrize("condition", [1e2, 1e6, 1e10])
@pytest.mark.parametrize("name", ["mahalanobis", "relative_mahalanobis", "mahalanobis_per_class"])
def test_mahalanobis_agrees_with_a_float64_inverse(name, condition):
    train, labels, test = ill_conditioned(condition)
    train64, test64 = train.astype(np.float64), test.astype(np.float64)
    means = np.stack([train64[labels == c].mean(axis=0) for c in range(3)])
    centered = train64 - means[labels]
    shared = centered.T @ centered / len(train)
    own = [0.9 * np.cov(train64[labels == c].T, bias=True) + 0.1 * shared for c in range(3)]
    covariances = own if name == "mahalanobis_per_class" else [shared] * 3
    expected = -np.min([mahalanobis(test64, mean, each) for mean, each in zip(means, covariances)], axis=0)
    if name == "relative_mahalanobis":
        expected += mahalanobis(test64, train64.mean(axis=0), np.cov(train64.T, bias=True))
    got = scores.score(name, scores.fit(name, scores.Reference(scores.Outputs(train), labels, 3)), scores.Outputs(test))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mahalanobis", "relative_mahalanobis", "mahalanobis_per_class"])
def test_mahalanobis_of_fewer_images_than_dimensions_is_that_in_their_subspace(name):
    """Every term leaves the same directions out: adding constant, repeated or mixed features changes nothing."""
    train, labels, test = ill_conditioned(1e2, channels=6, size=60)
    mix = np.random.default_rng(1).integers(-2, 3, (6, 100)).astype(np.float64)  # exact in float32
    wide = lambda x: np.concatenate([x @ mix, np.full((len(x), 2), 3.0), x[:, :1]], axis=1)
    score = lambda train, test: scores.score(
        name, scores.fit(name, scores.Reference(scores.Outputs(train), labels, 3)), scores.Outputs(test)
    )
    rounded = lambda x: np.round(x.astype(np.float64) * 2**10) / 2**10
    np.testing.assert_allclose(
        score(wide(rounded(train)), wide(rounded(test))), score(rounded(train), rounded(test)), rtol=1e-4, atol=1e-4
    )


def test_mahalanobis_does_not_depend_on_the_scales_of_features():
    train, labels, test = ill_conditioned(1e4)
    scales = np.geomspace(1e-8, 1e8, train.shape[1], dtype=np.float32)
    score = lambda scales: scores.score(
        "mahalanobis",
        scores.fit("mahalanobis", scores.Reference(scores.Outputs(train * scales), labels, 3)),
        scores.Outputs(test * scales),
    )
    np.testing.assert_allclose(score(scales), score(np.float32(1)), rtol=1e-3)


def test_vim_takes_no_origin_from_rounding():
    """The columns of a linear probe's kernel sum to zero but for rounding: its rank is K - 1."""
    kernel, bias = (weights - weights.mean(axis=-1, keepdims=True) for weights in toy.head)
    exact = -np.linalg.pinv(kernel.T, rcond=1e-9) @ bias
    kernel, bias = kernel.astype(np.float32), bias.astype(np.float32)
    assert np.linalg.svd(kernel.astype(np.float64))[1][-1] > 0  # rounding, which a cut at 1e-15 would invert
    state = scores.fit("vim", scores.Reference(scores.Outputs(toy.train), LABELS, K, (kernel, bias)))
    np.testing.assert_allclose(state.origin_F, exact, rtol=1e-4, atol=1e-6)


def test_vim_of_nearly_flat_features_has_the_residual_of_float64():
    train, labels, test = ill_conditioned(1e14)
    head = np.eye(16, 3), np.zeros(3)
    got = scores.score(
        "vim", scores.fit("vim", scores.Reference(scores.Outputs(train), labels, 3, head)), scores.Outputs(test)
    )
    rows = np.linalg.svd(train.astype(np.float64))[2][8:]
    virtual = lambda x: np.linalg.norm(x.astype(np.float64) @ rows.T, axis=1)
    scale = train[:, :3].max(axis=1).mean() / virtual(train).mean()
    np.testing.assert_allclose(got, logsumexp(test[:, :3].astype(np.float64)) - scale * virtual(test), rtol=1e-3)


OPTIONS = {
    ("topk_cosine", "k", 1): lambda x: class_sums(x, k=1).max(axis=1),
    ("topk_cosine_normalized", "k", 2): lambda x: (class_sums(x, 2) / class_sums(x, 2).sum(axis=1)[:, None]).max(
        axis=1
    ),
    ("knn", "k", 1): lambda x: -np.linalg.norm(unit(x)[:, None] - unit(toy.train), axis=2).min(axis=1),
    ("mahalanobis_per_class", "shrinkage", 1.0): lambda x: -to_shared(x),
    ("energy", "temperature", 2.0): lambda x: 2 * logsumexp(toy.logits(x) / 2),
    ("gen", "gamma", 0.5): lambda x: gen(x, gamma=0.5),
    ("gen", "largest", 2): lambda x: gen(x, largest=2),
    ("nnguide", "k", 1): lambda x: nnguide(x, k=1),
    ("nnguide", "share", 0.5): lambda x: nnguide(x, kept=np.linspace(0, N - 1, N // 2).round().astype(int)),
    ("react", "percentile", 100.0): lambda x: logsumexp(toy.logits(np.minimum(x, toy.train.max()))),
    ("ash", "variant", "b"): lambda x: ash(x, "b"),
    ("ash", "variant", "p"): lambda x: ash(x, "p"),
    ("ash", "percentile", 50.0): lambda x: ash(x, percentile=50),
    ("dice", "percentile", 0.0): lambda x: dice(x, 0),
    ("vim", "dimension", 6): lambda x: vim(x, 6),
    ("odin", "temperature", 10.0): lambda x: odin(x, temperature=10),
    ("odin", "noise", 0.1): lambda x: odin(x, noise=0.1),
    ("ensemble", "members", ("knn",)): lambda x: z_scored(REFERENCES["knn"], x),
}


def test_every_option_has_a_reference():
    assert {(name, option) for name, entry in scores.SCORES.items() for option in entry.options} == {
        (name, option) for name, option, _ in OPTIONS
    }


@pytest.mark.parametrize("name, option, value", OPTIONS, ids=str)
def test_option(name, option, value):
    reference = toy.reference()
    got = scores.score(name, scores.fit(name, reference, **{option: value}), toy.outputs(toy.test))
    expected = OPTIONS[name, option, value](toy.test)
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-5)
    assert not np.allclose(got, REFERENCES[name](toy.test), rtol=1e-3, atol=1e-6)


def test_usable_are_those_whose_parts_exist():
    features_only = scores.Reference(scores.Outputs(toy.train), LABELS, K)
    assert "topk_cosine" in scores.usable(features_only) and "ensemble" not in scores.usable(features_only)
    assert {"msp", "kl_matching", "react", "vim"}.isdisjoint(scores.usable(features_only))
    assert scores.usable(toy.reference()) == tuple(scores.SCORES)


def test_matching_precision_is_not_left_to_the_accelerator():
    # TF32 or bfloat16 products cannot tell cosines near 1 apart; the CPU of the tests would not show it.
    assert "HIGHEST" in str(
        jax.make_jaxpr(neighbors.score_knn)(neighbors.fit_knn(toy.reference()), toy.outputs(toy.test))
    )


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: scores.fit("softmax", toy.reference()), "The score must be one of topk_cosine, .*, got 'softmax'"),
        (lambda: scores.score("softmax", (), toy.outputs(toy.test)), "score must be one of"),
        (lambda: scores.fit("energy", scores.Reference(scores.Outputs(toy.train), LABELS, K)), "needs logits"),
        (lambda: scores.fit("vim", scores.Reference(scores.Outputs(toy.train), LABELS, K)), "needs head"),
        (lambda: scores.fit("vim", toy.reference(), dimension=F), "dimension must be from 1 to 7"),
        (
            lambda: scores.fit(
                "ensemble",
                scores.Reference(scores.Outputs(unit(toy.train)), LABELS, K, None, scores.Outputs(np.ones((4, F)))),
            ),
            "must vary over the validation images, topk_cosine, relative_mahalanobis did not over 4",
        ),
        (lambda: scores.fit("knn", toy.reference(), k=0), "knn's k must be a positive integer, got 0"),
        (lambda: scores.fit("knn", toy.reference(), neighbors=3), "option of the score knn must be one of k, got"),
        (lambda: scores.fit("ash", toy.reference(), variant="x"), "ash's variant must be one of b, p, s, got 'x'"),
        (lambda: scores.fit("ensemble", toy.reference(), members=("ensemble",)), "ensemble's members must be one of"),
        (lambda: scores.score("odin", (), scores.Outputs(toy.test)), "odin needs the images"),
        (
            lambda: scores.Reference(scores.Outputs(toy.train), LABELS[:-1], K),
            r"integers of shape \[180\], one per feature",
        ),
        (lambda: scores.Reference(scores.Outputs(toy.train), LABELS * 1.0, K), "integers"),
        (lambda: scores.Reference(scores.Outputs(toy.train), LABELS, K + 1), r"none for class \[3\]"),
        (lambda: scores.Reference(scores.Outputs(toy.train), LABELS - 1, K), "from 0 to 2, got -1 to 1"),
        (lambda: scores.topk_cosine(toy.test, toy.train, LABELS, num_classes=2), "from 0 to 1, got 0 to 2"),
        (
            lambda: scores.topk_cosine(toy.test, toy.train, LABELS, k=0, num_classes=3),
            "k must be a positive integer, got 0",
        ),
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
        (1, toy.validation, NAMES[:1], "relative_mahalanobis needs at least 2 known classes, got 1"),
        (3, toy.validation[:1], NAMES[:2], "must vary over the validation images"),
        (3, np.ones((4, F)), NAMES[:2], "must vary over the validation images"),
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
    with pytest.raises(ValueError, match="feature_norm needs features of different lengths, got 1 for all of them"):
        fitted.fit_all(train, LABELS, **given, required=("features", "feature_norm"))


def test_the_ensemble_is_of_the_fitted_scores_with_their_options():
    given = dict(num_classes=K, features=["features"], names=NAMES, k=7, validation={"features": toy.validation})
    outputs = {"features": toy.test.astype(np.float32)}
    found = fitted.fit_all({"features": toy.train.astype(np.float32)}, LABELS, **given)
    states = found.states["features"]
    assert all(states["ensemble"].states[name] is states[name] for name in NAMES[:2])
    sums = lambda x: class_sums(x, k=7).max(axis=1)
    expected = (z_scored(sums, toy.test) + z_scored(relative, toy.test)) / 2
    np.testing.assert_allclose(found.score("features", "ensemble", outputs), expected, rtol=1e-3, atol=1e-4)

    options = {"ensemble": {"members": ("knn", "topk_cosine")}, "topk_cosine": {"k": 2}, "knn": {"k": 4}}
    found = fitted.fit_all({"features": toy.train.astype(np.float32)}, LABELS, **given, options=options)
    expected = (z_scored(lambda x: class_sums(x, k=2).max(axis=1), toy.test) + z_scored(knn_4, toy.test)) / 2
    np.testing.assert_allclose(found.score("features", "ensemble", outputs), expected, rtol=1e-3, atol=1e-4)


def knn_4(x):
    return -np.sort(np.linalg.norm(unit(x)[:, None] - unit(toy.train), axis=2), axis=1)[:, 3]


def test_predictions_and_scores_share_similarities(monkeypatch):
    calls, compute = [], neighbors.class_similarities
    monkeypatch.setattr(neighbors, "class_similarities", lambda *args: calls.append(1) or compute(*args))
    names = ("topk_cosine", "topk_cosine_normalized", "ensemble")
    given = dict(num_classes=K, features=["features"], names=names, k=5, validation={"features": toy.validation})
    found = fitted.fit_all({"features": toy.train.astype(np.float32)}, LABELS, **given)
    calls.clear()
    outputs = {"features": toy.test.astype(np.float32)}
    found.scores(outputs)
    np.testing.assert_array_equal(found.predict("features", outputs), class_sums(toy.test, k=5).argmax(axis=1))
    assert len(calls) == 1
    other = {"features": toy.unknown.astype(np.float32)}
    np.testing.assert_array_equal(found.predict("features", other), class_sums(toy.unknown, k=5).argmax(axis=1))


def fit_every_score(train, labels, validation, **more):
    """All scores on features and on logits, which are random linear functions of them; returns what to score, too."""
    num_classes = int(labels.max()) + 1
    kernel = np.random.default_rng(5).normal(size=(train.shape[1], num_classes)).astype(np.float32)
    head = kernel, np.zeros(num_classes, np.float32)
    model = jax.tree_util.Partial(lambda kernel, x: x @ kernel, kernel)
    of = lambda x: {"features": np.float32(x), "logits": np.float32(x) @ kernel, "images": np.float32(x)}
    given = dict(
        num_classes=num_classes, features=["features"], names=tuple(scores.SCORES), k=3, head=head, model=model
    )
    return fitted.fit_all(of(train), labels, **given, validation=of(validation), **more), of


def zeros_of(x):
    """With dead channels, and images all of whose features are zero."""
    x = np.maximum(x - 0.5, 0)
    x[:, ::3] = 0
    x[::7] = 0
    return x


NORMAL = lambda seed, size, channels: np.random.default_rng(seed).normal(size=(size, channels))
# name: (training features, labels, other features, scores that cannot be computed)
ENCODERS = {
    "zeros": (zeros_of(NORMAL(0, 90, 12)), np.arange(90) % 3, zeros_of(NORMAL(1, 40, 12)), {"topk_cosine_normalized"}),
    "one image a class": (
        NORMAL(0, 5, 4),
        np.arange(5),
        NORMAL(1, 40, 4),
        {"mahalanobis", "mahalanobis_plus_plus", "mahalanobis_per_class", "relative_mahalanobis", "ensemble"},
    ),
    "fewer images than dimensions": (NORMAL(0, 20, 64), np.arange(20) % 4, NORMAL(1, 40, 64), {"vim"}),
    "collapsed": (
        np.ones((30, 8)),
        np.arange(30) % 3,
        np.ones((20, 8)),
        set(scores.SCORES),
    ),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_scores_of_a_poor_encoder_are_finite_or_left_out_by_name(name):
    train, labels, other, lacking = ENCODERS[name]
    found, of = fit_every_score(train, labels, other[: len(other) // 2])
    values = {score: x for by_score in found.scores(of(other)).values() for score, x in by_score.items()}
    reasons = {score: reason for by_score in found.left_out.values() for score, reason in by_score.items()}
    assert all(np.isfinite(x).all() and np.ptp(x) > 0 for x in values.values())
    assert set(values).isdisjoint(reasons) and set(values) | set(reasons) == set(scores.SCORES)
    assert set(reasons) == lacking
    assert all(len(reason) > 20 and "\n" not in reason for reason in reasons.values())
    if name == "one image a class":
        assert "vary within a class, got 5 training images of 5 classes" in reasons["mahalanobis"]


def broken(value):
    return lambda state, outputs: np.full(len(outputs.features), value)


@pytest.mark.parametrize(
    "replaced, reason",
    [
        (dict(fit=lambda reference: np.linalg.inv(np.zeros((2, 2)))), "Singular matrix"),
        (dict(score=broken(np.nan)), "knn is not a finite number for 35 of 35 images"),
        (dict(score=broken(np.inf)), "knn is not a finite number"),
        (dict(score=broken(1.5)), "knn is 1.5 for all of 35 images"),
        (dict(needs=("features", "model")), "needs model, which this model does not give"),
    ],
)
def test_the_failure_of_one_score_is_not_that_of_others(monkeypatch, replaced, reason):
    monkeypatch.setitem(scores.SCORES, "knn", scores.SCORES["feature_norm"]._replace(**replaced))
    monkeypatch.setattr(fitted, "works_on_logits", lambda name: False)
    given = dict(num_classes=K, features=["features"], names=("topk_cosine", "knn", "class_mean_l1"), k=3)
    train, outputs = {"features": toy.train.astype(np.float32)}, {"features": toy.test.astype(np.float32)}
    found = fitted.fit_all(train, LABELS, **given)
    assert list(found.scores(outputs)["features"]) == ["topk_cosine", "class_mean_l1"]
    assert reason in found.left_out["features"]["knn"]
    with pytest.raises(scores.Unfit, match=reason):
        fitted.fit_all(train, LABELS, **given, required=("features", "knn")).scores(outputs)


def test_a_score_that_is_left_out_stays_out(monkeypatch):
    """Else results of two calls would be of different scores."""
    often = lambda state, outputs: (
        np.linalg.norm(outputs.features, axis=1) + (np.nan if len(outputs.features) == 5 else 0)
    )
    monkeypatch.setitem(scores.SCORES, "knn", scores.SCORES["feature_norm"]._replace(score=often))
    given = dict(num_classes=K, features=["features"], names=("knn",), k=3)
    found = fitted.fit_all({"features": toy.train.astype(np.float32)}, LABELS, **given)
    of = lambda size: found.scores({"features": toy.test[:size].astype(np.float32)})["features"]
    assert list(of(6)) == ["knn"] and not of(5) and not of(6)


def test_a_set_of_equal_images_may_have_a_constant_score():
    given = dict(num_classes=K, features=["features"], names=("knn",), k=3)
    found = fitted.fit_all({"features": toy.train.astype(np.float32)}, LABELS, **given)
    equal = {"features": np.ones((4, F), np.float32)}
    assert len(found.scores(equal, constant=True)["features"]["knn"]) == 4 and not found.left_out
    assert not found.scores(equal)["features"]


def test_names_and_options_that_do_not_exist_are_errors():
    given = dict(num_classes=K, features=["features"], k=3)
    train = {"features": toy.train.astype(np.float32)}
    with pytest.raises(ValueError, match="The score must be one of topk_cosine.*'cosine'"):
        fitted.fit_all(train, LABELS, names=("cosine",), **given)
    with pytest.raises(ValueError, match=r"evaluate.options.knn.k must be a positive integer, got 0"):
        fitted.fit_all(train, LABELS, names=("knn",), options={"knn": {"k": 0}}, **given)


def test_what_is_shared_does_not_outlive_its_state():
    """A state that is gone must not lend its result to one that gets its place in memory."""
    outputs, got = toy.outputs(toy.test), []
    for k in range(1, 30):
        got.append(np.asarray(scores.score("knn", scores.fit("knn", toy.reference(), k=k), outputs)))
    assert all(np.any(one != other) for one, other in zip(got, got[1:]))


def test_a_description_has_the_options():
    assert scores.describe("topk_cosine", {}, k=3) == "sum of the 3 largest cosine similarities to a class"
    assert scores.describe("topk_cosine", {"k": 5}, k=3) == "sum of the 5 largest cosine similarities to a class"
    assert scores.describe("msp", {}, k=3) == "msp"
