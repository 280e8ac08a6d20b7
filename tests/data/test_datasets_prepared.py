"""TFDS datasets: digits prepared without TensorFlow, and official datasets as TFDS writes them to disk."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits
from stored_data import flat, make_spec, write_prepared

from gradmix_jax import data as data_lib
from gradmix_jax.data import prepared, splits
from gradmix_jax.data.class_names import CLASS_NAMES

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(scope="module")
def digits_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def digits(digits_dir):
    return data_lib.open_set(make_spec(name="digits", benchmark="mnist", data_dir=digits_dir))


def color(value):
    return Image.fromarray(np.repeat(flat(value)[..., None], 3, -1))


def cifar10_parts(num_train=3, num_test=2):
    """Constant images of value 10 * class + place."""
    part = lambda count: [(color(10 * label + place), label) for label in range(10) for place in range(count)]
    return {"train": part(num_train), "test": part(num_test)}


def test_digits_are_all_of_scikit_learns_digits(digits):
    images, classes = [], []
    for source in (digits.train, digits.test_known, digits.test_unknown):
        images.append(data_lib.read_all(source))
        classes.append(source.class_ids)
    images, classes = np.concatenate(images)[..., 0], np.concatenate(classes)
    original = load_digits()
    expected = np.round(original.images * 255 / 16).astype(np.uint8)
    known_or_test = lambda x, labels: sorted((int(label), image.tobytes()) for image, label in zip(x, labels))
    in_test = np.concatenate(
        [np.flatnonzero(original.target == c)[-(np.sum(original.target == c) // 3) :] for c in range(10)]
    )
    kept = np.isin(np.arange(len(expected)), in_test) | np.isin(original.target, digits.split.known)
    assert known_or_test(images, classes) == known_or_test(expected[kept], original.target[kept])
    assert images.max() == 255


def test_the_split_of_the_digits_is_fixed_and_stratified(digits):
    original = load_digits()
    count = np.bincount(original.target)
    known = list(digits.split.known)
    assert np.bincount(digits.test_known.labels).tolist() == (count // 3)[known].tolist()
    assert np.bincount(digits.train.labels).tolist() == (count - count // 3)[known].tolist()
    assert digits.class_names == tuple(str(c) for c in known)
    last = np.flatnonzero(original.target == known[0])[-1]
    of_class = data_lib.read_all(digits.test_known.take(digits.test_known.labels == 0))[..., 0]
    expected = np.round(original.images[last] * 255 / 16).astype(np.uint8)
    assert (of_class == expected).all((1, 2)).any(), "the last image of a class is a test image"


def test_digits_are_prepared_once_and_without_tensorflow(digits, digits_dir, monkeypatch):
    monkeypatch.setattr(prepared, "_prepare", None)
    again = data_lib.open_set(make_spec(name="digits", benchmark="mnist", data_dir=digits_dir))
    np.testing.assert_array_equal(data_lib.read_all(again.train), data_lib.read_all(digits.train))
    assert "tensorflow" not in sys.modules


PREPARE = """
import os, sys, time
import sklearn.datasets
from gradmix_jax.data import digits, prepared

data_dir, meeting = sys.argv[1:]
open(os.path.join(meeting, str(os.getpid())), "w").close()
while len(os.listdir(meeting)) < 2:
    time.sleep(0.001)
