"""Official layouts of datasets: CUB, Aircraft, Cars, ImageNet and OpenOOD's image lists."""

import shutil

import numpy as np
import pytest
from miniature import Noise, aircraft, cars, class_folders, cub, lists
from PIL import Image
from scipy import io
from stored_data import make_spec

from gradmix_jax import data as data_lib
from gradmix_jax.data import fine_grained, imagenet, imglist, readers
from gradmix_jax.data.class_names import CLASS_NAMES

WNIDS = ("n01440764", "n01443537", "n01484850")


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    root = tmp_path_factory.mktemp("trees")
    noise = Noise()
    cub(noise, root / "CUB_200_2011")
    aircraft(noise, root / "fgvc-aircraft-2013b")
    cars(noise, root / "stanford_cars")
    return root


FINE_GRAINED = {
    "cub": (fine_grained.load_cub, "CUB_200_2011"),
    "aircraft": (fine_grained.load_aircraft, "fgvc-aircraft-2013b"),
    "cars": (fine_grained.load_cars, "stanford_cars"),
}


@pytest.mark.parametrize("kind", FINE_GRAINED)
def test_a_fine_grained_dataset_as_unpacked(trees, kind):
    load, folder = FINE_GRAINED[kind]
    data = load(str(trees / folder), with_train=True)
    names = CLASS_NAMES[kind]
    assert data.class_names == names
    assert np.bincount(data.train.labels).tolist() == [2] * len(names)
    assert np.bincount(data.test.labels).tolist() == [1] * len(names)
    assert not set(data.train.paths) & set(data.test.paths)
    assert all(records.open(0).size == (8, 8) for records in (data.train, data.test))
    assert load(str(trees), with_train=False).train is None, "the folder around it works too"


def test_cub_classes_and_parts_come_from_its_lists(tmp_path):
    for name, text in {
        "images": "1 b/x.png\n2 a/y.png\n3 a/z.png\n",
        "image_class_labels": "3 1\n1 2\n2 1\n",
        "train_test_split": "1 1\n2 0\n3 1\n",
        "classes": "2 b\n1 a\n",
    }.items():
        (tmp_path / f"{name}.txt").write_text(text)
    noise = Noise()
    for name in ("b/x.png", "a/y.png", "a/z.png"):
        noise.write(tmp_path / "images" / name)
    data = fine_grained.load_cub(str(tmp_path), with_train=True)
    tails = lambda records: [path.removeprefix(f"{tmp_path}/images/") for path in records.paths]
    assert data.class_names == ("a", "b")
    assert (tails(data.train), data.train.labels.tolist()) == (["b/x.png", "a/z.png"], [1, 0])
    assert (tails(data.test), data.test.labels.tolist()) == (["a/y.png"], [0])
    (tmp_path / "train_test_split.txt").write_text("1 1\n2 0\n")
    with pytest.raises(ValueError, match="must have a class and a part for every image of images.txt"):
        fine_grained.load_cub(str(tmp_path), with_train=True)
    (tmp_path / "train_test_split.txt").write_text("1\n")
    with pytest.raises(ValueError, match="train_test_split.txt must have two words in every line"):
        fine_grained.load_cub(str(tmp_path), with_train=True)
    (tmp_path / "train_test_split.txt").write_text("1 0\n2 0\n3 0\n")
    with pytest.raises(ValueError, match="has no training images"):
        fine_grained.load_cub(str(tmp_path), with_train=True)
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(ValueError, match="images/b/x.png does not exist, the first of 3 test images"):
        fine_grained.load_cub(str(tmp_path), with_train=False)


def test_aircraft_variants_have_spaces_and_slashes(trees):
    data = fine_grained.load_aircraft(str(trees / "fgvc-aircraft-2013b"), with_train=False)
    assert {"F-16A/B", "Cessna 172"} <= set(data.class_names)


