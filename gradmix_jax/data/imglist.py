"""Image lists of OpenOOD: `imglist:FOLDER/NAME` is FOLDER/train_NAME.txt and FOLDER/test_NAME.txt."""

import os
import re
from pathlib import Path

import numpy as np

from gradmix_jax.data.files import FileRecords
from gradmix_jax.data.source import DataSet

# Folders that paths may be relative to, seen from the folder of a list: OpenOOD's are beside benchmark_imglist/.
IMAGES = ("../../images_classic", "../../images_largescale", "../..", ".")
UNLABELED = "unlabeled"
# Classes are counted up to the largest label, so a number that is none must not get that far.
_LABEL = re.compile(r"-?[0-9]{1,6}")


def load(path: str, *, with_train: bool) -> DataSet:
    """The images of a training and a test list, whose lines are "path label".

    Paths are relative to the first folder of IMAGES that has the first image. Labels start at 0; class names are their
    numbers, so that lists of one dataset agree. A negative label, as out-of-distribution images may have, is the class
    UNLABELED.

    Args:
      path: FOLDER/NAME, such as benchmark_imglist/cifar10/tin for benchmark_imglist/cifar10/test_tin.txt.
      with_train: whether to read the training list.

    Raises:
      ValueError: a list is missing or empty, a line is not a path and a label, or no folder has the images.
    """
    lists = Path(os.path.expanduser(path))
    found = {part: _rows(lists.parent / f"{part}_{lists.name}.txt") for part in ["test", "train"][: 1 + with_train]}
    labels = {part: np.array([label for _, label in rows], np.int32) for part, rows in found.items()}
    count = max(int(each.max()) for each in labels.values()) + 1
    names = tuple(map(str, range(count)))
    if any((each < 0).any() for each in labels.values()):
        names = (*names, UNLABELED)
    records = {
        part: FileRecords(_paths(lists.parent, part, rows), np.where(labels[part] < 0, count, labels[part]))
        for part, rows in found.items()
    }
    return DataSet(names, records.get("train"), records["test"])


def _rows(file: Path) -> list[tuple[str, int]]:
    if not file.is_file():
        raise ValueError(f"{file} does not exist; an imglist dataset is named FOLDER/NAME, for FOLDER/test_NAME.txt.")
    rows = []
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must be a list in UTF-8 ({error}).") from error
    for number, line in enumerate(lines, start=1):
        path, _, label = line.strip().rpartition(" ")
        if not line.strip():
            continue
        if not path or not _LABEL.fullmatch(label):
            wanted = "a path and a label of at most 6 digits"
            raise ValueError(f"line {number} of {file} must be {wanted}, got {line[:80]!r}.")
        rows.append((path, int(label)))
    if not rows:
        raise ValueError(f"{file} is empty; list at least one image.")
    return rows


def _paths(folder: Path, part: str, rows: list[tuple[str, int]]) -> list[str]:
    roots = [Path(os.path.normpath(folder.absolute() / each)) for each in IMAGES]
    root = next((each for each in roots if (each / rows[0][0]).is_file()), None)
    if root is None:
        raise ValueError(
            f"{rows[0][0]}, the first {part} image of the lists in {folder}, is in none of "
            f"{', '.join(map(str, roots))}; unpack the images there."
        )
    return [str(root / path) for path, _ in rows]
