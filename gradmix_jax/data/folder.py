"""Image folders: `PATH/train/<class>/*` and `PATH/test/<class>/*`, or `PATH/<class>/*` without parts."""

import os
from pathlib import Path

import numpy as np

from gradmix_jax.data import class_names, divide
from gradmix_jax.data.files import FileRecords, find_images
from gradmix_jax.data.source import DataSet

TEST_FOLDERS = ("test", "val", "validation")
_ANNOTATIONS = "val_annotations.txt"


def load(path: str, *, with_train: bool, test_fraction: float = 0.2, seed: int = 0) -> DataSet:
    """A dataset of image files, one folder per class; `files.find_images` says which files count.

    Class ids number the class folders of train and test together, so that a class keeps its id even if one part lacks
    it: numbers sort by value, other names alphabetically. Three layouts are read:

    - a `train` folder, and the first of test, val, validation that exists;
    - TinyImageNet's archive as unpacked: `val/images` is the test part, labeled by `val/val_annotations.txt`, and
      `test`, which has no labels, is not read;
    - class folders alone, divided by `divide.divide`.

    Args:
      path: the folder.
      with_train: whether to look for training images.
      test_fraction, seed: for dividing class folders without parts.

    Raises:
      ValueError: a folder is missing, or there are no images.
    """
    root = Path(os.path.expanduser(path))
    if root.is_file():
        raise ValueError(
            f"dataset 'folder:{path}' is a file; unpack an archive and give its folder, or name a csv:PATH."
        )
    if not root.is_dir():
        raise ValueError(f"dataset 'folder:{path}' does not exist; give the path of a folder.")
    test_root = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    has_train = (root / "train").is_dir()
    annotations = root / "val" / _ANNOTATIONS
    if test_root is None and not has_train:
        names = _class_names([root])
        train, test = divide.divide(read_part(root, names), test_fraction=test_fraction, seed=seed)
        return DataSet(names, train if with_train else None, test)
    if test_root is None:
        raise ValueError(f"{root} has no test images; add a folder named {_listed(TEST_FOLDERS)} with class folders.")
    if with_train and not has_train:
        raise ValueError(f"{root} has no training images; add a folder named train with class folders.")
    if annotations.is_file():
        return _tiny_imagenet(root, annotations, with_train)
    names = _class_names([test_root, root / "train"] if with_train else [test_root])
    return DataSet(names, read_part(root / "train", names) if with_train else None, read_part(test_root, names))


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _class_names(parts: list[Path]) -> tuple[str, ...]:
    folders = [entry for part in parts for entry in os.scandir(part)]
    return class_names.in_order(entry.name for entry in folders if entry.is_dir() and not entry.name.startswith("."))


def read_part(part: Path, names: tuple[str, ...]) -> FileRecords:
    """The images of part/<class>/*, labeled by the position of their class in `names`."""
    return find_images([(label, part / name) for label, name in enumerate(names)], what=str(part))


def _tiny_imagenet(root: Path, annotations: Path, with_train: bool) -> DataSet:
    """Read TinyImageNet's archive; lines of the annotations are `file <tab> WordNet id <tab> box`."""
    rows = [line.split("\t")[:2] for line in annotations.read_text(encoding="utf-8").splitlines() if line.strip()]
    if any(len(row) < 2 for row in rows):
        raise ValueError(f"{annotations} must have lines 'file <tab> class <tab> ...'.")
    label_of_file = dict(rows)
    names = class_names.in_order([*label_of_file.values(), *(_class_names([root / "train"]) if with_train else ())])
    found = find_images([(0, root / "val" / "images")], what=str(root / "val"))
    stems = [os.path.basename(file) for file in found.paths]
    missing = [stem for stem in stems if stem not in label_of_file]
    if missing:
        raise ValueError(f"{annotations} has no line for {missing[0]} ({len(missing)} such images); add their classes.")
    place_of = {name: place for place, name in enumerate(names)}
    labels = np.array([place_of[label_of_file[stem]] for stem in stems], np.int32)
    order = np.lexsort((stems, labels))
    test = FileRecords([found.paths[i] for i in order], labels[order])
    return DataSet(names, read_part(root / "train", names) if with_train else None, test)
