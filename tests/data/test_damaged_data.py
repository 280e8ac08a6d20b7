"""Damaged prepared data, IDX files, releases of corrupted images and image files give one line each."""

import gzip
import io
import pickle
import shutil
import struct

import numpy as np
import pytest
from PIL import Image

from gradmix_jax import data as data_lib
from gradmix_jax.data import idx, others, prepared, source


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepared.load("digits", data_dir=str(folder), download=False, with_train=True)
    return folder


DAMAGES = {
    "missing": None,
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "garbage": lambda content: bytes(range(256)) * (len(content) // 256 + 1),
}
FILES = {
    "dataset_info.json": "{0} is damaged (",
    "features.json": " is damaged (",
    "digits-test.array_record-00000-of-00001": "{0}/digits/1.0.0 is damaged (",
    "digits-train.array_record-00000-of-00001": "{0}/digits/1.0.0 is damaged (",
}


def damaged(digits, folder, name, damage):
    """A copy of the digits with one damaged file."""
    shutil.copytree(digits, folder)
    path = folder / "digits" / "1.0.0" / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damaged_prepared_data(digits, tmp_path, name, damage, monkeypatch):
    folder = damaged(digits, tmp_path / "bad", name, damage)
    monkeypatch.setattr(prepared, "_moved_away", lambda *_: False)  # as for a dataset that cannot be made here
    with pytest.raises(ValueError) as raised:
        prepared.load("digits", data_dir=str(folder), download=False, with_train=True)
    said = str(raised.value)
    assert said.startswith("dataset 'digits") and FILES[name].format(folder) in said
    assert said.endswith("; delete its folder and prepare it again.")
    assert "\n" not in said and "Errno" not in said and "NoneType" not in said and len(said) < 600


@pytest.mark.parametrize("name", FILES)
def test_damaged_digits_are_prepared_again(digits, tmp_path, name, capsys):
    folder = damaged(digits, tmp_path / "bad", name, "cut")
    options = dict(download=False, with_train=True)
    found = prepared.load("digits", data_dir=str(folder), **options)
    said = capsys.readouterr().err
    assert said.startswith("warning: dataset 'digits") and said.endswith("; it is prepared again.\n")
    assert said.count("\n") == 1
    whole = prepared.load("digits", data_dir=str(digits), **options)
    for part in ("train", "test"):
        assert getattr(found, part).encoded == getattr(whole, part).encoded
        np.testing.assert_array_equal(getattr(found, part).labels, getattr(whole, part).labels)
    assert {path.name for path in folder.iterdir()} <= {"digits", "downloads"}, "nothing is left of the damaged ones"
    prepared.load("digits", data_dir=str(folder), **options)
    assert capsys.readouterr().err == ""


def test_damaged_digits_that_cannot_be_replaced(digits, tmp_path, monkeypatch):
    folder = damaged(digits, tmp_path / "bad", "dataset_info.json", "cut")

    def refuse(*_):
        raise PermissionError("Permission denied")

    monkeypatch.setattr(prepared.shutil, "move", refuse)
    with pytest.raises(ValueError, match="delete its folder and prepare it again.$"):
        prepared.load("digits", data_dir=str(folder), download=False, with_train=True)


def test_labels_without_a_class(digits, monkeypatch):
    monkeypatch.setattr(prepared, "_moved_away", lambda *_: False)
    read = prepared._read
    monkeypatch.setattr(prepared, "_read", lambda *a, **k: (read(*a, **k)[0] + 1, []))
    with pytest.raises(ValueError, match=r"is damaged \(labels of test are 1 to 10 for 10 classes\)"):
        prepared.load("digits", data_dir=str(digits), download=False, with_train=True)


def _npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


NPY = {
    "empty": b"",
    "garbage": bytes(range(256)),
    "pickled": pickle.dumps([1]),
    "objects": _npy(np.array([{}])),
    "cut": _npy(np.zeros((10, 4, 4), np.uint8))[:-1],
    "header": b"\x93NUMPY\x01\x00\x10\x00" + b"{'descr': '<f4'\n",
    "code": b"\x93NUMPY\x01\x00\x10\x00" + b"exit(3)        \n",
}


@pytest.mark.parametrize("content", NPY.values(), ids=NPY)
@pytest.mark.parametrize("name", ["fog.npy", "labels.npy"])
def test_a_damaged_array_of_a_release(tmp_path, name, content):
    np.save(tmp_path / "fog.npy", np.zeros((10, 4, 4), np.uint8))
    np.save(tmp_path / "labels.npy", np.zeros(10, np.int64))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/{name} is damaged or not a .npy file \(.+\)\.$") as raised:
        others._release(tmp_path, "folder", "fog", 1, ("a",))
    assert "\n" not in str(raised.value) and "Errno" not in str(raised.value)


def _idx(shape, data, kind=8) -> bytes:
    return struct.pack(">HBB", 0, kind, len(shape)) + struct.pack(f">{len(shape)}I", *shape) + data


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a-images-idx3-ubyte", b"", "cannot be read: unpack_from requires a buffer of at least 4 bytes"),
        ("a-images-idx3-ubyte", _idx((2, 2, 2), bytes(7)), "must have 8 bytes of data, by its shape, got 7."),
        ("a-images-idx3-ubyte", _idx((2, 2, 2), bytes(9)), "must have 8 bytes of data, by its shape, got more."),
        ("a-images-idx3-ubyte", _idx((2**32 - 1,) * 3, bytes(9)), "bytes of data, by its shape, got 9."),
        ("a-images-idx3-ubyte", _idx((2, 2, 2), bytes(8), kind=13), "is not an IDX file of unsigned bytes with 3"),
        ("a-images-idx3-ubyte.gz", b"x", "cannot be read: Not a gzipped file"),
        ("a-images-idx3-ubyte.gz", gzip.compress(_idx((2, 2, 2), bytes(8)), mtime=0)[:-9], "cannot be read: "),
        (
            "a-images-idx3-ubyte.gz",
            gzip.compress(_idx((2, 2, 2), bytes(9)), mtime=0),
            "must have 8 bytes of data, .*got more",
        ),
    ],
)
def test_a_damaged_idx_file(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"^{tmp_path}/{name} .*{said}"):
        idx._read(tmp_path, "a-images", dimensions=3)


