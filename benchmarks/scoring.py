"""Scores against NumPy and metrics against scikit-learn, in one run: the top-k cosine score, and curves of scores.

python benchmarks/scoring.py [--images=10000] [--bank=30000] [--classes=6] [--scores=1000000] [--repeats=5]

The NumPy versions go image by image: one product with all training features, the three largest of each class. The plain
one divides by all norms and sorts each class for every image, as evaluation scripts do; the prepared one normalises the
training features once and partitions. Both are timed on a sample of the images, before and after ours.
"""

import argparse
import statistics
import time

import jax
import numpy as np
import sklearn
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from gradmix_jax import metrics, scores

DIMENSION, K, SAMPLE = 512, 3, 300


def prepared_numpy(bank_MxD, labels_M, classes):
    """feature_D -> score of each class."""
    unit_MxD = bank_MxD / np.linalg.norm(bank_MxD, axis=1, keepdims=True)
    rows = [np.flatnonzero(labels_M == label) for label in range(classes)]

    def one(feature_D):
        cosine_M = unit_MxD @ (feature_D / np.linalg.norm(feature_D))
        return [np.partition(cosine_M[row], -K)[-K:].sum() for row in rows]

    return one


def plain_numpy(bank_MxD, labels_M, classes):
    """feature_D -> score of each class."""

    def one(feature_D):
        cosine_M = bank_MxD @ feature_D / (np.linalg.norm(bank_MxD, axis=1) * np.linalg.norm(feature_D))
        return [np.sort(cosine_M[labels_M == label])[-K:].sum() for label in range(classes)]

    return one


def seconds_an_image(one, features_NxD):
    """(scores_SxK of the sample, seconds an image)."""
    started = time.perf_counter()
    found = [one(feature_D) for feature_D in features_NxD[:SAMPLE]]
    return np.array(found), (time.perf_counter() - started) / SAMPLE


def seconds_of(function, repeats):
    jax.block_until_ready(function())
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(function())
        found.append(time.perf_counter() - started)
    return found


def milliseconds(found):
    low, middle, high = (f"{1e3 * value:.4g}" for value in (min(found), statistics.median(found), max(found)))
    return f"{middle} ({low} to {high})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = (("images", 10000), ("bank", 30000), ("classes", 6), ("scores", 1_000_000), ("repeats", 5))
    for name, default in sizes:
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    random = np.random.default_rng(0)
    draw = lambda rows: random.normal(size=(rows, DIMENSION)).astype(np.float32)
    features_NxD, bank_MxD = draw(given.images), draw(given.bank)
    labels_M = np.arange(given.bank) % given.classes
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, numpy {np.__version__}, sklearn {sklearn.__version__}"
    )
    print(f"{given.images} images, {given.bank} training features of {DIMENSION}, {given.classes} classes; curves of")
    print(f"{given.scores} scores; medians of {given.repeats} (extremes)\n")
    print("| what | ours, ms | the other, ms | ratio |\n|---|---|---|---|")

    loops = {"plain": plain_numpy, "prepared": prepared_numpy}
    loops = {name: make(bank_MxD, labels_M, given.classes) for name, make in loops.items()}
    before = {name: seconds_an_image(one, features_NxD) for name, one in loops.items()}
    bank = scores.class_bank(bank_MxD, labels_M, num_classes=given.classes, k=K)
    for expected, _ in before.values():
        np.testing.assert_allclose(scores.class_similarities(bank, features_NxD[:SAMPLE]), expected, atol=1e-5)
    ours = seconds_of(lambda: scores.class_similarities(bank, features_NxD), given.repeats)
    for name, one in loops.items():
        theirs = [given.images * each for each in (before[name][1], seconds_an_image(one, features_NxD)[1])]
        ratio = statistics.mean(theirs) / statistics.median(ours)
        print(f"| top-{K} cosine, {name} NumPy loop | {milliseconds(ours)} | {milliseconds(theirs)} | {ratio:.1f} x |")

    half = given.scores // 2
    known, unknown = random.normal(1, 1, half), random.normal(0, 1, half)
    correct = random.random(half) < 0.9
    truth, values = np.repeat([1, 0], half), np.concatenate([known, unknown])
    curves = {
        "AUROC": (lambda: metrics.auroc(known, unknown), lambda: roc_auc_score(truth, values)),
        "AUPR": (
            lambda: metrics.average_precision(known, unknown),
            lambda: average_precision_score(truth, values),
        ),
        "ROC": (lambda: metrics.roc_curve(known, unknown), lambda: roc_curve(truth, values)),
        "OSCR": (lambda: metrics.oscr(known, unknown, correct), None),
    }
    for name, (function, other) in curves.items():
        ours, theirs = seconds_of(function, given.repeats), other and seconds_of(other, given.repeats)
        ratio = f"{statistics.median(theirs) / statistics.median(ours):.1f} x" if theirs else "–"
        print(f"| {name} | {milliseconds(ours)} | {milliseconds(theirs) if theirs else '–'} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
