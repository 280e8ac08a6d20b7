"""Stored features and logits of any model: the possible arrays and their checks.

Arrays are called "<part>_<what>". The parts are "train", "validation", "known", "unknown" and any number of
"unknown.NAME"; what is "features" [N, F], "logits" [N, K], "perturbed_logits" [N, K] (for ODIN), "labels" [N] or
"ids" [N]. Besides: "head_kernel" [F, K] and "head_bias" [K], the last layer from features to logits; "class_names" [K].

Letters: N images, F feature, K known classes.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

FEATURES, LOGITS, PERTURBED = "features", "logits", "perturbed_logits"
OUTPUTS, ROWS = (FEATURES, LOGITS), ("labels", "ids")
# Arrays with a row of numbers per image; no name may be a suffix of an earlier one.
MATRICES = (PERTURBED, *OUTPUTS)
PARTS, EXTRA = ("train", "validation", "known", "unknown"), "unknown."
HEAD_ROWS = 1000  # images whose logits are compared with those of the head
WHOLE = ("head_kernel", "head_bias", "class_names")
# Rows checked at a time, so that checks need little memory.
BLOCK = 65536


@dataclasses.dataclass(frozen=True)
class Given:
    """Checked arrays: {part: {what: array}}, and those that exist once."""

    parts: dict[str, dict[str, np.ndarray]]
    head: tuple[np.ndarray, np.ndarray] | None
    class_names: tuple[str, ...]

    @property
    def extra(self) -> list[str]:
        """Parts with further unknown images."""
        return [part for part in self.parts if part.startswith(EXTRA)]

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs that the test images have."""
        return tuple(name for name in OUTPUTS if name in self.parts["known"])


def check(arrays: Mapping[str, np.ndarray]) -> Given:
    """Sort arrays by part. Raises ValueError, in one line with the array's name, if one is missing or does not fit."""
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        what = next((what for what in (*MATRICES, *ROWS) if name.endswith(f"_{what}")), "")
        part = name.removesuffix(f"_{what}")
        if name in WHOLE:
            continue
        known_part = part in PARTS or (part.startswith(EXTRA) and part != EXTRA)
        if not known_part or not what:
            raise ValueError(
                f"unexpected array {name!r}; names are <part>_<what> with a part of {', '.join(PARTS)} or unknown.NAME "
                f"and {', '.join((*MATRICES, *ROWS))}, or {', '.join(WHOLE)}."
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
    if not size:
        raise ValueError(f"{part}_{first} must have a row per image, got none; leave out parts without images.")
    for what, array in of_part.items():
        name, wanted = f"{part}_{what}", 2 if what in MATRICES else 1
        if array.ndim != wanted:
            raise ValueError(f"{name} must have {wanted} dimension{'s' * (wanted > 1)}, got shape {list(array.shape)}.")
        if wanted > 1 and not array.shape[1]:
            raise ValueError(f"{name} must have at least 1 column, got shape {list(array.shape)}.")
        if counts[what] != size:
            raise ValueError(f"{name} must have a row per image, got {counts[what]} (and {size} of {part}_{first}).")
        if what not in MATRICES:
            continue
        if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
            raise ValueError(f"{name} must be numbers, got {array.dtype}.")
        with np.errstate(over="ignore"):  # scores are computed in float32
            bad = sum(
                int((~np.isfinite(array[at : at + BLOCK].astype(np.float32, copy=False)).all(axis=1)).sum())
                for at in range(0, size, BLOCK)
            )
        if bad:
            raise ValueError(f"{name} must be finite in float32, got NaN or infinity in {bad} of {size} rows.")


def _check_widths(parts: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    for what in MATRICES:
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
    _check_head(kernel_FxK, bias_K, parts["known"])
    return kernel_FxK, bias_K


def _check_head(kernel_FxK, bias_K, known) -> None:
    """Raises ValueError unless the head reproduces the logits, up to half precision.

    It does not if it is another layer or if the logits are log probabilities.
    """
    if not all(name in known for name in OUTPUTS):
        return
    features_NxF, logits_NxK = (known[name][:HEAD_ROWS].astype(np.float64) for name in OUTPUTS)
    apart, size = np.abs(features_NxF @ kernel_FxK + bias_K - logits_NxK).max(), np.abs(logits_NxK).max()
    if apart > 0.05 * size:
        raise ValueError(
            f"known_features @ head_kernel + head_bias must equal known_logits, but differs by {apart:.3g} from logits "
            f"of up to {size:.3g}; give the last layer and logits before the softmax, or leave the head out."
        )


def _class_names(arrays, parts) -> tuple[str, ...]:
    """Names of the known classes: the given ones, or their numbers."""
    logits = parts["known"].get(LOGITS)
    labels = [parts[part]["labels"] for part in ("train", "known") if "labels" in parts.get(part, ())]
    highest = max((int(x.max()) for x in labels if np.issubdtype(x.dtype, np.integer)), default=-1) + 1
    count = highest if logits is None else logits.shape[1]
    if "class_names" not in arrays:
        images = sum(map(len, labels))
        if logits is None and count > images:
            raise ValueError(f"labels must number the known classes from 0, got {count - 1} with {images} images.")
        return tuple(map(str, range(count)))
    names = np.asarray(arrays["class_names"])
    names = tuple(map(str, (np.char.decode(names, "utf-8") if names.dtype.kind == "S" else names).tolist()))
    if (logits is not None and len(names) != count) or len(names) < count or len(set(names)) < len(names):
        raise ValueError(f"class_names must be {count} different names, got {len(names)}.")
    return names
