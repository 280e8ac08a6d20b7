"""Every key of a config with its default, the recipes, and the typed specs that are made from a config.

An experiment file in `configs/` takes `default_config()` and assigns a few keys. Each section is a frozen dataclass of
the folder that uses it (`SECTIONS`); it declares the keys with their defaults and comments, and checks the values.
"""

import copy
import dataclasses
import difflib
import functools
import json
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from gradmix_jax import augment, models, objectives, stored
from gradmix_jax import data as data_lib
from gradmix_jax.config.recipes import RECIPES
from gradmix_jax.config.rivals import RIVALS, published
from gradmix_jax.evaluation import spec as evaluation_spec
from gradmix_jax.fields import check_choice, check_number
from gradmix_jax.method import attribution, mix
from gradmix_jax.training import optimizer, train
from gradmix_jax.training import phases as phases_lib

SECTIONS = {
    "dataset": data_lib.Spec,
    "normalization": augment.Normalization,
    "augment": augment.Spec,
    "model": models.Spec,
    "attribution": attribution.Spec,
    "mix": mix.Spec,
    "objective": objectives.Spec,
    "optimizer": optimizer.OptimizerSpec,
    "train": train.Spec,
    "evaluate": evaluation_spec.Spec,
}
# Keys by their old names, in configs of runs and on command lines.
RENAMED = {"mix.mixup_alpha": "mix.options.mixup.alpha", "mix.fmix_decay": "mix.options.fmix.decay"}
# Sections and keys that a resumed run may change besides those declared with `may_change`.
FREE = ("evaluate", "name")


def default_config() -> ConfigDict:
    """The default: digits, a small network, input-gradient GradMix; a minute on a CPU."""
    c = ConfigDict()
    c.name = ""  # what tables call this method; empty: its recipe
    c.seed = 0  # of initialization, batches, views, maps and mixing
    for name, section in SECTIONS.items():
        c[name] = ConfigDict(section.defaults())
    # One after the other; each with the weights of SupCon (gamma), SSL + mixed SSL (lambda) and cross-entropy.
    c.phases = (phase("joint", epochs=60, supcon=1.0, ssl=1.0),)
    return c


def phase(name: str, *, epochs: int, **weights: float) -> ConfigDict:
    """One entry of `phases`: objective weights for a number of epochs.

    Args:
      name: what to call it.
      epochs: how long it is.
      **weights: {objective: weight}, 0 where not given; `ssl` is that of the objective that `objective.ssl` names.
    """
    labeled = [each for each, entry in objectives.OBJECTIVES.items() if entry.uses_labels]
    weights = dict.fromkeys([*labeled, objectives.ALIAS], 0.0) | {each: float(value) for each, value in weights.items()}
    return ConfigDict(dict(name=name, epochs=epochs, **weights))


def apply_recipe(c: ConfigDict, name: str, *, at_scale: bool = False) -> ConfigDict:
    """Assign the keys of a named recipe: what comes after the colon in `--config=configs/cifar_osr.py:layer`.

    Args:
      c: a config; changed in place.
      name: a key of RECIPES, or of RIVALS: a published method, with its own objectives in every phase.
      at_scale: give a method of RIVALS the network, optimizer and epochs that it was published with.

    Returns:
      The same config.

    Raises:
      ValueError: no such recipe.
    """
    check_choice("the recipe", name, (*RECIPES, *RIVALS))
    if name in RECIPES:
        c.update(RECIPES[name])
        return c
    rival, epochs = RIVALS[name], [entry.epochs for entry in c.phases]
    c.update(rival.keys)
    if at_scale:
        settings = published(name, c.dataset.benchmark)
        epochs = settings.pop("epochs")
        c.update_from_flattened_dict(settings)
    numbers = [f" {number}" if len(epochs) > 1 else "" for number, _ in enumerate(epochs, 1)]
    c.phases = tuple(phase(f"{name}{number}", epochs=each, **rival.weights) for number, each in zip(numbers, epochs))
    c.name = name
    return c


