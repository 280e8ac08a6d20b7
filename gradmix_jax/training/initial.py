"""The initial weights of a run from a file, an export or another run (`model.init_from`)."""

import dataclasses
import os
import sys
from collections.abc import Mapping
from typing import Any

from gradmix_jax import data as data_lib
from gradmix_jax import stored
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.models import pretrained
from gradmix_jax.training.checkpoint import Checkpoints
from gradmix_jax.workdir import storage


def source(init_from: str, trial: int) -> str:
    """The file or directory that `model.init_from` refers to for a trial.

    Raises:
      ValueError: it does not exist.
    """
    path = init_from.replace("{trial}", str(trial))
    if not storage.exists(path):
        raise ValueError(f"model.init_from {path!r} does not exist; give a file, a workdir or an export.")
    return path


def load(init_from: str, trial: int, template: Mapping[str, Any]) -> tuple[dict[str, Any], pretrained.Report]:
    """The template's variables, replaced by the weights of `init_from`.

    Args:
      init_from: the key `model.init_from`: a file of PyTorch or safetensors, an export, or the workdir of a run, whose
        newest checkpoint is used. "{trial}" in it stands for the trial.
      trial: trial of the run.
      template: initialized {"params", "batch_stats"}; see `pretrained.load_variables`.

    Raises:
      ValueError: the source is missing, cannot be read, or does not fit the model.
    """
    path = source(init_from, trial)
    weights, sums, trained_on = os.path.join(path, workdir_lib.EXPORTED_WEIGHTS), None, {}
    if storage.exists(weights):
        path, sums, trained_on = weights, stored.read_sums(path), _of_export(path)
    if not storage.is_directory(path):
        with storage.local_copy(path) as copy:
            stored.check_sums(sums, [copy])
            variables, report = pretrained.load_variables(copy, template)
        return variables, dataclasses.replace(report, source=path, trained_on=trained_on)
    checkpoints = Checkpoints(path, of=None, read_only=True)
    variables = checkpoints.saved_model()
    checkpoints.close()
    variables, report = pretrained.merge_variables(variables, template, source=path)
    return variables, dataclasses.replace(report, trained_on=checkpoints.restored_of)


def _of_export(directory: str) -> dict[str, Any]:
    """What an export was trained on, as far as it says so, see `identity.identity`; negative classes only by name."""
    try:
        about = workdir_lib.read_json(directory, workdir_lib.EXPORTED_METADATA)
        dataset = about["config"]["dataset"]
        known, negative = map(str, about["class_names"]), map(str, dataset.get("negative") or ())
        return {"dataset": str(dataset["name"]), "known classes": [*known], "negative classes": [*negative]}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def warn_of_unknown(report: pretrained.Report, dataset: data_lib.Spec, data: data_lib.OpenSet) -> None:
    """Print a warning if the weights were trained on classes that are unknown in this experiment.

    Not where only cached features are read, which have no test images: the evaluation that wrote them has warned.
    """
    of = report.trained_on
    if not of or data.test_unknown is None or not data_lib.same_data(of["dataset"], dataset.unknown_data):
        return
    trained = {*of.get("known classes", ()), *of.get("negative classes", ())}
    seen = sorted(trained.intersection(data.test_unknown.classes.tolist()))
    if seen:
        print(
            f"warning: {report.source} was trained on classes that are unknown here ({data_lib.listed(seen)}), so they "
            "are not new to this model; start from a run of the same class split.",
            file=sys.stderr,
        )


def check_head(report: pretrained.Report, classifier: str) -> None:
    """Check that the classification head was loaded, where nothing has trained it or will.

    Raises:
      ValueError: it keeps its initialization, so its logits would be those of random weights.
    """
    if any(path.startswith("params/classifier/") for path in report.kept):
        raise ValueError(
            f"model.classifier must be 'none' where neither weights nor training give one, got {classifier!r}: "
            f"{report.source} has no head for these classes; train one, or leave logits to the linear probe."
        )
