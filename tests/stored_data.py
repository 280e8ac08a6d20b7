"""Small datasets on disk, for the tests of gradmix_jax.data."""

import gzip
import io
import struct

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from gradmix_jax import data as data_lib

SPEC = {
    "name": "digits",
    "unknown_name": "",
    "benchmark": "random",
    "trial": 0,
    "num_known": 2,
    "image_size": 8,
    "channels": 1,
    "validation_fraction": 0.0,
    "storage": "resident",
    "data_dir": "",
    "download": False,
    "bad_images": "error",
}


def make_spec(**changes) -> data_lib.Spec:
    return data_lib.Spec(**{**SPEC, **changes})


def flat(value, *, size=8) -> np.ndarray:
    """A gray image with a single value."""
    return np.full((size, size), value, np.uint8)


def write_folder(root, *, train, test, test_name="test", size=8) -> str:
    """PNG files of constant value 10 * class + place; returns the dataset's name.

    Args:
      root: folder to make.
      train, test: {class name: number of images}.
      test_name: name of the test folder.
      size: pixels.
    """
    names = sorted({*train, *test})
    for part, counts in (("train", train), (test_name, test)):
        for name, count in counts.items():
            (root / part / name).mkdir(parents=True)
            for place in range(count):
                value = (10 * names.index(name) + place) % 256
                Image.fromarray(flat(value, size=size)).save(root / part / name / f"{place:03d}.png")
    return f"folder:{root}"


def write_idx(root, *, train_labels, test_labels, size=8, compress=False, dot="-") -> str:
    """MNIST-style files of constant images with their label as value; returns the dataset's name."""
    root.mkdir()
    for part, labels in (("train", train_labels), ("t10k", test_labels)):
        labels = np.array(labels, np.uint8)
        images = np.broadcast_to(labels[:, None, None], (len(labels), size, size))
        for kind, array in (("images", images), ("labels", labels)):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            name = f"{part}-{kind}{dot}idx{array.ndim}-ubyte"
            if compress:
                (root / f"{name}.gz").write_bytes(gzip.compress(header + array.tobytes()))
            else:
                (root / name).write_bytes(header + array.tobytes())
    return f"idx:{root}"


def write_prepared(data_dir, name, *, parts, class_names, version="3.0.2", config=None) -> None:
    """A dataset prepared like the TFDS dataset of that name.

    Args:
      data_dir: TFDS directory.
      name: name of the dataset.
      parts: {part: [(image, label)]}, image a Pillow image or encoded bytes.
      class_names: of the labels.
      version: of the dataset.
      config: name of a TFDS config.
    """

    class Stored(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []
        code_path = None

        def _info(self):
            features = {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=class_names),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {part: self._generate_examples(examples) for part, examples in parts.items()}

        def _generate_examples(self, examples):
            for i, (image, label) in enumerate(examples):
                stored = image if isinstance(image, Image.Image) else io.BytesIO(image)
                yield i, {"id": str(i), "image": stored, "label": label}

    Stored.name = name
    tfds.disable_progress_bar()
    Stored(data_dir=data_dir, file_format="array_record").download_and_prepare()
