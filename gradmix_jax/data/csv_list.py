"""Lists of image files: `csv:PATH`, a table with the columns path, label and, optionally, split."""

import csv
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gradmix_jax.data import class_names, divide
from gradmix_jax.data.files import FileRecords
from gradmix_jax.data.source import DataSet
from gradmix_jax.fields import check_choice

TEST = ("test", "val", "validation")


def load(path: str, *, with_train: bool, test_fraction: float = 0.2, seed: int = 0) -> DataSet:
    """A dataset of the images in a CSV file with a header; other columns are ignored.

    Paths are relative to the folder of the list. Labels are class names: numbers sort by value, other names
    alphabetically. `split` is train or test, or val or validation if no row says test (otherwise rows that say val are
    ignored); a list without this column is divided by `divide.divide`.

    Args:
      path: path of the list.
      with_train: whether to return training images.
      test_fraction, seed: for dividing lists without splits.

    Raises:
      ValueError: the list is missing or not a table like this, a file is listed twice, or a part has no rows.
    """
    file = Path(os.path.expanduser(path))
    if not file.is_file():
        raise ValueError(f"dataset 'csv:{path}' does not exist; give the path of a CSV file.")
    try:
        rows = _rows(file)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{file} must be a CSV file in UTF-8 ({error}); unpack an archive and give its folder."
        ) from error
    names = class_names.in_order(row.label for row in rows)
    records = _records(rows, names)
    if all(row.split is None for row in rows):
        train, test = divide.divide(records, test_fraction=test_fraction, seed=seed)
        return DataSet(names, train if with_train else None, test)
    splits = np.array([row.split for row in rows])
    test_name = next((name for name in TEST if name in splits), None)
    if test_name is None:
        raise ValueError(f"{file} has no test images; set the split of some rows to test.")
    if with_train and "train" not in splits:
        raise ValueError(f"{file} has no training images; set the split of some rows to train.")
    return DataSet(names, records.take(splits == "train") if with_train else None, records.take(splits == test_name))


class _Row(NamedTuple):
    """A row of a list, its last line in the file, and its split; None: there is no such column."""

    line: int
    path: str
    label: str
    split: str | None


def _rows(file: Path) -> list[_Row]:
    with open(file, newline="", encoding="utf-8-sig") as lines:
        # Strict, because a quotation mark that is never closed would otherwise swallow the rows after it.
        table = csv.DictReader(lines, strict=True)
        columns = table.fieldnames or ()
        if not all(columns.count(name) == 1 for name in ("path", "label")) or columns.count("split") > 1:
            got = ", ".join(columns) or "an empty file"
            raise ValueError(f"{file} must have the columns path and label, got {got}.")
        rows = []
        for row in table:
            line = table.line_num
            if None in row:  # a comma in a path or a label would cut it short
                count = len(columns) + len(row[None])
                raise ValueError(
                    f"line {line} of {file} has {count} values for {len(columns)} columns; put quotation marks around "
                    "values with commas."
                )
            path, label, split = (row.get(name) for name in ("path", "label", "split"))
            if not path or not label or "\0" in path + label:  # of which no file's name can have any
                wanted = "a path and a label without null bytes"
                raise ValueError(f"line {line} of {file} must have {wanted}, got {path!r} and {label!r}.")
            if "split" in columns:
                check_choice(f"the split in line {line} of {file}", split, ("train", *TEST))
            rows.append(_Row(line, os.path.join(file.parent, path), label, split))
    if not rows:
        raise ValueError(f"{file} has no rows; list at least one image.")
    return rows


def _records(rows: list[_Row], names: tuple[str, ...]) -> FileRecords:
    first: dict[str, int] = {}
    for row in rows:
        before = first.setdefault(os.path.realpath(row.path), row.line)
        if before != row.line:
            raise ValueError(f"{row.path} is listed in lines {before} and {row.line}; list every image once.")
    place_of = {name: place for place, name in enumerate(names)}
    return FileRecords([row.path for row in rows], np.array([place_of[row.label] for row in rows], np.int32))
