"""Trees and lists of image files: links, special files, undivided trees, TinyImageNet's archive, CSV lists."""

import os
import pathlib
import types

import numpy as np
import pytest
from PIL import Image
from stored_data import flat, make_spec, write_folder

from gradmix_jax import data as data_lib
from gradmix_jax.data import csv_list, divide, folder
from gradmix_jax.data.class_names import CLASS_NAMES, ids_in, in_order
from gradmix_jax.training import train


def photo(seed, *, size=32):
    """A smooth random color image."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


def write_tree(root, counts):
    """root/<class>/*.png of distinct photos."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for place in range(count):
            photo(1000 * number + place).save(root / name / f"{place:03d}.png")
    return root


def names_of(records):
    return sorted("/".join(pathlib.Path(path).parts[-2:]) for path in records.paths)


# Links and special files


def test_no_file_counts_twice(tmp_path, caplog):
    write_folder(tmp_path / "set", train={"x": 3, "y": 5}, test={"x": 1, "y": 1})
    root = tmp_path / "set" / "train"
    (root / "x" / "itself").symlink_to(".", target_is_directory=True)
    (root / "x" / "up").symlink_to("../..", target_is_directory=True)
    (root / "x" / "a.png").symlink_to("000.png")
    os.link(root / "x" / "001.png", root / "x" / "b.png")
    outside = write_tree(tmp_path / "outside", {"deep": 2})
    (root / "y" / "outside").symlink_to(outside / "deep", target_is_directory=True)
    (outside / "deep" / "back").symlink_to(root / "y", target_is_directory=True)
    train = folder.load(str(tmp_path / "set"), with_train=True).train
    assert names_of(train) == sorted(
        [f"x/{i:03d}.png" for i in range(3)]
        + [f"y/{i:03d}.png" for i in range(5)]
        + ["outside/000.png", "outside/001.png"]
    )
    assert np.bincount(train.labels).tolist() == [3, 7]
    assert "2 links to an image that already counts" in caplog.text


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_one_file_in_two_classes_is_refused(tmp_path, link):
    write_folder(tmp_path, train={"x": 1, "y": 1}, test={"x": 1})
    link(tmp_path / "train" / "x" / "000.png", tmp_path / "train" / "y" / "copy.png")
    with pytest.raises(ValueError, match=r"y/copy.png and .*x/000.png are one file in two classes; remove"):
        folder.load(str(tmp_path), with_train=True)


def test_a_class_that_is_a_link_to_a_folder_is_read(tmp_path):
    tree = write_tree(tmp_path / "elsewhere", {"x": 4, "y": 4})
    (tmp_path / "set").mkdir()
    for name in ("x", "y"):
        (tmp_path / "set" / name).symlink_to(tree / name, target_is_directory=True)
    data = folder.load(str(tmp_path / "set"), with_train=True)
    assert data.class_names == ("x", "y") and len(data.train.paths) + len(data.test.paths) == 8


@pytest.mark.timeout(20)
def test_special_files_are_skipped_and_do_not_block(tmp_path, caplog):
    name = write_folder(tmp_path / "set", train={"x": 2, "y": 2}, test={"x": 1, "y": 1})
    os.mkfifo(tmp_path / "set" / "train" / "x" / "pipe.png")
    (tmp_path / "set" / "train" / "y" / "device.png").symlink_to("/dev/zero")
    data = data_lib.open_set(make_spec(name=name, num_known=1))
    assert len(data.train) == 2 and data_lib.read_all(data.train).shape == (2, 8, 8, 1)
    assert "2 pipes, sockets or devices, the first is" in caplog.text


def test_a_broken_link_is_an_unreadable_image(tmp_path):
    name = write_folder(tmp_path / "set", train={"x": 2}, test={"x": 1})
    other = write_folder(tmp_path / "other", train={}, test={"z": 1})
    (tmp_path / "set" / "train" / "x" / "gone.png").symlink_to("nowhere.png")
    source = data_lib.open_set(make_spec(name=name, unknown_name=other, benchmark="all")).train
    with pytest.raises(ValueError, match="1 of 3 images cannot be read: .*gone.png .No such file"):
        data_lib.read_all(source)


# What an image file means


def decoded(root, image, *, channels=3, background="white", size=8, **save):
    name = f"a.{save.pop('ending', 'png')}"
    for part in ("train", "test"):
        (root / part / "x").mkdir(parents=True, exist_ok=True)
        image.save(root / part / "x" / name, **save)
    other = write_folder(root / "other", train={}, test={"z": 1})
    spec = make_spec(
        name=f"folder:{root}",
        unknown_name=other,
        benchmark="all",
        channels=channels,
        background=background,
        image_size=size,
    )
    return data_lib.open_set(spec).train[0]


@pytest.mark.parametrize("background, level", [("white", 255), ("gray", 128), ("black", 0)])
@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "tRNS"])
def test_transparent_images_are_laid_on_the_background(tmp_path, kind, background, level):
    """A black glyph on transparency."""
    opaque = np.zeros((8, 8), np.uint8)
    opaque[2:5, 3:6] = 255
    save = {}
    if kind == "P":
        image = Image.fromarray(np.where(opaque, 1, 0).astype(np.uint8), "P")
        image.putpalette([200, 10, 10, 0, 0, 0])
        save = {"transparency": 0}
    elif kind == "tRNS":
        image = Image.fromarray(np.where(opaque, 0, 77).astype(np.uint8))
        save = {"transparency": 77}
    else:
        image = Image.fromarray(np.stack([0 * opaque] * (3 if kind == "RGBA" else 1) + [opaque], axis=-1), kind)
    expected = np.where(opaque, 0, level)
    for channels in (1, 3):
        image_HxWxC = decoded(tmp_path / str(channels), image, channels=channels, background=background, **save)
        for channel in range(channels):
            np.testing.assert_array_equal(image_HxWxC[..., channel], expected)


def test_half_transparent_pixels_are_blended(tmp_path):
    image = Image.fromarray(np.broadcast_to(np.uint8([100, 0, 0, 51]), (8, 8, 4)).copy(), "RGBA")
    expected = 0.2 * np.array([100, 0, 0]) + 0.8 * 255
    assert np.abs(decoded(tmp_path, image)[0, 0] - expected).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "webp", "jpg"])
def test_exif_orientation_is_applied(tmp_path, orientation, ending):
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4, :4] = 255  # top left
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    extra = {"lossless": True} if ending == "webp" else {}
    image = decoded(tmp_path, Image.fromarray(np.ascontiguousarray(stored)), ending=ending, exif=exif, **extra)
    assert np.abs(image.astype(int) - upright).max() < 40


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    frames = [Image.fromarray(flat(level)).convert("RGB") for level in (10, 200)]
    for ending in ("webp", "png", "gif", "tiff"):
        image = decoded(
            tmp_path / ending,
            frames[0],
            ending=ending,
            save_all=True,
            append_images=frames[1:],
            duration=100,
            lossless=True,
        )
        np.testing.assert_array_equal(image, np.full((8, 8, 3), 10))


def test_tiff_files_of_8_and_16_bits_are_read_and_floating_point_ones_refused(tmp_path):
    levels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    deep = Image.fromarray(levels.astype(np.uint16) * 256 + 99)
    for number, image in enumerate((Image.fromarray(levels), deep)):
        found = decoded(tmp_path / str(number), image, ending="tif", channels=1)
        np.testing.assert_array_equal(found[..., 0], levels)
    with pytest.raises(ValueError, match=r"a.tif .floating-point pixels; save the image with 8 or 16 bits per channel"):
        decoded(tmp_path / "float", Image.fromarray(levels.astype(np.float32) / 64), ending="tif")


@pytest.mark.parametrize("limit", [63, 20])  # Pillow warns from its limit on, and raises from twice the limit on
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused_in_one_line(tmp_path, monkeypatch, limit):
    name = write_folder(tmp_path, train={"x": 2, "y": 2}, test={"x": 1, "y": 1})
    source = data_lib.open_set(make_spec(name=name, num_known=1)).train
    assert source[0].shape == (8, 8, 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(
        ValueError, match=rf"2 of 2 images cannot be read: .*(64 pixels|8x8 pixels .* limit of {limit})"
    ) as caught:
        data_lib.read_all(source)
    assert "\n" not in str(caught.value)


def test_many_identical_training_images_are_warned_about(tmp_path, caplog):
    glyphs = write_tree(tmp_path / "train", {"x": 10, "y": 10}).parent
    write_tree(tmp_path / "test", {"x": 1, "y": 1})
    spec = make_spec(name=f"folder:{glyphs}", num_known=1, image_size=32, channels=3)
    data_lib.resident(data_lib.open_set(spec).train)
    assert "exact copies" not in caplog.text
    for path in (tmp_path / "train").glob("*/*.png"):
        Image.open(path).convert("RGBA").point(lambda level: 0).save(path)  # all transparent
    data_lib.resident(data_lib.open_set(spec).train)
    assert "9 of 10 training images are exact copies of others at 32x32 pixels and 3 channel(s)" in caplog.text
    streamed = types.SimpleNamespace(batch_size=2), types.SimpleNamespace(workers=1, cache_gigabytes=0)
    next(train._streamed(*streamed, data_lib.open_set(spec).train, types.SimpleNamespace(spread=tuple), 0, 0))
    assert "9 of 10 training images looked at are exact copies" in caplog.text


