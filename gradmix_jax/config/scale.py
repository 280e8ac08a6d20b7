"""Settings of published methods at their published scale, as flat config keys by benchmark; see `rivals`."""

from collections.abc import Mapping
from typing import Any


def _smoothing(share: float, classes: int) -> float:
    """`objective.label_smoothing`, spread over all classes, that equals smoothing over the other classes only."""
    return share * classes / (classes - 1)


# Instead of a crop after padding; no rotation, which configs of digits have.
CROP = {"augment.crop_scale": (0.77, 1.0), "augment.crop_ratio": (1.0, 1.0), "augment.rotation_degrees": 0.0}
CLASSIFIER32 = {
    "epochs": (200, 200, 200),
    "model.name": "classifier32",
    "model.width": 64,
    "attribution.stages": ("stage3",),
    "train.batch_size": 128,
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.1,
    "optimizer.weight_decay": 1e-4,
    "optimizer.warmup_epochs": 10.0,
    "optimizer.final_fraction": 1e-3,
    **CROP,
}
MAGNITUDE = {"mnist": 8, "svhn": 18, "cifar10": 6, "cifar+10": 6, "cifar+50": 6, "tiny_imagenet": 9}


def tuned(**changes: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The settings of the maximum-logit baseline by benchmark; `changes` are by benchmark too, `all` for all."""
    every = {"": CLASSIFIER32} | {name: {"augment.magnitude": value} for name, value in MAGNITUDE.items()}
    tiny = {"optimizer.learning_rate": 0.01, "objective.label_smoothing": _smoothing(0.9, 20)}
    every["tiny_imagenet"] = every["tiny_imagenet"] | tiny
    names = [name for name in every | changes if name != "all"]
    return {name: every.get(name, {}) | changes.get(name or "all", {}) for name in names}


def fine_grained(magnitude: int, smoothing: float, classes: int) -> dict[str, Any]:
    """A ResNet-50 on 448 pixels; its published runs start from weights of Places (`model.init_from`)."""
    return {
        "dataset.image_size": 448,
        "model.name": "resnet50",
        "train.batch_size": 32,
        "optimizer.learning_rate": 0.001,
        "objective.label_smoothing": _smoothing(smoothing, classes),
        "augment.num_ops": 2,
        "augment.magnitude": magnitude,
    }


ADAM = {"optimizer.name": "adam", "optimizer.learning_rate": 0.001, "optimizer.weight_decay": 0.0}
PLAIN_VIEWS = {"augment.jitter_prob": 0.0, "augment.gray_prob": 0.0}
WIDE = {
    "epochs": (200,),
    "model.name": "wide_resnet40",
    "model.width": 32,
    "attribution.stages": ("stage3",),
    "train.batch_size": 128,
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.1,
    "optimizer.weight_decay": 5e-4,
    "optimizer.final_fraction": 0.0,
    **CROP,
} | PLAIN_VIEWS
