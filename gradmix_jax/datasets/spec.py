"""The `dataset` section of a config, and what its names mean."""

import dataclasses
import difflib
import os
from typing import Any

from gradmix_jax import splits
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
        _check_choice("dataset.benchmark", self.benchmark, (*splits.BENCHMARKS, "random", "all"))
        _check_choice("dataset.storage", self.storage, STORAGE)
        _check_choice("dataset.bad_images", self.bad_images, BAD_IMAGES)
        _check(self.channels in (1, 3), "dataset.channels", self.channels, "1 or 3")
        _check(_is_int(self.image_size, 1), "dataset.image_size", self.image_size, "1 or more")
        fraction = self.validation_fraction
        _check(0 <= fraction < 1, "dataset.validation_fraction", fraction, "0 or more and less than 1")
        _check(isinstance(self.download, bool), "dataset.download", self.download, "True or False")
        self._check_split()

    def _check_split(self):
        trials = len(splits.BENCHMARKS.get(self.benchmark, ()))
        allowed = f"0 to {trials - 1} for benchmark {self.benchmark!r}" if trials else "0 or more"
        in_range = _is_int(self.trial, 0) and (not trials or self.trial < trials)
        _check(in_range, "dataset.trial", self.trial, allowed)
        if self.benchmark == "random":
            _check(_is_int(self.num_known, 1), "dataset.num_known", self.num_known, "1 or more")
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
    allowed = (*prepared.TEST_PARTS, *(f"{kind}:PATH" for kind in PATH_KINDS))
    raise ValueError(f"{key} is {name!r}{_nearest(name, allowed)}; allowed: {', '.join(allowed)}.")


def check_unknown_name(key: str, name: str) -> None:
    """Raises ValueError if `name`, the value of `key`, is neither the name of a data set nor a kind of noise."""
    if not name.startswith("noise:"):
        check_name(key, name)
    elif name not in noise.KINDS:
        raise ValueError(f"{key} is {name!r}{_nearest(name, tuple(noise.KINDS))}; allowed: {', '.join(noise.KINDS)}.")


def _check_choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{key} is {value!r}{_nearest(value, allowed)}; allowed: {', '.join(allowed)}.")


def _check(condition: bool, key: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{key} is {value!r}; allowed: {allowed}.")


def _is_int(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _nearest(value: str, allowed: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(str(value), allowed, 1)
    return f" (did you mean {near[0]!r}?)" if near else ""