# Class folders without parts


def test_class_folders_alone_are_divided_by_a_seed_and_stratified(tmp_path):
    write_tree(tmp_path / "set", {"x": 10, "y": 20, "z": 2})
    parts = {}
    for seed in (0, 0, 1):
        data = folder.load(str(tmp_path / "set"), with_train=True, test_fraction=0.3, seed=seed)
        assert np.bincount(data.test.labels).tolist() == [3, 6, 1]
        assert not set(data.train.paths) & set(data.test.paths)
        assert len(data.train.paths) + len(data.test.paths) == 32
        parts.setdefault(seed, []).append(data.test.paths)
    assert parts[0][0] == parts[0][1] != parts[1][0]
    assert folder.load(str(tmp_path / "set"), with_train=False, test_fraction=0.3).test.paths == parts[0][0]
    spec = make_spec(name=f"folder:{tmp_path}/set", test_fraction=0.3, num_known=2)
    data = data_lib.open_set(spec)
    assert len(data.train) + len(data.test_known) + 10 / 3 * len(data.test_unknown) >= 32


def test_copies_of_an_image_stay_on_one_side(tmp_path):
    """Ten groups per class: an image, the same bytes, and copies in another format, size and brightness."""
    for number, name in enumerate(("x", "y")):
        (tmp_path / name).mkdir()
        for place in range(10):
            image = photo(100 * number + place, size=64)
            stem = str(tmp_path / name / str(place))
            image.save(f"{stem}_original.png")
            image.save(f"{stem}_bytes.png")
            image.save(f"{stem}_quality.jpg", quality=60)
            image.resize((40, 40), Image.Resampling.BICUBIC).save(f"{stem}_small.png")
            image.point(lambda level: 10 + 0.92 * level).save(f"{stem}_other.png")
    for seed in range(3):
        data = folder.load(str(tmp_path), with_train=True, test_fraction=0.3, seed=seed)
        group = lambda records: {
            os.path.basename(p).split("_")[0] + p.split("/")[-2] for p in records.paths if "other" not in p
        }
        assert not group(data.train) & group(data.test)
        assert np.bincount(data.test.labels, minlength=2).min() >= 5


