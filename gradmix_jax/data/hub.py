"""Datasets of the `datasets` library: `hf:NAME`, `hf:NAME:CONFIG`, or `hf:PATH` of one saved with `save_to_disk`."""

import dataclasses
import io
import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gradmix_jax.data import class_names, divide
from gradmix_jax.data.source import DataSet

TEST_PARTS = ("test", "validation", "val", "valid")
# Names of the label column if several columns qualify.
LABELS = ("label", "labels", "fine_label")
_SAVED = ("dataset_dict.json", "state.json")  # of a dataset with parts, and of a single part
_REASON_LENGTH = 300


@dataclasses.dataclass(frozen=True, eq=False)
class TableRecords:
    """Some rows of a table with a column of encoded images.

    Attributes:
      rows: row -> {"bytes": encoded image or None, "path": of a file or None}.
      places: int64 [N], rows of the table.
      labels: class ids, int32 [N].
      name: name of the table in error messages.
      identity: equal for the same rows of the same table.
    """

    rows: Any
    places: np.ndarray
    labels: np.ndarray
    name: str
    identity: Hashable

    def content(self, index: int) -> bytes:
        row = self.rows[int(self.places[index])]
        return row["bytes"] if row["bytes"] is not None else Path(row["path"]).read_bytes()

    def open(self, index: int) -> Image.Image:
        return Image.open(io.BytesIO(self.content(index)))

    def describe(self, index: int) -> str:
        return f"{self.name}[{self.places[index]}]"

    def fingerprint(self, indices: np.ndarray) -> str:
        # The library's own fingerprint of the content.
        return str(self.identity)

    def take(self, chosen_N: np.ndarray) -> "TableRecords":
        """The records where a mask is True."""
        return dataclasses.replace(self, places=self.places[chosen_N], labels=self.labels[chosen_N])


@dataclasses.dataclass(frozen=True)
class _Rows:
    """One column of a table, a row at a time."""

    table: Any
    column: str

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.table[place][self.column]


def is_saved(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of the `datasets` library."""
    return any((path / name).is_file() for name in _SAVED)


def load(name: str, *, with_train: bool, test_fraction: float = 0.2, seed: int = 0, download: bool = True) -> DataSet:
    """A dataset of the `datasets` library; images stay encoded until they are read.

    The image column is the only one of type Image, or the one called image or img. The label column is the only one
    of type ClassLabel, else the one called label, labels or fine_label, whose strings or numbers are then the
    class names. Parts are train, and the first of test, validation, val, valid that has labels; without one of these,
    train is divided by `divide.divide`.

    Args:
      name: name of a dataset, with a configuration after a colon if it has several; or the path of a saved one.
      with_train: whether to return training images.
      test_fraction, seed: for dividing the data.
      download: whether the library may download data that it has not cached.

    Raises:
      ValueError: the library is not installed, the dataset cannot be loaded, or it has no such columns or parts.
    """
    parts = _parts(name, download)
    image, label = _columns(f"hf:{name}", next(iter(parts.values())).features)
    values = {part: _values(table, label) for part, table in parts.items()}
    test = next((part for part in TEST_PARTS if part in parts and _has_labels(values[part])), None)
    if "train" not in parts and (with_train or test is None):
        raise ValueError(f"dataset 'hf:{name}' must have a part named train, got {', '.join(parts)}.")
    names, ids = _class_ids(next(iter(parts.values())).features[label], values)
    records = {
        part: _records(f"hf:{name}:{part}", parts[part], image, ids[part]) for part in ("train", test) if part in parts
    }
    if test is None:
        train, held_out = divide.divide(records["train"], test_fraction=test_fraction, seed=seed)
        return DataSet(names, train if with_train else None, held_out)
    return DataSet(names, records["train"] if with_train else None, records[test])


def _parts(name: str, download: bool) -> dict[str, Any]:
    """{part: table} of the library."""
    if not download:  # read when the library is imported
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"dataset 'hf:{name}' needs the library datasets; run `pip install 'gradmix_jax[hf]'` or `pip install "
            "datasets`."
        ) from error
    path = Path(os.path.expanduser(name))
    try:
        if is_saved(path):
            found = datasets.load_from_disk(str(path))
        else:
            place, config = (str(path), "") if path.exists() else name.partition(":")[::2]
            found = datasets.load_dataset(place, config or None)
    except Exception as error:  # from a hub, a file system or a table
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:_REASON_LENGTH]}"
        raise ValueError(f"dataset 'hf:{name}' cannot be loaded: {reason}") from error
    return dict(found) if isinstance(found, dict) else {"train": found}


def _columns(name: str, features: Any) -> tuple[str, str]:
    """Names of the image column and the label column."""
    kinds = {column: type(feature).__name__ for column, feature in features.items()}
    images = [column for column, kind in kinds.items() if kind == "Image"]
    images = images if len(images) == 1 else [each for each in ("image", "img") if each in images]
    labels = [column for column, kind in kinds.items() if kind == "ClassLabel"]
    labels = labels if len(labels) == 1 else [each for each in LABELS if each in kinds]
    if not images or not labels:
        what = "an Image column" if not images else "a ClassLabel column, or one called label"
        listed = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
        raise ValueError(f"dataset {name!r} must have {what}, got {listed}.")
    return images[0], labels[0]


def _values(table: Any, label: str) -> np.ndarray:
    """The label column of a table."""
    return np.asarray(table.with_format("numpy").select_columns([label])[:][label])


def _has_labels(values: np.ndarray) -> bool:
    """False for published test parts without labels, which have -1 everywhere."""
    return len(values) > 0 and not (np.issubdtype(values.dtype, np.number) and values.min() < 0)


def _class_ids(feature: Any, values: dict[str, np.ndarray]) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """(class names, {part: int32 [N] class ids}) of the label column."""
    if hasattr(feature, "names"):  # a ClassLabel
        return tuple(feature.names), {part: each.astype(np.int32) for part, each in values.items()}
    words = {part: [str(value) for value in each] for part, each in values.items()}
    names = class_names.in_order(word for each in words.values() for word in each)
    place_of = {name: place for place, name in enumerate(names)}
    return names, {part: np.array([place_of[word] for word in each], np.int32) for part, each in words.items()}


def _records(name: str, table: Any, image: str, labels: np.ndarray) -> TableRecords:
    import datasets

    encoded = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return TableRecords(_Rows(encoded, image), np.arange(len(labels)), labels, name, table._fingerprint)