def test_the_other_layouts_of_cars(tmp_path):
    names = CLASS_NAMES["cars"]
    noise, whole, table = Noise(), tmp_path / "whole", tmp_path / "table"
    rows = [("car_ims/1.png", 6, 0), ("car_ims/2.png", 1, 1), ("car_ims/3.png", 196, 0)]
    for name, *_ in rows:
        noise.write(whole / name)
    kinds = [(name, "O") for name in ("relative_im_path", "class", "test")]
    io.savemat(whole / "cars_annos.mat", {"annotations": np.array(rows, dtype=kinds)})
    data = fine_grained.load_cars(str(whole), with_train=True)
    assert data.train.labels.tolist() == [5, 195] and data.test.labels.tolist() == [0]
    assert data.train.paths[0] == f"{whole}/car_ims/1.png"

    c_v = next(c for c, name in enumerate(names) if "C/V" in name)
    for part, name, c in (("train", "a.png", c_v), ("train", "b.png", 0), ("test", "c.png", c_v)):
        noise.write(table / "car_data" / part / names[c].replace("/", "-") / name)
    (table / "anno_train.csv").write_text(f"a.png,1,1,8,8,{c_v + 1}\nb.png,1,1,8,8,1\n")
    (table / "anno_test.csv").write_text(f"c.png,1,1,8,8,{c_v + 1}\n")
    data = fine_grained.load_cars(str(table), with_train=True)
    assert data.train.labels.tolist() == [c_v, 0] and data.test.labels.tolist() == [c_v]
    assert data.class_names == names and all(data.train.open(i) for i in range(2))

    (tmp_path / "devkit").mkdir()
    with pytest.raises(ValueError, match="has no cars_test_annos_withlabels.mat, without which"):
        fine_grained.load_cars(str(tmp_path), with_train=True)


@pytest.mark.parametrize(
    ("kind", "marker"),
    [("cub", "images.txt"), ("aircraft", "images_variant_test.txt"), ("cars", "devkit, cars_annos")],
)
def test_a_folder_without_the_dataset(tmp_path, kind, marker):
    with pytest.raises(ValueError, match=f"dataset '{kind}:.*{marker}.*give the folder that holds"):
        FINE_GRAINED[kind][0](str(tmp_path), with_train=True)


# ImageNet


@pytest.mark.parametrize("train, test", imagenet.LAYOUTS, ids=lambda parts: parts[0])
def test_imagenet_in_every_layout(tmp_path, train, test):
    noise = Noise()
    for place, part in enumerate(train):
        class_folders(noise, tmp_path / part, {WNIDS[place % 3]: 1, WNIDS[(place + 1) % 3]: 1})
    class_folders(noise, tmp_path / test[0], dict.fromkeys(WNIDS, 2))
    data = imagenet.load(str(tmp_path), with_train=True)
    assert data.class_names == WNIDS and np.bincount(data.test.labels).tolist() == [2, 2, 2]
    assert len(data.train.labels) == 2 * len(train)
    assert [path.split("/")[-2] for path in data.train.paths] == [WNIDS[c] for c in data.train.labels]


def _flat(root, names):
    """Class folders of training images, and validation images in one folder."""
    noise = Noise()
    class_folders(noise, root / "train", dict.fromkeys(WNIDS, 1))
    for name in names:
        noise.write(root / "val" / f"{name}.png")


def test_validation_images_in_one_folder_and_the_table_of_their_classes(tmp_path):
    _flat(tmp_path, ("v1", "v2", "v3"))
    with pytest.raises(ValueError, match="val has no class folders, and .* has neither LOC_val_solution.csv nor"):
        imagenet.load(str(tmp_path), with_train=True)
    lines = ["ImageId,PredictionString", f"v1,{WNIDS[2]} 1 2 3 4 {WNIDS[2]} 5 6 7 8", f"v2,{WNIDS[0]} 1 2 3 4"]
    (tmp_path / imagenet.SOLUTION).write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match="val has 1 images without a class, the first is v3"):
        imagenet.load(str(tmp_path), with_train=True)
    (tmp_path / imagenet.SOLUTION).write_text("\n".join([*lines, f"v3,{WNIDS[2]} 1 2 3 4"]) + "\n")
    data = imagenet.load(str(tmp_path), with_train=True)
    assert [path.split("/")[-1] for path in data.test.paths] == ["v2.png", "v1.png", "v3.png"]
    assert data.test.labels.tolist() == [0, 2, 2] and data.class_names == WNIDS