def test_only_copies_are_grouped():
    """scikit-learn's digits have no copies, so none are grouped; constant images match only if equal."""
    from sklearn.datasets import load_digits

    images = load_digits().images.astype(np.uint8) * 15
    thumbnails = np.stack([np.asarray(Image.fromarray(image).resize((16, 16)), np.float32).ravel() for image in images])
    digests = tuple(str(i).encode() for i in range(len(images)))
    assert len(set(divide.group_alike(digests, thumbnails).tolist())) > 0.97 * len(images)
    flats = np.float32([[1] * 256, [2] * 256, [1] * 256])
    assert divide.group_alike((b"a", b"b", b"c"), flats).tolist() == [0, 1, 0]
    assert divide.group_alike((b"a", b"b", b"b"), np.float32([[1] * 256, [2] * 256, [9] * 256])).tolist() == [0, 1, 1]


def test_groups_across_blocks_are_those_of_all_pairs(monkeypatch):
    random = np.random.default_rng(0)
    originals = random.uniform(0, 255, (40, 256)).astype(np.float32) * random.uniform(0.2, 1, (40, 1)).astype(
        np.float32
    )
    copies = originals[random.permutation(40)[:25]]
    thumbnails = np.concatenate([originals, copies + random.normal(0, 0.3, copies.shape).astype(np.float32)])
    std = thumbnails.std(axis=1)
    centered = thumbnails - thumbnails.mean(axis=1, keepdims=True)
    distance = np.sqrt(np.mean((centered[:, None] - centered[None]) ** 2, axis=-1))
    alike = distance <= divide.ALIKE * np.minimum(std[:, None], std[None])
    monkeypatch.setattr(divide, "_BLOCK", 7)
    groups = divide.group_alike(tuple(bytes([i]) for i in range(65)), thumbnails)
    np.testing.assert_array_equal(groups[:, None] == groups[None], alike)
    assert alike.sum() == 65 + 50


