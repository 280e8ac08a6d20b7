"""Fine-grained datasets in their published layouts: CUB-200-2011, FGVC-Aircraft, Stanford Cars."""

import csv
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from gradmix_jax.data import published
from gradmix_jax.data.files import FileRecords
from gradmix_jax.data.source import DataSet

# (path, class id) of an image.
Row = tuple[Path, int]


def load_cub(path: str, *, with_train: bool) -> DataSet:
    """CUB-200-2011 as unpacked: images.txt, image_class_labels.txt, train_test_split.txt, classes.txt and images/.

    Args:
      path: path of CUB_200_2011, or of the folder that holds it.
      with_train: whether to return training images.

    Raises:
      ValueError: a file is missing, or the files do not match each other.
    """
    root = _root("cub", path, ("CUB_200_2011",), "images.txt")
    files, labels, is_train = (
        dict(_words(root / name)) for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt")
    )
    names = dict(_words(root / "classes.txt"))
    if not files.keys() == labels.keys() == is_train.keys():
        raise ValueError(
            f"{root} must have a class and a part for every image of images.txt; unpack the archive again."
        )
    place = {number: c for c, number in enumerate(sorted(names, key=int))}
    rows = {"1": [], "0": []}
    for number in sorted(files, key=int):
        if labels[number] not in place:
            raise ValueError(f"{root}/image_class_labels.txt has class {labels[number]}, which classes.txt lacks.")
        rows[is_train[number]].append((root / "images" / files[number], place[labels[number]]))
    return _data_set(root, tuple(names[number] for number in place), rows["1"] if with_train else None, rows["0"])


def load_aircraft(path: str, *, with_train: bool) -> DataSet:
    """FGVC-Aircraft as unpacked, classes being variants: data/images_variant_{trainval,test}.txt and data/images/.

    Images keep their strip of 20 pixels with the name of the photographer.

    Args:
      path: path of fgvc-aircraft-2013b, or of the folder that holds it.
      with_train: whether to return training images, those of train and val together.

    Raises:
      ValueError: a file is missing, or the test part has an unlisted variant.
    """
    root = _root(
        "aircraft", path, ("fgvc-aircraft-2013b/data", "fgvc-aircraft-2013b", "data"), "images_variant_test.txt"
    )
    parts = {part: _words(root / f"images_variant_{part}.txt") for part in ("trainval", "test")}
    names = tuple(sorted({name for rows in parts.values() for _, name in rows}))
    place = {name: c for c, name in enumerate(names)}
    rows = {
        part: [(root / "images" / f"{image}.jpg", place[name]) for image, name in found]
        for part, found in parts.items()
    }
    return _data_set(root, names, rows["trainval"] if with_train else None, rows["test"])


def load_cars(path: str, *, with_train: bool) -> DataSet:
    """Stanford Cars in one of its layouts, classes in the order of their ids.

    - cars_train/, cars_test/, devkit/cars_train_annos.mat and devkit/cars_test_annos_withlabels.mat (or the latter
      beside them), the original release;
    - cars_annos.mat and car_ims/, the release as one part;
    - anno_train.csv, anno_test.csv and {train,test}/<class name>/, or car_data/{train,test}/<class name>/: lines
      "file, x1, y1, x2, y2, class id".

    Args:
      path: path of the folder with the annotations, or of the one that holds it.
      with_train: whether to return training images.

    Raises:
      ValueError: a file is missing.
    """
    readers: dict[str, Callable[[Path], dict[str, list[Row]]]] = {
        "devkit": _cars_devkit,
        "cars_annos.mat": _cars_whole,
        "anno_train.csv": _cars_csv,
    }
    for marker, read in readers.items():
        root = _find(path, ("stanford_cars", "car_data", "cars"), marker)
        if root is not None:
            parts = read(root)
            names = published.class_names()["cars"]
            return _data_set(root, names, parts["train"] if with_train else None, parts["test"])
    raise ValueError(f"dataset 'cars:{path}' must have one of {', '.join(readers)}; give the folder that holds them.")