data = prepared.load("digits", data_dir=data_dir, download=False, with_train=True)
print(len(data.train.labels), len(data.test.labels))
"""


@pytest.mark.slow
def test_two_processes_prepare_the_digits_at_once(tmp_path):
    (tmp_path / "meeting").mkdir()
    command = [sys.executable, "-c", PREPARE, str(tmp_path / "data"), str(tmp_path / "meeting")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in running] == ["1201 596"] * 2
    left = [path.name for path in (tmp_path / "data" / "digits").iterdir()]
    assert left == ["1.0.0"], "nothing half-done is left behind"


def test_the_second_process_uses_what_the_first_prepared(tmp_path, monkeypatch):
    prepare = prepared._prepare_quietly

    def lose_the_race(builder):
        prepare(builder)
        raise OSError("Directory not empty")

    monkeypatch.setattr(prepared, "_prepare_quietly", lose_the_race)
    data = prepared.load("digits", data_dir=str(tmp_path), download=False, with_train=False)
    assert data.train is None and len(data.test.labels) == 596


def test_an_unwritable_data_dir(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match="^preparing dataset 'digits' in .*file/x failed: NotADirectoryError"
    ) as caught:
        data_lib.open_set(make_spec(name="digits", benchmark="mnist", data_dir=f"{tmp_path}/file/x"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", ["3.0.2", "3.0.0"])
def test_an_official_name_is_read_from_its_files(tmp_path, version, monkeypatch):
    write_prepared(tmp_path, "cifar10", parts=cifar10_parts(), class_names=CIFAR10, version=version)
    spec = make_spec(name="cifar10", benchmark="cifar10", data_dir=str(tmp_path), channels=3)
    data = data_lib.open_set(spec)
    known = splits.get("cifar10", 0).known
    assert data.class_names == tuple(CIFAR10[c] for c in known)
    images, labels = data_lib.resident(data.train)
    assert images.shape == (18, 8, 8, 3)
    assert [known[label] for label in labels] == (images[:, 0, 0, 0] // 10).tolist()
    assert sorted(images[:, 0, 0, 0].tolist()) == sorted(10 * c + place for c in known for place in range(3))
    monkeypatch.setattr(prepared, "_KEEP_BYTES", 0)
    np.testing.assert_array_equal(data_lib.read_all(data_lib.open_set(spec).train), images)


def test_cifar_plus_finds_cifar100_by_itself(tmp_path):
    write_prepared(tmp_path, "cifar10", parts=cifar10_parts(1, 1), class_names=CIFAR10)
    parts = {"test": [(color(label), label) for label in range(100)]}
    write_prepared(tmp_path, "cifar100", parts=parts, class_names=list(CLASS_NAMES["cifar100"]))
    data = data_lib.open_set(make_spec(name="cifar10", benchmark="cifar+50", data_dir=str(tmp_path)))
    unknown = splits.get("cifar+50", 0).unknown
    assert sorted(data_lib.read_all(data.test_unknown)[:, 0, 0, 0].tolist()) == sorted(unknown)
    assert (data.split.known_dataset, data.split.unknown_dataset) == ("cifar10", "cifar100")


def test_imagenet_is_tested_on_its_validation_part(tmp_path):
    encoded = io.BytesIO()
    Image.fromarray(np.full((20, 30, 3), 77, np.uint8)).save(encoded, "jpeg")
    parts = {
        "train": [(encoded.getvalue(), i % 3) for i in range(6)],
        "validation": [(encoded.getvalue(), i) for i in range(3)],
    }
    write_prepared(tmp_path, "imagenet2012", parts=parts, class_names=["n01", "n02", "n03"], version="5.1.0")
    data = data_lib.open_set(make_spec(name="imagenet2012", data_dir=str(tmp_path), channels=3))
    assert (len(data.train), len(data.test_known), len(data.test_unknown)) == (4, 2, 1)
    assert np.abs(data_lib.read_all(data.test_unknown).astype(int) - 77).max() < 3


def test_corrupted_cifar10(tmp_path):
    write_prepared(tmp_path, "cifar10", parts=cifar10_parts(), class_names=CIFAR10)
    parts = {"test": cifar10_parts(1, 4)["test"]}
    write_prepared(tmp_path, "cifar10_corrupted", parts=parts, class_names=CIFAR10, version="1.0.0", config="fog_3")
    spec = make_spec(name="cifar10", benchmark="cifar10", data_dir=str(tmp_path))
    data = data_lib.open_set(spec)
    known, unknown = data_lib.corrupted(spec, data, "cifar10_corrupted", "fog", 3)
    values = data_lib.read_all(known)[:, 0, 0, 0]
    assert len(known) == 24 and [data.split.known[label] for label in known.labels] == (values // 10).tolist()
    assert len(unknown) == 16 and set(unknown.labels.tolist()) == {-1}
    assert set(data_lib.read_all(unknown)[:, 0, 0, 0] // 10) == set(data.split.unknown)
    with pytest.raises(ValueError, match="cifar10_corrupted/fog_3.*:train does not exist; the dataset has test"):
        data_lib.open_set(make_spec(name="cifar10_corrupted/fog_3", data_dir=str(tmp_path)))


def test_a_bad_image_among_records_is_named(tmp_path):
    parts = {"train": [(color(1), 0), (color(2), 1), (b"nothing", 1)], "test": [(color(1), 0), (color(1), 1)]}
    write_prepared(tmp_path, "svhn_cropped", parts=parts, class_names=["0", "1"], version="3.1.0")
    write_prepared(tmp_path, "mnist", parts={"test": [(color(5), 0)]}, class_names=["zero"], version="3.0.1")
    spec = make_spec(name="svhn_cropped", unknown_name="mnist", benchmark="all", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"1 of 3 images cannot be read: svhn_cropped/3.1.0:train\[\d\]"):
        data_lib.read_all(data_lib.open_set(spec).train)


def test_tfrecord_files_are_not_enough(tmp_path):
    write_prepared(tmp_path, "mnist", parts=cifar10_parts(1, 1), class_names=CIFAR10, version="3.0.1")
    info = tmp_path / "mnist" / "3.0.1" / "dataset_info.json"
    content = json.loads(info.read_text())
    assert content["fileFormat"] == "array_record"
    info.write_text(json.dumps(content | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match="must be prepared as array_record, got tfrecord in .*; set dataset.data_dir"):
        data_lib.open_set(make_spec(name="mnist", benchmark="mnist", data_dir=str(tmp_path)))


def test_not_prepared_and_no_download(tmp_path):
    with pytest.raises(ValueError, match="'cifar10' is not prepared in .*; set dataset.data_dir .* or dataset.down"):
        data_lib.open_set(make_spec(name="cifar10", benchmark="cifar10", data_dir=str(tmp_path)))


def test_download_without_tensorflow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="`pip install tensorflow-cpu importlib_resources`") as caught:
        data_lib.open_set(make_spec(name="cifar10", benchmark="cifar10", data_dir=str(tmp_path), download=True))
    assert "\n" not in str(caught.value)


@pytest.fixture
def official_builder(monkeypatch):
    """Installs a stand-in for what `tfds.builder` returns, whose download_and_prepare is the function given."""

    def install(download_and_prepare):
        class Builder:
            def __init__(self, name, data_dir, file_format):
                assert (name, file_format) == ("cifar10", "array_record")
                self.data_dir = data_dir

            def download_and_prepare(self):
                download_and_prepare(self.data_dir)

        monkeypatch.setattr(prepared.importlib.util, "find_spec", lambda name: object())
        monkeypatch.setattr(tfds, "builder", Builder)

    return install


def test_download_prepares_and_reads(tmp_path, official_builder):
    official_builder(lambda to: write_prepared(to, "cifar10", parts=cifar10_parts(), class_names=CIFAR10))
    spec = make_spec(name="cifar10", benchmark="cifar10", data_dir=str(tmp_path), download=True)
    assert len(data_lib.open_set(spec).train) == 18


def test_a_failed_download_is_one_sentence(tmp_path, official_builder):
    def fail(to):
        raise ConnectionError("Max retries exceeded\nwith url\n" + "x" * 1000)

    official_builder(fail)
    with pytest.raises(
        ValueError, match="'cifar10' in .* failed: ConnectionError: Max retries exceeded with url"
    ) as caught:
        data_lib.open_set(make_spec(name="cifar10", benchmark="cifar10", data_dir=str(tmp_path), download=True))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