def test_a_class_with_one_image_keeps_it_for_training():
    chosen = divide.choose(np.array([0, 0, 0, 1]), np.array([0, 1, 2, 3]), share=0.4, seed=0)
    assert chosen[:3].sum() == 1 and not chosen[3]
    assert not divide.choose(np.zeros(5, int), np.zeros(5, int), share=0.4, seed=0).any()


# TinyImageNet as unpacked


def test_tiny_imagenet_as_unpacked(tmp_path):
    ids = CLASS_NAMES[""][:3]
    for number, name in enumerate(ids):
        images = tmp_path / "train" / name / "images"
        images.mkdir(parents=True)
        (images.parent / f"{name}_boxes.txt").write_text("")
        for place in range(4):
            Image.fromarray(flat(10 * number + place)).save(images / f"{name}_{place}.JPEG")
    lines = []
    for part in ("val", "test"):
        (tmp_path / part / "images").mkdir(parents=True)
        for place in range(6):
            Image.fromarray(flat(10 * (2 - place % 3))).save(tmp_path / part / "images" / f"{part}_{place}.JPEG")
            lines += [f"val_{place}.JPEG\t{ids[2 - place % 3]}\t0\t0\t8\t8\n"] if part == "val" else []
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    data = folder.load(str(tmp_path), with_train=True)
    assert data.class_names == ids and data.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len(data.test.paths) == 6 and all("/val/" in path for path in data.test.paths)
    for place, label in enumerate(data.test.labels):
        assert abs(int(np.asarray(data.test.open(place))[0, 0]) - 10 * label) < 3
    assert folder.load(str(tmp_path), with_train=False).class_names == ids
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines[1:]))
    with pytest.raises(ValueError, match="val_annotations.txt has no line for val_0.JPEG .1 such images"):
        folder.load(str(tmp_path), with_train=True)


# Lists


def write_list(root, rows, header="path,label,split"):
    (root / "list.csv").write_text("\n".join([header, *rows]) + "\n")
    return f"csv:{root}/list.csv"


def test_csv_lists(tmp_path):
    write_tree(tmp_path, {"a": 3, "b": 3})
    rows = [
        f"{name}/{i:03d}.png,{label},{split}"
        for name, label in (("a", "10"), ("b", "9"))
        for i, split in enumerate(("train", "val", "test"))
    ]
    name = write_list(tmp_path, rows)
    data = csv_list.load(name.removeprefix("csv:"), with_train=True)
    assert data.class_names == ("9", "10")
    assert [(path[-9:], label) for path, label in zip(data.train.paths, data.train.labels)] == [
        ("a/000.png", 1),
        ("b/000.png", 0),
    ]
    assert [path[-9:] for path in data.test.paths] == ["a/002.png", "b/002.png"]
    experiment = data_lib.open_set(make_spec(name=name, num_known=1, image_size=32, channels=3))
    assert (len(experiment.train), len(experiment.test_unknown)) == (1, 1)
    np.testing.assert_array_equal(
        experiment.train[0], np.asarray(photo(0 if experiment.class_names == ("10",) else 1000))
    )
    write_list(tmp_path, [row.replace("test", "val") for row in rows])
    assert len(csv_list.load(str(tmp_path / "list.csv"), with_train=False).test.paths) == 4


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv_lists_of_spreadsheets(tmp_path, end):
    """With a byte order mark, other line ends, quotation marks, commas, and columns that mean nothing here."""
    lines = ["path,label,note", *(f'"{place}.png","a ""b"", {place % 2}",' for place in range(4))]
    (tmp_path / "list.csv").write_bytes(("\ufeff" + end.join(lines) + end).encode())
    data = csv_list.load(str(tmp_path / "list.csv"), with_train=True, test_fraction=0.5)
    assert data.class_names == ('a "b", 0', 'a "b", 1') and len(data.train.paths) == len(data.test.paths) == 2


