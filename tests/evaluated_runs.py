"""Made-up workdirs of evaluated runs: every file that the report reads, with realistic arrays."""

import json

import numpy as np
from programs import small_config

from gradmix_jax import config as config_lib
from gradmix_jax import metrics
from gradmix_jax.config import phase
from gradmix_jax.evaluation import open_set as open_set_lib

KNOWN = ("zero", "T-shirt/top", "a<b>&$x$", "c_d|e", "four", "five")
UNKNOWN = ("six", "seven%", "eight", "nine")
FEATURES = ("projection", "features", "stage3", "stage4")
SCORES = ("topk_cosine", "mahalanobis", "knn")
LOGIT_SCORES = ("msp", "energy")
CORRUPTIONS = ("fog", "gaussian_noise")
OOD = {"near": ("letters", "a_b"), "far": ("noise<i>/$x|",)}
ENVIRONMENT = {
    "commit": "abcdef0123456789",
    "uncommitted_changes": False,
    "command": ["main.py", "--workdir=<here>"],
    "python": "3.11.2",
    "machine": "Linux",
    "cpu_count": 2,
    "devices": ["cpu"],
    "processes": 1,
    "packages": {"jax": "0.10.2", "flax": "0.12.8"},
}


def open_set(known, unknown, correct):
    """The ten metrics of a metrics-dict."""
    return {
        "accuracy": float(np.mean(correct)),
        "auroc": metrics.auroc(known, unknown),
        "oscr": metrics.oscr(known, unknown, correct),
        "oscr_compat": metrics.oscr(known, unknown, correct, compat=True),
        "fpr95_unknown_positive": metrics.fpr_at(known, unknown, positive="unknown"),
        "fpr95_known_positive": metrics.fpr_at(known, unknown, positive="known"),
        "average_precision_known": metrics.average_precision(known, unknown, positive="known"),
        "average_precision_unknown": metrics.average_precision(known, unknown, positive="unknown"),
        "ccr_at_fpr_01": metrics.ccr_at_fpr(known, unknown, correct, fpr=0.01),
        "ccr_at_fpr_10": metrics.ccr_at_fpr(known, unknown, correct, fpr=0.1),
    }


