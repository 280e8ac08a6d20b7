"""Image folders and IDX files: which files are images, how they are decoded, and what happens to bad ones."""

import gzip
import io
import struct
import threading
import time

import numpy as np
import pytest
from PIL import Image
from stored_data import flat, make_spec, write_folder, write_idx

from gradmix_jax import data as data_lib
from gradmix_jax.data import files, folder, idx
from gradmix_jax.data import source as source_lib
from gradmix_jax.data.source import Source

RANDOM = np.random.default_rng(0)
COLOR = RANDOM.integers(0, 256, (8, 8, 3), np.uint8)


def decode(root, image, *, size=8, channels=3, name="a.png", **save):
    """One stored image as a source reads it."""
    root.mkdir(exist_ok=True)
    image.save(root / name, **save)
    records = files.FileRecords([str(root / name)], np.zeros(1, np.int32))
    return Source(records, np.arange(1), np.zeros(1, np.int32), size, channels)[0]


def triangle_resize(image_HxW, size):
    """Antialiased bilinear resizing in float64: every output pixel is a triangle-weighted mean."""

    def weights(length):
        scale = length / size
        support = max(scale, 1.0)
        centers = (np.arange(size) + 0.5) * scale
        w = 1 - np.abs(np.arange(length) + 0.5 - centers[:, None]) / support
        w = np.maximum(w, 0)
        return w / w.sum(1, keepdims=True)

    return weights(image_HxW.shape[0]) @ image_HxW.astype(np.float64) @ weights(image_HxW.shape[1]).T


@pytest.mark.parametrize("shape", [(16, 16), (30, 21), (5, 7), (25, 10), (10, 25)])
def test_resizing_is_bilinear_and_antialiased(tmp_path, shape):
    image = RANDOM.integers(0, 256, shape, np.uint8)
    resized = decode(tmp_path, Image.fromarray(image), size=10, channels=1)
    assert resized.shape == (10, 10, 1) and resized.dtype == np.uint8
    np.testing.assert_allclose(resized[..., 0], triangle_resize(image, 10), atol=1.0)


def test_images_of_the_right_size_are_left_alone(tmp_path):
    np.testing.assert_array_equal(decode(tmp_path, Image.fromarray(COLOR)), COLOR)


def test_every_kind_of_image_becomes_gray_or_color(tmp_path):
    gray = np.asarray(Image.fromarray(COLOR).convert("L"))
    palette = Image.fromarray(COLOR).quantize(64)
    alpha = Image.fromarray(np.concatenate([COLOR, flat(255)[..., None]], -1))
    deep = Image.fromarray(gray.astype(np.uint16) * 256 + 77)
    assert deep.mode.startswith("I;16")
    cases = {
        "gray": (Image.fromarray(gray), np.repeat(gray[..., None], 3, -1), gray),
        "palette": (palette, np.asarray(palette.convert("RGB")), np.asarray(palette.convert("L"))),
        "opaque alpha": (alpha, COLOR, gray),
        "opaque gray alpha": (
            Image.fromarray(np.stack([gray, flat(255)], -1)),
            np.repeat(gray[..., None], 3, -1),
            gray,
        ),
        "16 bit": (deep, np.repeat(gray[..., None], 3, -1), gray),
        "1 bit": (Image.fromarray(gray > 99), np.repeat(((gray > 99) * 255)[..., None], 3, -1), (gray > 99) * 255),
    }
    for case, (image, rgb, luminance) in cases.items():
        np.testing.assert_array_equal(decode(tmp_path, image), rgb, err_msg=case)
        np.testing.assert_array_equal(decode(tmp_path, image, channels=1)[..., 0], luminance, err_msg=case)
    separated = Image.new("RGB", (8, 8), (200, 60, 10)).convert("CMYK")
    assert np.abs(decode(tmp_path, separated, name="a.jpg").astype(int) - (200, 60, 10)).max() < 6


def test_palettes_are_resized_as_colors_not_as_indices(tmp_path):
    stripes = Image.fromarray(np.tile(np.array([0, 2], np.uint8), (16, 8)), "P")
    stripes.putpalette([200, 0, 0, 0, 255, 0, 100, 0, 0])
    resized = decode(tmp_path, stripes, size=8)
    assert resized[..., 1].max() == 0 and abs(int(resized[4, 4, 0]) - 150) < 20


