"""Input of both sides of `evaluation.py`: made-up outputs for as many images as CIFAR-10 has."""

from typing import NamedTuple

import numpy as np

from gradmix_jax import scores
from gradmix_jax.scores.fitted import LOGITS

KNOWN, UNKNOWN, FEATURE, PROJECTION, STAGE, K = 6, 4, 512, 128, 256, 3
# Of CIFAR-10's 60,000 images, the 20,000 training images of the unknown classes are never used.
COUNTS = {"train": 27000, "validation": 3000, "test_known": 6000, "test_unknown": 4000}
SCORED = ("validation", "test_known", "test_unknown")
FEATURES = ("features", "projection", "stage3")
OUTPUTS = (*FEATURES, LOGITS)
HEADLINE = "features", "topk_cosine"


class Part(NamedTuple):
    outputs: dict[str, np.ndarray]
    labels: np.ndarray
    classes: np.ndarray


class Data(NamedTuple):
    """The parts, the outputs to score as one array each, where their parts end, and the head."""

    parts: dict[str, Part]
    together: dict[str, np.ndarray]
    ends: np.ndarray
    head: tuple[np.ndarray, np.ndarray]

    def split(self, values):
        return dict(zip(SCORED, np.split(values, self.ends)))


def make_data(scale: float) -> Data:
    random = np.random.default_rng(0)
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)
    centers = 0.2 * normal(KNOWN + UNKNOWN, FEATURE)
    centers[KNOWN:] += (centers[:UNKNOWN] + centers[1 : UNKNOWN + 1]) / 2  # unknown classes lie between known ones
    to_projection, of_stage = normal(FEATURE, PROJECTION), 0.2 * normal(KNOWN + UNKNOWN, STAGE)
    kernel, bias = centers[:KNOWN].T.copy(), -np.square(centers[:KNOWN]).sum(axis=1) / 2
    parts = {}
    for name, count in COUNTS.items():
        count = round(scale * count)
        first, number = (KNOWN, UNKNOWN) if name == "test_unknown" else (0, KNOWN)
        classes = first + np.arange(count) % number
        features = np.maximum(centers[classes] + normal(count, FEATURE), 0)
        projection = features @ to_projection
        outputs = {
            "features": features,
            "projection": projection / np.linalg.norm(projection, axis=1, keepdims=True),
            "stage3": np.maximum(of_stage[classes] + normal(count, STAGE), 0),
            LOGITS: features @ kernel + bias,
        }
        labels = np.where(classes < KNOWN, classes, -1).astype(np.int32)
        parts[name] = Part(outputs, labels, np.array([f"class {index}" for index in classes]))
    together = {name: np.concatenate([parts[part].outputs[name] for part in SCORED]) for name in OUTPUTS}
    return Data(parts, together, np.cumsum([len(parts[part].labels) for part in SCORED])[:-1], (kernel, bias))


def score_names(output: str) -> tuple[str, ...]:
    """Neither side computes the norm of unit projections, which is rounding noise, or scores that need a model."""
    fitting = lambda entry: entry.on_logits == (output == LOGITS) and "model" not in entry.needs
    names = (name for name, entry in scores.SCORES.items() if fitting(entry))
    return tuple(name for name in names if (output, name) != ("projection", "feature_norm"))


class Scored(NamedTuple):
    """{score: score_N} of all images together, and class_N."""

    by_score: dict[str, np.ndarray]
    predicted: np.ndarray


class Headline(NamedTuple):
    known: np.ndarray
    unknown: np.ndarray
    predicted_known: np.ndarray
    predicted_unknown: np.ndarray


def named(name, values):
    return {f"{name} {metric}": value for metric, value in values.items()}


def headline(data, scored) -> Headline:
    by_part, predicted = data.split(scored.by_score[HEADLINE[1]]), data.split(scored.predicted)
    sides = "test_known", "test_unknown"
    return Headline(*(by_part[side] for side in sides), *(predicted[side] for side in sides))


def probed(data, name):
    return data.parts[name].outputs["features"], data.parts[name].labels
