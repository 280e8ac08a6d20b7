"""The schema of each file of a run, and its reader.

Every error is one line that names the file and what is wrong with it.
"""

from typing import Any

import numpy as np

from gradmix_jax import workdir as workdir_lib
from gradmix_jax.stored.arrays import Arrays, ArraySpec
from gradmix_jax.stored.schema import (
    Wrong,
    like,
    listing,
    mapping,
    nullable,
    number,
    record,
    shown,
    text,
    whole,
)
from gradmix_jax.workdir import storage

# Version of results.json, raised when an older reader would misread it. Files without one are version 1.
VERSION = 2
# Entries that results.json of an older version may lack or hold as null.
MISSING_PARTS: dict[str, Any] = {
    **dict.fromkeys(("by_feature", "by_score", "per_class", "per_unknown_class", "closed_set", "diversity"), {}),
    **dict.fromkeys(("corruptions", "probes", "duplicates", "failed", "left_out", "intervals", "environment"), {}),
    **dict.fromkeys(("per_unknown_group", "leaderboard", "shifted", "sha256"), {}),
    **dict.fromkeys(("score", "feature", "score_name", "checkpoint"), ""),
    **dict.fromkeys(("confusion", "threshold", "threshold_rule", "seconds", "step"), None),
    **dict.fromkeys(("num_train", "num_known", "num_unknown"), None),
    "ood": {},
    "known_classes": (),
}

_share = number(0, 1)
_metrics = record(
    {
        **dict.fromkeys(("accuracy", "auroc", "oscr", "oscr_compat", "macro_f1"), _share),
        **dict.fromkeys(("fpr95_unknown_positive", "fpr95_known_positive"), _share),
        **dict.fromkeys(("average_precision_known", "average_precision_unknown"), _share),
        **dict.fromkeys(("ccr_at_fpr_01", "ccr_at_fpr_10"), _share),
    }
)


def _reliability(where: str, value: Any) -> None:
    """A reliability diagram, with equally many bins of each quantity."""
    each = {"count": listing(whole(required=True)), "confidence": listing(_share), "accuracy": listing(_share)}
    record(each)(where, value)
    if len({len(value.get(name, ())) for name in each}) > 1:
        raise Wrong(f"{where} must have as many of {', '.join(each)}")


_classifier = record(
    {"accuracy": _share, "ece": _share, "nll": number(), "brier": number(0, 2), "l2": number()}
    | {"reliability": nullable(_reliability)}
)
_of_class = record({"accuracy": _share, "auroc": _share, "n": whole()})
_by_score = mapping(mapping(_metrics))
_percents = mapping(listing(number()))
_detection = record(
    {"n": whole(), "by_score": _by_score, "full_spectrum": _by_score, "leaderboard": _percents}, required=("by_score",)
)
_environment = record(
    {
        "commit": text,
        "devices": listing(text),
        "packages": mapping(nullable(text)),
        "cpu_count": whole(),
    }
)


def _confusion(where: str, value: Any) -> None:
    counts = listing(listing(whole(most=2**31 - 1, required=True)))  # which readers keep as int32
    record({"rows": listing(text), "columns": listing(text), "counts": counts})(where, value)
    for name in ("rows", "columns", "counts"):
        if name not in value:
            raise Wrong(f"{where}.{name} is missing")
    shape = len(value["rows"]), len(value["columns"])
    if len(value["counts"]) != shape[0] or any(len(row) != shape[1] for row in value["counts"]):
        raise Wrong(f"{where}.counts must have {shape[0]} rows of {shape[1]} numbers")


