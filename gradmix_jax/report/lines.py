"""Line plots as inline SVG, which the page's script lets one read point by point.

A plot is complete without the script. With it, pointing at a plot or moving through it with the arrow keys shows the
values of all named lines at one place, which are read back from the paths by the ranges in the plot's attributes.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from gradmix_jax.report.formats import escape_html

# Units of the drawing: room for tick labels around the box that holds the lines.
WIDTH, HEIGHT = 440, 300
LEFT, TOP, RIGHT, BOTTOM = 52, 10, 428, 254
COLORS = 6
DASHES = ("", "6 3", "2 2", "8 2 2 2")


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a plot.

    Attributes:
      x, y: numbers, equally many; a number that is not finite leaves a gap.
      name: in the legend and in what is read out; "" for a line that is only drawn.
      color: 0 to COLORS - 1, or "ink".
      dash: place in DASHES.
      width: in the drawing's units.
      faint: whether it stays in the background.
      marked: whether the points are marked.
      filled: whether the area down to the bottom is shaded.
      says: for each point what is read out after its value, such as a number of images.
    """

    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    name: str = ""
    color: int | str = 0
    dash: int = 0
    width: float = 1.6
    faint: bool = False
    marked: bool = False
    filled: bool = False
    says: Sequence[str] = ()


