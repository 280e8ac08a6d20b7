"""ImageNet and its relatives in their published layouts; class names are WordNet ids."""

import csv
import os
from pathlib import Path

import numpy as np

from gradmix_jax.data import class_names
from gradmix_jax.data.files import FileRecords, find_images
from gradmix_jax.data.source import DataSet

_KAGGLE = "ILSVRC/Data/CLS-LOC"
# (folders of the training part, folders of the test part), each with class folders.
LAYOUTS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("train",), ("val",)),
    ((f"{_KAGGLE}/train",), (f"{_KAGGLE}/val",)),
    (("imagenet21k_train",), ("imagenet21k_val",)),
    (("imagenet100_train",), ("imagenet100_test",)),
    (("train.X1", "train.X2", "train.X3", "train.X4"), ("val.X",)),
)
SOLUTION = "LOC_val_solution.csv"
DEVKIT = "ILSVRC2012_devkit_t12/data"
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def load(path: str, *, with_train: bool) -> DataSet:
    """A dataset of class folders named by WordNet id, in one of LAYOUTS, or without parts.

    The validation images of ILSVRC2012 may be in class folders, or together in one folder as they are distributed;
    their classes are then read from LOC_val_solution.csv, or from ILSVRC2012_devkit_t12/data, in `path`. Class folders
    without parts are all test images.

    Args:
      path: the folder.
      with_train: whether to look for training images.

    Raises:
      ValueError: a folder or the classes of the validation images are missing, or there are no images.
    """
    root = Path(os.path.expanduser(path))
    if not root.is_dir():
        raise ValueError(f"dataset 'imagenet:{path}' does not exist; give the path of a folder.")
    train, test = next((each for each in LAYOUTS if (root / each[1][0]).is_dir()), ((), ("",)))
    train = [root / name for name in train if (root / name).is_dir()]
    if with_train and not train:
        raise ValueError(f"{root} has no training images; add a folder named train beside val.")
    tests = [root / name for name in test]
    names = _folders([*tests, *(train if with_train else ())])
    labeled = None if _folders(tests) else _validation_labels(root, tests[0])
    names = class_names.in_order([*names, *(labeled or {}).values()])
    if not names:
        raise ValueError(f"{root} has no class folders; add a folder for each class, named by WordNet id.")
    records = _in_folders(tests, names) if labeled is None else _in_one_folder(tests[0], names, labeled)
    return DataSet(names, _in_folders(train, names) if with_train else None, records)


def _folders(parts: list[Path]) -> tuple[str, ...]:
    found = [entry for part in parts for entry in os.scandir(part)]
    return class_names.in_order(entry.name for entry in found if entry.is_dir() and not entry.name.startswith("."))


def _in_folders(parts: list[Path], names: tuple[str, ...]) -> FileRecords:
    folders = [(c, part / name) for c, name in enumerate(names) for part in parts]
    return find_images(folders, what=", ".join(map(str, parts)))


def _in_one_folder(folder: Path, names: tuple[str, ...], labeled: dict[str, str]) -> FileRecords:
    """The images of a folder by {stem: class}, sorted by class."""
    found = find_images([(0, folder)], what=str(folder))
    place = {name: c for c, name in enumerate(names)}
    stems = [Path(file).stem for file in found.paths]
    missing = [stem for stem in stems if stem not in labeled]
    if missing:
        raise ValueError(f"{folder} has {len(missing)} images without a class, the first is {missing[0]}.")
    labels = np.array([place[labeled[stem]] for stem in stems], np.int32)
    order = np.argsort(labels, kind="stable")
    return FileRecords([found.paths[i] for i in order], labels[order])


def _validation_labels(root: Path, folder: Path) -> dict[str, str]:
    """{stem of a validation image: its WordNet id}."""
    if (root / SOLUTION).is_file():
        with open(root / SOLUTION, newline="", encoding="utf-8") as lines:
            return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(lines)}
    truth = root / DEVKIT / _TRUTH
    if truth.is_file():
        from scipy import io  # slow to import

        synsets = np.atleast_1d(io.loadmat(root / DEVKIT / "meta.mat", squeeze_me=True)["synsets"])
        wnid_of = {int(each["ILSVRC2012_ID"]): str(each["WNID"]) for each in synsets}
        ids = truth.read_text(encoding="utf-8").split()
        return {f"ILSVRC2012_val_{place:08d}": wnid_of[int(each)] for place, each in enumerate(ids, start=1)}
    raise ValueError(
        f"{folder} has no class folders, and {root} has neither {SOLUTION} nor {DEVKIT}/{_TRUTH} to say which class an "
        "image is of; add one of them."
    )