def test_csv_lists_without_splits_are_divided(tmp_path):
    write_tree(tmp_path, {"a": 10, "b": 10})
    name = write_list(tmp_path, [f"{c}/{i:03d}.png,{c}" for c in "ab" for i in range(10)], "path,label")
    data = csv_list.load(name.removeprefix("csv:"), with_train=True, test_fraction=0.3)
    assert np.bincount(data.test.labels).tolist() == [3, 3] and np.bincount(data.train.labels).tolist() == [7, 7]


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (["a.png,x"], "file,label", "must have the columns path and label, got file, label"),
        (["a.png,x,y"], "path,label,label", "must have the columns path and label, got path, label, label"),
        ([], "", "must have the columns path and label, got an empty file"),
        (["a.png,x", "b.png,x, y"], "path,label", "line 3 of .* has 3 values for 2 columns; put quotation marks"),
        (['a.png,"x', 'b.png,"y'], "path,label", "must be a CSV file in UTF-8 .*expected after"),
        (["", '"a.png","x\n"', "a.png,x"], "path,label", "a.png is listed in lines 4 and 5"),
        ([], "path,label", "has no rows"),
        (["a.png,"], "path,label", "line 2 of .* must have a path and a label without null bytes, got 'a.png' and ''"),
        (["a\0.png,x"], "path,label", r"line 2 of .* without null bytes, got 'a\\x00.png' and 'x'"),
        (
            ["a.png,x,tset"],
            "path,label,split",
            "line 2 of .* must be one of train, .*, got 'tset'; did you mean 'test'",
        ),
        (["a.png,x", "b.png,x", "./a.png,y"], "path,label", "a.png is listed in lines 2 and 4; list every image once"),
        (["a.png,x,train"], "path,label,split", "has no test images; set the split of some rows to test"),
        (["a.png,x,test"], "path,label,split", "has no training images; set the split of some rows to train"),
    ],
)
def test_broken_lists(tmp_path, rows, header, message):
    write_list(tmp_path, rows, header)
    with pytest.raises(ValueError, match=message):
        csv_list.load(str(tmp_path / "list.csv"), with_train=True)


def test_an_archive_must_be_unpacked(tmp_path):
    (tmp_path / "set.zip").write_bytes(b"PK\x03\x04\xff\xfe\x00")
    with pytest.raises(
        ValueError, match="set.zip must be a CSV file in UTF-8 .*; unpack an archive and give its folder"
    ):
        csv_list.load(str(tmp_path / "set.zip"), with_train=True)
    with pytest.raises(ValueError, match="'folder:.*set.zip' is a file; unpack an archive and give its folder"):
        folder.load(str(tmp_path / "set.zip"), with_train=True)


def test_missing_list(tmp_path):
    with pytest.raises(ValueError, match="'csv:.*nowhere.csv' does not exist"):
        data_lib.open_set(make_spec(name=f"csv:{tmp_path}/nowhere.csv"))


# Names of classes


def test_numbered_names_sort_by_value():
    assert in_order(["10", "9", "2", "9"]) == ("2", "9", "10")
    assert in_order(["b10", "b9", "10"]) == ("10", "b10", "b9")


def test_class_ids_of_a_benchmark_are_found_by_name():
    """A folder sorts 'Automobile' before 'airplane' and may have spaces where the benchmark has underscores."""
    cifar10 = CLASS_NAMES["cifar10"]
    stored = in_order(name.title() if name == "automobile" else name for name in cifar10)
    assert stored[0] == "Automobile"
    found = ids_in(stored, "cifar10", (0, 1, 9), whole=True)
    assert [stored[c].lower() for c in found] == ["airplane", "automobile", "truck"]
    assert ids_in(["Maple Tree", "x"], "cifar100", (47,), whole=False) == (0,)
    numbers = in_order(map(str, range(200)))
    assert ids_in(numbers, "", (199, 3), whole=True) == (199, 3)
    assert ids_in([f"{i:03d}" for i in range(200)], "", (199, 3), whole=True) == (199, 3)


@pytest.mark.parametrize(
    ("names", "dataset"),
    [
        (CLASS_NAMES["cifar10"], "mnist"),
        (CLASS_NAMES["cifar10"][:9] + ("lorry",), "cifar10"),
        (CLASS_NAMES["cifar10"] + ("sea",), "cifar10"),
        (tuple(map(str, range(1, 11))), "mnist"),
        (tuple(map(str, range(11))), "mnist"),
        (tuple(f"n{i:08d}" for i in range(200)), ""),
    ],
)
def test_classes_that_the_benchmark_lacks_are_refused(names, dataset):
    with pytest.raises(ValueError, match="but the benchmark needs the .* classes .*; rename them, or number them 0 to"):
        ids_in(names, dataset, (0, 1), whole=True)


def test_the_lists_of_class_names():
    counts = {"mnist": 10, "svhn_cropped": 10, "cifar10": 10, "cifar100": 100, "": 200}
    assert {name: len(CLASS_NAMES[name]) for name in counts} == counts
    for name in counts:
        assert CLASS_NAMES[name] == in_order(CLASS_NAMES[name])
