"""`hf:NAME`: tables of the `datasets` library, read through a stand-in for the part of its interface in use.

The last test reads a table saved by the library itself, where it is installed.
"""

import dataclasses
import io
import sys
import types

import numpy as np
import pytest
from PIL import Image
from stored_data import make_spec

from gradmix_jax import data as data_lib
from gradmix_jax.data import describe, hub, readers

ANIMALS = ["zebra", "cat", "dog"]


class ImageFeature:
    def __init__(self, decode=True):
        self.decode = decode


ImageFeature.__name__ = "Image"


@dataclasses.dataclass
class ClassLabel:
    names: list


@dataclasses.dataclass
class Value:
    dtype: str


class Table:
    """A table of {column: values}; images are encoded only if the column was cast to decode=False."""

    def __init__(self, columns, features, fingerprint):
        self.columns, self.features, self._fingerprint = columns, features, fingerprint

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, which):
        if isinstance(which, slice):
            return {name: np.array(values[which]) for name, values in self.columns.items()}
        assert all(getattr(each, "decode", False) is False for each in self.features.values()), "images stay encoded"
        return {name: values[which] for name, values in self.columns.items()}

    def with_format(self, kind):
        assert kind == "numpy"
        return self

    def select_columns(self, names):
        kept = lambda all_: {name: all_[name] for name in names}
        return Table(kept(self.columns), kept(self.features), self._fingerprint)

    def cast_column(self, name, feature):
        return Table(self.columns, self.features | {name: feature}, self._fingerprint)


def photo(seed):
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(small).resize((20, 16), Image.Resampling.BICUBIC)


def encoded(seed):
    file = io.BytesIO()
    photo(seed).save(file, format="PNG")
    return {"bytes": file.getvalue(), "path": None}


def table(count, seed, *, labels=None, feature=None, label="label", image="image"):
    labels = [i % 3 for i in range(count)] if labels is None else labels
    columns = {image: [encoded(seed + i) for i in range(count)], label: labels, "id": list(range(count))}
    features = {image: ImageFeature(), label: feature or ClassLabel(ANIMALS), "id": Value("int64")}
    return Table(columns, features, f"print{seed}")


@pytest.fixture
def library(monkeypatch):
    """The stand-in: `load_dataset` returns or raises `parts` and records the names it is called with in `asked`."""
    module = types.ModuleType("datasets")
    module.Image = ImageFeature
    found = types.SimpleNamespace(parts={}, asked=[])

    def load_dataset(name, config=None):
        found.asked.append((name, config))
        if isinstance(found.parts, Exception):
            raise found.parts
        return found.parts

    module.load_dataset = load_dataset
    module.load_from_disk = lambda path: load_dataset(f"disk {path}")
    monkeypatch.setitem(sys.modules, "datasets", module)
    return found


def test_parts_labels_and_images(library):
    library.parts = {"train": table(9, 0), "test": table(6, 100)}
    data = hub.load("owner/animals:plain", with_train=True)
    assert library.asked == [("owner/animals", "plain")]
    assert data.class_names == ("zebra", "cat", "dog") and data.train.labels.tolist() == [0, 1, 2] * 3
    np.testing.assert_array_equal(np.asarray(data.test.open(4)), np.asarray(photo(104)))
    assert data.test.describe(4) == "hf:owner/animals:plain:test[4]" and data.test.fingerprint(None) == "print100"
    assert hub.load("owner/animals", with_train=False).train is None
    spec = make_spec(name="hf:owner/animals", benchmark="named", known=("dog", "cat"), channels=3)
    images = data_lib.open_set(spec)
    assert (len(images.train), len(images.test_unknown)) == (6, 2) and images.class_names == ("dog", "cat")
    text = describe.text(describe.describe(readers.load(spec, "hf:owner/animals", with_train=True)))
    assert "hf:owner/animals: 3 classes, 15 images (9 train and 6 test)" in text


