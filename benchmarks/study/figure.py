"""The figure of the page, a separate SVG file: paired differences by split with their intervals."""

from collections.abc import Sequence
from html import escape

from .differences import Difference

# Units of the drawing. A panel has a title, a row for each comparison and an axis.
LEFT, PANEL, GAP, RIGHT, ROW, TITLE, AXIS = 112, 300, 28, 24, 26, 34, 40
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)
BLUE, ORANGE, GRAY = "#0072b2", "#d55e00", "#b8b8b8"


def svg(panels: Sequence[tuple[str, Sequence[Difference]]]) -> str:
    """Panels in two columns, one for each (title, comparisons), all on the same scale.

    Small dots are splits. The large dot is the mean, with its 95 % interval, blue for `input` and orange for `layer`.
    """
    values = [value for _, each in panels for one in each for value in (*one.by_split.values(), *(one.interval or ()))]
    largest = max(map(abs, values), default=0.01)
    step = next((each for each in STEPS if largest / each <= 4), STEPS[-1])
    span = step * max(1, -(-largest // step))
    rows = max((len(each) for _, each in panels), default=0)
    width = 2 * (LEFT + PANEL) + GAP + RIGHT
    height = TITLE + rows * ROW + AXIS
    whole = height * -(-len(panels) // 2)
    parts = []
    for number, (title, comparisons) in enumerate(panels):
        x, y = (number % 2) * (LEFT + PANEL + GAP), (number // 2) * height
        parts.append(f'<g transform="translate({x} {y})">{_panel(title, comparisons, rows, step, span)}</g>')
    style = (
        "text{font:12px sans-serif;fill:#222}.t{font-weight:bold}.a{font-size:10px;text-anchor:middle}"
        f".n{{text-anchor:end}}.d{{fill:{GRAY}}}.g{{stroke:#e4e4e4}}.z{{stroke:#555}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {whole}" width="{width}" height="{whole}" '
        f'role="img"><title>Paired differences in AUROC by class split</title><style>{style}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>\n{"".join(parts)}</svg>\n'
    )


def _panel(title: str, comparisons: Sequence[Difference], rows: int, step: float, span: float) -> str:
    place = lambda value: LEFT + PANEL / 2 * (1 + value / span)
    bottom = TITLE + rows * ROW
    parts = [f'<text class="t" x="{LEFT}" y="18">{escape(title)}</text>']
    for number in range(-round(span / step), round(span / step) + 1):
        x, kind = place(number * step), "g" if number else "z"
        parts.append(f'<path class="{kind}" d="M{x:.1f} {TITLE - 6}V{bottom}"/>')
        said = f"{number * step:+.2f}" if number else "0"
        parts.append(f'<text class="a" x="{x:.1f}" y="{bottom + 14}">{said}</text>')
    middle = LEFT + PANEL / 2
    parts.append(f'<text class="a" x="{middle:g}" y="{bottom + 29}">difference in AUROC</text>')
    for number, one in enumerate(comparisons):
        y = TITLE + number * ROW + ROW / 2
        parts.append(f'<text class="n" x="{LEFT - 8}" y="{y + 4:g}">{escape(f"{one.first} - {one.second}")}</text>')
        # Offset by split, so that equal differences do not hide each other.
        dots = ((place(value), y + (trial % 5 - 2) * 3) for trial, value in one.by_split.items())
        parts += [f'<circle class="d" cx="{dot_x:.1f}" cy="{dot_y:g}" r="1.8"/>' for dot_x, dot_y in dots]
        color = BLUE if one.first == "input" else ORANGE
        if one.interval:
            low, high = map(place, one.interval)
            parts.append(f'<path stroke="{color}" stroke-width="2.5" d="M{low:.1f} {y:g}H{high:.1f}"/>')
        if one.mean is not None:
            parts.append(f'<circle fill="{color}" cx="{place(one.mean):.1f}" cy="{y:g}" r="4"/>')
    return "\n".join(parts)
