"""A contact sheet: a row of images for each class, as a model will see them."""

import numpy as np
from PIL import Image, ImageDraw

from gradmix_jax.data.source import DataSet, to_array

CELL = 96  # pixels
COLUMNS = 8
ROWS = 40
_GAP, _LABEL = 4, 14


def draw(data: DataSet, *, background: str = "white") -> Image.Image:
    """The first `ROWS` classes, each with at most `COLUMNS` evenly spaced readable images.

    Args:
      data: the dataset; its training part is drawn, or its test part if there is none.
      background: the background of transparent images.
    """
    records = data.train if data.train is not None else data.test
    names = data.class_names[:ROWS]
    row = CELL + _LABEL + _GAP
    sheet = Image.new("RGB", (COLUMNS * (CELL + _GAP) + _GAP, len(names) * row + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for label, name in enumerate(names):
        top = label * row + _GAP
        places = np.flatnonzero(records.labels == label)
        pen.text((_GAP, top), f"{name}: {len(places)} images", fill="black")
        chosen = places[np.unique(np.linspace(0, len(places) - 1, min(COLUMNS, len(places))).astype(int))]
        for column, place in enumerate(chosen):
            corner = (_GAP + column * (CELL + _GAP), top + _LABEL)
            try:
                with records.open(int(place)) as image:
                    sheet.paste(Image.fromarray(to_array(image, CELL, 3, background=background)), corner)
            except Exception:  # the description names it
                x, y = corner
                pen.line([x, y, x + CELL, y + CELL], fill="red", width=2)
                pen.line([x, y + CELL, x + CELL, y], fill="red", width=2)
    return sheet
