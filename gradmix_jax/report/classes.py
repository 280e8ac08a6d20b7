"""AUROC by class of one run, as bars and as a table."""

import math
from typing import Any

import numpy as np

from gradmix_jax.report.drawing import BLUE, ORANGE, Marks, framed, subplots, svg
from gradmix_jax.report.formats import MISSING, escape_html
from gradmix_jax.report.labels import cut, short
from gradmix_jax.report.runs import Run

MOST_BARS = 30
# Rows of the table.
MOST_CLASSES = 200


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
    left = max(0, np.floor(lowest * 10) / 10 - 0.05)
    marks = []
    for axis, side, color, title, against in (
        (axes[0], known, BLUE, "known class against all unknown images", "against all unknown images"),
        (axes[1], unknown, ORANGE, "all known images against unknown class", "of all known images against it"),
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
        boxes = [(left, place - 0.35, side[name], place + 0.35) for place, name in zip(places, chosen)]
        marks.append(Marks(axis, np.array(boxes), [f"{name}: AUROC {side[name]:.4f} {against}" for name in chosen]))
    axes[0].set_xlim(left, 1.06)
    axes[1].set_xlabel("AUROC")
    cut = [f"{len(side)} {name}" for name, side in (("known", known), ("unknown", unknown)) if len(side) > MOST_BARS]
    note = f" The {MOST_BARS} lowest of {' and of '.join(cut)} classes." if cut else ""
    caption = f"AUROC by class of {run.name}: higher is better; the axis does not start at 0.{note}"
    return framed(svg(drawn, "AUROC by class", marks), caption)


def _aurocs(classes: dict[str, Any]) -> dict[str, float]:
    return {name: each["auroc"] for name, each in classes.items() if each.get("auroc") is not None}


def _shown(side) -> int:
    return min(len(side), MOST_BARS)


def table(run: Run) -> str:
    """A sortable table of every class, collapsed; of many, those with the lowest AUROC. "" if there are none."""
    sides = {"known": run.results["per_class"], "unknown": run.results["per_unknown_class"]}
    rows = [(name, side, each) for side, classes in sides.items() for name, each in classes.items()]
    if not rows:
        return ""
    worst = sorted(rows, key=lambda row: math.inf if row[2].get("auroc") is None else row[2]["auroc"])[:MOST_CLASSES]
    shown = rows if len(rows) <= MOST_CLASSES else worst
    body = "".join(
        f'<tr><th scope="row">{escape_html(cut(name, 40))}</th><td>{side}</td>'
        f"{''.join(map(_number, (each.get('auroc'), each.get('accuracy'))))}</tr>"
        for name, side, each in shown
    )
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("AUROC ↑", "accuracy ↑"))
    which = (
        f"the {len(shown)} of {len(rows)} classes with the lowest AUROC" if len(shown) < len(rows) else "all classes"
    )
    return (
        f"<details><summary>AUROC and accuracy of {which}</summary>"
        '<div class="scroll" tabindex="0" role="group" aria-label="classes"><table class="sortable"><thead><tr>'
        f'<th scope="col" class="label">class</th><th scope="col">side</th>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></details>"
    )


def _number(value: float | None) -> str:
    return f"<td>{MISSING}</td>" if value is None else f'<td data-v="{float(value)!r}">{value:.4f}</td>'
