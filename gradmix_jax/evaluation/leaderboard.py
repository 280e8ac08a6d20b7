"""Results in the format of OpenOOD 1.5's leaderboard (Zhang et al. 2023, arXiv 2306.09301): percent, a row per dataset.

FPR@95, AUPR_OUT: unknown images are the positives; AUPR_IN: known ones. The areas under precision-recall curves are
trapezoidal, as in OpenOOD; elsewhere in the results they are average precision.

Letters: N known images, M unknown images.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from gradmix_jax import metrics

COLUMNS = ("FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC")
# Of the detection results of one dataset: where its rows are, by the known images they are against.
OOD, FULL_SPECTRUM = "ood", "fsood"
# The row that is the mean of the datasets of a kind.
MEANS = {"near": "nearood", "far": "farood"}


def row(known_N: np.ndarray, unknown_M: np.ndarray) -> list[float]:
    """The numbers of COLUMNS except the last, in percent; higher scores mean "known"."""
    points = metrics.points(known_N, unknown_M)
    area = lambda positive: points.average_precision(positive=positive, interpolation="trapezoid")
    fractions = points.fpr_at(positive="unknown"), points.auroc(), area("known"), area("unknown")
    return [100.0 * each for each in fractions]


def table(
    found: Mapping[str, Mapping[str, Any]], accuracy: Mapping[str, float], wanted: Mapping[str, Collection[str]]
) -> dict[str, Any]:
    """{"ood" or "fsood": {"columns": COLUMNS, "rows": {dataset: numbers}}}, each kind followed by its mean.

    Args:
      found: {"near" or "far": {dataset: {"leaderboard": {"ood" or "fsood": `row`}}}}.
      accuracy: {"ood" or "fsood": accuracy on its known images}, in [0, 1].
      wanted: {"near" or "far": all datasets of the kind}. While one has no row, for instance because it failed, the
        kind has no mean, which would be that of other datasets than elsewhere.
    """
    return {
        spectrum: {"columns": list(COLUMNS), "rows": _rows(found, spectrum, 100.0 * share, wanted)}
        for spectrum, share in accuracy.items()
    }


def _rows(found, spectrum: str, accuracy: float, wanted) -> dict[str, list[float]]:
    rows: dict[str, list[float]] = {}
    for kind, mean in MEANS.items():
        of_kind = {
            short_name(name): each["leaderboard"][spectrum]
            for name, each in found.get(kind, {}).items()
            if spectrum in each.get("leaderboard", {})
        }
        rows |= {name: [*numbers, accuracy] for name, numbers in of_kind.items()}
        if of_kind and len(of_kind) == len(set(map(short_name, wanted[kind]))):
            rows[mean] = [*np.mean(list(of_kind.values()), axis=0).tolist(), accuracy]
    return rows


def short_name(name: str) -> str:
    """OpenOOD's name of a dataset read from its image lists; other names are unchanged."""
    kind, _, path = name.partition(":")
    return path.rpartition("/")[2] if kind == "imglist" else name
