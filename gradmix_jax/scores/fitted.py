"""Every score on every output of a model, fitted once and applied to any images.

Letters: N images, F or D feature, K classes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from gradmix_jax.fields import check_choice, check_options
from gradmix_jax.scores import SCORES, Outputs, Reference, Unfit, class_bank, score, state_of
from gradmix_jax.scores.base import Meaningless, Missing
from gradmix_jax.scores.neighbors import class_sums

LOGITS, PERTURBED = "logits", "perturbed_logits"
# Errors with which a single score may fail. NumPy's LinAlgError is a ValueError.
FAILURES = (ValueError, MemoryError, jax.errors.JaxRuntimeError)


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """The result of `fit_all`.

    Attributes:
      banks: {feature: training features by class}, for predictions.
      states: {feature or "logits": {score: state}}.
      required: (feature or "logits", score) that must not be left out, or None.
      left_out: {feature or "logits": {score: reason}}, one sentence each.
    """

    banks: dict[str, Any]
    states: dict[str, dict[str, Any]]
    required: tuple[str, str] | None = None
    left_out: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    _last: dict[str, tuple] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def scores(self, outputs: Mapping[str, np.ndarray], *, constant: bool = False) -> dict[str, dict[str, np.ndarray]]:
        """{feature or "logits": {score: score_N float32}} of the images with these outputs; higher means known.

        A score with values that are not finite, or that are the same for all images, is left out, of this call and all
        later ones, and its reason added to `left_out`.

        Args:
          outputs: of the model for N images.
          constant: whether equal values for all images are accepted, as for a set of very similar images.

        Raises:
          Unfit: the required score would be left out.
        """
        found: dict[str, dict[str, np.ndarray]] = {}
        for feature, states in self.states.items():
            found[feature] = {}
            for name in list(states):
                try:
                    found[feature][name] = self._usable_score(feature, name, outputs, constant)
                except FAILURES as reason:
                    _leave_out(self.left_out, feature, name, reason, self.required)
                    del states[name]
        return found

    def score(self, feature: str, name: str, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """score_N float32 of one score on one feature, or on "logits"; higher means known.

        Raises:
          Unfit: values that are not finite.
        """
        return self._usable_score(feature, name, outputs, constant=True)

    def predict(self, feature: str, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """class_N: of the largest sum of k cosine similarities by a feature, or of the largest of the "logits"."""
        if feature == LOGITS:
            return outputs[LOGITS].argmax(axis=1)
        return class_sums(self.banks[feature], self._given(feature, outputs)).argmax(axis=1)

    def _usable_score(self, feature, name, outputs, constant):
        score_N = np.asarray(score(name, self.states[feature][name], self._given(feature, outputs)), np.float32)
        check_values(name, score_N, constant=constant)
        return score_N

    def _given(self, feature: str, outputs: Mapping[str, np.ndarray]) -> Outputs:
        """`Outputs` for a feature; the same object for the same images, which shares results between scores."""
        arrays, given = self._last.get(feature, (None, None))
        now = _arrays(feature, outputs)
        if arrays is None or any(old is not new for old, new in zip(arrays, now)):
            given = Outputs(*now)
            self._last[feature] = now, given
        return given


def check_values(name: str, score_N: np.ndarray, *, constant: bool) -> None:
    """Raises Unfit for values that are not finite or, unless `constant`, the same for two images or more."""
    bad = np.count_nonzero(~np.isfinite(score_N))
    if bad:
        raise Unfit(f"{name} is not a finite number for {bad} of {len(score_N)} images.")
    if not constant and len(score_N) > 1 and np.ptp(score_N) == 0:
        raise Unfit(f"{name} is {score_N[0]:.6g} for all of {len(score_N)} images.")


def fit_all(
    train: Mapping[str, np.ndarray],
    labels_N: np.ndarray,
    *,
    num_classes: int,
    features: Sequence[str],
    names: Sequence[str],
    k: int,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    head: tuple[np.ndarray, np.ndarray] | None = None,
    validation: Mapping[str, np.ndarray] | None = None,
    required: tuple[str, str] | None = None,
) -> Fitted:
    """Fit scores on known classes only.

    A score that cannot be fitted is left out; the others are not affected.

    Args:
      train: outputs of the training images: the features of `features` and, where scores of logits are wanted,
        "logits".
      labels_N: classes of the training images.
      num_classes: K.
      features: names of outputs to score images by.
      names: scores, of `scores.SCORES`. Those that work on features are fitted to every one of `features`; the others
        once, under "logits", if there are logits.
      k: nearest neighbors per class of the predictions, and of the scores whose option k is 0.
      options: {score: {option: value}} as in the config; defaults where not given.
      head: (kernel_FxK, bias_K) from the encoder's features to the logits.
      validation: outputs of validation images.
      required: (feature or "logits", score) that must not be left out.

    Raises:
      Unfit: the required score would be left out.
      ValueError: an unknown score or option.
    """
    for name in names:
        check_choice("The score", name, SCORES)
    options = check_options("evaluate.options", SCORES, options or {})
    banks = {name: class_bank(train[name], labels_N, num_classes=num_classes, k=k) for name in features}
    states: dict[str, dict[str, Any]] = {}
    left_out: dict[str, dict[str, str]] = {}
    for feature in (*features, LOGITS) if LOGITS in train else features:
        reference = Reference(
            train=Outputs(*_arrays(feature, train)),
            labels_N=labels_N,
            num_classes=num_classes,
            head=head if feature == LOGITS else None,
            validation=Outputs(*_arrays(feature, validation)) if validation is not None else None,
            k=k,
            options=options,
        )
        if feature in banks:
            reference.shared(("class_bank", k), lambda bank=banks[feature]: bank)
        states[feature] = {}
        for name in names:
            if works_on_logits(name) != (feature == LOGITS):
                continue
            try:
                states[feature][name] = state_of(name, reference)
            except FAILURES as reason:
                _leave_out(left_out, feature, name, reason, required)
    return Fitted(banks, {feature: found for feature, found in states.items() if found}, required, left_out)


def works_on_logits(name: str) -> bool:
    """Whether a score applies to the classifier, not to any one feature."""
    return SCORES[name].on_logits


def _arrays(feature: str, outputs: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Features, logits and perturbed logits, the arguments of `Outputs`."""
    if feature == LOGITS:
        return outputs["features"], outputs[LOGITS], outputs.get(PERTURBED)
    return outputs[feature], None, None


def _leave_out(left_out, feature, name, reason, required):
    """Notes why a score is left out. Raises Unfit if it is the required one."""
    if (feature, name) == required:
        raise reason if isinstance(reason, Unfit) else Unfit(f"{name} of {feature} failed: {reason}") from reason
    left_out.setdefault(feature, {})[name] = str(reason).splitlines()[0] if str(reason) else type(reason).__name__
    if not isinstance(reason, (Meaningless, Missing)):
        logging.warning("The score %s of %s is left out: %s", name, feature, left_out[feature][name])