def variant_of(text: str, variants: Iterable[str], *, recipe: str = "input") -> tuple[str, str]:
    """(variant, recipe) of what follows the colon of a config with variants: "cub", "cub,layer" or "layer".

    Args:
      text: what follows the colon.
      variants: of the config; the first one is meant where only a recipe is given.
      recipe: meant where only a variant is given.

    Raises:
      ValueError: no such variant or recipe.
    """
    variants = tuple(variants)
    first, comma, rest = text.partition(",")
    if not comma and first in RECIPES:
        return variants[0], first
    check_choice("the variant", first, variants)
    if comma:
        check_choice("the recipe", rest, RECIPES)
    return first, rest or recipe


def to_plain(config: ConfigDict) -> dict[str, Any]:
    """Dicts, lists, strings and numbers only: what config.json holds and the specs are made from."""
    return json.loads(config.to_json())


def read(workdir: str) -> dict[str, Any]:
    """The config of a run under today's names of keys, with the defaults of keys that are younger than the run.

    Raises:
      ValueError: config.json is missing or damaged.
    """
    defaults = to_plain(default_config())
    return _completed(defaults, stored.config(workdir, defaults, renamed))


def renamed(config: dict[str, Any]) -> dict[str, Any]:
    """A plain config whose keys of RENAMED have their new names."""
    config = copy.deepcopy(config)
    for old, new in RENAMED.items():
        *sections, last = old.split(".")
        holder = functools.reduce(lambda each, name: each.get(name, {}), sections, config)
        if last in holder:
            *sections, key = new.split(".")
            target = functools.reduce(lambda each, name: each.setdefault(name, {}), sections, config)
            target[key] = holder.pop(last)
    return config