def write_run(
    folder, recipe="input", *, trial=0, seed=0, step=40, gap=2.0, size=10, label="", results=None, **overrides
):
    """Write a workdir.

    Args:
      folder: the workdir to create.
      recipe: a key of config.recipes.RECIPES.
      trial, seed: those of the run.
      step: step of the checkpoint.
      gap: distance between the scores of known and unknown images, in standard deviations.
      size: test images per class.
      label: config.name, which names the run in tables.
      results: entries of results.json that replace the made-up ones.
      overrides: config keys.

    Returns:
      The folder, as a string.
    """
    config = small_config(recipe, phases=(phase("ssl", epochs=1, ssl=1.0),), **{"dataset.trial": trial, **overrides})
    config.seed, config.name = seed, label
    folder.mkdir(parents=True)
    random = np.random.default_rng([trial, seed, int(100 * gap)])
    labels = np.repeat(np.arange(len(KNOWN)), size)
    predicted = np.where(random.uniform(size=labels.size) < 0.9, labels, random.integers(0, len(KNOWN), labels.size))
    scores = {
        f"{feature}/{score}": (random.normal(gap, 1, labels.size), random.normal(0, 1, len(UNKNOWN) * size))
        for feature in (*FEATURES, "logits")
        for score in (LOGIT_SCORES if feature == "logits" else SCORES)
    }
    predicted_unknown = random.integers(0, len(KNOWN), len(UNKNOWN) * size)
    _write_arrays(folder, random, scores, (predicted, predicted_unknown), labels, size)
    made = (
        _results(random, scores, (predicted, predicted_unknown), labels, size)
        | {"step": step, "trial": trial}
        | (results or {})
    )
    (folder / "config.json").write_text(json.dumps(config_lib.to_plain(config)))
    (folder / "results.json").write_text(json.dumps(made))
    lines = [{"step": step, "loss": 5 / (1 + step / 20) + random.uniform(0, 0.2)} for step in range(10, 200, 10)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def _write_arrays(folder, random, scores, predictions, labels, size):
    known, unknown = scores["features/topk_cosine"]
    predicted, predicted_unknown = predictions
    others = {
        f"{name}/{side}": values for name, both in scores.items() for side, values in zip(("known", "unknown"), both)
    }
    np.savez_compressed(
        folder / "scores.npz",
        **{"known_scores": known, "unknown_scores": unknown, "predicted": predicted, "labels": labels},
        **{"predicted_unknown": predicted_unknown, "unknown_classes": _classes(size)},
        **others,
    )
    places = random.normal(size=(len(KNOWN) + len(UNKNOWN), 8)) * 3
    features = {}
    for part, classes in {"test_known": range(len(KNOWN)), "test_unknown": range(len(KNOWN), len(places))}.items():
        ids = np.repeat(list(classes), size)
        features[f"{part}/features"] = (places[ids] + random.normal(size=(ids.size, 8))).astype(np.float32)
        features[f"{part}/labels"] = np.where(ids < len(KNOWN), ids, -1).astype(np.int32)
    np.savez_compressed(folder / "features.npz", **features)
    gallery = {}
    for kind in ("accepted_unknown", "rejected_known", "misclassified", "accepted_known"):
        count = 0 if kind == "misclassified" else min(size, 16)
        gallery[f"{kind}/images"] = random.integers(0, 255, (count, 8, 8, 1 + 2 * (kind == "rejected_known")), np.uint8)
        gallery[f"{kind}/scores"] = random.normal(size=count)
        gallery[f"{kind}/truth"] = np.array([*UNKNOWN, *KNOWN] * 2)[:count]
        gallery[f"{kind}/predicted"] = np.array([*KNOWN] * 3)[:count]
        if kind.startswith("rejected"):
            gallery[f"{kind}/nearest"] = random.integers(0, 5, (count, 3))
            gallery[f"{kind}/similarity"] = random.uniform(size=(count, 3))
    gallery |= {"train/images": random.integers(0, 255, (5, 8, 8, 1), np.uint8), "train/classes": np.array(KNOWN[:5])}
    np.savez_compressed(folder / "gallery.npz", **gallery)


def _classes(size):
    """Classes of the unknown images, as positions in the sorted names."""
    return np.repeat(np.argsort(np.argsort(UNKNOWN)), size).astype(np.int32)


def _results(random, scores, predictions, labels, size):
    predicted, _ = predictions
    correct = predicted == labels
    by_score = {}
    for name, (known, unknown) in scores.items():
        feature, score = name.split("/")
        by_score.setdefault(feature, {})[score] = open_set(known, unknown, correct)
    by_feature = {feature: by_score[feature]["topk_cosine"] for feature in FEATURES}
    headline = by_feature["features"]
    decided = (*scores["features/topk_cosine"], *predictions)
    threshold = dict(validation_V=random.normal(2.0, 1, 50), num_classes=len(KNOWN))
    at_threshold = open_set_lib.threshold_metrics(*decided, labels, **threshold)
    bins = {"count": [0, 20, 40], "confidence": [None, 0.5, 0.9], "accuracy": [None, 0.6, 0.95]}
    small = lambda value: {"accuracy": value, "ece": 0.02, "nll": 0.3, "brier": 0.1, "reliability": bins}
    return headline | {
        **at_threshold,
        "score": "top-k cosine of features; higher means known",
        "feature": "features",
        "score_name": "topk_cosine",
        "by_feature": by_feature,
        "by_score": by_score,
        "logits_from": "linear probe",
        "intervals": {
            **{name: [headline[name] - 0.01, headline[name] + 0.01] for name in ("accuracy", "auroc", "oscr")},
            **{"confidence": 0.95, "resamples": 1000, "over": "test images"},
        },
        "closed_set": {
            "topk_cosine": {"accuracy": headline["accuracy"]},
            "knn": {"accuracy": 0.93, "k": 20},
            "linear_probe": {**small(0.95), "l2": 0.001},
            "head": None,
        },
        "per_class": {name: {"accuracy": 0.9, "auroc": random.uniform(0.8, 1)} for name in KNOWN},
        "per_unknown_class": {name: {"auroc": random.uniform(0.7, 1), "n": size} for name in sorted(UNKNOWN)},
        "confusion": open_set_lib.confusion(
            *decided,
            classes_N=np.repeat(KNOWN, size),
            classes_M=np.repeat(UNKNOWN, size),
            known_names=KNOWN,
            threshold=at_threshold["threshold"],
        ),
        "diversity": {
            name: {"effective_rank": 7.5, "intrinsic_dimension": dict.fromkeys(KNOWN, 3.25)} for name in FEATURES
        },
        "ood": {
            distance: {name: {"n": 50, "by_score": _detection(by_score)} for name in names}
            for distance, names in OOD.items()
        },
        "corruptions": _corruptions(random),
        "probes": {
            "letters": {
                **{"classes": 26, "n_train": 100, "n_test": 50},
                **{"linear_probe": {"accuracy": 0.6, "l2": 0.1}, "knn": {"accuracy": 0.55, "k": 20}},
            }
        },
        "duplicates": {"known": 1, "unknown": 2},
        "known_classes": list(KNOWN),
        "num_train": 500,
        "num_known": int(labels.size),
        "num_unknown": len(UNKNOWN) * size,
        "seconds": 12.5,
        "environment": ENVIRONMENT,
        "checkpoint": "0123abcd",
    }


def _detection(by_score):
    names = ("auroc", "fpr95_unknown_positive", "fpr95_known_positive")
    names += ("average_precision_known", "average_precision_unknown")
    return {f: {s: {name: each[name] for name in names} for s, each in of.items()} for f, of in by_score.items()}


def _corruptions(random):
    at = lambda level: dict(accuracy=0.95 - 0.1 * level + 0.02 * random.uniform(), auroc=0.9 - 0.05 * level, oscr=0.8)
    results = {name: {str(level): at(level) for level in range(1, 6)} for name in CORRUPTIONS}
    means = {key: np.mean([each[key] for r in results.values() for each in r.values()]) for key in at(1)}
    return {
        **{"source": "regenerated", "n": 60, "results": results, "mean": means, "clean": at(0)},
        **{"mce": 1 - means["accuracy"], "mce_reference": "none (plain mean error)"},
    }
