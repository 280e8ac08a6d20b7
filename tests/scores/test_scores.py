"""Every score and option against a float64 NumPy reference, and properties common to all."""

import jax
import numpy as np
import pytest
from scored_toy import (
    LABELS,
    REFERENCES,
    F,
    K,
    N,
    ash,
    class_sums,
    dice,
    gen,
    logsumexp,
    nnguide,
    odin,
    to_shared,
    toy,
    unit,
    vim,
    z_scored,
)

from gradmix_jax import metrics, scores
from gradmix_jax.scores import neighbors


def test_every_score_has_a_reference():
    assert set(REFERENCES) == set(scores.SCORES)


@pytest.mark.parametrize("name", list(scores.SCORES))
def test_a_score_compiles_few_programs(name, programs):
    # Sizes that no other test uses, so nothing is compiled yet, whatever ran before.
    features, labels = np.random.default_rng(0).random((61, 5), np.float32), np.repeat([0, 1, 2], [7, 23, 31])
    outputs = scores.Outputs(features, features[:, :3], features[:, :3])
    head = np.eye(5, 3, dtype=np.float32), np.ones(3, np.float32)
    state = scores.fit(name, scores.Reference(outputs, labels, 3, head, outputs))
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


def test_she_learns_from_correctly_classified_images():
    features = np.float32([[1, 0], [3, 0], [0, 2], [5, 1], [7, 7]])
    labels, logits = [0, 0, 1, 1, 2], np.eye(3, dtype=np.float32)[[0, 1, 1, 0, 0]]
    pattern = scores.fit("she", scores.Reference(scores.Outputs(features, logits), labels, 3))
    # No image of class 2 is classified correctly.
    np.testing.assert_array_equal(pattern, [[1, 0], [0, 2], [7, 7]])


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
    # ODIN's step is taken where the images are available.
    outputs = toy.outputs(toy.test, **({option: value} if name == "odin" else {}))
    got = scores.score(name, scores.fit(name, reference, **{option: value}), outputs)
    expected = OPTIONS[name, option, value](toy.test)
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-5)
    assert not np.allclose(got, REFERENCES[name](toy.test), rtol=1e-3, atol=1e-6)


def test_usable_scores_are_those_whose_inputs_exist():
    features_only = scores.Reference(scores.Outputs(toy.train), LABELS, K)
    assert "topk_cosine" in scores.usable(features_only) and "ensemble" not in scores.usable(features_only)
    assert {"msp", "kl_matching", "react", "vim"}.isdisjoint(scores.usable(features_only))
    assert scores.usable(toy.reference()) == tuple(scores.SCORES)


def test_matching_precision_is_not_left_to_the_accelerator():
    # TF32 or bfloat16 products cannot distinguish cosines near 1, which tests on a CPU would not show.
    assert "HIGHEST" in str(
        jax.make_jaxpr(neighbors.score_knn)(neighbors.fit_knn(toy.reference()), toy.outputs(toy.test))
    )


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: scores.fit("softmax", toy.reference()), "The score must be one of topk_cosine, .*, got 'softmax'"),
        (lambda: scores.score("softmax", (), toy.outputs(toy.test)), "score must be one of"),
        (lambda: scores.fit("energy", scores.Reference(scores.Outputs(toy.train), LABELS, K)), "needs logits"),
        (
            lambda: scores.fit("vim", scores.Reference(scores.Outputs(toy.train), LABELS, K)),
            "needs the weights of a linear classifier",
        ),
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
        (lambda: scores.score("odin", (), scores.Outputs(toy.test)), "odin needs perturbed_logits"),
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


def test_shared_results_do_not_outlive_their_state():
    """A result must not pass from a deleted state to one that reuses its memory address."""
    outputs, got = toy.outputs(toy.test), []
    for k in range(1, 30):
        got.append(np.asarray(scores.score("knn", scores.fit("knn", toy.reference(), k=k), outputs)))
    assert all(np.any(one != other) for one, other in zip(got, got[1:]))


def test_a_description_includes_the_options():
    assert scores.describe("topk_cosine", {}, k=3) == "sum of the 3 largest cosine similarities to a class"
    assert scores.describe("topk_cosine", {"k": 5}, k=3) == "sum of the 5 largest cosine similarities to a class"
    assert scores.describe("msp", {}, k=3) == "msp"