def test_a_gzip_bomb_is_refused_before_unpacking(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "_ROOM", 2**16)
    content = gzip.compress(_idx((2**12, 2**6, 2**6), bytes(2**24)), 9)
    (tmp_path / "a-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"must have 16777216 bytes of data, by its shape, got \d+\.$") as raised:
        idx._read(tmp_path, "a-images", dimensions=3)
    assert int(str(raised.value).split("got ")[1][:-1]) < 2**24 / 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is not an image of a known format, or its header is damaged"),
        (b"GIF89a", "it is not an image of a known format, or its header is damaged"),
        (bytes(range(256)), "it is not an image of a known format, or its header is damaged"),
        (None, "No such file or directory"),
    ],
)
def test_the_message_says_why_an_image_cannot_be_read(tmp_path, content, said):
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    records = data_lib.files.FileRecords([str(path)], np.zeros(1, np.int32))
    with pytest.raises(source.BadImage) as raised:
        source.Source(records, np.zeros(1, int), np.zeros(1, np.int32), 8, 1)[0]
    assert str(raised.value) == f"{path} ({said})"


def test_an_image_with_too_many_pixels_is_refused_before_decoding(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.new("L", (64, 64)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    records = data_lib.files.FileRecords([str(path)], np.zeros(1, np.int32))
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(source.BadImage, match="pixels"):
        source.Source(records, np.zeros(1, int), np.zeros(1, np.int32), 8, 1)[0]
