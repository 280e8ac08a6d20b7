"""Every key of a config with its default, the recipes, and the typed specs that are made from a config.

An experiment file in `configs/` takes `default_config()` and assigns a few keys. Each section is a frozen dataclass of
the folder that uses it (`SECTIONS`); it declares the keys with their defaults and comments, and checks the values.
"""

import dataclasses
import difflib
import json
from typing import Any

from ml_collections import ConfigDict

from gradmix_jax import augment, models, objectives
from gradmix_jax import data as data_lib
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.evaluation import spec as evaluation_spec
from gradmix_jax.fields import check_choice, check_number
from gradmix_jax.method import attribution, mix
from gradmix_jax.training import losses, train
from gradmix_jax.training import state as state_lib

SECTIONS = {
    "dataset": data_lib.Spec,
    "normalization": augment.Normalization,
    "augment": augment.Spec,
    "model": models.Spec,
    "attribution": attribution.Spec,
    "mix": mix.Spec,
    "objective": objectives.Spec,
    "optimizer": state_lib.OptimizerSpec,
    "train": train.Spec,
    "evaluate": evaluation_spec.Spec,
}
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


def phase(name: str, *, epochs: int, supcon: float = 0.0, ssl: float = 0.0, cross_entropy: float = 0.0) -> ConfigDict:
    """One entry of `phases`: objective weights for a number of epochs."""
    weights = dict(supcon=float(supcon), ssl=float(ssl), cross_entropy=float(cross_entropy))
    return ConfigDict(dict(name=name, epochs=epochs, **weights))


RECIPES = {
    # The project's default: jax.grad with respect to the images, thresholded masks, the partner's own pixels.
    "input": {
        "mix": {"method": "gradmix", "mask": "threshold", "fill": "partner"},
        "attribution": {"method": "input"},
    },
    # The paper's: LayerCAM of the chosen stages, boxes, the whole partner resized into the box.
    "layer": {
        "mix": {"method": "gradmix", "mask": "box", "fill": "partner_resized"},
        "attribution": {"method": "layer"},
    },
    # The choices of the authors' released code: noise in the box, the first view only, one draw and one scale a batch.
    "released": {
        "mix": {
            "method": "gradmix",
            "mask": "box",
            "fill": "noise",
            "mixed_views": "first",
            "keep_draw": "batch",
        },
        "attribution": {"method": "layer", "norm": "batch", "sign": 1},
    },
    # The paper's masks and fill, with the other map of activations and gradients.
    "grad_cam": {
        "mix": {"method": "gradmix", "mask": "box", "fill": "partner_resized"},
        "attribution": {"method": "grad_cam"},
    },
    # Baselines on the same step.
    "none": {"mix": {"method": "none"}},
    "cutmix": {"mix": {"method": "cutmix", "mask": "box", "fill": "partner"}},
    "saliencymix": {"mix": {"method": "saliencymix", "mask": "box", "fill": "partner"}},
    "fmix": {"mix": {"method": "fmix", "mask": "threshold", "fill": "partner"}},
    "mixup": {"mix": {"method": "mixup"}},
    # Its zeros are those of normalized images: the mean color.
    "cutout": {"mix": {"method": "cutmix", "mask": "box", "fill": "mean"}},
    # Baselines without mixing, of other views.
    "randaugment": {"mix": {"method": "none"}, "augment": {"policy": "randaugment"}},
    "augmix": {"mix": {"method": "none"}, "augment": {"policy": "augmix"}},
    # The control that tells whether the map matters.
    "random": {
        "mix": {"method": "gradmix", "mask": "threshold", "fill": "partner"},
        "attribution": {"method": "random"},
    },
}


def apply_recipe(c: ConfigDict, name: str) -> ConfigDict:
    """Assign the keys of a named recipe: what comes after the colon in `--config=configs/cifar_osr.py:layer`.

    Args:
      c: a config; changed in place.
      name: a key of RECIPES.

    Returns:
      The same config.

    Raises:
      ValueError: no such recipe.
    """
    check_choice("the recipe", name, RECIPES)
    c.update(RECIPES[name])
    return c


def to_plain(config: ConfigDict) -> dict[str, Any]:
    """Dicts, lists, strings and numbers only: what config.json holds and the specs are made from."""
    return json.loads(config.to_json())


def read(workdir: str) -> dict[str, Any]:
    """The config of a run, with the defaults of keys that are younger than the run.

    Raises:
      ValueError: config.json is missing or damaged.
    """
    config, complete = workdir_lib.read_json(workdir, workdir_lib.CONFIG), to_plain(default_config())
    for name, section in complete.items():
        if isinstance(section, dict):
            complete[name] = section | config.get(name, {})
        else:
            complete[name] = config.get(name, section)
    return complete


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
    phases: tuple[state_lib.Phase, ...]
    optimizer: state_lib.OptimizerSpec
    train: train.Spec
    evaluate: evaluation_spec.Spec

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.dataset.image_size, self.dataset.image_size, self.dataset.channels)

    @property
    def setup(self) -> evaluation_spec.Setup:
        """What an evaluation depends on."""
        return evaluation_spec.Setup(self.dataset, self.normalization, self.model, self.evaluate)


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
    phases = tuple(state_lib.Phase(**dict(entry)) for entry in config["phases"])
    experiment = Experiment(seed=config["seed"], phases=phases, **sections)
    _check_batch(experiment, num_devices)
    _check_channels(experiment)
    _check_objectives(experiment)
    _check_attribution(experiment)
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
        _check_phases(config["phases"], defaults["phases"][0])


