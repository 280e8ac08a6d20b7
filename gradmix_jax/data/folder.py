"""Image folders: PATH/train/<class>/* and PATH/test/<class>/*."""

import dataclasses
import os
from pathlib import Path

import numpy as np
from absl import logging
from PIL import Image

from gradmix_jax.data.source import DataSet, hash_of

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
TEST_FOLDERS = ("test", "val", "validation")


@dataclasses.dataclass(frozen=True, eq=False)
class FileRecords:
    """Image files and their class ids, int32 [N]."""

    paths: list[str]
    labels: np.ndarray

    def open(self, index: int) -> Image.Image:
        return Image.open(self.paths[index])

    def describe(self, index: int) -> str:
        return self.paths[index]

    def fingerprint(self, indices: np.ndarray) -> str:
        # Not of the content: reading all files takes as long as the features that are to be saved.
        paths = [self.paths[index] for index in indices]
        found = map(os.stat, paths)
        return hash_of(np.array(paths), np.array([(each.st_size, each.st_mtime_ns) for each in found]))


def load(path: str, *, with_train: bool) -> DataSet:
    """A data set of image files, one folder a class.

    Classes are the sorted names of the class folders of train and test together, so that a class keeps its id where one
    part lacks it. The test part is the first of test, val, validation. Files lie in a class folder at any depth and are
    taken in sorted order; names that start with a dot, and files other than .jpg, .jpeg, .png, .bmp and .webp (in any
    case), are not images.

    Raises:
      ValueError: a folder is missing, or there are no images.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f"data set 'folder:{path}' does not exist; allowed: the path of a folder.")
    test_root = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    if test_root is None:
        raise ValueError(
            f"{root} has no test images; allowed: a folder named {', '.join(TEST_FOLDERS[:-1])} or "
            f"{TEST_FOLDERS[-1]} with one folder a class."
        )
    roots = [test_root]
    if with_train:
        if not (root / "train").is_dir():
            raise ValueError(f"{root} has no training images; allowed: a folder named train with one folder a class.")
        roots.append(root / "train")
    names = tuple(sorted({name for part in roots for name in _class_names(part)}))
    parts = [read_part(part, names) for part in roots]
    return DataSet(names, parts[1] if with_train else None, parts[0])


def _class_names(part: Path) -> list[str]:
    return [entry.name for entry in part.iterdir() if entry.is_dir() and not entry.name.startswith(".")]


def read_part(part: Path, names: tuple[str, ...]) -> FileRecords:
    """The images of part/<class>/*, labelled by the place of their class in `names`."""
    paths, labels, others = [], [], []
    for label, name in enumerate(names):
        files = _files(part / name)
        images = [file for file in files if file.lower().endswith(EXTENSIONS)]
        others += sorted(set(files) - set(images))
        paths += images
        labels += [label] * len(images)
    if others:
        logging.warning(
            "%d files in %s are not taken for images (only %s are), the first is %s.",
            len(others),
            part,
            ", ".join(EXTENSIONS),
            others[0],
        )
    if not paths:
        raise ValueError(f"{part} has no images; allowed: <class>/*, with one of the endings {', '.join(EXTENSIONS)}.")
    return FileRecords(paths, np.array(labels, np.int32))


def _files(folder: Path) -> list[str]:
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(parent, name) for name in files if not name.startswith(".")]
    return sorted(found)
