"""From a config to typed specs, and the checks that concern more than one section."""

import dataclasses
from typing import Any

from gradmix_jax import attribution, augment, datasets, evaluator, losses, mix, models, objectives, state
from gradmix_jax.config import check_choice, check_number


@dataclasses.dataclass(frozen=True)
class TrainSpec:
    """The `train` section of a config; see `config.default_config` for what each key means."""

    batch_size: int
    num_views: int
    log_every_steps: int
    checkpoint_every_epochs: int
    keep_checkpoints: int
    workers: int
    cache_gigabytes: float

    def __post_init__(self):
        for field in dataclasses.fields(self):
            whole = field.name != "cache_gigabytes"
            least = 0 if field.name in ("cache_gigabytes", "workers") else 1
            check_number(f"train.{field.name}", getattr(self, field.name), least=least, whole=whole)


@dataclasses.dataclass(frozen=True)
class NormalizationSpec:
    """The `normalization` section: mean and standard deviation of each channel, images in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self):
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        if min(self.std, default=0) <= 0:
            raise ValueError(f"normalization.std is {self.std!r}; allowed: numbers above 0, one a channel.")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Every section of a config as a frozen dataclass."""

    seed: int
    dataset: datasets.Spec
    normalization: NormalizationSpec
    augment: augment.Spec
    model: models.Spec
    attribution: attribution.Spec
    mix: mix.Spec
    objective: objectives.Spec
    phases: tuple[state.Phase, ...]
    optimizer: state.OptimizerSpec
    train: TrainSpec
    evaluate: evaluator.Spec

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.dataset.image_size, self.dataset.image_size, self.dataset.channels)


SECTIONS = {
    "dataset": datasets.Spec,
    "normalization": NormalizationSpec,
    "augment": augment.Spec,
    "model": models.Spec,
    "attribution": attribution.Spec,
    "mix": mix.Spec,
    "objective": objectives.Spec,
    "optimizer": state.OptimizerSpec,
    "train": TrainSpec,
    "evaluate": evaluator.Spec,
}


def from_config(config: dict[str, Any], *, num_devices: int) -> Experiment:
    """Build every spec and check how they fit together, before any data is read or anything compiled.

    Args:
      config: nested dict of all keys of `config.default_config`.
      num_devices: of all processes.

    Returns:
      The experiment.

    Raises:
      ValueError: one sentence with the key, its value and what is allowed.
    """
    check_number("seed", config["seed"], least=-(2**31), most=2**31 - 1, whole=True)
    sections = {name: make(**config[name]) for name, make in SECTIONS.items()}
    phases = tuple(state.Phase(**dict(entry)) for entry in config["phases"])
    experiment = Experiment(seed=config["seed"], phases=phases, **sections)
    _check_batch(experiment, num_devices)
    _check_channels(experiment)
    _check_objectives(experiment)
    _check_attribution(experiment)
    evaluator.check_fits(experiment.evaluate, experiment.dataset, experiment.model)
    return experiment


def _check_batch(experiment: Experiment, num_devices: int) -> None:
    batch, group = experiment.train.batch_size, experiment.mix.group_size
    if batch % num_devices:
        raise ValueError(f"train.batch_size is {batch}; allowed: a multiple of the {num_devices} devices.")
    if experiment.mix.method != "none" and (batch // num_devices) % group:
        raise ValueError(
            f"mix.group_size is {group}; allowed: a divisor of the {batch // num_devices} images of one device "
            f"(train.batch_size {batch} on {num_devices} devices)."
        )


def _check_channels(experiment: Experiment) -> None:
    channels = experiment.dataset.channels
    for name in ("mean", "std"):
        values = getattr(experiment.normalization, name)
        if len(values) != channels:
            raise ValueError(f"normalization.{name} is {values!r}; allowed: {channels} number(s), one a channel.")


def _check_objectives(experiment: Experiment) -> None:
    for index, phase in enumerate(experiment.phases):
        if phase.cross_entropy and experiment.model.classifier == "none":
            raise ValueError(
                f"phases[{index}].cross_entropy is {phase.cross_entropy} but model.classifier is 'none'; "
                "allowed: model.classifier 'linear' or 'cosine'."
            )
        if phase.ssl and experiment.train.num_views < 2:
            raise ValueError(f"phases[{index}].ssl is {phase.ssl}; allowed: 0 with train.num_views below 2.")
    _check_self_supervised(experiment)
    phases, mixed_supcon = experiment.phases, experiment.objective.mixed_supcon
    has_mixed_loss = any(phase.ssl or phase.cross_entropy or (phase.supcon and mixed_supcon) for phase in phases)
    if experiment.mix.method != "none" and not has_mixed_loss:
        raise ValueError(
            f"mix.method is {experiment.mix.method!r} but no phase has a loss of mixed images; allowed: ssl or "
            "cross_entropy above 0, objective.mixed_supcon=True, or mix.method 'none'."
        )
    if experiment.mix.mixed_views == "first" and experiment.mix.method != "none":
        mixes_labels = any(phase.cross_entropy for phase in experiment.phases) or experiment.objective.mixed_supcon
        if mixes_labels:
            raise ValueError(
                "mix.mixed_views is 'first'; allowed: 'all' with cross-entropy or with objective.mixed_supcon."
            )


def _check_self_supervised(experiment: Experiment) -> None:
    spec, views, used = experiment.objective, experiment.train.num_views, any(p.ssl for p in experiment.phases)
    rows = experiment.train.batch_size * views
    if used and spec.ssl == "moco" and spec.queue_size % rows:
        raise ValueError(
            f"objective.queue_size is {spec.queue_size}; allowed: a multiple of the {rows} views of a step "
            f"(train.batch_size {experiment.train.batch_size} x train.num_views {views})."
        )
    if used and spec.ssl == "barlow_twins" and views != 2:
        raise ValueError(f"train.num_views is {views}; allowed: 2 with objective.ssl 'barlow_twins'.")
    loss = experiment.attribution.loss
    maps_gradients = experiment.mix.uses_map and experiment.attribution.uses_gradients
    if maps_gradients and loss in ("moco", "barlow_twins") and (not used or spec.ssl != loss):
        raise ValueError(
            f"attribution.loss is {loss!r}; allowed: only with the same objective.ssl and a phase with a weight ssl."
        )


def _check_attribution(experiment: Experiment) -> None:
    spec = experiment.attribution
    check_choice("attribution.loss", spec.loss, losses.ATTRIBUTION_LOSSES)
    if not (experiment.mix.uses_map and spec.uses_gradients):
        return
    if spec.loss == "cross_entropy" and experiment.model.classifier == "none":
        raise ValueError("attribution.loss is 'cross_entropy'; allowed: only with a model.classifier.")
    if spec.loss == "simclr" and experiment.train.num_views < 2:
        raise ValueError("attribution.loss is 'simclr'; allowed: 'training' or 'cross_entropy' with train.num_views 1.")
    stages = models.available_stages(experiment.model)
    for stage in spec.stages if spec.uses_stages else ():
        check_choice("an element of attribution.stages", stage, stages)