def test_validation_images_in_one_folder_and_the_development_kit(tmp_path):
    """Its ids do not follow the label order: here 1 is the last wnid."""
    _flat(tmp_path, [f"ILSVRC2012_val_{place:08d}" for place in (1, 2)])
    (tmp_path / imagenet.DEVKIT).mkdir(parents=True)
    (tmp_path / imagenet.DEVKIT / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n3\n")
    rows = [(1, WNIDS[2]), (2, WNIDS[1]), (3, WNIDS[0])]
    synsets = np.array(rows, dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")])
    io.savemat(tmp_path / imagenet.DEVKIT / "meta.mat", {"synsets": synsets})
    data = imagenet.load(str(tmp_path), with_train=True)
    assert data.test.labels.tolist() == [0, 2]
    assert [path[-6:-4] for path in data.test.paths] == ["02", "01"]


def test_class_folders_alone_are_test_images(tmp_path):
    class_folders(Noise(), tmp_path / "imagenet900_test", dict.fromkeys(WNIDS, 2))
    data = imagenet.load(str(tmp_path / "imagenet900_test"), with_train=False)
    assert data.train is None and len(data.test.labels) == 6
    with pytest.raises(ValueError, match="has no training images; add a folder named train beside val"):
        imagenet.load(str(tmp_path / "imagenet900_test"), with_train=True)
    (tmp_path / "empty").mkdir()
    for path, message in (("empty", "has no class folders|neither"), ("none", "does not exist")):
        with pytest.raises(ValueError, match=message):
            imagenet.load(str(tmp_path / path), with_train=False)


# Image lists


def test_image_lists(tmp_path):
    lists(Noise(), tmp_path, {"cifar10/cifar10": None, "cifar10/tin": [-1, -1], "imagenet/ninco": [2, 0]}, classes=4)
    named = lambda name: str(tmp_path / "benchmark_imglist" / name)
    data = imglist.load(named("cifar10/cifar10"), with_train=True)
    assert data.class_names == tuple("0123")
    assert data.train.labels.tolist() == [0, 1, 2, 3] * 2 and data.test.labels.tolist() == [0, 1, 2, 3]
    assert data.test.paths[3] == f"{tmp_path}/images_classic/cifar10/test/3.png"
    other = imglist.load(named("cifar10/tin"), with_train=False)
    assert other.class_names == (imglist.UNLABELED,) and other.test.labels.tolist() == [0, 0]
    large = imglist.load(named("imagenet/ninco"), with_train=False)
    assert large.class_names == tuple("012") and large.test.labels.tolist() == [2, 0]
    assert large.test.paths[0].startswith(f"{tmp_path}/images_largescale/")
    with Image.open(large.test.paths[1]) as image:
        assert image.size == (8, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png 1\nb.png one\n", "line 2 of .*test_x.txt must be a path and a label of .*, got 'b.png one'"),
        ("a.png 99999999999\n", "a label of at most 6 digits, got 'a.png 99999999999'"),
        ("a.png \u00b2\n", "a label of at most 6 digits, got "),
        ("a.png --5\n", "a label of at most 6 digits, got 'a.png --5'"),
        (b"caf\xe9.png 0\n", "test_x.txt must be a list in UTF-8 "),
        ("a.png\n", "line 1 of .* got 'a.png'"),
        ("\n", "test_x.txt is empty"),
        ("gone.png 1\n", "gone.png, the first test image of the lists in .*, is in none of .*images_classic"),
        (None, "test_x.txt does not exist; an imglist dataset is named FOLDER/NAME"),
    ],
)
def test_unreadable_image_lists(tmp_path, text, message):
    Noise().write(tmp_path / "a.png")
    if text is not None:
        (tmp_path / "test_x.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        imglist.load(str(tmp_path / "x"), with_train=False)


def test_lists_may_have_spaces_and_come_from_windows(tmp_path):
    Noise().write(tmp_path / "a b" / "c d.png")
    (tmp_path / "test_x.txt").write_bytes("\ufeffa b/c d.png 0\r\n\r\n".encode())
    assert imglist.load(str(tmp_path / "x"), with_train=False).test.paths == [f"{tmp_path}/a b/c d.png"]


# dataset.root


def test_paths_are_relative_to_the_root(tmp_path, monkeypatch):
    class_folders(Noise(), tmp_path / "data" / "set" / "train", {"a": 1, "b": 1})
    class_folders(Noise(), tmp_path / "data" / "set" / "test", {"a": 1, "b": 1})
    of = lambda name, root: readers.load(make_spec(name=name, root=str(root)), name, with_train=False)
    roots = {"folder:set": tmp_path / "data", f"folder:{tmp_path}/data/set": "elsewhere", "folder:data/set": ""}
    for name, root in roots.items():
        monkeypatch.chdir(tmp_path)
        assert of(name, root).class_names == ("a", "b") and of(name, root).name == name
    monkeypatch.setenv("HOME", str(tmp_path))
    assert of("folder:~/data/set", "elsewhere").class_names == ("a", "b")
    assert data_lib.open_set(make_spec(name="folder:set", root=f"{tmp_path}/data", num_known=1)).num_classes == 1