def numbered(index: int) -> dict[str, int]:
    """Color and dash of line `index`, with another dash pattern when the colors repeat."""
    return {"color": index % COLORS, "dash": index // COLORS % len(DASHES)}


def plot(
    lines: Sequence[Line],
    *,
    description: str,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    vertical: tuple[float, str] | None = None,
    legend: bool = False,
) -> str:
    """A plot with its legend.

    Args:
      lines: drawn in this order.
      description: text alternative of the plot.
      x_label, y_label: what the axes show.
      x_range, y_range: of the axes; None: those of the lines.
      vertical: (x, name in the legend) of a dashed line across the plot.
      legend: whether a single line needs one, too.
    """
    x_range, y_range = x_range or _range(line.x for line in lines), y_range or _range(line.y for line in lines)
    place = lambda x, y: (_scale(x, x_range, LEFT, RIGHT), _scale(y, y_range, BOTTOM, TOP))
    parts = [_grid(x_range, y_range), *(_path(line, place) for line in lines)]
    if vertical:
        x = _scale(np.array([vertical[0]]), x_range, LEFT, RIGHT)[0]
        if LEFT <= x <= RIGHT:
            parts.append(f'<path class="own" d="M{x:.1f} {TOP}V{BOTTOM}"/>')
    middle = (TOP + BOTTOM) / 2
    parts.append(f'<text class="axis" x="{(LEFT + RIGHT) / 2:g}" y="{HEIGHT - 8}">{escape_html(x_label)}</text>')
    parts.append(f'<text class="axis" transform="translate(13 {middle:g}) rotate(-90)">{escape_html(y_label)}</text>')
    parts.append(f'<path class="cursor" d="M0 {TOP}V{BOTTOM}" hidden="hidden"/>')
    ranges = f'data-x="{x_range[0]:.9g} {x_range[1]:.9g}" data-y="{y_range[0]:.9g} {y_range[1]:.9g}"'
    names = f'data-x-label="{escape_html(x_label)}" data-y-label="{escape_html(y_label)}"'
    box = f'data-box="{LEFT} {TOP} {RIGHT} {BOTTOM}"'
    drawn = (
        f'<svg class="lines" role="img" viewBox="0 0 {WIDTH} {HEIGHT}" aria-label="{escape_html(description)}" '
        f"{ranges} {box} {names}>{''.join(parts)}</svg>"
    )
    return f'<div class="plot">{drawn}{_legend(lines, vertical, 1 if legend else 2)}</div>'


def _range(each) -> tuple[float, float]:
    values = np.concatenate([np.asarray(values, float) for values in each] or [np.zeros(0)])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin


def _scale(values, span: tuple[float, float], start: float, stop: float) -> np.ndarray:
    return start + (np.asarray(values, float) - span[0]) / (span[1] - span[0]) * (stop - start)


def _grid(x_range, y_range) -> str:
    """Grid lines, tick labels and the box."""
    parts = []
    for tick in _ticks(*x_range):
        x = float(_scale(tick, x_range, LEFT, RIGHT))
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{BOTTOM}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{BOTTOM + 16}">{_label(tick)}</text>')
    for tick in _ticks(*y_range):
        y = float(_scale(tick, y_range, BOTTOM, TOP))
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{RIGHT}"/>')
        parts.append(f'<text class="tick side" x="{LEFT - 6}" y="{y + 4:.1f}">{_label(tick)}</text>')
    return "".join(parts) + f'<path class="box" d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}"/>'


def _ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers in the range: at most that many, at distances of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [place * step for place in range(first, math.floor(high / step + 1e-9) + 1)]


def _label(number: float) -> str:
    return f"{number:.6g}" if number else "0"


def _path(line: Line, place) -> str:
    """The line as a path; its marks; and, for the script, its name and what its points say."""
    x, y = place(line.x, line.y)
    there = np.isfinite(x) & np.isfinite(y)
    steps, pen_down = [], False
    for one_x, one_y, seen in zip(x, y, there):
        if seen:
            steps.append(f"{'L' if pen_down else 'M'}{_short(one_x)} {_short(one_y)}")
        pen_down = bool(seen)
    if not steps:
        return ""
    paint = "stroke:var(--ink)" if line.color == "ink" else f"stroke:var(--c{line.color})"
    dash = f' stroke-dasharray="{DASHES[line.dash]}"' if line.dash else ""
    named = f' data-name="{escape_html(line.name)}"' if line.name else ""
    said = [says for says, seen in zip(line.says, there) if seen]
    named += f' data-says="{escape_html("|".join(said))}"' if said else ""
    kind = "line faint" if line.faint else "line"
    drawn = f'<path class="{kind}" d="{"".join(steps)}" stroke-width="{line.width:g}" style="{paint}"{dash}{named}/>'
    if line.filled:
        area = f"M{_short(x[there][0])} {BOTTOM}{''.join(steps).replace('M', 'L', 1)}L{_short(x[there][-1])} {BOTTOM}Z"
        drawn = f'<path class="area" d="{area}" style="{paint.replace("stroke", "fill")}"/>' + drawn
    if line.marked or np.count_nonzero(there) == 1:  # a line of one point would not be seen
        fill = paint.replace("stroke", "fill")
        marks = (f'<circle cx="{_short(a)}" cy="{_short(b)}" r="2.6"/>' for a, b in zip(x[there], y[there]))
        drawn += f'<g class="marks" style="{fill}">{"".join(marks)}</g>'
    return drawn


def _short(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".")


def _legend(lines: Sequence[Line], vertical: tuple[float, str] | None, fewest: int) -> str:
    items = [
        f'<li><svg class="swatch" aria-hidden="true" viewBox="0 0 24 8"><path d="M0 4H24" stroke-width="2" '
        f'style="stroke:var(--{"ink" if line.color == "ink" else f"c{line.color}"})"'
        f"{f' stroke-dasharray={chr(34)}{DASHES[line.dash]}{chr(34)}' if line.dash else ''}/></svg>"
        f"<span>{escape_html(line.name)}</span></li>"
        for line in lines
        if line.name
    ]
    if vertical:
        swatch = '<svg class="swatch" aria-hidden="true" viewBox="0 0 24 8"><path class="own" d="M0 4H24"/></svg>'
        items.append(f"<li>{swatch}<span>{escape_html(vertical[1])}</span></li>")
    # A single line is explained by the axes.
    return f'<ul class="legend">{"".join(items)}</ul>' if len(items) >= fewest else ""
