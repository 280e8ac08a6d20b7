"""Known-or-unknown scores on the features or logits of a trained model; **higher means known**, always.

    state = scores.fit("knn", scores.Reference(Outputs(features), labels_N, num_classes=6), k=50)
    score_N = scores.score("knn", state, Outputs(test_features))

A score learns from known classes only (`Reference`) and sees test images one by one: nothing of the test set enters
its statistics. A new score is one pair of functions and one entry of `SCORES`, with its options.
"""

import functools
from collections.abc import Mapping
from typing import Any

from gradmix_jax.fields import Key, check_choice
from gradmix_jax.scores import ensemble, gaussians, head, logits, means, neighbors, odin, vim
from gradmix_jax.scores.base import WORDS, Meaningless, Missing, Outputs, Reference, Score, Unfit, missing_parts
from gradmix_jax.scores.neighbors import class_bank, class_similarities, topk_cosine

__all__ = ["SCORES", "Meaningless", "Outputs", "Reference", "Score", "Unfit", "fit", "score", "usable"]
__all__ += ["Missing", "class_bank", "class_similarities", "describe", "options_of", "state_of", "topk_cosine"]


def usable(reference: Reference) -> tuple[str, ...]:
    """Names of the scores for which the reference has everything they need."""
    return tuple(name for name, entry in SCORES.items() if not missing_parts(entry, reference))


def fit(name: str, reference: Reference, **options: Any) -> Any:
    """State of a score, learned from known classes only.

    Args:
      name: of `SCORES`.
      reference: what it is learned from.
      **options: those of the score's entry; defaults if not given.

    Raises:
      ValueError: an unknown name or option, a value that an option does not take, or a part that is missing.
      Unfit: (a ValueError) the images do not allow this score.
    """
    entry = _look_up(name)
    options = _checked(name, entry, options)
    missing = missing_parts(entry, reference)
    if missing:
        raise Missing(f"The score {name} needs {' and '.join(WORDS.get(part, part) for part in missing)}; not given.")
    return entry.fit(reference, **options)


def state_of(name: str, reference: Reference) -> Any:
    """State of a score with the reference's options for it; fitted once per reference."""
    return reference.shared(("state", name), lambda: fit(name, reference, **reference.options.get(name, {})))


def score(name: str, state: Any, outputs: Outputs) -> Any:
    """score_N of the images, higher means known. Computed once per state and outputs."""
    entry = _look_up(name)
    # The state is kept with its score, so that no other object can get its identity.
    return outputs.shared(("score", name, id(state)), lambda: (state, entry.score(state, outputs)))[1]


def describe(name: str, options: Mapping[str, Any], *, k: int) -> str:
    """A description of a score.

    Args:
      name: of `SCORES`.
      options: {option: value}; the defaults where not given.
      k: nearest neighbors per class of the predictions, used for an option k of 0.
    """
    entry = _look_up(name)
    values = _checked(name, entry, options)
    return entry.about.format(**values | ({} if values.get("k", k) else {"k": k})) or name


