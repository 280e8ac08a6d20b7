"""Scores and metrics against NumPy and scikit-learn in one run: top-k cosine score, curves, classes, bootstrap.

python benchmarks/scoring.py [--images=10000] [--bank=30000] [--classes=6] [--scores=1000000] [--class_images=100000]
                             [--known_classes=1000] [--resamples=1000] [--repeats=5]

The NumPy versions of the score work image by image: one product with all training features, the three largest of each
class. The plain one divides by all norms and sorts each class for every image, as evaluation scripts do; the prepared
one normalizes the training features once and partitions. Both are timed on a sample of the images, before and after
ours. In all other rows the two sides take turns, so a slowdown of the machine affects both. AUROC per class by
scikit-learn is timed on a sample of the classes.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import sklearn
from evaluation_numpy import bootstrap_samples
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from turns import timed

from gradmix_jax import metrics, scores
from gradmix_jax.evaluation import open_set
from gradmix_jax.metrics import significance

DIMENSION, K, SAMPLE, CLASSES_TIMED = 512, 3, 300, 20


class Case(NamedTuple):
    """Two functions that compute the same thing; `theirs` does one `scale`-th of the work."""

    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    scale: float = 1


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
    """(scores_SxK of the sample, seconds per image)."""
    started = time.perf_counter()
    found = [one(feature_D) for feature_D in features_NxD[:SAMPLE]]
    return np.array(found), (time.perf_counter() - started) / SAMPLE


def numpy_oscr(known, unknown, correct):
    """Area under the curve of (unknown accepted, correct known accepted) at every distinct score, by trapezoids."""
    values = np.concatenate([known, unknown])
    order = np.argsort(-values, kind="stable")
    right = np.cumsum(np.concatenate([correct, np.zeros(len(unknown), bool)])[order])
    wrong = np.cumsum(order >= len(known))
    ends = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)
    rates = [np.append(0, counts[ends]) / len(side) for counts, side in ((wrong, unknown), (right, known))]
    return np.trapezoid(rates[1], rates[0])


def several_sklearn(known, unknown, truth, values):
    """What `open_set.rejection_metrics` computes from one sort."""
    found = {"auroc": roc_auc_score(truth, values)}
    for side, labels, signed in (("known", truth, values), ("unknown", 1 - truth, -values)):
        fpr, tpr, _ = roc_curve(labels, signed, drop_intermediate=False)
        found[f"fpr95_{side}_positive"] = fpr[np.argmax(tpr >= 0.95)]
        found[f"average_precision_{side}"] = average_precision_score(labels, signed)
    return found


def curve_cases(random, size, dtype):
    """{row: Case}."""
    known, unknown = (random.normal(mean, 1, size // 2).astype(dtype) for mean in (1, 0))
    correct = random.random(len(known)) < 0.9
    truth, values = np.repeat([1, 0], len(known)), np.concatenate([known, unknown])
    cases = {
        "AUROC": Case(lambda: metrics.auroc(known, unknown), lambda: roc_auc_score(truth, values)),
        "AUPR": Case(lambda: metrics.average_precision(known, unknown), lambda: average_precision_score(truth, values)),
        "ROC": Case(
            lambda: metrics.roc_curve(known, unknown),
            lambda: roc_curve(truth, values, drop_intermediate=False),
        ),
        "AUROC, AUPR and FPR95 both ways": Case(
            lambda: open_set.rejection_metrics(known, unknown),
            lambda: several_sklearn(known, unknown, truth, values),
        ),
        "OSCR": Case(lambda: metrics.oscr(known, unknown, correct), lambda: numpy_oscr(known, unknown, correct)),
    }
    return {f"{name}, {size:,} {np.dtype(dtype).name}": case for name, case in cases.items()}


def class_cases(random, size, num_classes):
    """AUROC of every known class against all unknown; as many known as unknown images."""
    known, unknown = (random.normal(mean, 1, size // 2).astype(np.float32) for mean in (1, 0))
    known_class, unknown_class = (np.arange(len(known)) % num_classes for _ in range(2))

    def theirs():
        found = []
        for label in range(CLASSES_TIMED):
            own = known[known_class == label]
            truth = np.repeat([1, 0], [len(own), len(unknown)])
            found.append(roc_auc_score(truth, np.concatenate([own, unknown])))
            own = unknown[unknown_class == label]
            truth = np.repeat([1, 0], [len(known), len(own)])
            found.append(roc_auc_score(truth, np.concatenate([known, own])))
        return found

    ours = lambda: metrics.auroc_per_class(known, unknown, known_class, unknown_class)
    expected, found = theirs(), np.stack(ours(), axis=1)
    np.testing.assert_allclose(found[:CLASSES_TIMED].ravel(), expected, rtol=1e-12)
    return {
        f"AUROC of {num_classes:,} + {num_classes:,} classes, {size:,} float32": Case(
            ours, theirs, scale=num_classes / CLASSES_TIMED
        )
    }


def bootstrap_cases(random, sizes, resamples):
    cases = {}
    for size in sizes:
        known, unknown = (random.normal(mean, 1, size // 2).astype(np.float32) for mean in (1, 0))
        given = known, unknown, random.random(len(known)) < 0.9
        cases[f"bootstrap, {resamples:,} of {size:,} float32"] = Case(
            lambda given=given: significance.bootstrap(0, *given, resamples=resamples),
            lambda given=given: bootstrap_samples(np.random.default_rng(0), *given, resamples),
        )
    return cases


def row(name, ours, theirs):
    """A line of the table, with the ratio of the medians."""
    ratio = statistics.median(theirs) / statistics.median(ours)
    print(f"| {name} | {milliseconds(ours)} | {milliseconds(theirs)} | {ratio:.1f} x |", flush=True)


def milliseconds(found):
    return f"{1e3 * statistics.median(found):.4g} ({1e3 * min(found):.4g})"


def print_similarities(random, given):
    draw = lambda rows: random.normal(size=(rows, DIMENSION)).astype(np.float32)
    features_NxD, bank_MxD = draw(given.images), draw(given.bank)
    labels_M = np.arange(given.bank) % given.classes
    loops = {"plain": plain_numpy, "prepared": prepared_numpy}
    loops = {name: make(bank_MxD, labels_M, given.classes) for name, make in loops.items()}
    before = {name: seconds_an_image(one, features_NxD) for name, one in loops.items()}
    bank = scores.class_bank(bank_MxD, labels_M, num_classes=given.classes, k=K)
    for expected, _ in before.values():
        np.testing.assert_allclose(scores.class_similarities(bank, features_NxD[:SAMPLE]), expected, atol=1e-5)
    run = lambda _: jax.block_until_ready(scores.class_similarities(bank, features_NxD))
    ours = timed({"ours": run}, repeats=given.repeats)["ours"]
    for name, one in loops.items():
        theirs = [given.images * each for each in (before[name][1], seconds_an_image(one, features_NxD)[1])]
        row(f"top-{K} cosine, {name} NumPy loop", ours, theirs)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = {"images": 10000, "bank": 30000, "classes": 6, "scores": 1_000_000, "class_images": 100_000}
    for name, default in (sizes | {"known_classes": 1000, "resamples": 1000, "repeats": 5}).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    random = np.random.default_rng(0)
    versions = f"jax {jax.__version__}, numpy {np.__version__}, sklearn {sklearn.__version__}"
    print(f"{jax.devices()[0].device_kind}, {versions}; median of {given.repeats} (minimum)")
    print(f"top-{K} cosine: {given.images} images, {given.bank} training features of {DIMENSION}, ", end="")
    print(f"{given.classes} classes\n")
    print("| what | ours, ms | NumPy or scikit-learn, ms | ratio |\n|---|---|---|---|")
    print_similarities(random, given)
    cases = curve_cases(random, given.scores, np.float32) | curve_cases(random, given.scores, np.float64)
    cases |= class_cases(random, given.class_images, given.known_classes)
    cases |= bootstrap_cases(random, (min(10_000, given.scores), given.scores), given.resamples)
    for name, case in cases.items():
        runs = {"ours": lambda _, case=case: case.ours(), "theirs": lambda _, case=case: case.theirs()}
        times = timed(runs, repeats=given.repeats)
        row(name, times["ours"], [case.scale * each for each in times["theirs"]])


if __name__ == "__main__":
    main()
