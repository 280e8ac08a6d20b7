"""Per-class figures of one run: AUROC bars and the confusion matrix."""

from typing import Any

import numpy as np

from gradmix_jax.report.drawing import BLUE, ORANGE, framed, subplots, svg
from gradmix_jax.report.labels import short
from gradmix_jax.report.runs import Run

MOST_BARS = 30
# Known classes of a confusion matrix; of more, those with the most wrong decisions are shown.
MOST_KNOWN = 30
MOST_ROWS = 40
MOST_COUNTS = 26
# Inches, of the labels of the confusion matrix.
LETTER = 0.075


def bars(run: Run) -> str:
    """AUROC of each known class against all unknown images, and of all known images against each unknown class."""
    known = _aurocs(run.results["per_class"])
    unknown = _aurocs(run.results["per_unknown_class"])
    if not known and not unknown:
        return "<p>The results hold no AUROC by class.</p>"
    drawn, axes = subplots(
        (4.4, 1.3 + 0.19 * sum(_shown(side) for side in (known, unknown))),
        nrows=2,
        sharex=True,
        height_ratios=[max(_shown(side), 1) for side in (known, unknown)],
    )
    lowest = min([*known.values(), *unknown.values(), 0.5])
    for axis, side, color, title in (
        (axes[0], known, BLUE, "known class against all unknown images"),
        (axes[1], unknown, ORANGE, "all known images against unknown class"),
    ):
        chosen = sorted(side, key=side.get)[: _shown(side)] if _shown(side) < len(side) else list(side)
        places = np.arange(len(chosen))
        axis.barh(places, [side[name] for name in chosen], color=color, height=0.7)
        for place, name in enumerate(chosen):
            axis.text(side[name], place, f" {side[name]:.3f}", va="center", fontsize=7)
        axis.set_yticks(places, [short(name) for name in chosen], fontsize=8)
        axis.set_ylim(max(len(chosen), 1) - 0.4, -0.6)
        axis.set_title(title, loc="left")
        axis.grid(True, axis="x")
    axes[0].set_xlim(max(0, np.floor(lowest * 10) / 10 - 0.05), 1.06)
    axes[1].set_xlabel("AUROC")
    cut = [f"{len(side)} {name}" for name, side in (("known", known), ("unknown", unknown)) if len(side) > MOST_BARS]
    note = f" The {MOST_BARS} lowest of {' and of '.join(cut)} classes." if cut else ""
    caption = f"AUROC by class of {run.name}: higher is better; the axis does not start at 0.{note}"
    return framed(svg(drawn, "AUROC by class"), caption)


def _aurocs(classes: dict[str, Any]) -> dict[str, float]:
    return {name: each["auroc"] for name, each in classes.items() if each.get("auroc") is not None}


def _shown(side) -> int:
    return min(len(side), MOST_BARS)


def confusion(run: Run) -> str:
    """Row-normalized heat map with counts; of many classes, the known ones with the most errors and one unknown row."""
    matrix = run.results["confusion"]
    if not matrix:
        return "<p>There is no confusion matrix: without validation images there is no threshold.</p>"
    rows, columns, counts, known, note = _summarized(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cell = 0.36 if len(columns) <= 16 else 0.26
    room = lambda names: 0.5 + LETTER * max(map(len, names))
    drawn, axis = subplots((room(rows) + cell * len(columns), room(columns) + 0.27 * len(rows)))
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for (row, column), share in np.ndenumerate(shares) if len(columns) <= MOST_COUNTS else ():
        color = "#ffffff" if share > 0.5 else "#222222"
        axis.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=color)
    axis.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.axhline(known - 0.5, color=ORANGE, linewidth=1.5)
    axis.axvline(known - 0.5, color=ORANGE, linewidth=1.5)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    caption = (
        f"Confusion matrix of {run.name} with rejection: numbers of images, shaded by the share of their row. "
        f"Unknown images (below the line) belong in the last column.{note}"
    )
    # Scrolls on a narrow screen, where a large matrix would be too small to read.
    box = f'<div class="scroll{" large" * (len(columns) > 12)}">{svg(drawn, "confusion matrix")}</div>'
    return framed(box, caption)


def _summarized(matrix: dict[str, Any]) -> tuple[list[str], list[str], np.ndarray, int, str]:
    """(row names, column names, counts, number of rows of known classes, note on what was put together)."""
    counts, known = np.asarray(matrix["counts"]), len(matrix["columns"]) - 1
    rows, columns, note = [short(name) for name in matrix["rows"]], [short(name) for name in matrix["columns"]], ""
    names, unknown_names = rows[:known], rows[known:]
    if known > MOST_KNOWN:
        wrong_K = counts[:known].sum(axis=1) - counts[:known].diagonal()
        kept = np.sort(np.argsort(-wrong_K, kind="stable")[:MOST_KNOWN])
        rest = np.setdiff1d(np.arange(known), kept)
        across = np.concatenate(
            [counts[:, kept], counts[:, rest].sum(axis=1, keepdims=True), counts[:, known:]], axis=1
        )
        counts = np.concatenate([across[kept], across[rest].sum(axis=0, keepdims=True), across[known:]])
        other = f"{len(rest)} other known"
        names, columns = [*(names[i] for i in kept), other], [*(columns[i] for i in kept), other, columns[-1]]
        note = (
            f" Of {known} known classes the {MOST_KNOWN} with the most errors are shown; the others are put together."
        )
        known = len(names)
    unknown = [f"{name} (unknown)" for name in unknown_names]
    if len(unknown) > 1 and known + len(unknown) > MOST_ROWS:
        note += f" The {len(unknown)} unknown classes are in one row."
        unknown = [f"{len(unknown)} unknown classes"]
        counts = np.concatenate([counts[:known], counts[known:].sum(axis=0, keepdims=True)])
    return [*names, *unknown], columns, counts, known, note
