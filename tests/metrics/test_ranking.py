"""Ranking metrics against published vectors, scikit-learn, and explicit quadratic definitions."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk

from gradmix_jax import metrics

# (known, unknown, predicted, labels) and the value of every metric.
A = ([0.9, 0.8, 0.7, 0.6, 0.55], [0.5, 0.65, 0.3, 0.2], [0, 1, 2, 0, 1], [0, 1, 2, 1, 1])
B = ([0.9, 0.5, 0.5, 0.2], [0.5, 0.5, 0.1], [0, 0, 1, 1], [0, 1, 1, 1])


def tied(seed, known=60, unknown=45):
    """Random scores on a coarse grid, so that most of them tie."""
    rng = np.random.default_rng(seed)
    scores = lambda size, shift: np.round(rng.normal(shift, 1.0, size) * 3) / 3
    return scores(known, 0.7), scores(unknown, 0.0), rng.random(known) < 0.8


def pairwise_oscr(known, unknown, correct):
    above = known[:, None] > unknown[None, :]
    equal = known[:, None] == unknown[None, :]
    return np.mean((above + equal / 2) * correct[:, None])


def published_oscr(known, unknown, correct):
    """The shared function, from its description: a cut-off before each sorted score but the last; accepted
    correct known counted *after* the score, accepted unknown *from* it; then trapezoids. Quadratic.
    """
    scores = np.concatenate([known, unknown])
    order = np.argsort(scores, kind="stable")
    right = np.concatenate([correct, np.zeros(len(unknown), bool)])[order]
    foreign = np.concatenate([np.zeros(len(known), bool), np.ones(len(unknown), bool)])[order]
    points = [(1.0, 1.0), (0.0, 0.0)]
    for cut in range(len(scores) - 1):
        points.append((foreign[cut:].sum() / len(unknown), right[cut + 1 :].sum() / len(known)))
    points.sort(reverse=True)
    steps = zip(points[:-1], points[1:])
    return sum((fpr - next_fpr) * (ccr + next_ccr) / 2 for (fpr, ccr), (next_fpr, next_ccr) in steps)


@pytest.mark.parametrize(
    "vector, auroc, fpr, precision, trapezoid, oscr",
    [
        (A, 0.9, (0.4, 0.25), (0.926667, 0.916667), (0.918333, 0.908333), (0.75, 0.70)),
        (B, 0.666667, (0.75, 0.666667), (0.716667, 0.666667), None, (0.5, 0.333333)),
    ],
)
def test_golden_vectors(vector, auroc, fpr, precision, trapezoid, oscr):
    known, unknown, predicted, labels = vector
    correct = np.equal(predicted, labels)
    near = lambda value: pytest.approx(value, abs=1e-6)
    assert metrics.auroc(known, unknown) == near(auroc)
    assert metrics.oscr(known, unknown, correct) == near(oscr[0])
    assert metrics.oscr(known, unknown, correct, compat=True) == near(oscr[1])
    assert metrics.fpr_at(known, unknown) == metrics.fpr_at(known, unknown, positive="unknown")
    for at, positive in enumerate(("unknown", "known")):
        assert metrics.fpr_at(known, unknown, positive=positive) == near(fpr[at])
    for at, positive in enumerate(("known", "unknown")):
        assert metrics.average_precision(known, unknown, positive=positive) == near(precision[at])
        if trapezoid:
            area = metrics.average_precision(known, unknown, positive=positive, interpolation="trapezoid")
            assert area == near(trapezoid[at])


def test_golden_correct_classification_rate():
    known, unknown, predicted, labels = A
    correct = np.equal(predicted, labels)
    assert metrics.ccr_at_fpr(known, unknown, correct, fpr=0.1) == pytest.approx(0.6)
    assert metrics.ccr_at_fpr(known, unknown, correct, fpr=0.5) == pytest.approx(0.8)
    # Out of all known images, including the one with the lowest score overall.
    assert metrics.ccr_at_fpr([0.9, 0.1], [0.5], [True, True], fpr=0.1) == 0.5


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_scikit_learn_on_ties(seed):
    known, unknown, _ = tied(seed)
    scores, is_known = np.concatenate([known, unknown]), np.repeat([1, 0], [len(known), len(unknown)])
    assert metrics.auroc(known, unknown) == pytest.approx(sk.roc_auc_score(is_known, scores), abs=1e-12)
    for positive, truth, signed in (("known", is_known, scores), ("unknown", 1 - is_known, -scores)):
        step = metrics.average_precision(known, unknown, positive=positive)
        assert step == pytest.approx(sk.average_precision_score(truth, signed), abs=1e-12)
        precision, recall, _ = sk.precision_recall_curve(truth, signed)
        trapezoid = metrics.average_precision(known, unknown, positive=positive, interpolation="trapezoid")
        assert trapezoid == pytest.approx(sk.auc(recall, precision), abs=1e-12)
        fpr, tpr, _ = sk.roc_curve(truth, signed, drop_intermediate=False)
        assert metrics.fpr_at(known, unknown, positive=positive) == pytest.approx(fpr[np.argmax(tpr >= 0.95)])
    fpr, tpr, thresholds = sk.roc_curve(is_known, scores, drop_intermediate=False)
    for ours, theirs in zip(metrics.roc_curve(known, unknown), (fpr, tpr, thresholds)):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_oscr_agrees_with_quadratic_definitions(seed):
    known, unknown, correct = tied(seed)
    assert metrics.oscr(known, unknown, correct) == pytest.approx(pairwise_oscr(known, unknown, correct))
    compat = metrics.oscr(known, unknown, correct, compat=True)
    assert compat == pytest.approx(published_oscr(known, unknown, correct), abs=1e-12)


def test_compat_oscr_approaches_the_exact_one_at_benchmark_size():
    rng = np.random.default_rng(0)
    known, unknown, correct = rng.normal(1, 1, 10_000), rng.normal(0, 1, 10_000), rng.random(10_000) < 0.9
    exact, compat = (metrics.oscr(known, unknown, correct, compat) for compat in (False, True))
    assert 0 < abs(exact - compat) < 1e-4


@pytest.mark.parametrize("fpr", [0.0, 0.1, 0.33, 1.0])
def test_correct_classification_rate_by_trying_every_threshold(fpr):
    known, unknown, correct = tied(5)
    allowed = [t for t in (*known, *unknown) if np.mean(unknown >= t) <= fpr]
    best = max((np.mean(correct & (known >= t)) for t in allowed), default=0.0)
    assert metrics.ccr_at_fpr(known, unknown, correct, fpr=fpr) == pytest.approx(best)


def test_a_million_scores_are_exact():
    # Known at odd places, unknown at even ones: the i-th known beats i + 1 unknown, so AUROC = (n + 1) / (2 n).
    n = 500_000
    places = np.random.default_rng(0).permutation(n).astype(np.float32)
    known, unknown = 2 * places + 1, 2 * places
    assert metrics.auroc(known, unknown) == (n + 1) / (2 * n)
    assert metrics.oscr(known, unknown, places % 2 == 0) == (n / 2) ** 2 / n**2
    # One unknown image above all others, which float32 sums of 2.5e11 pairs would lose.
    unknown[0] = np.inf
    lost = n - int(places[0])
    assert metrics.auroc(known, unknown) == (n * (n + 1) // 2 - lost) / n**2


def test_float64_scores_keep_their_order():
    known, unknown = np.array([1.0 + 1e-12, -1.0]), np.array([1.0, -1.0 - 1e-12, -0.0])
    assert metrics.auroc(known, unknown) == 4 / 6
    assert metrics.auroc(known.astype(np.float32), unknown.astype(np.float32)) == (1.5 + 1 + 0.5) / 6
    assert metrics.auroc([0.0, -0.0], [-0.0, 0.0, 0.0]) == 0.5
    assert metrics.auroc([np.inf, -5e-324], [0.0, -np.inf]) == 0.75


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, np.float64, np.int32])
def test_every_dtype_and_container(dtype):
    known, unknown, correct = tied(2)
    known, unknown = np.round(known * 3).astype(int), np.round(unknown * 3).astype(int)
    expected = pairwise_oscr(known, unknown, correct)
    as_jax = [jnp.asarray(scores, dtype) if dtype is not np.float64 else scores * 1.0 for scores in (known, unknown)]
    for pair in (as_jax, [known.tolist(), unknown.tolist()]):
        value = metrics.oscr(*pair, correct)
        assert type(value) is float and value == pytest.approx(expected)


def test_properties():
    known, unknown, correct = tied(7)
    auroc = metrics.auroc(known, unknown)
    assert metrics.auroc(unknown, known) == pytest.approx(1 - auroc)
    assert metrics.auroc(np.exp(known), np.exp(unknown)) == auroc  # only the order counts
    assert metrics.auroc(-unknown, -known) == auroc
    assert metrics.oscr(known, unknown, np.ones(len(known), bool)) == auroc
    assert metrics.oscr(known, unknown, correct) < min(auroc, correct.mean())
    shuffle = np.random.default_rng(0).permutation(len(known))
    assert metrics.oscr(known[shuffle], unknown, correct[shuffle]) == metrics.oscr(known, unknown, correct)


def test_curves_enclose_the_areas():
    known, unknown, correct = tied(4)
    fpr, tpr, thresholds = metrics.roc_curve(known, unknown)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1) and np.all(np.diff(thresholds) < 0)
    assert np.trapezoid(tpr, fpr) == pytest.approx(metrics.auroc(known, unknown))
    fpr, ccr, _ = metrics.oscr_curve(known, unknown, correct)
    assert (fpr[0], ccr[0], fpr[-1]) == (0, 0, 1) and ccr[-1] == pytest.approx(correct.mean())
    assert np.trapezoid(ccr, fpr) == pytest.approx(metrics.oscr(known, unknown, correct))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: metrics.auroc([0.1, np.nan], [0.2]), "known scores .* NaN for 1 of 2"),
        (lambda: metrics.auroc([0.1], [np.nan]), "unknown scores .* NaN"),
        (lambda: metrics.auroc(np.float32([np.nan]), np.float32([0.0])), "known scores .* NaN"),
        (lambda: metrics.auroc([], [0.2]), "known scores .* non-empty"),
        (lambda: metrics.auroc([0.1], []), "unknown scores .* non-empty"),
        (lambda: metrics.auroc([[0.1]], [0.2]), r"vector, got shape \(1, 1\)"),
        (lambda: metrics.oscr([0.1, 0.2], [0.2], [True]), "one entry per known"),
        (lambda: metrics.oscr([0.1, 0.2], [0.2], [True], compat=True), "one entry per known"),
        (lambda: metrics.fpr_at([0.1], [0.2], tpr=0), r"tpr must be in \(0, 1\]"),
        (lambda: metrics.fpr_at([0.1], [0.2], tpr=1.5), r"tpr must be in \(0, 1\]"),
        (lambda: metrics.fpr_at([0.1], [0.2], positive="in"), "'known' or 'unknown', got 'in'"),
        (lambda: metrics.average_precision([0.1], [0.2], interpolation="x"), "'step' or 'trapezoid'"),
        (lambda: metrics.ccr_at_fpr([0.1], [0.2], [True], fpr=2), r"fpr must be in \[0, 1\]"),
        (lambda: metrics.auroc_per_class([0.1], [0.2], [0, 0], [0]), "known classes .* got 2 from 0 up, for 1 scores"),
        (lambda: metrics.auroc_per_class([0.1], [0.2], [0], [-1]), "unknown classes .* got 1 from -1 up"),
        (lambda: metrics.auroc_per_class([0.1], [0.2], [0.5], [0]), "known classes must be a non-empty integer"),
        (lambda: metrics.auroc_per_class([0.1], [np.nan], [0], [0]), "unknown scores .* NaN"),
    ],
)
def test_bad_input_raises_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_smallest_numbers_are_distinguished(dtype):
    tiny = np.array([-3, -1, 0, 1, 2, 5], dtype) * np.finfo(dtype).smallest_subnormal
    wide = np.array([-np.inf, -1, np.finfo(dtype).tiny, 1, np.finfo(dtype).max, np.inf], dtype)
    for scores in (tiny, wide):
        for low, high in zip(scores, scores[1:]):
            assert metrics.auroc(np.array([high]), np.array([low])) == 1
    assert metrics.auroc(np.array([0.0], dtype), np.array([-0.0], dtype)) == 0.5


def test_nothing_is_compiled(programs):
    known, unknown, correct = tied(3)
    metrics.points_and_oscr_compat(known, unknown, correct)
    metrics.auroc_per_class(known, unknown, np.zeros(len(known), int), np.zeros(len(unknown), int))
    assert not programs


def random_scores(random, dtype):
    """Scores of both sides and flags, of any size, with many, some or no ties, and sometimes with infinities."""
    sizes, grid = random.integers(1, 40, 2), random.choice([1, 3, 1000])
    known, unknown = ((np.round(random.normal(size=size) * grid) / grid).astype(dtype) for size in sizes)
    if random.random() < 0.2:
        known[0], unknown[0] = np.inf, -np.inf
    return known, unknown, random.random(len(known)) < random.choice([0.0, 0.5, 0.9, 1.0])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_counts_by_trying_every_threshold(dtype):
    random = np.random.default_rng(0)
    for _ in range(100):
        known, unknown, correct = random_scores(random, dtype)
        curve, compat = metrics.points_and_oscr_compat(known, unknown, correct)
        thresholds = np.unique(np.concatenate([known, unknown]))[::-1]
        np.testing.assert_array_equal(curve.thresholds_T, thresholds)
        accepted = [known >= threshold for threshold in thresholds]
        assert [counts.dtype for counts in curve[1:]] == [np.int64] * 3
        assert curve.known_T.tolist() == [at.sum() for at in accepted]
        assert curve.correct_T.tolist() == [(at & correct).sum() for at in accepted]
        assert curve.unknown_T.tolist() == [(unknown >= threshold).sum() for threshold in thresholds]
        assert curve.auroc() == pairwise_oscr(known, unknown, np.ones(len(known), bool))
        assert compat == pytest.approx(published_oscr(known, unknown, correct), abs=1e-12)


def test_compat_oscr_takes_equal_known_scores_in_the_order_given():
    # Of the two known images at 1, the first is directly above the unknown one, and it alone counts one half.
    assert metrics.oscr([1.0, 1.0], [0.0], [True, False], compat=True) == 0.25
    assert metrics.oscr([1.0, 1.0], [0.0], [False, True], compat=True) == 0.5


@pytest.mark.parametrize("shape", [np.exp, np.cbrt, lambda scores: 3 * scores - 7, np.arctan])
def test_only_the_order_of_scores_counts(shape):
    known, unknown, correct = tied(8)
    plain, other = metrics.points(known, unknown, correct), metrics.points(shape(known), shape(unknown), correct)
    for counts, expected in zip(other[1:], plain[1:]):
        np.testing.assert_array_equal(counts, expected)


def test_swapping_the_sides_mirrors_every_metric():
    known, unknown, _ = tied(9)
    for positive, other in (("known", "unknown"), ("unknown", "known")):
        assert metrics.fpr_at(-unknown, -known, positive=other) == metrics.fpr_at(known, unknown, positive=positive)
        swapped = metrics.average_precision(-unknown, -known, positive=other)
        assert swapped == pytest.approx(metrics.average_precision(known, unknown, positive=positive), abs=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_auroc_of_every_class_equals_that_of_its_images_alone(dtype):
    random = np.random.default_rng(0)
    known, unknown = (np.round(random.normal(size=size), 1).astype(dtype) for size in (500, 300))
    known_class, unknown_class = random.integers(0, 40, 500), random.integers(0, 30, 300)
    known_class[known_class == 7] = 8  # a class number without images
    of_known, of_unknown = metrics.auroc_per_class(known, unknown, known_class, unknown_class)
    assert len(of_known) == 40 and len(of_unknown) == 30
    for label in np.unique(known_class):
        assert of_known[label] == metrics.auroc(known[known_class == label], unknown)
    for label in np.unique(unknown_class):
        assert of_unknown[label] == metrics.auroc(known, unknown[unknown_class == label])
        pair = np.concatenate([known, unknown[unknown_class == label]])
        assert of_unknown[label] == pytest.approx(sk.roc_auc_score(np.arange(len(pair)) < 500, pair), abs=1e-12)
    assert np.flatnonzero(np.isnan(of_known)).tolist() == [7] and not np.isnan(of_unknown).any()


def test_unknown_images_below_each_known_one():
    below, up_to = metrics.unknown_below([2.0, 0.0, 1.0], [1.0, 0.5, 1.0, -0.0])
    assert below.tolist() == [4, 0, 2] and up_to.tolist() == [4, 1, 4]