def test_a_single_part_is_divided_with_copies_together(library):
    whole = table(30, 0)
    whole.columns["image"][6:12] = [encoded(0)] * 6  # two per class
    library.parts = whole
    data = hub.load("one", with_train=True, test_fraction=0.3)
    assert len(data.train.labels) + len(data.test.labels) == 30
    places = set(data.test.places.tolist())
    assert sorted([*data.train.places, *data.test.places]) == list(range(30))
    assert {0, 6, 7, 8, 9, 10, 11} <= places or not {0, 6, 7, 8, 9, 10, 11} & places
    for part in (data.train, data.test):
        np.testing.assert_array_equal(part.labels, part.places % 3)
        for index, place in enumerate(part.places):
            assert part.content(index) == whole.columns["image"][place]["bytes"]


def test_a_test_part_without_labels_is_skipped(library):
    library.parts = {"train": table(6, 0), "test": table(6, 50, labels=[-1] * 6), "validation": table(3, 100)}
    assert hub.load("set", with_train=True).test.describe(0) == "hf:set:validation[0]"


def test_labels_that_are_words_or_numbers_sort_by_value(library):
    library.parts = {
        "train": table(3, 0, labels=["10", "9", "10"], feature=Value("string")),
        "test": table(2, 9, labels=["9", "2"], feature=Value("string")),
    }
    data = hub.load("set", with_train=True)
    assert data.class_names == ("2", "9", "10")
    assert data.train.labels.tolist() == [2, 1, 2] and data.test.labels.tolist() == [1, 0]


def test_columns_are_found_by_their_types_and_names(library):
    both = table(3, 0, label="fine_label", image="img")
    both.columns["coarse_label"], both.features["coarse_label"] = [0, 0, 0], ClassLabel(["animal"])
    library.parts = {"train": both, "test": both}
    assert hub.load("set", with_train=True).class_names == ("zebra", "cat", "dog")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": {"image": Value("binary")}}, r"'hf:set' must have an Image column, got image \(Value\), label"),
        ({"features": {"label": None}}, "must have a ClassLabel column, or one called label, got image"),
        ({"part": "all"}, "must have a part named train, got all"),
        ({"parts": OSError("no\n  network")}, "'hf:set' cannot be loaded: OSError: no network"),
    ],
)
def test_tables_that_do_not_fit(library, change, message):
    given = table(3, 0)
    for name, feature in change.get("features", {}).items():
        given.features[name] = feature
        if feature is None:
            del given.features[name]
    library.parts = change.get("parts", {change.get("part", "train"): given})
    with pytest.raises(ValueError, match=message) as caught:
        hub.load("set", with_train=True)
    assert "\n" not in str(caught.value)


def test_without_the_library_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"'hf:set' needs the library datasets; run `pip install 'gradmix_jax\[hf\]'`"):
        data_lib.open_set(make_spec(name="hf:set"))


def test_saved_tables_are_distinguished_from_folders(tmp_path, library):
    (tmp_path / "dataset_dict.json").write_text("{}")
    assert readers.guess(str(tmp_path)) == f"hf:{tmp_path}"
    library.parts = {"train": table(3, 0), "test": table(3, 9)}
    hub.load(str(tmp_path), with_train=True)
    assert library.asked == [(f"disk {tmp_path}", None)]


def test_a_table_saved_by_the_library(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the library datasets is not installed")
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=ANIMALS)}
    part = lambda seed, count: datasets.Dataset.from_dict(
        {"image": [photo(seed + i) for i in range(count)], "label": [i % 3 for i in range(count)]},
        features=datasets.Features(features),
    )
    datasets.DatasetDict({"train": part(0, 9), "test": part(100, 6)}).save_to_disk(str(tmp_path / "set"))
    data = hub.load(str(tmp_path / "set"), with_train=True)
    assert data.class_names == ("zebra", "cat", "dog") and data.test.labels.tolist() == [0, 1, 2] * 2
    np.testing.assert_array_equal(np.asarray(data.train.open(4)), np.asarray(photo(4)))
