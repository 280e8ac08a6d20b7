"""Matplotlib figures and image arrays as inline HTML.

Vector figures follow the page's theme, light or dark: text and lines are drawn in placeholder colors, which become CSS
variables.
"""

import base64
import io
import itertools
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from gradmix_jax.report.formats import escape_html

# Placeholders that the page's style sheet turns into the colors of its theme.
INK, RULE, BLUE, ORANGE = "#010203", "#d1d2d3", "#0072b2", "#d55e00"
_VARIABLES = {INK: "var(--ink)", RULE: "var(--rule)", BLUE: "var(--blue)", ORANGE: "var(--orange)"}
# Okabe and Ito 2008, without black and yellow: safe for color-blind readers, on a light and on a dark page.
PALETTE = (BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LINES = ("-", "--", ":", "-.")
STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 9,
    "legend.fontsize": 8,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    # Otherwise ids in an SVG are random, and no two reports are equal.
    "svg.hashsalt": "gradmix_jax",
}
SIZE = (4.4, 3.4)
THUMBNAIL = 96
_numbers = itertools.count()


def style():
    """Context in which all figures of a page are drawn, which starts to number them anew.

    Matplotlib looks up the style of a text when the text is made.
    """
    global _numbers
    _numbers = itertools.count()  # so that a page does not depend on those before it in this process
    return matplotlib.rc_context(STYLE)


def color_and_line(index: int) -> dict[str, str]:
    """Arguments of `Axes.plot` for line `index`, with another dash pattern when the colors repeat."""
    return {"color": PALETTE[index % len(PALETTE)], "linestyle": LINES[index // len(PALETTE) % len(LINES)]}


def subplots(size: tuple[float, float] = SIZE, **options):
    """(Figure, axes) of a size in inches, without a window."""
    made = Figure(figsize=size, layout="constrained")
    return made, made.subplots(**options)


class Marks(NamedTuple):
    """What the page's script reads out of a drawing when one points at it or moves through it with the arrow keys.

    Attributes:
      axis: matplotlib's.
      boxes_Mx4: left, bottom, right, top in the coordinates of the axis; equal ones for a point.
      says: text of each box.
    """

    axis: Any
    boxes_Mx4: np.ndarray
    says: Sequence[str]


def svg(drawn: Figure, description: str, marks: Sequence[Marks] = ()) -> str:
    """An inline <svg> element, in a <div class="plot"> if it has marks.

    Args:
      drawn: what to draw.
      description: its text alternative.
      marks: what the page's script reads out, in the order of the arrow keys.
    """
    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    drawn.savefig(buffer, format="svg", transparent=True, metadata=nothing, dpi=160)
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    # Ids must be unique on the page, and most are not used.
    prefix = f"f{next(_numbers)}-"
    rename = lambda match: f' id="{prefix}{match[1]}"' if match[1] in used else ""
    text = re.sub(r' id="([^"]*)"', rename, text)
    text = re.sub(r'(href="|url\()#', rf"\1#{prefix}", text)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, variable)
    role = f'role="img" aria-label="{escape_html(description)}"'
    if not marks:
        return text.replace("<svg", f"<svg {role}", 1).strip()
    return f'<div class="plot">{text.replace("<svg", f"<svg {role} {_readable(drawn, marks)}", 1).strip()}</div>'


def _readable(drawn: Figure, marks: Sequence[Marks]) -> str:
    """Attributes with the boxes, "x y width height place-of-text" in units of the drawing, and the texts."""
    says = list(dict.fromkeys(text for each in marks for text in each.says))
    place = {text: index for index, text in enumerate(says)}
    scale, height, boxes = 72 / drawn.dpi, 72 * drawn.get_figheight(), []
    for each in marks:
        corners = each.axis.transData.transform(np.asarray(each.boxes_Mx4, float).reshape(-1, 2)) * scale
        corners_Mx2x2 = corners.reshape(-1, 2, 2)
        low, high = corners_Mx2x2.min(axis=1), corners_Mx2x2.max(axis=1)
        for (x, y), (right, top), text in zip(low, high, each.says):
            boxes.append(f"{x:.1f} {height - top:.1f} {right - x:.1f} {top - y:.1f} {place[text]}")
    return f'data-marks="{";".join(boxes)}" data-says="{escape_html(json.dumps(says, ensure_ascii=False))}"'


def thumbnail(image_HxWxC: np.ndarray, most: int = THUMBNAIL) -> str:
    """A data URI of a uint8 image, gray (C = 1) or color (C = 3).

    Up to `most` pixels without loss; larger ones are scaled down to that and stored as JPEG: a page holds hundreds.
    """
    image = Image.fromarray(image_HxWxC[..., 0] if image_HxWxC.shape[-1] == 1 else image_HxWxC)
    buffer, small = io.BytesIO(), max(image.size) <= most
    if small:
        image.save(buffer, format="PNG", optimize=True)
    else:
        image.thumbnail((most, most))
        image.save(buffer, format="JPEG", quality=85)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()


def framed(content: str, caption: str, *, wide: bool = False) -> str:
    """A <figure> of some HTML and a caption in plain text."""
    kind = ' class="wide"' if wide else ""
    return f"<figure{kind}>{content}<figcaption>{escape_html(caption)}</figcaption></figure>"
