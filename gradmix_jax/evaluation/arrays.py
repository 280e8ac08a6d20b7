"""Evaluate stored features and logits of any model: the same scores and metrics as of a checkpoint.

Arrays are called "<part>_<what>". The parts are "train", "validation", "known", "unknown" and any number of
"unknown.NAME"; what is "features" [N, F], "logits" [N, K], "labels" [N] or "ids" [N]. Besides: "head_kernel" [F, K] and
"head_bias" [K], the last layer from features to logits, and "class_names" [K].

Letters: N images, F feature, K known classes.
"""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradmix_jax.evaluation import headline, open_set, out_of_distribution
from gradmix_jax.fields import check_choice, check_number, check_options
from gradmix_jax.scores import SCORES, Outputs, describe
from gradmix_jax.scores import fitted as fitted_lib
from gradmix_jax.scores.fitted import FAILURES, LOGITS, Fitted

FEATURES = "features"
OUTPUTS, ROWS = (FEATURES, LOGITS), ("labels", "ids")
PARTS, EXTRA = ("train", "validation", "known", "unknown"), "unknown."
WHOLE = ("head_kernel", "head_bias", "class_names")
# Headline scores by preference, as long as none is asked for.
HEADLINES = ((FEATURES, "topk_cosine"), (LOGITS, "max_logit"))
# Rows that are looked at together, so that checks need little memory.
BLOCK = 65536


@dataclasses.dataclass(frozen=True)
class Given:
    """Checked arrays: {part: {what: array}}, and what there is once."""

    parts: dict[str, dict[str, np.ndarray]]
    head: tuple[np.ndarray, np.ndarray] | None
    class_names: tuple[str, ...]

    @property
    def extra(self) -> list[str]:
        """Parts with further unknown images."""
        return [part for part in self.parts if part.startswith(EXTRA)]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Which outputs the test images have."""
        return tuple(name for name in OUTPUTS if name in self.parts["known"])


def check(arrays: Mapping[str, np.ndarray]) -> Given:
    """Sort arrays by part. Raises ValueError, one line with the array's name, where one is missing or does not fit."""
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        part, _, what = name.rpartition("_")
        if name in WHOLE:
            continue
        known_part = part in PARTS or (part.startswith(EXTRA) and part != EXTRA)
        if not known_part or what not in (*OUTPUTS, *ROWS):
            raise ValueError(
                f"unexpected array {name!r}; names are <part>_<what> with a part of {', '.join(PARTS)} or unknown.NAME "
                f"and {', '.join((*OUTPUTS, *ROWS))}, or {', '.join(WHOLE)}."
            )
        parts.setdefault(part, {})[what] = np.asarray(array)
    for part in ("known", "unknown"):
        if not set(OUTPUTS) & set(parts.get(part, ())):
            raise ValueError(f"{part}_features or {part}_logits is needed, got neither.")
    for part, of_part in parts.items():
        _check_rows(part, of_part)
        missing = [name for name in OUTPUTS if (name in of_part) != (name in parts["known"])]
        if missing and part.startswith("unknown"):
            raise ValueError(f"known and {part} images must have the same outputs, but only one has {missing[0]}.")
    _check_widths(parts)
    given = Given(parts, _head(arrays, parts), _class_names(arrays, parts))
    for part in ("train", "validation", "known"):
        _check_labels(part, parts.get(part, {}).get("labels"), len(given.class_names))
    return given


def _check_rows(part: str, of_part: dict[str, np.ndarray]) -> None:
    if not set(OUTPUTS) & set(of_part):
        raise ValueError(f"{part} has no features or logits, only {', '.join(of_part)}.")
    counts = {what: len(array) if array.ndim else -1 for what, array in of_part.items()}
    first, size = next((what, count) for what, count in counts.items() if what in OUTPUTS)
    for what, array in of_part.items():
        name, wanted = f"{part}_{what}", 2 if what in OUTPUTS else 1
        if array.ndim != wanted:
            raise ValueError(f"{name} must have {wanted} dimension{'s' * (wanted > 1)}, got shape {list(array.shape)}.")
        if counts[what] != size or not size:
            raise ValueError(f"{name} must have a row per image, got {counts[what]} (and {size} of {part}_{first}).")
        if what not in OUTPUTS:
            continue
        if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
            raise ValueError(f"{name} must be numbers, got {array.dtype}.")
        bad = sum(int((~np.isfinite(array[at : at + BLOCK]).all(axis=1)).sum()) for at in range(0, size, BLOCK))
        if bad:
            raise ValueError(f"{name} must be finite, got NaN or infinity in {bad} of {size} rows.")


