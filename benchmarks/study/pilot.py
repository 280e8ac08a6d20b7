"""Validation accuracy of finished runs, on images of the known classes that are in neither training nor test data."""

import numpy as np

from gradmix_jax import config as config_lib
from gradmix_jax.evaluation import cache, guards
from gradmix_jax.scores import class_bank
from gradmix_jax.scores.base import Outputs
from gradmix_jax.scores.neighbors import class_sums


def validation_accuracy(workdir: str) -> tuple[float, int]:
    """(accuracy of the top-k cosine classifier of the encoder's features on the validation images, their number).

    Raises:
      ValueError: the run has no features.npz, or no validation images that are not training images too.
    """
    parts, k = cache.load(workdir), config_lib.read(workdir)["evaluate"]["k"]
    if parts is None or "validation" not in parts:
        raise ValueError(f"{workdir} has no features of validation images; evaluate the run first.")
    train = parts["train"]
    validation = guards.not_learned([train], parts["validation"])
    if validation is None:
        raise ValueError(f"All validation images of {workdir} are also training images; choose another split.")
    bank = class_bank(train.outputs["features"], train.labels, num_classes=int(train.labels.max()) + 1, k=k)
    sums_NxK = class_sums(bank, Outputs(validation.outputs["features"]))
    return float(np.mean(np.argmax(sums_NxK, axis=1) == validation.labels)), len(validation)


def table(workdirs: list[str]) -> str:
    """Markdown, one row per run, sorted by data, method, width and epochs."""
    lines = ["| data | method | width | epochs | split | seed | validation accuracy | n |", "|" + "---|" * 8]
    found = []
    for workdir in workdirs:
        config = config_lib.read(workdir)
        accuracy, count = validation_accuracy(workdir)
        data = config["dataset"]["name"].rstrip("/").rpartition("/")[2]
        epochs = sum(phase["epochs"] for phase in config["phases"])
        of = (data, config["name"] or config["mix"]["method"], config["model"]["width"], epochs)
        found.append((*of, config["dataset"]["trial"], config["seed"], f"{accuracy:.4f}", count))
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in sorted(found))])
