"""Every score on every output of a model, fitted once and applied to any images.

Letters: N images, F or D feature, K classes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from gradmix_jax.scores import (
    SCORES,
    Meaningless,
    Outputs,
    Reference,
    Unfit,
    class_bank,
    class_similarities,
    fit,
    score,
    usable,
)

LOGITS = "logits"
# The scores that need the same similarities as the predictions.
OF_SIMILARITIES = ("topk_cosine", "topk_cosine_normalized", "ensemble")
TOPK = "topk_cosine"


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """What `fit_all` returns.

    Attributes:
      banks: {feature: training features by class}, for predictions.
      states: {feature or "logits": {score: state}}.
    """

    banks: dict[str, Any]
    states: dict[str, dict[str, Any]]
    _last: dict[str, tuple] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def scores(self, outputs: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
        """{feature or "logits": {score: score_N float32}} of the images with these outputs; higher means known."""
        return {
            feature: {name: self.score(feature, name, outputs) for name in states}
            for feature, states in self.states.items()
        }

    def score(self, feature: str, name: str, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """score_N float32 of one score on one feature, or on "logits"; higher means known."""
        given = _of(feature, outputs)
        if name in OF_SIMILARITIES:
            given = given._replace(similarities={self.banks[feature].k: self._similarities(feature, outputs)})
        return np.asarray(score(name, self.states[feature][name], given))

    def predict(self, feature: str, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """class_N: of the largest sum of k cosine similarities by a feature, or of the largest of the "logits"."""
        if feature == LOGITS:
            return outputs[LOGITS].argmax(axis=1)
        return self._similarities(feature, outputs).argmax(axis=1)

    def _similarities(self, feature: str, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """`class_similarities`, kept for the last array of images: predictions and scores ask for the same ones."""
        images, sums_NxK = self._last.get(feature, (None, None))
        if images is not outputs[feature]:
            sums_NxK = np.asarray(class_similarities(self.banks[feature], outputs[feature]))
            self._last[feature] = outputs[feature], sums_NxK
        return sums_NxK


def fit_all(
    train: Mapping[str, np.ndarray],
    labels_N: np.ndarray,
    *,
    num_classes: int,
    features: Sequence[str],
    names: Sequence[str],
    k: int,
    head: tuple[np.ndarray, np.ndarray] | None = None,
    validation: Mapping[str, np.ndarray] | None = None,
    required: tuple[str, str] | None = None,
) -> Fitted:
    """Fit scores on known classes only.

    Args:
      train: outputs of the training images: the features of `features` and, where scores of logits are wanted,
        "logits".
      labels_N: classes of the training images.
      num_classes: K.
      features: names of outputs to score images by.
      names: scores, of `scores.SCORES`. Those that work on features are fitted to every one of `features`; those that
        need logits, or the head, once, under "logits". Those whose needs are not given are left out, and with a warning
        those that cannot be fitted to these images.
      k: neighbours a class, of the top-k scores and of the predictions.
      head: (kernel_FxK, bias_K) from the encoder's features to the logits.
      validation: outputs of validation images, for the scores that need them.
      required: (feature or "logits", score) that is not left out.

    Raises:
      Unfit: the required score cannot be fitted to these images.
    """
    banks = {name: class_bank(train[name], labels_N, num_classes=num_classes, k=k) for name in features}
    states: dict[str, dict[str, Any]] = {}
    for feature in (*features, LOGITS) if LOGITS in train else features:
        reference = Reference(
            train=_of(feature, train),
            labels_N=labels_N,
            num_classes=num_classes,
            head=head if feature == LOGITS else None,
            validation=_of(feature, validation) if validation is not None else None,
        )
        given = usable(reference)
        own = [name for name in names if name in given and works_on_logits(name) == (feature == LOGITS)]
        states[feature] = {}
        for name in own:
            options = {"k": k} if name.startswith(TOPK) else {}
            if name == "ensemble":  # its own k is not the config's
                options["fitted"] = {each: of for each, of in states[feature].items() if not each.startswith(TOPK)}
            try:
                states[feature][name] = fit(name, reference, **options)
            except Unfit as reason:
                if (feature, name) == required:
                    raise
                if not isinstance(reason, Meaningless):
                    logging.warning("The score %s of %s is left out: %s", name, feature, reason)
    return Fitted(banks, {feature: of_feature for feature, of_feature in states.items() if of_feature})


def works_on_logits(name: str) -> bool:
    """Whether a score looks at logits or at the head, and not at any feature."""
    return bool({"logits", "head"} & set(SCORES[name].needs))


def _of(feature: str, outputs: Mapping[str, np.ndarray]) -> Outputs:
    if feature == LOGITS:
        return Outputs(outputs["features"], outputs[LOGITS])
    return Outputs(outputs[feature])