RESULTS = {
    **{name: _share for name in ("accuracy", "auroc", "oscr", "oscr_compat", "macro_f1")},
    **{name: _share for name in ("fpr95_unknown_positive", "fpr95_known_positive", "ccr_at_fpr_01", "ccr_at_fpr_10")},
    **{name: _share for name in ("average_precision_known", "average_precision_unknown")},
    **dict.fromkeys(("score", "feature", "score_name", "checkpoint"), nullable(text)),
    "threshold_rule": nullable(text),
    "threshold": number(),
    "seconds": number(0),
    "by_feature": nullable(mapping(_metrics)),
    "by_score": nullable(mapping(mapping(_metrics))),
    "per_class": nullable(mapping(_of_class)),
    "per_unknown_class": nullable(mapping(_of_class)),
    "per_unknown_group": nullable(mapping(record({"classes": whole(), "n": whole(), "by_score": _by_score}))),
    "leaderboard": nullable(mapping(record({"columns": listing(text), "rows": _percents}))),
    "shifted": nullable(mapping(record({"n": whole(), "classes": whole(), "accuracy": _share}))),
    "closed_set": nullable(mapping(nullable(_classifier))),
    "diversity": nullable(
        mapping(nullable(record({"effective_rank": number(), "intrinsic_dimension": mapping(number())})))
    ),
    "intervals": nullable(
        record({name: listing(number(), length=2) for name in ("accuracy", "auroc", "oscr")} | {"confidence": _share})
    ),
    "confusion": nullable(_confusion),
    "corruptions": nullable(
        record(
            {
                "source": text,
                "results": mapping(mapping(_metrics)),
                "mean": _metrics,
                "clean": _metrics,
                "mce": number(0),
            }
        )
    ),
    "probes": nullable(
        mapping(record({"linear_probe": nullable(_classifier), "knn": nullable(_classifier), "classes": whole()}))
    ),
    "ood": nullable(mapping(mapping(_detection))),
    "duplicates": nullable(mapping(whole())),
    "failed": nullable(mapping(text)),
    "sha256": nullable(mapping(text)),
    "pending": nullable(listing(text)),
    "left_out": nullable(mapping(mapping(text))),
    "environment": nullable(_environment),
    "known_classes": nullable(listing(text)),
    **dict.fromkeys(("step", "num_train", "num_negative", "num_known", "num_unknown", "trial"), whole()),
    "seed": whole(-(2**31)),
}
_results = record(RESULTS)


def check_results(found: dict[str, Any], path: str) -> dict[str, Any]:
    """Results with a default for each part that an older version did not write.

    Raises:
      ValueError: they have a newer version than this code, or are damaged.
    """
    version = found.get("version", 1)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"{path} is damaged: version must be a positive integer, got {version!r}.")
    if version > VERSION:
        raise ValueError(
            f"{path} was written by a newer gradmix_jax (version {version} of the file; this code reads up to "
            f"{VERSION}); update gradmix_jax."
        )
    try:
        _results("results", found)
    except Wrong as error:
        raise ValueError(f"{path} is damaged: {str(error).removeprefix('results.')}.") from None
    found = found | {name: default for name, default in MISSING_PARTS.items() if found.get(name) is None}
    found["ood"] = {"near": {}, "far": {}} | found["ood"]
    return found


def results(workdir: str) -> dict[str, Any]:
    """results.json, see `check_results`.

    Raises:
      ValueError: it is missing or damaged, or has a newer version; for a failed run, with the reason of the failure.
    """
    path = workdir_lib.path(workdir, workdir_lib.RESULTS)
    failed = workdir_lib.path(workdir, workdir_lib.FAILED)
    if not storage.exists(path) and storage.exists(failed):
        reason = workdir_lib.read_json(workdir, workdir_lib.FAILED).get("error")
        raise ValueError(f"no {workdir_lib.RESULTS} in {workdir}: the run failed ({str(reason).rstrip('.')}).")
    return check_results(workdir_lib.read_json(workdir, workdir_lib.RESULTS), path)


def check_same_run(found: dict[str, Any], config: dict[str, Any], workdir: str) -> None:
    """Raises ValueError if results have another trial or seed than the config beside them: one is of another run.

    Args:
      found: results, see `results`.
      config: the config, with all keys.
      workdir: their directory.
    """
    for name, value in {"trial": config["dataset"]["trial"], "seed": config["seed"]}.items():
        if found.get(name) not in (None, value):
            path = workdir_lib.path(workdir, workdir_lib.RESULTS)
            both = f"{name} {found[name]}, and {workdir_lib.CONFIG} of {name} {shown(value)}"
            raise ValueError(f"{path} is of {both}; restore the file that is of another run.")


