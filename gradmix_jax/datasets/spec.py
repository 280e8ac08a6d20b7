"""The `dataset` section of a config, and what its names mean."""

import dataclasses
import os
from typing import Any

from gradmix_jax import splits
from gradmix_jax.config import check_choice, check_number
from gradmix_jax.datasets import folder, idx, noise, prepared

PATH_KINDS = {"folder": folder.load, "idx": idx.load}
STORAGE = ("resident", "stream")
BAD_IMAGES = ("error", "skip")


@dataclasses.dataclass(frozen=True)
class Spec:
    """What to train and test on.

    Attributes:
      name: the data set of the known classes: a TFDS name, `digits`, `folder:PATH` or `idx:PATH`.
      unknown_name: the data set of the unknown classes, or noise:uniform or noise:gaussian. "": the one of the
        benchmark (CIFAR-100 for cifar+10 and cifar+50), otherwise the one of the known classes.
      benchmark: whose published splits; "random" for seeded ones of any data set; "all": every class is known. Where
        the benchmark does not say which classes of `unknown_name` are unknown, all of them are.
      trial: which split, 0..4, or the seed of "random".
      num_known: number of known classes, used by "random" only.
      image_size: height and width in pixels.
      channels: 1 (grey) or 3 (RGB).
      validation_fraction: share of the training images of each known class that is kept out of training, in [0, 1).
      storage: "resident" on the device, or "stream" from disk.
      data_dir: TFDS directory; "" for its default, $TFDS_DATA_DIR or ~/tensorflow_datasets.
      download: whether TFDS may download and prepare what is not there.
      bad_images: "error" on an unreadable image, or "skip": leave it out, with a warning. Skipping reads every image
        once more, at the start.

    Raises:
      ValueError: a value that is not allowed.
    """

    name: str
    unknown_name: str
    benchmark: str
    trial: int
    num_known: int
    image_size: int
    channels: int
    validation_fraction: float
    storage: str
    data_dir: str
    download: bool
    bad_images: str

    def __post_init__(self):
        check_name("dataset.name", self.name)
        if self.unknown_name:
            check_unknown_name("dataset.unknown_name", self.unknown_name)
        check_choice("dataset.benchmark", self.benchmark, (*splits.BENCHMARKS, "random", "all"))
        check_choice("dataset.storage", self.storage, STORAGE)
        check_choice("dataset.bad_images", self.bad_images, BAD_IMAGES)
        _check(self.channels in (1, 3), "dataset.channels", self.channels, "1 or 3")
        check_number("dataset.image_size", self.image_size, least=1, whole=True)
        check_number("dataset.validation_fraction", self.validation_fraction, least=0, below=1)
        _check(isinstance(self.download, bool), "dataset.download", self.download, "True or False")
        self._check_split()

    def _check_split(self):
        trials = len(splits.BENCHMARKS.get(self.benchmark, ()))
        key = f"dataset.trial (of benchmark {self.benchmark!r})"
        check_number(key, self.trial, least=0, most=trials - 1 if trials else None, whole=True)
        if self.benchmark == "random":
            check_number("dataset.num_known", self.num_known, least=1, whole=True)
        if self.benchmark == "all" and same_data(self.name, self.unknown_data):
            raise ValueError(
                "dataset.benchmark is 'all', which leaves no class of "
                f"{self.name!r} unknown; allowed: another data set as dataset.unknown_name."
            )

    @property
    def unknown_data(self) -> str:
        """Name of the data set of the unknown classes."""
        published = splits.BENCHMARKS.get(self.benchmark)
        if self.unknown_name or not published or published[0].known_dataset == published[0].unknown_dataset:
            return self.unknown_name or self.name
        return published[0].unknown_dataset


def same_data(name: str, other: str) -> bool:
    """Whether two names mean the same data set."""
    return _canonical(name) == _canonical(other)


def _canonical(name: str) -> str:
    kind, _, path = name.partition(":")
    return f"{kind}:{os.path.realpath(os.path.expanduser(path))}" if path else name


def check_name(key: str, name: str) -> None:
    """Raises ValueError if `name`, the value of `key`, is not the name of a data set."""
    kind, _, path = name.partition(":")
    if (kind in PATH_KINDS and path) or name.split("/")[0] in prepared.TEST_PARTS:
        return
    check_choice(key, name, (*prepared.TEST_PARTS, *(f"{kind}:PATH" for kind in PATH_KINDS)))


def check_unknown_name(key: str, name: str) -> None:
    """Raises ValueError if `name`, the value of `key`, is neither the name of a data set nor a kind of noise."""
    if not name.startswith("noise:"):
        check_name(key, name)
    else:
        check_choice(key, name, noise.KINDS)


def _check(condition: bool, key: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{key} is {value!r}; allowed: {allowed}.")