def options_of(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a score: the given ones and the defaults. Raises ValueError for others, or values out of range."""
    return _checked(name, _look_up(name), options)


def _look_up(name):
    check_choice("The score", name, SCORES)
    return SCORES[name]


def _checked(name: str, entry: Score, options: Mapping[str, Any]) -> dict[str, Any]:
    for option in options:
        check_choice(f"The option of the score {name}", option, entry.options)
    return {
        option: key.check(f"{name}'s {option}", options.get(option, key.default))
        for option, key in entry.options.items()
    }


def _simple():
    """Names of the scores that do not combine other scores."""
    return [name for name, entry in SCORES.items() if "members" not in entry.options]


_FEATURES, _LOGITS, _BOTH, _HEAD = ("features",), ("logits",), ("features", "logits"), ("features", "head")
_TOPK = {
    "k": Key(0, "neighbors per class whose cosines are summed; 0: as many as for predictions (evaluate.k)", least=0)
}

SCORES = {
    "topk_cosine": Score(
        neighbors.fit_topk,
        neighbors.score_topk,
        _FEATURES,
        _TOPK,
        about="sum of the {k} largest cosine similarities to a class",
    ),
    "topk_cosine_normalized": Score(
        functools.partial(neighbors.fit_topk, normalized=True), neighbors.score_topk, _FEATURES, _TOPK
    ),
    "knn": Score(
        neighbors.fit_knn,
        neighbors.score_knn,
        _FEATURES,
        {"k": Key(50, "the distance to the k-th nearest training image counts", least=1)},
    ),
    "class_mean_cosine": Score(means.fit_class_mean_cosine, means.score_class_mean_cosine, _FEATURES),
    "class_mean_l1": Score(means.fit_class_mean_l1, means.score_class_mean_l1, _FEATURES),
    "feature_norm": Score(means.fit_feature_norm, means.score_feature_norm, _FEATURES),
    "mahalanobis": Score(gaussians.within, gaussians.score_mahalanobis, _FEATURES),
    "mahalanobis_plus_plus": Score(
        gaussians.fit_mahalanobis_plus_plus, gaussians.score_mahalanobis_plus_plus, _FEATURES
    ),
    "mahalanobis_per_class": Score(
        gaussians.fit_mahalanobis_per_class,
        gaussians.score_mahalanobis_per_class,
        _FEATURES,
        {"shrinkage": Key(0.1, "weight of the shared covariance in that of each class", least=0, most=1)},
    ),
    "relative_mahalanobis": Score(gaussians.fit_relative_mahalanobis, gaussians.score_relative_mahalanobis, _FEATURES),
    "msp": Score(logits.fit_nothing, logits.score_msp, _LOGITS),
    "max_logit": Score(logits.fit_nothing, logits.score_max_logit, _LOGITS),
    "energy": Score(
        logits.fit_energy,
        logits.score_energy,
        _LOGITS,
        {"temperature": Key(1.0, "temperature that divides the logits", above=0)},
    ),
    "entropy": Score(logits.fit_nothing, logits.score_entropy, _LOGITS),
    "gen": Score(
        logits.fit_gen,
        logits.score_gen,
        _LOGITS,
        {
            "gamma": Key(0.1, "exponent of p (1 - p)", above=0),
            "largest": Key(100, "number of the largest probabilities to sum", least=1),
        },
    ),
    "kl_matching": Score(logits.fit_kl_matching, logits.score_kl_matching, _LOGITS),
    "gradnorm": Score(logits.fit_nothing, head.score_gradnorm, _BOTH),
    "postmax": Score(logits.fit_nothing, head.score_postmax, _BOTH),
    "she": Score(head.fit_she, head.score_she, _BOTH),
    "nnguide": Score(
        neighbors.fit_nnguide,
        neighbors.score_nnguide,
        _BOTH,
        {
            "k": Key(10, "number of nearest training images that guide the score", least=1),
            "share": Key(1.0, "share of the training images to keep", above=0, most=1),
        },
    ),
    "react": Score(
        head.fit_react,
        head.score_react,
        _HEAD,
        {"percentile": Key(90.0, "percentile of all training activations to clip at", above=0, most=100)},
    ),
    "ash": Score(
        head.fit_ash,
        head.score_ash,
        _HEAD,
        {
            "variant": Key("s", "kept activations: b sets them equal, p keeps, s scales", choices=head.VARIANTS),
            "percentile": Key(90.0, "percentile of an image's activations below which they are 0", least=0, below=100),
        },
    ),
    "dice": Score(
        head.fit_dice,
        head.score_dice,
        _HEAD,
        {
            "percentile": Key(
                90.0, "percentile of mean contributions to logits above which weights are kept", least=0, below=100
            )
        },
    ),
    "vim": Score(
        vim.fit_vim,
        vim.score_vim,
        _HEAD,
        {"dimension": Key(0, "dimension of the principal space; 0: the paper's rule", least=0)},
    ),
    "odin": Score(
        odin.fit_odin,
        odin.score_odin,
        ("logits", "perturbed_logits"),
        {
            "temperature": Key(1000.0, "temperature that divides the logits", above=0),
            "noise": Key(
                0.0014, "size of the step along the sign of the gradient, in the scale of the model's images", least=0
            ),
        },
    ),
    "ensemble": Score(
        functools.partial(ensemble.fit, state_of=state_of, score=score),
        functools.partial(ensemble.score, score=score),
        ("features", "validation"),
        {"members": Key(("topk_cosine", "relative_mahalanobis"), "scores to average", choices=_simple)},
    ),
}
