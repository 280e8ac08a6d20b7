"""Every key of a config with its default, the recipes, and the typed specs that are made from a config.

An experiment file in `configs/` takes `default_config()` and assigns a few keys. Each section is a frozen dataclass of
the folder that uses it (`SECTIONS`); it declares the keys with their defaults and comments, and checks the values.
"""

import copy
import dataclasses
import functools
import json
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from gradmix_jax import augment, models, objectives, stored
from gradmix_jax import data as data_lib
from gradmix_jax.config import checks
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
# Renamed keys by their old names, in configs of runs and on command lines.
RENAMED = {
    "mix.mixup_alpha": "mix.options.mixup.alpha",
    "mix.fmix_decay": "mix.options.fmix.decay",
    "augment.grey_prob": "augment.gray_prob",
    "objective.queue_size": "objective.options.moco.queue_size",
    "objective.momentum": "objective.options.moco.momentum",
    "objective.off_diagonal_weight": "objective.options.barlow_twins.off_diagonal_weight",
}
# Sections and keys that a resumed run may change, besides those declared with `may_change`.
FREE = ("evaluate", "name")


def default_config() -> ConfigDict:
    """The default config: digits, a small network, input-gradient GradMix; a minute on a CPU."""
    c = ConfigDict()
    c.name = ""  # name of this method in tables; empty: its recipe
    c.seed = 0  # seed of initialization, batches, views, maps and mixing
    for name, section in SECTIONS.items():
        c[name] = ConfigDict(section.defaults())
    # Trained one after the other; each has weights of SupCon (gamma), SSL + mixed SSL (lambda) and cross-entropy.
    c.phases = (phase("joint", epochs=60, supcon=1.0, ssl=1.0),)
    return c


def phase(name: str, *, epochs: int, **weights: float) -> ConfigDict:
    """One entry of `phases`: objective weights for a number of epochs.

    Args:
      name: its name in logs.
      epochs: its length.
      **weights: {objective: weight}, 0 if not given; `ssl` weighs the objective named by `objective.ssl`.
    """
    labeled = [each for each, entry in objectives.OBJECTIVES.items() if entry.uses_labels]
    weights = dict.fromkeys([*labeled, objectives.ALIAS], 0.0) | {each: float(value) for each, value in weights.items()}
    return ConfigDict(dict(name=name, epochs=epochs, **weights))


def apply_recipe(c: ConfigDict, name: str, *, at_scale: bool = False) -> ConfigDict:
    """Assign the keys of a recipe, named after the colon in `--config=configs/cifar_osr.py:layer`.

    Args:
      c: a config, changed in place.
      name: a key of RECIPES, or of RIVALS for a published method with its own objectives in every phase.
      at_scale: give a method of RIVALS its published network, optimizer and epochs.

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
    """(variant, recipe) from the text after the colon of a config with variants: "cub", "cub,layer" or "layer".

    Args:
      text: the text after the colon.
      variants: those of the config; the first one is the default if only a recipe is given.
      recipe: the default if only a variant is given.

    Raises:
      ValueError: no such variant or recipe.
    """
    variants = tuple(variants)
    first, comma, rest = text.partition(",")
    names = (*RECIPES, *RIVALS)
    if not comma and first in names:
        return variants[0], first
    check_choice("the variant", first, variants)
    if comma:
        check_choice("the recipe", rest, names)
    return first, rest or recipe


def to_plain(config: ConfigDict) -> dict[str, Any]:
    """The config as dicts, lists, strings and numbers, as in config.json; the specs are made from it."""
    return json.loads(config.to_json())


def read(workdir: str) -> dict[str, Any]:
    """The config of a run under the current names of keys, with defaults for keys added since the run.

    Raises:
      ValueError: config.json is missing or damaged.
    """
    defaults = to_plain(default_config())
    return _completed(defaults, stored.config(workdir, defaults, renamed))


def renamed(config: dict[str, Any]) -> dict[str, Any]:
    """A plain config with the keys of RENAMED under their new names."""
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

    If a key takes one of a set of names, the comment lists them.
    """
    values, defaults = (flatten(each.to_dict()) for each in (config, default_config()))
    for flat in (values, defaults):
        flat["phases"] = tuple(dict(entry) for entry in flat["phases"])
    comments = {
        "name": "name of this method in tables; empty: its recipe",
        "seed": "seed of initialization, batches, views, maps and mixing",
        "phases": "stages of training, one after the other: epochs, and the weight of each objective; "
        "--config.phases[0].epochs=2 sets a key of the first",
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


def may_change() -> set[str]:
    """The keys of sections that a resumed run may change, because the model does not depend on them."""
    return {
        f"{name}.{field.name}"
        for name, section in SECTIONS.items()
        for field in dataclasses.fields(section)
        if "key" in field.metadata and field.metadata["key"].may_change
    }


def fixed(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a plain config that a resumed run must share, flat: {"mix.fill": ...}."""
    free = may_change()
    flat = flatten(json.loads(json.dumps(config)))
    # A weight of 0 may be omitted.
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
        """The part that an evaluation depends on."""
        return evaluation_spec.Setup(self.dataset, self.normalization, self.model, self.evaluate, self.seed)


def from_config(config: ConfigDict | dict[str, Any], *, num_devices: int) -> Experiment:
    """Build every spec and check how they fit together, before any data is read or anything is compiled.

    Args:
      config: a ConfigDict, or the nested dict of its config.json.
      num_devices: number of devices of all processes.

    Raises:
      ValueError: one line with the key, what it takes, and the value.
    """
    config = to_plain(config) if isinstance(config, ConfigDict) else config
    checks.check_keys(config, to_plain(default_config()))
    check_number("seed", config["seed"], least=-(2**31), most=2**31 - 1, whole=True)
    if not isinstance(config["name"], str):
        raise ValueError(f"name must be a string, got {config['name']!r}.")
    sections = {name: make(**config[name]) for name, make in SECTIONS.items()}
    sections["mix"] = checks.with_patches(sections["mix"], sections["model"])
    phases = tuple(phases_lib.from_entry(entry, sections["objective"].ssl) for entry in config["phases"])
    experiment = Experiment(seed=config["seed"], phases=phases, **sections)
    checks.check_batch(experiment, num_devices)
    checks.check_channels(experiment)
    checks.check_objectives(experiment)
    checks.check_attribution(experiment)
    checks.check_tokens(experiment)
    evaluation_spec.check_fits(experiment.evaluate, experiment.dataset, experiment.model)
    checks.check_head(experiment)
    return experiment