def _completed(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The given values, with the defaults of the keys that are missing."""
    both = {
        name: _completed(default, given[name])
        for name, default in defaults.items()
        if isinstance(default, dict) and isinstance(given.get(name), dict)
    }
    return defaults | given | both


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Sections unfolded: {"mix.fill": ..., "seed": ...}."""
    flat = {}
    for name, value in config.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def described(config: ConfigDict) -> list[tuple[str, Any, Any, str]]:
    """(key, value, default, comment) of every key of a config, in the order of the sections.

    Where a key takes one of some names, they stand in the comment.
    """
    values, defaults = (flatten(each.to_dict()) for each in (config, default_config()))
    for flat in (values, defaults):
        flat["phases"] = tuple(dict(entry) for entry in flat["phases"])
    comments = {
        "name": "what tables call this method; empty: its recipe",
        "seed": "of initialization, batches, views, maps and mixing",
        "phases": "stages of training, one after the other: epochs, and the weight of each objective",
    }
    for name, section in SECTIONS.items():
        for field in dataclasses.fields(section):
            if "key" in field.metadata:
                comments[f"{name}.{field.name}"] = field.metadata["key"].described
                continue
            for entry, given in field.metadata["table"]().items():
                for option, each in given.options.items():
                    comments[f"{name}.{field.name}.{entry}.{option}"] = each.described
    return [(key, values[key], defaults[key], comment) for key, comment in comments.items()]


def fixed(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a plain config that a resumed run has to share, flat: {"mix.fill": ...}."""
    free = {
        f"{name}.{field.name}"
        for name, section in SECTIONS.items()
        for field in dataclasses.fields(section)
        if "key" in field.metadata and field.metadata["key"].may_change
    }
    flat = flatten(json.loads(json.dumps(config)))
    # A weight of 0 may be left out.
    flat["phases"] = [{name: value for name, value in entry.items() if value != 0} for entry in flat["phases"]]
    return {name: value for name, value in flat.items() if name not in free and name.partition(".")[0] not in FREE}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Every section of a config as a frozen dataclass."""

    seed: int
    dataset: data_lib.Spec
    normalization: augment.Normalization
    augment: augment.Spec
    model: models.Spec
    attribution: attribution.Spec
    mix: mix.Spec
    objective: objectives.Spec
    phases: tuple[phases_lib.Phase, ...]
    optimizer: optimizer.OptimizerSpec
    train: train.Spec
    evaluate: evaluation_spec.Spec

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.dataset.image_size, self.dataset.image_size, self.dataset.channels)

    @property
    def setup(self) -> evaluation_spec.Setup:
        """What an evaluation depends on."""
        return evaluation_spec.Setup(self.dataset, self.normalization, self.model, self.evaluate, self.seed)


def from_config(config: ConfigDict | dict[str, Any], *, num_devices: int) -> Experiment:
    """Build every spec and check how they fit together, before any data is read or anything is compiled.

    Args:
      config: a ConfigDict, or the nested dict of its config.json.
      num_devices: of all processes.

    Raises:
      ValueError: one line with the key, what it takes, and the value.
    """
    config = to_plain(config) if isinstance(config, ConfigDict) else config
    _check_keys(config, to_plain(default_config()))
    check_number("seed", config["seed"], least=-(2**31), most=2**31 - 1, whole=True)
    if not isinstance(config["name"], str):
        raise ValueError(f"name must be a string, got {config['name']!r}.")
    sections = {name: make(**config[name]) for name, make in SECTIONS.items()}
    sections["mix"] = _with_patches(sections["mix"], sections["model"])
    phases = tuple(phases_lib.from_entry(entry, sections["objective"].ssl) for entry in config["phases"])
    experiment = Experiment(seed=config["seed"], phases=phases, **sections)
    _check_batch(experiment, num_devices)
    _check_channels(experiment)
    _check_objectives(experiment)
    _check_attribution(experiment)
    _check_tokens(experiment)
    evaluation_spec.check_fits(experiment.evaluate, experiment.dataset, experiment.model)
    return experiment


def _check_keys(config: dict[str, Any], defaults: dict[str, Any], prefix: str = "") -> None:
    """Raises ValueError for an unknown or missing key; the values are the sections' own business."""
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
                _check_keys(config[name], default, f"{name}.")
    if not prefix:
        _check_phases(config["phases"])


def _check_phases(phases: Any) -> None:
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


def _check_batch(experiment: Experiment, num_devices: int) -> None:
    batch, group = experiment.train.batch_size, experiment.mix.group_size
    if batch % num_devices:
        raise ValueError(f"train.batch_size must be a multiple of the {num_devices} devices, got {batch}.")
    if experiment.mix.mixes and (batch // num_devices) % group:
        raise ValueError(
            f"mix.group_size must divide the {batch // num_devices} images of one device, got {group} "
            f"(train.batch_size {batch} on {num_devices} devices)."
        )


def _check_channels(experiment: Experiment) -> None:
    channels = experiment.dataset.channels
    for name in ("mean", "std"):
        values = getattr(experiment.normalization, name)
        if channels and values and len(values) != channels:  # else they are derived
            raise ValueError(f"normalization.{name} must have {channels} elements, one per channel, got {values!r}.")


def _check_objectives(experiment: Experiment) -> None:
    """Whether the other sections allow what the phases weigh, and mixed images have a loss."""
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


def _check_attribution(experiment: Experiment) -> None:
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


def _with_patches(spec: mix.Spec, model: models.Spec) -> mix.Spec:
    """The mix section with the model's patch size where it has none of its own."""
    if not spec.uses_patches or spec.patch_size:
        return spec
    return dataclasses.replace(spec, patch_size=models.patch_size(model))


def _check_tokens(experiment: Experiment) -> None:
    """Whether the model has the patches, the attention and the stages that the mix and its map look at."""
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
    for stage in spec.stages:
        stages = models.available_stages(model)
        check_choice(f"each element of mix.options.{spec.method}.stages", stage, (mix.INPUT, *stages))
