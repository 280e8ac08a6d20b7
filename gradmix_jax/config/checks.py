"""Checks that the sections of a config fit together and that it has no unknown keys; one line per mistake."""

import dataclasses
import difflib
from typing import TYPE_CHECKING, Any

from gradmix_jax import models, objectives
from gradmix_jax.fields import check_choice
from gradmix_jax.method import attribution, mix
from gradmix_jax.training import phases as phases_lib

if TYPE_CHECKING:
    from gradmix_jax.config import Experiment


def check_keys(config: dict[str, Any], defaults: dict[str, Any], prefix: str = "") -> None:
    """Raises ValueError for an unknown or missing key; the sections check the values themselves."""
    for name in config.keys() - defaults.keys():
        near = difflib.get_close_matches(name, defaults, 1)
        hint = f"; did you mean {prefix}{near[0]}?" if near else f"; there are {', '.join(sorted(defaults))}."
        raise ValueError(f"unknown config key {prefix}{name}{hint}")
    for name, default in defaults.items():
        if name not in config:
            raise ValueError(f"missing config key {prefix}{name}.")
        if isinstance(default, dict):
            if not isinstance(config[name], dict):
                raise ValueError(f"{prefix}{name} must be a section with keys, got {config[name]!r}.")
            if not prefix:
                check_keys(config[name], default, f"{name}.")
    if not prefix:
        check_phases(config["phases"])


def check_phases(phases: Any) -> None:
    if not isinstance(phases, (tuple, list)) or not phases:
        raise ValueError(f"phases must be a tuple of at least one phase, got {phases!r}.")
    for index, entry in enumerate(phases):
        if not isinstance(entry, dict):
            raise ValueError(f"phases[{index}] must be a phase as gradmix_jax.config.phase makes it, got {entry!r}.")
        for name in phases_lib.KEYS:
            if name not in entry:
                raise ValueError(f"missing config key phases[{index}].{name}.")
        known = (*phases_lib.KEYS, objectives.ALIAS, *objectives.OBJECTIVES)
        for name in entry:
            check_choice(f"a key of phases[{index}]", name, known)