def _check_phases(phases: Any, example: dict[str, Any]) -> None:
    if not isinstance(phases, (tuple, list)) or not phases:
        raise ValueError(f"phases must be a tuple of at least one phase, got {phases!r}.")
    for index, entry in enumerate(phases):
        if not isinstance(entry, dict):
            raise ValueError(f"phases[{index}] must be a phase as gradmix_jax.config.phase makes it, got {entry!r}.")
        _check_keys(entry, example, f"phases[{index}].")


def _check_batch(experiment: Experiment, num_devices: int) -> None:
    batch, group = experiment.train.batch_size, experiment.mix.group_size
    if batch % num_devices:
        raise ValueError(f"train.batch_size must be a multiple of the {num_devices} devices, got {batch}.")
    if experiment.mix.method != "none" and (batch // num_devices) % group:
        raise ValueError(
            f"mix.group_size must divide the {batch // num_devices} images of one device, got {group} "
            f"(train.batch_size {batch} on {num_devices} devices)."
        )


def _check_channels(experiment: Experiment) -> None:
    channels = experiment.dataset.channels
    for name in ("mean", "std"):
        values = getattr(experiment.normalization, name)
        if len(values) != channels:
            raise ValueError(f"normalization.{name} must have {channels} elements, one per channel, got {values!r}.")


def _check_objectives(experiment: Experiment) -> None:
    views = experiment.train.num_views
    for index, phase in enumerate(experiment.phases):
        if phase.cross_entropy and experiment.model.classifier == "none":
            raise ValueError(f"phases[{index}].cross_entropy needs a model.classifier: 'linear' or 'cosine'.")
        if phase.ssl and views < 2:
            raise ValueError(f"phases[{index}].ssl needs train.num_views of at least 2, got {views}.")
    _check_self_supervised(experiment)
    phases, mixed_supcon = experiment.phases, experiment.objective.mixed_supcon
    has_mixed_loss = any(phase.ssl or phase.cross_entropy or (phase.supcon and mixed_supcon) for phase in phases)
    if experiment.mix.method != "none" and not has_mixed_loss:
        raise ValueError(
            f"mix.method is {experiment.mix.method!r} but no phase has a loss of mixed images; give ssl or "
            "cross_entropy a weight, set objective.mixed_supcon, or set mix.method to 'none'."
        )
    if experiment.mix.mixed_views == "first" and experiment.mix.method != "none":
        mixes_labels = any(phase.cross_entropy for phase in experiment.phases) or experiment.objective.mixed_supcon
        if mixes_labels:
            raise ValueError("mix.mixed_views must be 'all' with cross-entropy or objective.mixed_supcon, got 'first'.")


def _check_self_supervised(experiment: Experiment) -> None:
    spec, views, used = experiment.objective, experiment.train.num_views, any(p.ssl for p in experiment.phases)
    rows = experiment.train.batch_size * views
    if used and spec.ssl == "moco" and spec.queue_size % rows:
        raise ValueError(
            f"objective.queue_size must be a multiple of the {rows} views of a step, got {spec.queue_size} "
            f"(train.batch_size {experiment.train.batch_size} x train.num_views {views})."
        )
    if used and spec.ssl == "barlow_twins" and views != 2:
        raise ValueError(f"objective.ssl 'barlow_twins' needs train.num_views 2, got {views}.")
    loss = experiment.attribution.loss
    maps_gradients = experiment.mix.uses_map and experiment.attribution.uses_gradients
    if maps_gradients and loss in ("moco", "barlow_twins") and (not used or spec.ssl != loss):
        raise ValueError(f"attribution.loss {loss!r} needs the same objective.ssl and a phase with a weight ssl.")


def _check_attribution(experiment: Experiment) -> None:
    spec = experiment.attribution
    check_choice("attribution.loss", spec.loss, losses.ATTRIBUTION_LOSSES)
    if not (experiment.mix.uses_map and spec.uses_gradients):
        return
    if spec.loss == "cross_entropy" and experiment.model.classifier == "none":
        raise ValueError("attribution.loss 'cross_entropy' needs a model.classifier: 'linear' or 'cosine'.")
    if spec.loss == "simclr" and experiment.train.num_views < 2:
        raise ValueError("attribution.loss 'simclr' needs train.num_views of at least 2; use 'training' with one view.")
    stages = models.available_stages(experiment.model)
    for stage in spec.stages if spec.uses_stages else ():
        check_choice("each element of attribution.stages", stage, stages)
