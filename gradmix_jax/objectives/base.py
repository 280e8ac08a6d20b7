"""The definition of an objective: its losses of clean and mixed views, the state it carries, and its config section.

Letters: B rows of this device (views included), b images of this device, P rows of its mixed images, D embedding,
K known classes.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import optax

from gradmix_jax import fields
from gradmix_jax.fields import Section, key
from gradmix_jax.objectives import temperatures

if TYPE_CHECKING:
    from gradmix_jax.objectives.contrastive import Batch


def _table() -> Mapping[str, "Objective"]:
    from gradmix_jax import objectives  # imported late, because the entries' files import this one

    return objectives.OBJECTIVES


@dataclasses.dataclass(frozen=True)
class Spec(Section, section="objective"):
    """What is minimized: the `objective` section."""

    temperature: float = key(0.05, "temperature of contrastive losses", above=0)
    base_temperature: float = key(0.07, "contrastive losses are multiplied by temperature / base_temperature", above=0)
    mixed_supcon: bool = key(False, "add the supervised loss with mixed positives")
    detach_anchors: bool = key(False, "stop the gradient of the mixed loss through the clean features")
    label_smoothing: float = key(0.0, "label smoothing of cross-entropy", least=0, below=1)
    block_size: int = key(
        4096, "anchors of a contrastive loss per block on a device; bounds the memory of large batches", least=1
    )
    ssl: str = key(
        "simclr",
        "the objective that a phase's weight `ssl` applies to",
        choices=lambda: [name for name, entry in _table().items() if not entry.uses_labels],
    )
    temperature_schedule: str = key(
        "constant", "schedule that multiplies the temperatures of all losses", choices=lambda: temperatures.SCHEDULES
    )
    schedules: dict[str, dict[str, Any]] = fields.options(lambda: temperatures.SCHEDULES, "temperature schedules")
    options: dict[str, dict[str, Any]] = fields.options(_table, "objectives")


@dataclasses.dataclass(frozen=True)
class Given:
    """The input of a loss of the clean views.

    Attributes:
      batch: their unit features, and which image and class each row is of.
      logits: [B, K]; None where the model gives none.
      labels_b: int32, classes of this device's images; -1 for images of negative classes.
      num_classes: K.
      spec: the `objective` section.
      carried: what the objective's `State.update` returned for the losses of this step; None without a state.
      head: what the head says besides logits, {name: array}; None for nothing.
      key: randomness of the loss, the same on all devices.
      has_negatives: whether there are images of negative classes (static).
    """

    batch: "Batch"
    logits: jax.Array | None
    labels_b: jax.Array
    num_classes: int
    spec: Spec
    carried: Any = None
    head: Mapping[str, jax.Array] | None = None
    key: jax.Array | None = None
    has_negatives: bool = False


class Mixed(NamedTuple):
    """The input of a loss of the mixed images, view-major: z [P, D], logits [P, K] or None, weight [P], partner [P].

    P is B, or B / V of view 0 only. `weight` is the kept share, `partner` a row among B, `head` as in `Given`.
    """

    z: jax.Array
    logits: jax.Array | None
    weight: jax.Array
    partner: jax.Array
    head: Mapping[str, jax.Array] | None = None


class Update(NamedTuple):
    """The input of the update of an objective's state.

    `model` is {"params", "batch_stats"}; `forward(variables)` gives z [B, D] of the clean views under such variables,
    in train mode.
    """

    model: Any
    forward: Callable[[Any], jax.Array]
    step: jax.Array
    views: int
    axis_name: str | None
    spec: Spec


class State(NamedTuple):
    """What an objective carries from step to step, in `TrainState.extra`, under its own names.

    Attributes:
      init: (key, model variables, D, spec) -> {name: value}.
      update: ({name: value}, Update) -> (what the losses of this step see as `Given.carried`, new {name: value}).
      copies: the names of copies of the model's variables, which start from loaded weights like the model.
    """

    init: Callable[[jax.Array, Any, int, Spec], dict[str, Any]]
    update: Callable[[dict[str, Any], Update], tuple[Any, dict[str, Any]]]
    copies: tuple[str, ...] = ()


def no_check(experiment: Any, where: str) -> None:
    """Accept every experiment."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """An entry of `objectives.OBJECTIVES`.

    Attributes:
      clean: Given -> scalar loss of the clean views, this device's part of the mean.
      mixed: (Given, Mixed) -> the loss that mixed images add; None: they add none.
      has_mixed: Spec -> whether a run with this section has the mixed loss.
      touches_clean: Spec -> whether the mixed loss has a gradient with respect to the clean outputs.
      uses_labels: whether it needs the classes of the images. Those that do not may be `objective.ssl`. The mixed loss
        of one that does needs all views mixed.
      uses_head: whether it depends on the outputs of `model.classifier`.
      state: what it carries from step to step, None for nothing.
      check: (experiment, key) -> None; raises ValueError, naming the key that requests the objective, if the sections
        `dataset`, `model`, `train` and `objective` of an experiment do not allow it.
      options: {option: Key}, the config keys `objective.options.NAME.OPTION`.
    """

    clean: Callable[[Given], jax.Array]
    mixed: Callable[[Given, Mixed], jax.Array] | None = None
    has_mixed: Callable[[Spec], bool] = lambda spec: True
    touches_clean: Callable[[Spec], bool] = lambda spec: False
    uses_labels: bool = False
    uses_head: bool = True
    state: State | None = None
    check: Callable[[Any, str], None] = no_check
    options: Mapping[str, fields.Key] = dataclasses.field(default_factory=dict)

    def mixes(self, spec: Spec) -> bool:
        """Whether mixed images add a loss."""
        return self.mixed is not None and self.has_mixed(spec)


def check_two_views(experiment: Any, where: str) -> None:
    """Raises ValueError if images have fewer than two views."""
    if experiment.train.num_views < 2:
        raise ValueError(f"{where} needs train.num_views of at least 2, got {experiment.train.num_views}.")


def check_head(*names: str) -> Callable[[Any, str], None]:
    """A check that `model.classifier` is one of `names`."""

    def check(experiment: Any, where: str) -> None:
        if experiment.model.classifier not in names:
            wanted = " or ".join(repr(name) for name in names)
            raise ValueError(f"{where} needs model.classifier {wanted}, got {experiment.model.classifier!r}.")

    return check


def check_logits(experiment: Any, where: str) -> None:
    """Raises ValueError if the model gives no logits."""
    if not experiment.model.has_logits:
        raise ValueError(f"{where} needs a model.classifier that gives logits, such as 'linear' or 'cosine'.")


def follow(average: Any, online: Any, decay: float) -> Any:
    """decay * average + (1 - decay) * online, leaf by leaf."""
    return optax.incremental_update(online, average, 1.0 - decay)