def config(workdir: str, defaults: dict[str, Any], renamed) -> dict[str, Any]:
    """config.json under current names, every value of the type of its default; missing keys stay missing.

    Args:
      workdir: directory of the run.
      defaults: the default config, plain.
      renamed: plain config -> the same with current names of keys.

    Raises:
      ValueError: it is missing or damaged.
    """
    path, found = workdir_lib.path(workdir, workdir_lib.CONFIG), workdir_lib.read_json(workdir, workdir_lib.CONFIG)
    sections = record({name: record({}) for name, default in defaults.items() if isinstance(default, dict)})
    try:
        sections("config", found)
        found = renamed(found)
        like(defaults | {"phases": []})("config", found)
        if "phases" in found:
            listing(record({"name": text, "epochs": whole()}))("config.phases", found["phases"])
    except Wrong as error:
        raise ValueError(f"{path} is damaged: {str(error).removeprefix('config.')}.") from None
    return found


def _scores(name: str) -> ArraySpec | None:
    if name in ("known_scores", "unknown_scores") or name.endswith(("/known", "/unknown")):
        return ArraySpec("f", 1, finite=True)
    return ArraySpec("iu", 1) if name in ("predicted", "labels", "predicted_unknown", "unknown_classes") else None


def _gallery(name: str) -> ArraySpec | None:
    return {
        "images": ArraySpec("u", 4, dtype=np.uint8, channels=(1, 3)),
        "scores": ArraySpec("f", 1, finite=True),
        "truth": ArraySpec("U", 1),
        "predicted": ArraySpec("U", 1),
        "classes": ArraySpec("U", 1),
        "nearest": ArraySpec("iu", 2),
        "similarity": ArraySpec("f", 2, finite=True),
    }.get(name.rpartition("/")[2])


def _features(name: str) -> ArraySpec | None:
    if "/" not in name:
        return ArraySpec("U", 0) if name == "key" else None
    rows = {
        "labels": ArraySpec("iu", 1),
        "places": ArraySpec("iu", 1),
        "classes": ArraySpec("U", 1),
        "checkpoint": ArraySpec("U", 0),
        "dataset": ArraySpec("U", 0),
        "hashes": None,
    }
    what = name.rpartition("/")[2]
    return rows[what] if what in rows else ArraySpec("f", 2, finite=True)


SCORES, GALLERY, FEATURES = _scores, _gallery, _features
_ARRAYS = {workdir_lib.SCORES: SCORES, workdir_lib.GALLERY: GALLERY, workdir_lib.FEATURES: FEATURES}


def arrays(workdir: str, name: str, *, sha256: str | None = None) -> Arrays | None:
    """The file `name` of a run, one of its three .npz files; None if there is none.

    Arrays of one side, part or kind have equally many rows.

    Args:
      workdir: directory of the run.
      name: of the file.
      sha256: its digest, where results.json has one.

    Raises:
      ValueError: it is damaged, or another file than the one with this digest.
    """
    path = workdir_lib.path(workdir, name)
    if not storage.exists(path):
        return None
    found = Arrays(path, _ARRAYS[name])
    groups: dict[str, dict[str, int]] = {}
    for each in found:
        if found.shape(each) and _ARRAYS[name](each):
            groups.setdefault(_group(name, each), {})[each] = found.length(each)
    for sizes in groups.values():
        if len(set(sizes.values())) > 1:
            (first, one), (other, two) = min(sizes.items(), key=lambda e: e[1]), max(sizes.items(), key=lambda e: e[1])
            raise ValueError(f"{path} is damaged: {first} has {one} rows and {other} has {two}.")
    if sha256 is not None and found.sha256() != sha256:
        raise ValueError(
            f"{path} is damaged or of another run: its SHA-256 is not the one in {workdir_lib.RESULTS}; evaluate "
            "the run (--mode=eval) or score its outputs again."
        )
    return found


def _group(file: str, name: str) -> str:
    """The group of an array; all arrays of a group have equally many rows."""
    if file != workdir_lib.SCORES:
        return name.rpartition("/")[0]
    return (
        "unknown"
        if name in ("unknown_scores", "predicted_unknown", "unknown_classes")
        else ("unknown" if name.endswith("/unknown") else "known")
    )
