"""Inputs of scores, and entries of the table of scores. Letters: N images, F feature, K classes."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from gradmix_jax.fields import Key


class Unfit(ValueError):
    """The training or validation images do not allow this score."""


class Meaningless(Unfit):
    """The score says nothing about this kind of feature; nothing is wrong with the images."""


class Missing(Unfit):
    """An input of the score is missing; nothing is wrong with the images."""


class _Shared:
    """Intermediate results that several scores need, computed once."""

    def shared(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """`compute()` at the first call with this key, the same object afterwards."""
        if key not in self._shared:
            self._shared[key] = compute()
        return self._shared[key]


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False)
class Outputs(_Shared):
    """Outputs of a model for N images. A pytree without its shared intermediate results.

    Attributes:
      features: float [N, F], of the encoder, a projection or another stage.
      logits: float [N, K] or None.
      perturbed_logits: float [N, K] of the images after ODIN's step, see `odin.perturbed_logits`, or None.
    """

    features: Any
    logits: Any = None
    perturbed_logits: Any = None
    _shared: dict = field(default_factory=dict, init=False, repr=False)

    def tree_flatten(self):
        return (self.features, self.logits, self.perturbed_logits), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


@dataclass(frozen=True, eq=False)
class Reference(_Shared):
    """Everything a score may learn from: images of known classes that are not test images.

    Attributes:
      train: outputs of the clean training images.
      labels_N: their classes, integers from 0 to num_classes - 1.
      num_classes: K.
      head: (kernel_FxK, bias_K) of the linear layer from `train.features` to the logits, or None.
      validation: outputs of held-out images of the known classes, or None.
      k: nearest neighbors per class for predictions and for scores whose k is 0.
      options: {score: {option: value}}, for scores that are made of other scores.

    Raises:
      ValueError: labels that are out of range, not integers or not one per feature, or a class without any.
    """

    train: Outputs
    labels_N: Any
    num_classes: int
    head: tuple[Any, Any] | None = None
    validation: Outputs | None = None
    k: int = 3
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    _shared: dict = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        labels_N = checked_labels(self.labels_N, num_features=len(self.train.features), num_classes=self.num_classes)
        object.__setattr__(self, "labels_N", labels_N)

    def features(self) -> np.ndarray:
        """The training features, float32 [N, F]."""
        return np.asarray(self.train.features, np.float32)


class Score(NamedTuple):
    """Entry of the table of scores.

    Attributes:
      fit: fit(reference, **options) -> state.
      score: score(state, outputs) -> score_N, higher means known.
      needs: names in `PARTS` of what `fit` and `score` use.
      options: {option: Key}, the keyword arguments of `fit`.
      about: what the score is in a report, with options in braces; the name where empty.
    """

    fit: Callable
    score: Callable
    needs: tuple[str, ...]
    options: Mapping[str, Key] = {}
    about: str = ""

    @property
    def on_logits(self) -> bool:
        """Whether the score applies to the classifier, not to any one feature."""
        return bool({"logits", "head", "perturbed_logits"} & set(self.needs))

    @property
    def on_request(self) -> bool:
        """Whether the score needs more of the model than one forward pass, so that "all" does not include it."""
        return "perturbed_logits" in self.needs


# The inputs that a score may need, with how to get them from a `Reference`.
PARTS = {
    "features": lambda reference: reference.train.features,
    "logits": lambda reference: reference.train.logits,
    "head": lambda reference: reference.head,
    "validation": lambda reference: reference.validation,
    "perturbed_logits": lambda reference: reference.train,  # of the images that are scored alone
}
# The parts as named in errors; others are named by their key.
WORDS = {"head": "the weights of a linear classifier", "validation": "validation images"}


def missing_parts(entry: Score, reference: Reference) -> list[str]:
    """Names of the parts that a score needs and a reference does not have."""
    return [part for part in entry.needs if PARTS[part](reference) is None]


def checked_labels(labels_N: Any, *, num_features: int, num_classes: int) -> np.ndarray:
    """The labels as int32 [N]. Raises ValueError unless there is one per feature, in range, and one of each class."""
    labels_N = np.asarray(labels_N)
    if labels_N.shape != (num_features,) or not np.issubdtype(labels_N.dtype, np.integer):
        got = f"{labels_N.dtype}{list(labels_N.shape)}"
        raise ValueError(f"Training labels must be integers of shape [{num_features}], one per feature, got {got}.")
    if labels_N.min(initial=0) < 0 or labels_N.max(initial=0) >= num_classes:
        spread = f"{labels_N.min()} to {labels_N.max()}"
        raise ValueError(f"Training labels must be from 0 to {num_classes - 1}, got {spread}.")
    missing = np.flatnonzero(np.bincount(labels_N, minlength=num_classes) == 0)
    if missing.size:
        raise ValueError(f"Every known class needs a training feature, got none for class {missing.tolist()}.")
    return labels_N.astype(np.int32)