def check_batch(experiment: "Experiment", num_devices: int) -> None:
    batch, group = experiment.train.batch_size, experiment.mix.group_size
    if batch % num_devices:
        raise ValueError(f"train.batch_size must be a multiple of the {num_devices} devices, got {batch}.")
    if experiment.mix.mixes and (batch // num_devices) % group:
        raise ValueError(
            f"mix.group_size must divide the {batch // num_devices} images of one device, got {group} "
            f"(train.batch_size {batch} on {num_devices} devices)."
        )
    micro, images = experiment.train.micro_batch_size, batch // num_devices
    if micro and images % micro:
        raise ValueError(f"train.micro_batch_size must divide the {images} images of one device, got {micro}.")
    if micro and experiment.mix.stages and micro % group:
        raise ValueError(
            f"train.micro_batch_size must be a multiple of mix.group_size {group} with mix.method "
            f"{experiment.mix.method!r}, which mixes activations of partners, got {micro}."
        )


def check_channels(experiment: "Experiment") -> None:
    channels = experiment.dataset.channels
    for name in ("mean", "std"):
        values = getattr(experiment.normalization, name)
        if channels and values and len(values) != channels:  # else they are derived
            raise ValueError(f"normalization.{name} must have {channels} elements, one per channel, got {values!r}.")


def check_objectives(experiment: "Experiment") -> None:
    """Check that the other sections allow the weighted objectives and that mixed images have a loss."""
    spec, used = experiment.objective, {}
    for index, phase in enumerate(experiment.phases):
        for name in phase.weights:
            entry, where = objectives.OBJECTIVES[name], f"phases[{index}].{name}"
            entry.check(experiment, where if name != spec.ssl else f"phases[{index}].{objectives.ALIAS}")
            used[name] = entry
    if not experiment.mix.mixes:
        return
    mixed = [name for name, entry in used.items() if entry.mixes(spec)]
    if not mixed:
        raise ValueError(
            f"mix.method is {experiment.mix.method!r} but no phase has a loss of mixed images; give ssl or "
            "cross_entropy a weight, set objective.mixed_supcon, or set mix.method to 'none'."
        )
    labeled = [name for name in mixed if used[name].uses_labels]
    if experiment.mix.mixed_views == "first" and labeled:
        raise ValueError(f"mix.mixed_views must be 'all' with mixed images for {labeled[0]}, got 'first'.")


def trains_head(phases: tuple[phases_lib.Phase, ...]) -> bool:
    """Whether a phase has an objective that uses the classification head."""
    return any(objectives.OBJECTIVES[name].uses_head for phase in phases if phase.epochs for name in phase.weights)


def check_head(experiment: "Experiment") -> None:
    """Check that training reaches the classification head, whose logits would otherwise be those of random weights."""
    model, phases = experiment.model, experiment.phases
    if model.classifier == "none" or model.init_from or not any(phase.epochs for phase in phases):
        return
    if not trains_head(phases):
        raise ValueError(
            f"model.classifier must be 'none' without an objective that trains it, got {model.classifier!r}; give one "
            "such as cross_entropy a weight, or leave logits to the linear probe of the evaluation."
        )


def check_attribution(experiment: "Experiment") -> None:
    spec = experiment.attribution
    check_choice("attribution.loss", spec.loss, (*objectives.OBJECTIVES, attribution.TRAINING))
    if not experiment.mix.uses_map:
        return
    if spec.uses_loss and spec.loss != attribution.TRAINING:
        entry, where = objectives.OBJECTIVES[spec.loss], f"attribution.loss {spec.loss!r}"
        if entry.state and not any(spec.loss in phase.weights for phase in experiment.phases):
            raise ValueError(f"{where} needs a phase that gives {spec.loss} a weight, as objective.ssl or by its name.")
        entry.check(experiment, where)
    stages = models.available_stages(experiment.model)
    for stage in spec.stages if spec.uses_stages else ():
        check_choice("each element of attribution.stages", stage, stages)


def with_patches(spec: mix.Spec, model: models.Spec) -> mix.Spec:
    """The mix section, with the model's patch size if it has none."""
    if not spec.uses_patches or spec.patch_size:
        return spec
    return dataclasses.replace(spec, patch_size=models.patch_size(model))


def check_tokens(experiment: "Experiment") -> None:
    """Check that the model has the patches, attention and stages, and the images the size, that the mix needs."""
    spec, model, side = experiment.mix, experiment.model, experiment.dataset.image_size
    patches = models.patch_size(model)
    attending = f"mix.method {spec.method!r}" if spec.attends else ""
    if spec.uses_map and experiment.attribution.needs("attention"):
        attending = f"attribution.method {experiment.attribution.method!r}"
    if attending and not patches:
        names = ", ".join(name for name, entry in models.ENCODERS.items() if entry.patches)
        raise ValueError(f"{attending} needs attention, of a model.name such as {names}, got {model.name!r}.")
    if spec.uses_patches:
        if spec.patch_size == 0:
            raise ValueError(
                f"mix.patch_size must be given with model.name {model.name!r}, which has no patches, got 0."
            )
        if side % spec.patch_size:
            raise ValueError(f"mix.patch_size must divide dataset.image_size {side}, got {spec.patch_size}.")
        if spec.attends and spec.patch_size != patches:
            raise ValueError(f"mix.patch_size must be that of {model.name!r}, {patches}, got {spec.patch_size}.")
    method, grid = mix.METHODS[spec.method], spec.options.get(spec.method, {}).get("grid", 1)
    if side and method.grid == "divides" and side % grid:
        raise ValueError(f"mix.options.{spec.method}.grid must divide dataset.image_size {side}, got {grid}.")
    if side and method.grid == "fits" and grid > side:
        raise ValueError(f"mix.options.{spec.method}.grid must be at most dataset.image_size {side}, got {grid}.")
    for stage in spec.stages:
        stages = models.available_stages(model)
        check_choice(f"each element of mix.options.{spec.method}.stages", stage, (mix.INPUT, *stages))