def _check_widths(parts: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    for what in OUTPUTS:
        widths = {part: of_part[what].shape[1] for part, of_part in parts.items() if what in of_part}
        if len(set(widths.values())) > 1:
            said = ", ".join(f"{part}_{what} {width}" for part, width in widths.items())
            raise ValueError(f"{what} of all parts must have one width, got {said}.")


def _check_labels(part: str, labels_N: np.ndarray | None, num_classes: int) -> None:
    if labels_N is None:
        return
    name = f"{part}_labels"
    if not np.issubdtype(labels_N.dtype, np.integer):
        raise ValueError(f"{name} must be integers, got {labels_N.dtype}.")
    unknown = int((labels_N < 0).sum())
    if unknown:
        raise ValueError(f"{name} must be of known classes only, got {unknown} negative (unknown) of {len(labels_N)}.")
    if labels_N.max() >= num_classes:
        raise ValueError(f"{name} must be from 0 to {num_classes - 1}, got {labels_N.max()}.")


def _head(arrays, parts) -> tuple[np.ndarray, np.ndarray] | None:
    if "head_kernel" not in arrays:
        if "head_bias" in arrays:
            raise ValueError("head_bias is given without head_kernel; give both, or the kernel alone.")
        return None
    kernel_FxK = np.asarray(arrays["head_kernel"], np.float32)
    wanted = [parts["known"][name].shape[1] if name in parts["known"] else None for name in OUTPUTS]
    shape = list(kernel_FxK.shape)
    if len(shape) != 2 or any(want not in (None, got) for want, got in zip(wanted, shape)):
        sizes = ["F" if wanted[0] is None else wanted[0], "K" if wanted[1] is None else wanted[1]]
        raise ValueError(f"head_kernel must have shape [{sizes[0]}, {sizes[1]}], got {shape}.")
    bias_K = np.asarray(arrays.get("head_bias", np.zeros(shape[1])), np.float32)
    if bias_K.shape != (shape[1],):
        raise ValueError(f"head_bias must have shape [{shape[1]}], got {list(bias_K.shape)}.")
    return kernel_FxK, bias_K


def _class_names(arrays, parts) -> tuple[str, ...]:
    """Names of the known classes: as given, or their numbers."""
    logits = parts["known"].get(LOGITS)
    labels = [parts[part]["labels"] for part in ("train", "known") if "labels" in parts.get(part, ())]
    highest = max((int(x.max()) for x in labels if np.issubdtype(x.dtype, np.integer)), default=-1) + 1
    count = highest if logits is None else logits.shape[1]
    if "class_names" not in arrays:
        return tuple(map(str, range(count)))
    names = tuple(map(str, np.asarray(arrays["class_names"]).tolist()))
    if (logits is not None and len(names) != count) or len(names) < count or len(set(names)) < len(names):
        raise ValueError(f"class_names must be {count} different names, got {len(names)}.")
    return names


def measure(
    arrays: Mapping[str, np.ndarray],
    *,
    feature: str | None = None,
    score: str | None = None,
    names: tuple[str, ...] = ("all",),
    k: int = 3,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Every score and metric that the arrays allow; what they do not allow is left out by name, with the reason.

    Args:
      arrays: see the top of this file. "known" and "unknown" with the same outputs are needed; "train" with labels for
        scores that learn; "known_labels" for accuracy, OSCR and all that is per class; "validation" for a threshold.
      feature, score: of the headline, "features" or "logits" and a key of `scores.SCORES`; None: topk_cosine of
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
    known_scores = scored.scores[headline.KNOWN]
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
        "ood": {
            **{"near": {}, "far": {}},
            "other": {
                part.removeprefix(EXTRA): {
                    "n": len(_any_output(given.parts[part])),
                    "by_score": out_of_distribution.metrics_of(known_scores, scored.scores[part]),
                }
                for part in given.extra
            },
        },
        "arrays": headline.arrays(scored, truth.labels_N, **of_headline),
        "scored": scored,
    }


def _fits(given: Given, part: str) -> bool:
    """Whether a part has every output that the test images have."""
    return all(name in given.parts.get(part, ()) for name in given.outputs)


def _any_output(of_part: Mapping[str, np.ndarray]) -> np.ndarray:
    return next(of_part[name] for name in OUTPUTS if name in of_part)


def _outputs(given: Given, part: str) -> dict[str, np.ndarray]:
    """The outputs of a part that the test images have too; features of width 0 where there are none."""
    of_part = given.parts[part]
    found = {name: of_part[name] for name in given.outputs if name in of_part}
    return {FEATURES: np.zeros((len(_any_output(of_part)), 0), np.float32)} | found


def _fit(given: Given, names: tuple[str, ...], k: int, options: Mapping[str, Mapping[str, Any]]) -> Fitted:
    options = check_options("options", SCORES, options)
    train = given.parts.get("train", {})
    learned = [name for name in given.outputs if name in train and "labels" in train]
    fitted = Fitted({}, {})
    if learned:
        outputs = _outputs(given, "train")
        fitted = fitted_lib.fit_all(
            {name: x for name, x in outputs.items() if name == FEATURES or name in learned},
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
            lacking = [f"train_{what}" for what in (feature, "labels") if what not in train]
            _fit_without_training(given, fitted, feature, own, options, f"{' and '.join(lacking)} not given.")
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
        missing = sorted(set(entry.needs) & set(OUTPUTS) - set(given.outputs))
        if missing:
            left_out[name] = f"{name} needs {' and '.join(f'known_{what} and unknown_{what}' for what in missing)}."
            continue
        try:
            if feature != LOGITS or not set(entry.needs) <= set(OUTPUTS):
                raise AttributeError  # predictions by features, and the head's statistics, need training images
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
        reasons = [f"{name}: {why}" for of in fitted.left_out.values() for name, why in of.items()]
        raise ValueError(f"no score can be computed of these arrays ({'; '.join(reasons[:2])} ...).")
    why = fitted.left_out.get(feature, {}).get(score, "it is not a score of these outputs.")
    raise ValueError(f"the score {score} of {feature} cannot be computed: {why}")


def _classes(given: Given, part: str) -> np.ndarray:
    """Names of the images' classes; those of unknown images by number, where they have labels."""
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
