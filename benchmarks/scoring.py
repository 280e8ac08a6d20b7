"""Scores and metrics against NumPy, in one run: the top-k cosine score, and the metrics of a million scores.

python benchmarks/scoring.py [--images=10000] [--bank=30000] [--classes=6] [--repeats=5]

The NumPy version goes image by image: one product with all training features, the three largest of each class. It is
timed on a sample of the images, before and after ours, and expressed per image.
"""

import argparse
import statistics
import time

import jax
import numpy as np

from gradmix_jax import metrics, scores

DIMENSION, K, SAMPLE = 512, 3, 300


def per_image_numpy(features_NxD, bank_MxD, labels_M, classes):
    """(scores_SxK, seconds an image)."""
    rows = [np.flatnonzero(labels_M == label) for label in range(classes)]
    started = time.perf_counter()
    found = []
    for feature_D in features_NxD[:SAMPLE]:
        cosine_M = bank_MxD @ (feature_D / np.linalg.norm(feature_D))
        found.append([np.partition(cosine_M[row], -K)[-K:].sum() for row in rows])
    return np.array(found), (time.perf_counter() - started) / SAMPLE


def seconds_of(function, repeats):
    jax.block_until_ready(function())
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(function())
        found.append(time.perf_counter() - started)
    return found


def describe(found):
    return f"median {statistics.median(found):.3f} s ({min(found):.3f} to {max(found):.3f}, {len(found)} repeats)"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("images", 10000), ("bank", 30000), ("classes", 6), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    random = np.random.default_rng(0)
    draw = lambda rows: random.normal(size=(rows, DIMENSION)).astype(np.float32)
    features_NxD, bank_MxD = draw(given.images), draw(given.bank)
    labels_M = np.arange(given.bank) % given.classes
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, numpy {np.__version__}")

    unit_MxD = bank_MxD / np.linalg.norm(bank_MxD, axis=1, keepdims=True)
    expected, before = per_image_numpy(features_NxD, unit_MxD, labels_M, given.classes)
    bank = scores.class_bank(bank_MxD, labels_M, num_classes=given.classes, k=K)
    np.testing.assert_allclose(scores.class_similarities(bank, features_NxD[:SAMPLE]), expected, atol=1e-5)
    ours = seconds_of(lambda: scores.class_similarities(bank, features_NxD), given.repeats)
    after = per_image_numpy(features_NxD, unit_MxD, labels_M, given.classes)[1]
    theirs = statistics.mean([before, after]) * given.images
    size = f"{given.images} images, {given.bank} training features of {DIMENSION}, {given.classes} classes"
    print(f"top-{K} cosine, {size}: {describe(ours)}")
    print(f"  NumPy, image by image: {theirs:.2f} s ({before * 1e3:.2f} and {after * 1e3:.2f} ms an image)")
    operations = 2 * given.images * given.bank * DIMENSION
    print(f"  ratio {theirs / statistics.median(ours):.1f}, {operations / statistics.median(ours) / 1e9:.0f} GFLOP/s")

    known, unknown = random.normal(1, 1, 500_000), random.normal(0, 1, 500_000)
    correct = random.random(500_000) < 0.9
    curves = {
        "AUROC": lambda: metrics.auroc(known, unknown),
        "AUPR": lambda: metrics.average_precision(known, unknown),
        "OSCR": lambda: metrics.oscr(known, unknown, correct),
        "ROC": lambda: metrics.roc_curve(known, unknown),
    }
    for name, function in curves.items():
        print(f"{name} of 1,000,000 scores: {describe(seconds_of(function, given.repeats))}")


if __name__ == "__main__":
    main()