def _cars_devkit(root: Path) -> dict[str, list[Row]]:
    labeled = "cars_test_annos_withlabels.mat"
    test = next((each for each in (root / "devkit" / labeled, root / labeled) if each.is_file()), None)
    if test is None:
        raise ValueError(f"{root}/devkit has no {labeled}, without which test images have no classes; download it.")
    parts = {"train": (root / "devkit" / "cars_train_annos.mat", "cars_train"), "test": (test, "cars_test")}
    return {
        part: [(root / folder / name, label) for name, label, _ in _annotations(file, "fname")]
        for part, (file, folder) in parts.items()
    }


def _cars_whole(root: Path) -> dict[str, list[Row]]:
    rows = {"train": [], "test": []}
    for name, label, test in _annotations(root / "cars_annos.mat", "relative_im_path"):
        rows["test" if test else "train"].append((root / name, label))
    return rows


def _annotations(file: Path, name: str) -> Iterable[tuple[str, int, int]]:
    """(file, class id from 0, whether it is a test image) of the annotations in a MATLAB file."""
    from scipy import io  # slow to import

    if not file.is_file():
        raise ValueError(f"{file} does not exist; unpack the archive again.")
    found = io.loadmat(file, squeeze_me=True)["annotations"]
    for each in np.atleast_1d(found):
        yield str(each[name]), int(each["class"]) - 1, int(each["test"]) if "test" in found.dtype.names else 0


def _cars_csv(root: Path) -> dict[str, list[Row]]:
    folder = root / "car_data" if (root / "car_data").is_dir() else root
    names = {part: _folders(folder / part) for part in ("train", "test")}
    rows = {"train": [], "test": []}
    for part, of_part in rows.items():
        with open(root / f"anno_{part}.csv", newline="", encoding="utf-8") as lines:
            for row in csv.reader(lines):
                label = int(row[5]) - 1
                of_part.append((folder / part / names[part].get(label, "") / row[0], label))
    return rows


def _folders(part: Path) -> dict[int, str]:
    """{class id: its folder}, where a slash in a class name is replaced by another character."""
    plain = lambda name: name.replace("/", "-")
    place = {plain(name): c for c, name in enumerate(published.class_names()["cars"])}
    return {place[plain(each.name)]: each.name for each in part.iterdir() if plain(each.name) in place}


def _root(kind: str, path: str, inside: tuple[str, ...], marker: str) -> Path:
    root = _find(path, inside, marker)
    if root is None:
        raise ValueError(f"dataset '{kind}:{path}' has no {marker}; give the folder that holds it.")
    return root


def _find(path: str, inside: tuple[str, ...], marker: str) -> Path | None:
    """The folder that holds a file: the path itself, or one of the given folders in it."""
    folders = [Path(os.path.expanduser(path)) / name for name in ("", *inside)]
    return next((each for each in folders if (each / marker).exists()), None)


def _words(file: Path) -> list[tuple[str, str]]:
    """(first word, the rest) of every line."""
    if not file.is_file():
        raise ValueError(f"{file} does not exist; unpack the archive again.")
    lines = [line.strip().split(maxsplit=1) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if any(len(words) < 2 for words in lines):
        raise ValueError(f"{file} must have two words in every line; unpack the archive again.")
    return [(first, rest) for first, rest in lines]


def _data_set(root: Path, names: tuple[str, ...], train: list[Row] | None, test: list[Row]) -> DataSet:
    return DataSet(names, None if train is None else _records(root, "training", train), _records(root, "test", test))


def _records(root: Path, part: str, rows: list[Row]) -> FileRecords:
    if not rows:
        raise ValueError(f"{root} has no {part} images; unpack the archive again.")
    if not rows[0][0].is_file():
        raise ValueError(f"{rows[0][0]} does not exist, the first of {len(rows)} {part} images; unpack the archive.")
    return FileRecords([str(path) for path, _ in rows], np.array([label for _, label in rows], np.int32))
