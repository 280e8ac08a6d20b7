"""Evaluate stored features and logits of any model, with the same scores and metrics as for a checkpoint.

Letters: N images, F feature, K known classes.
"""

import types
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradmix_jax.evaluation import headline, open_set, out_of_distribution
from gradmix_jax.evaluation.given import EXTRA, FEATURES, LOGITS, OUTPUTS, PERTURBED, Given, check
from gradmix_jax.fields import check_choice, check_number, check_options
from gradmix_jax.scores import SCORES, Outputs, describe
from gradmix_jax.scores import fitted as fitted_lib
from gradmix_jax.scores.fitted import FAILURES, Fitted

# Default headline scores, in order of preference.
HEADLINES = ((FEATURES, "topk_cosine"), (LOGITS, "max_logit"))


def measure(
    arrays: Mapping[str, np.ndarray],
    *,
    feature: str | None = None,
    score: str | None = None,
    names: tuple[str, ...] = ("all",),
    k: int = 3,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Every score and metric that the arrays allow; the others are left out by name, with the reason.

    Args:
      arrays: see `given`. "known" and "unknown" with the same outputs are needed; "train" with labels for
        scores that learn; "known_labels" for accuracy, OSCR and per-class metrics; "validation" for a threshold.
      feature, score: those of the headline, "features" or "logits" and a key of `scores.SCORES`; None: topk_cosine of
        features, or max_logit.
      names: scores to compute, "all" or keys of `scores.SCORES`.
      k: neighbors per class of the top-k cosine score, and of predictions by features.
      options: {score: {option: value}}.

    Returns:
      As `evaluate.evaluate`: the headline's metrics, "by_score", "left_out", "intervals", "per_class", "confusion",
      "ood": {"near": {}, "far": {}, "other": {NAME: ...}}, "arrays" (scores and predictions), ...

    Raises:
      ValueError: arrays that do not fit, or a headline score that they do not allow; one line.
    """
    check_number("k", k, least=1, whole=True)
    if feature is not None:
        check_choice("feature", feature, OUTPUTS)
    given = check(arrays)
    chosen = tuple(SCORES) if "all" in names else names
    for name in (*chosen, *([score] if score else [])):
        check_choice("The score", name, SCORES)
    fitted = _fit(given, tuple(dict.fromkeys((*chosen, *([score] if score else [])))), k, options or {})
    tests = {headline.KNOWN: "known", headline.UNKNOWN: "unknown", **{part: part for part in given.extra}}
    if _fits(given, "validation"):
        tests |= {headline.VALIDATION: "validation"}
    scored = headline.score_parts(fitted, {name: _outputs(given, part) for name, part in tests.items()})
    feature, score = _headline_of(scored, fitted, feature, score)
    known = given.parts["known"]
    truth = headline.Truth(known.get("labels"), _classes(given, "known"), _classes(given, "unknown"), given.class_names)
    of_headline = dict(feature=feature, score=score)
    return {
        **headline.results(scored, truth, **of_headline),
        "score": f"{describe(score, (options or {}).get(score, {}), k=k)} ({feature}); higher means known",
        "left_out": fitted.left_out,
        **{"step": None, "trial": 0, "checkpoint": "", "failed": {}, "corruptions": None, "probes": {}},
        "known_classes": list(given.class_names),
        "num_train": len(_any_output(given.parts["train"])) if "train" in given.parts else 0,
        "num_known": len(_any_output(known)),
        "num_unknown": len(_any_output(given.parts["unknown"])),
        "closed_set": _closed_set(known),
        "ood": {"near": {}, "far": {}, "other": _others(given, scored)},
        "arrays": headline.arrays(scored, truth, **of_headline),
        "scored": scored,
    }


# Inputs that a score may lack, and the arrays to add.
_ARRAYS = {
    FEATURES: "known_features and unknown_features",
    LOGITS: "known_logits and unknown_logits",
    PERTURBED: "known_perturbed_logits and unknown_perturbed_logits",
    "head": "head_kernel and head_bias",
    "validation": "validation images (validation_features, validation_logits)",
}


def _lacking(given: Given, names: tuple[str, ...]) -> dict[str, str]:
    """{score: the arrays to add}, of the scores that lack inputs."""
    there = {
        FEATURES: FEATURES in given.outputs,
        LOGITS: LOGITS in given.outputs,
        "head": given.head is not None,
        "validation": _fits(given, "validation"),
        PERTURBED: all(PERTURBED in given.parts[part] for part in ("known", "unknown")),
    }
    absent = {name: [_ARRAYS[part] for part in SCORES[name].needs if not there[part]] for name in names}
    return {name: f"{name} needs {', '.join(arrays)}." for name, arrays in absent.items() if arrays}


def _others(given: Given, scored: headline.Scored) -> dict[str, Any]:
    """Every score on the further unknown images."""
    return {
        part.removeprefix(EXTRA): {
            "n": len(_any_output(given.parts[part])),
            "by_score": out_of_distribution.metrics_of(scored.scores[headline.KNOWN], scored.scores[part]),
        }
        for part in given.extra
    }


def _fits(given: Given, part: str) -> bool:
    """Whether a part has every output that the test images have."""
    return all(name in given.parts.get(part, ()) for name in given.outputs)


def _any_output(of_part: Mapping[str, np.ndarray]) -> np.ndarray:
    return next(of_part[name] for name in OUTPUTS if name in of_part)


def _outputs(given: Given, part: str) -> dict[str, np.ndarray]:
    """The outputs of a part that the test images have too; features of width 0 if there are none."""
    of_part = given.parts[part]
    found = {name: of_part[name] for name in (*given.outputs, PERTURBED) if name in of_part}
    return {FEATURES: np.zeros((len(_any_output(of_part)), 0), np.float32)} | found


def _fit(given: Given, names: tuple[str, ...], k: int, options: Mapping[str, Mapping[str, Any]]) -> Fitted:
    options = check_options("options", SCORES, options)
    lacking = _lacking(given, names)
    names = tuple(name for name in names if name not in lacking)
    train = given.parts.get("train", {})
    learned = [name for name in given.outputs if name in train and "labels" in train]
    fitted = Fitted({}, {})
    if learned:
        outputs = _outputs(given, "train")
        fitted = fitted_lib.fit_all(
            {name: x for name, x in outputs.items() if name == FEATURES or name in (*learned, PERTURBED)},
            train["labels"],
            num_classes=len(given.class_names),
            features=(FEATURES,) if FEATURES in learned else (),
            names=names,
            k=k,
            options=options,
            head=given.head,
            validation=_outputs(given, "validation") if _fits(given, "validation") else None,
        )
    for feature in OUTPUTS:
        own = [name for name in names if fitted_lib.works_on_logits(name) == (feature == LOGITS)]
        if feature not in given.outputs:
            fitted.left_out[feature] = {name: f"known_{feature} and unknown_{feature} are not given." for name in own}
        elif feature not in learned:
            absent = [f"train_{what}" for what in (feature, "labels") if what not in train]
            _fit_without_training(given, fitted, feature, own, options, f"{' and '.join(absent)} not given.")
    for name, reason in lacking.items():
        feature = LOGITS if fitted_lib.works_on_logits(name) else FEATURES
        fitted.left_out.setdefault(feature, {})[name] = reason
    return fitted


def _fit_without_training(given, fitted, feature, names, options, reason) -> None:
    """Scores that learn nothing; the others are left out."""
    states, left_out = {}, {}
    held_out = _outputs(given, "validation") if _fits(given, "validation") else None
    reference = types.SimpleNamespace(
        num_classes=len(given.class_names),
        validation=held_out and Outputs(held_out[FEATURES], held_out.get(LOGITS)),
    )
    for name in names:
        entry = SCORES[name]
        try:
            if feature != LOGITS or not set(entry.needs) <= {*OUTPUTS, PERTURBED}:
                raise AttributeError  # predictions by features and the head's statistics need training images
            states[name] = entry.fit(reference, **options.get(name, {}))
        except (AttributeError, *FAILURES):  # nothing to learn from
            left_out[name] = f"{name} needs training images: {reason}"
    if states:
        fitted.states[feature] = states
    fitted.left_out[feature] = left_out


def _headline_of(scored, fitted, feature, score) -> tuple[str, str]:
    there = scored.scores[headline.KNOWN]
    if score is not None and feature is None:
        feature = LOGITS if fitted_lib.works_on_logits(score) else FEATURES
    wanted = [(each, name) for each, name in HEADLINES if feature in (None, each)]
    wanted = [(feature, score)] if score is not None else wanted
    wanted += [] if score is not None else [(each, name) for each in there for name in there[each]]
    for each, name in wanted:
        if name in there.get(each, ()) and feature in (None, each):
            return each, name
    if score is None:
        reasons = [why.rstrip(".") for by_score in fitted.left_out.values() for why in by_score.values()]
        reasons.sort(key=lambda why: " needs " in why)  # what is wrong with the arrays, then what else could be given
        end = "; ..." if len(reasons) > 2 else "."
        raise ValueError(f"no score can be computed of these arrays: {'; '.join(reasons[:2])}{end}")
    why = fitted.left_out.get(feature, {}).get(score, "it is not a score of these outputs.")
    raise ValueError(f"the score {score} of {feature} cannot be computed: {why}")


def _classes(given: Given, part: str) -> np.ndarray:
    """Names of the images' classes; unknown images with labels are named by number."""
    of_part = given.parts[part]
    labels_N = of_part.get("labels")
    if labels_N is None:
        return np.full(len(_any_output(of_part)), part)
    if part == "known":
        return np.array(given.class_names)[labels_N]
    numbers, number_N = np.unique(labels_N, return_inverse=True)
    return np.array([f"unknown {number}" if number != -1 else "unknown" for number in numbers.tolist()])[number_N]


def _closed_set(known: Mapping[str, np.ndarray]) -> dict[str, Any]:
    if LOGITS not in known or "labels" not in known:
        return {}
    return {"head": open_set.classifier_metrics(known[LOGITS], known["labels"])}
