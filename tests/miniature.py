"""Miniature trees of the published protocols: official layouts with all classes, and a few tiny images of each.

Every image is different noise, so no two are duplicates.
"""

import itertools
import pathlib
import runpy

import numpy as np
from PIL import Image
from scipy import io

from gradmix_jax.data import splits
from gradmix_jax.data.class_names import CLASS_NAMES
from gradmix_jax.data.protocols import PROTOCOLS

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
SIZE = 8


class Noise:
    """Writes images that all differ."""

    def __init__(self):
        self._random = np.random.default_rng(0)

    def write(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self._random.integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(path, compress_level=1)
        return path


def class_folders(noise, root, counts):
    """root/<class>/<place>.png; `counts`: {class name: number of images}."""
    for name, count in counts.items():
        for place in range(count):
            noise.write(root / name.replace("/", "-") / f"{place}.png")


def parts(noise, root, names, *, train, test, train_name="train", test_name="test"):
    """root/<part>/<class>/*.png, `train` and `test` images of every class."""
    class_folders(noise, root / train_name, dict.fromkeys(names, train))
    class_folders(noise, root / test_name, dict.fromkeys(names, test))


def cub(noise, root, *, train=2, test=1):
    """CUB_200_2011, with its images, classes and parts in four lists."""
    names, lines = CLASS_NAMES["cub"], {name: [] for name in ("images", "image_class_labels", "train_test_split")}
    number = itertools.count(1)
    for c, name in enumerate(names, start=1):
        for place in range(train + test):
            each, file = next(number), f"{name}/{place}.png"
            noise.write(root / "images" / file)
            lines["images"].append(f"{each} {file}")
            lines["image_class_labels"].append(f"{each} {c}")
            lines["train_test_split"].append(f"{each} {int(place < train)}")
    lines["classes"] = [f"{c} {name}" for c, name in enumerate(names, start=1)]
    for name, of_file in lines.items():
        (root / f"{name}.txt").write_text("\n".join(of_file) + "\n")


def aircraft(noise, root, *, train=2, test=1):
    """fgvc-aircraft-2013b; images are named .jpg although they are PNG files here."""
    lines, number = {"trainval": [], "test": []}, itertools.count(1000000)
    for name in CLASS_NAMES["aircraft"]:
        for part in ("trainval",) * train + ("test",) * test:
            each = next(number)
            noise.write(root / "data" / "images" / f"{each}.png").rename(root / "data" / "images" / f"{each}.jpg")
            lines[part].append(f"{each} {name}")
    for part, of_part in lines.items():
        (root / "data" / f"images_variant_{part}.txt").write_text("\n".join(of_part) + "\n")


def cars(noise, root, *, train=2, test=1):
    """The original release of Stanford Cars: two folders of images and MATLAB files of annotations."""
    files = {"train": "cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    (root / "devkit").mkdir(parents=True)
    for part, count in (("train", train), ("test", test)):
        rows, number = [], itertools.count(1)
        for c in range(1, 1 + len(CLASS_NAMES["cars"])):
            for _ in range(count):
                rows.append((1, 1, 8, 8, c, f"{next(number):05d}.png"))
                noise.write(root / f"cars_{part}" / rows[-1][-1])
        boxes = [(name, "O") for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
        io.savemat(root / "devkit" / files[part], {"annotations": np.array(rows, dtype=boxes)})


def imagenet(noise, root, wnids, *, train=2, test=1):
    parts(noise, root, wnids, train=train, test=test, test_name="val")


def lists(noise, root, names, *, classes, train=2, test=1):
    """OpenOOD's image lists and images.

    Args:
      root: of benchmark_imglist, images_classic and images_largescale.
      names: {"FOLDER/NAME": labels of the test images}, or None for a list of the known classes, with a training list.
      classes: number of known classes.
      train, test: images of each.
    """
    for name, labels in names.items():
        folder, _, short = name.rpartition("/")
        images = root / ("images_largescale" if folder.startswith("imagenet") else "images_classic")
        labeled = {"test": list(range(classes)) * test if labels is None else labels}
        if labels is None:
            labeled["train"] = list(range(classes)) * train
        for part, of_part in labeled.items():
            rows = [(f"{short}/{part}/{place}.png", label) for place, label in enumerate(of_part)]
            for path, _ in rows:
                noise.write(images / path)
            file = root / "benchmark_imglist" / folder / f"{part}_{short}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(f"{path} {label}\n" for path, label in rows))


def write(root, name):
    """The tree of the protocol `name` in `root`, and the keys of its config that differ from the published ones."""
    noise, protocol = Noise(), PROTOCOLS[name]
    train = max(2, -(-80 // protocol.classes))  # enough for one batch
    if protocol.near:
        bare = lambda each: each.removeprefix("imglist:benchmark_imglist/")
        unknown = dict.fromkeys(map(bare, (*protocol.near, *protocol.far)), [-1] * 6)
        shifted = {bare(each): list(range(0, protocol.classes, 2)) for each in protocol.shifted}
        lists(noise, root, {bare(protocol.name): None, **unknown, **shifted}, classes=protocol.classes, train=train)
        return {}
    kind, _, path = protocol.name.partition(":")
    if kind in ("cub", "aircraft", "cars"):
        {"cub": cub, "aircraft": aircraft, "cars": cars}[kind](noise, root / path)
        return {}
    split = splits.get(protocol.benchmark, 0)
    if kind == "imagenet":
        wnids = CLASS_NAMES["imagenet"]
        imagenet(noise, root / path, [wnids[c] for c in sorted({*split.known, *split.negative})])
        unknown = [CLASS_NAMES[split.unknown_dataset][c] for c in split.unknown]
        folder = protocol.unknown_name.partition(":")[2]
        class_folders(
            noise, root / folder / "imagenet21k_val" if folder else root / path / "val", dict.fromkeys(unknown, 1)
        )
        return {}
    keys = {}
    for key, dataset in {"name": split.known_dataset, "unknown_name": split.unknown_dataset}.items():
        folder = dataset or "tiny-imagenet-200"
        if not (root / folder).exists():
            parts(noise, root / folder, CLASS_NAMES[dataset], train=train, test=2)
        keys[f"dataset.{key}"] = f"folder:{folder}"
    return keys


def config(root, name, recipe="", **changes):
    """The protocol's config with a recipe, made small, on the tree that `write` makes in `root`."""
    changes = write(root, name) | changes
    file, _, variant = PROTOCOLS[name].config.partition(":")
    get_config = runpy.run_path(str(CONFIGS / f"{file}.py"))["get_config"]
    variant = ",".join(filter(None, (variant, recipe)))
    c = get_config(variant) if variant else get_config()
    c.dataset.root, c.dataset.image_size, c.dataset.storage = str(root), SIZE, "resident"
    c.dataset.channels = 3
    c.normalization.mean, c.normalization.std = (0.5,) * 3, (0.25,) * 3
    c.model.name, c.model.stem = "small_cnn", "cifar"
    c.model.width, c.model.hidden, c.model.projection = 4, 16, 8
    c.augment.jitter_prob = c.augment.gray_prob = c.augment.blur_prob = 0.0
    c.train.batch_size, c.mix.group_size = 32, 4
    c.evaluate.scores, c.evaluate.stages, c.evaluate.batch_size = (c.evaluate.score,), (), 64
    for entry in c.phases:
        entry.epochs = 1
    c.phases = c.phases[-1:]
    for key, value in changes.items():
        section, last = key.split(".")
        c[section][last] = value
    return c