def test_which_files_are_images(tmp_path, caplog):
    for path in ("b/1.JPG", "b/2.jpeg", "b/0.bmp", "b/deep/3.WebP", "a/x.Png", "test/b/1.png", "test/a/1.png"):
        file = tmp_path / (path if path.startswith("test") else f"train/{path}")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(flat(1)).save(file)
    for path in (
        "train/b/._1.jpg",
        "train/.git/1.png",
        "train/b/.cache/1.png",
        "train/b/notes.txt",
        "train/readme.txt",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    data = folder.load(str(tmp_path), with_train=True)
    found = [path.removeprefix(f"{tmp_path}/train/") for path in data.train.paths]
    assert found == ["a/x.Png", "b/0.bmp", "b/1.JPG", "b/2.jpeg", "b/deep/3.WebP"]
    assert data.class_names == ("a", "b") and data.train.labels.tolist() == [0, 1, 1, 1, 1]
    assert "1 files with other endings than" in caplog.text and "notes.txt" in caplog.text


@pytest.mark.parametrize("test_name", ["test", "val", "validation"])
def test_names_of_the_test_folder(tmp_path, test_name):
    write_folder(tmp_path / "a", train={"x": 1}, test={"x": 2}, test_name=test_name)
    assert len(folder.load(str(tmp_path / "a"), with_train=True).test.labels) == 2


def test_test_comes_before_validation(tmp_path):
    write_folder(tmp_path / "a", train={"x": 1}, test={"x": 2}, test_name="val")
    write_folder(tmp_path / "a", train={}, test={"x": 3}, test_name="test")
    assert len(folder.load(str(tmp_path / "a"), with_train=True).test.labels) == 3


def test_missing_folders(tmp_path):
    with pytest.raises(ValueError, match="'folder:.*nowhere' does not exist"):
        data_lib.open_set(make_spec(name=f"folder:{tmp_path}/nowhere"))
    (tmp_path / "train" / "x").mkdir(parents=True)
    with pytest.raises(ValueError, match="no test images; add a folder named test, val or validation"):
        folder.load(str(tmp_path), with_train=True)
    (tmp_path / "test" / "x").mkdir(parents=True)
    with pytest.raises(ValueError, match="test has no images: .*[.]webp"):
        folder.load(str(tmp_path), with_train=False)
    Image.fromarray(flat(1)).save(tmp_path / "test" / "x" / "1.png")
    (tmp_path / "train" / "x").rmdir()
    (tmp_path / "train").rmdir()
    with pytest.raises(ValueError, match="no training images; add a folder named train"):
        folder.load(str(tmp_path), with_train=True)
    assert folder.load(str(tmp_path), with_train=False).train is None


@pytest.fixture
def damaged(tmp_path):
    """Spec changes for two classes of six training images; three of the first are unreadable in three ways."""
    name = write_folder(tmp_path / "set", train={"x": 6, "y": 6}, test={"x": 2, "y": 2})
    other = write_folder(tmp_path / "other", train={}, test={"z": 1})
    broken = tmp_path / "set" / "train" / "x"
    buffer = io.BytesIO()
    Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "jpeg")
    (broken / "000.png").rename(broken / "000.jpg")
    (broken / "000.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (broken / "002.png").write_bytes(b"")
    (broken / "004.png").write_text("not an image")
    return {"name": name, "unknown_name": other, "benchmark": "all"}


def test_bad_images_are_counted_and_named(damaged):
    source = data_lib.open_set(make_spec(**damaged)).train
    assert len(source) == 12
    with pytest.raises(ValueError, match=r"^3 of 12 images cannot be read: .*x/000.jpg .*x/002.png .*x/004.png "):
        data_lib.read_all(source)
    with pytest.raises(ValueError, match="1 of 2 images.*x/002.png.*dataset.bad_images to 'skip'"):
        data_lib.read_range(source, 1, 3)
    with pytest.raises(ValueError, match="x/000.jpg .*truncated"):
        source[0]
    with pytest.raises(ValueError, match=r"x/002.png \(it is not an image of a known format.*\)"):
        source[2]
    assert source[1][0, 0, 0] == 1


def test_bad_images_are_skipped_with_their_labels(damaged, caplog):
    data = data_lib.open_set(make_spec(**damaged, bad_images="skip", validation_fraction=0.34))
    assert "Left out: 3 of 12 images cannot be read" in caplog.text and "x/004.png" in caplog.text
    images, labels = data_lib.resident(data.train)
    held_out, held_labels = data_lib.resident(data.validation)
    assert np.bincount(labels).tolist() == [2, 4] and np.bincount(held_labels).tolist() == [1, 2]
    found = np.concatenate([images, held_out])[:, 0, 0, 0]
    assert sorted(found.tolist()) == [1, 3, 5, 10, 11, 12, 13, 14, 15]
    np.testing.assert_array_equal(found // 10, np.concatenate([labels, held_labels]))


def test_a_class_that_loses_all_its_images(damaged, tmp_path):
    for file in (tmp_path / "set" / "train" / "x").iterdir():
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="no images in the train part of their dataset: x"):
        data_lib.open_set(make_spec(**damaged, bad_images="skip"))


def test_long_lists_of_bad_images_are_shortened(damaged, tmp_path):
    for file in (tmp_path / "set" / "train").glob("*/*"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"^12 of 12 images .*; and 7 more[.]") as caught:
        data_lib.read_all(data_lib.open_set(make_spec(**damaged)).train)
    assert str(caught.value).count("set/train") == 5


def test_reading_in_bulk_equals_reading_one_by_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(source_lib, "_BAR_AFTER", 0.0)
    name = write_folder(tmp_path / "a", train={"x": 150, "y": 150}, test={"x": 1, "y": 1})
    source = data_lib.open_set(make_spec(name=name, num_known=1)).train
    one_by_one = np.stack(list(source))
    np.testing.assert_array_equal(data_lib.read_all(source), one_by_one)
    np.testing.assert_array_equal(data_lib.read_range(source, 3, 140), one_by_one[3:140])
    assert data_lib.read_range(source, 148, 200).shape == (2, 8, 8, 1)
    images, labels = data_lib.resident(source, progress=True)
    assert (images.shape, images.dtype, labels.dtype) == ((150, 8, 8, 1), np.uint8, np.int32)
    assert "reading images" in capsys.readouterr().err


@pytest.mark.parametrize(("compress", "dot"), [(False, "-"), (True, "-"), (False, ".")])
def test_idx_files(tmp_path, compress, dot):
    name = write_idx(tmp_path / "a", train_labels=[3, 0, 2], test_labels=[1, 4], compress=compress, dot=dot)
    data = idx.load(name.removeprefix("idx:"), with_train=True)
    assert data.class_names == ("0", "1", "2", "3", "4")
    assert data.train.labels.tolist() == [3, 0, 2] and data.test.labels.tolist() == [1, 4]
    assert np.asarray(data.train.open(2)).tolist() == flat(2).tolist()
    assert data.train.describe(2).endswith("train-images[2]")
    assert idx.load(name.removeprefix("idx:"), with_train=False).train is None


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train-images-idx3-ubyte", None, "no train-images file; add one of train-images-idx3-ubyte, .*[.]gz"),
        ("train-images-idx3-ubyte", b"", "cannot be read"),
        ("train-images-idx3-ubyte", struct.pack(">I4I", 0x0D04, 1, 1, 1, 1), "not an IDX file of unsigned bytes"),
        (
            "train-images-idx3-ubyte",
            struct.pack(">I3I", 0x0803, 2, 2, 2) + bytes(7),
            "must have 8 bytes of data, by its shape, got 7",
        ),
        ("train-labels-idx1-ubyte", struct.pack(">II", 0x0801, 1) + bytes(1), "2 images and 1 labels"),
        ("train-labels-idx1-ubyte.gz", b"\x1f\x8bno gzip", "labels-idx1-ubyte.gz cannot be read"),
        (
            "train-labels-idx1-ubyte.gz",
            gzip.compress(struct.pack(">II", 0x0801, 99) + bytes(range(99)), mtime=0)[:-9],
            "labels-idx1-ubyte.gz cannot be read",
        ),
        (
            "train-labels-idx1-ubyte.gz",
            gzip.compress(b"", mtime=0)[:10] + b"\xff" * 20,
            "labels-idx1-ubyte.gz cannot be read",
        ),
    ],
)
def test_broken_idx_files(tmp_path, file, content, message):
    name = write_idx(tmp_path / "a", train_labels=[0, 1], test_labels=[0])
    (tmp_path / "a" / file.removesuffix(".gz")).unlink()
    if content is not None:
        (tmp_path / "a" / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        data_lib.open_set(make_spec(name=name))


def test_missing_idx_folder(tmp_path):
    with pytest.raises(ValueError, match="'idx:.*nowhere' does not exist"):
        data_lib.open_set(make_spec(name=f"idx:{tmp_path}/nowhere"))


@pytest.mark.parametrize("seconds, several", [(0.0, False), (1e-3, True)])
def test_small_images_are_read_by_one_thread_and_slow_ones_by_several(seconds, several):
    threads = set()

    class Records:
        def open(self, index):
            threads.add(threading.get_ident())
            time.sleep(seconds)
            return Image.fromarray(np.full((1, 1), index % 256, np.uint8))

    source = Source(Records(), np.arange(300), np.zeros(300, np.int32), 1, 1)
    images = data_lib.read_all(source)
    np.testing.assert_array_equal(images.ravel(), np.arange(300) % 256)
    # The calling thread reads the first few to measure them.
    threads.discard(threading.get_ident())
    assert (len(threads) > 1) == several
    assert source.threads == (source_lib.THREADS if several else 1)
