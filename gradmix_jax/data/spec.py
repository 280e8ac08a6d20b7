"""The `dataset` section of a config and the meaning of its names."""

import dataclasses

from gradmix_jax.data import readers, splits
from gradmix_jax.data.source import BACKGROUNDS
from gradmix_jax.fields import Section, check_number, key

STORAGE = ("resident", "stream")
NAMED = "named"
PUBLISHED = "published"
AUTO = "auto"
BAD_IMAGES = ("error", "skip")


@dataclasses.dataclass(frozen=True)
class Spec(Section, section="dataset"):
    """What to train and test on: the `dataset` section.

    `benchmark` defines which classes are known, in one of four ways: a published split (with `trial`), "random"
    (with `num_known` and `trial`), "named" (with `known` and `unknown`), or "all". "auto" stands for one of the last
    three; it and the keys that are 0 are replaced by `config.derive` before any data is opened.

    The unknown classes come from `unknown_name`, by default the benchmark's own dataset (CIFAR-100 for cifar+10 and
    cifar+50), else that of the known classes. If the benchmark does not say which classes of `unknown_name` are
    unknown, all of them are.
    """

    name: str = key(
        "digits", "digits, a TFDS name, hf:NAME, or KIND:PATH with a kind of data.READERS such as folder, csv or cub"
    )
    unknown_name: str = key("", "dataset of the unknown classes; empty: the benchmark's, or the same one")
    benchmark: str = key(
        "mnist",
        'a published class split; "random": a seeded one; "named": dataset.known and dataset.unknown; "all": '
        'every class is known; "auto": "named" with dataset.known, "all" with dataset.unknown_name, else "random"',
        choices=lambda: (*splits.BENCHMARKS, "random", NAMED, "all", AUTO),
    )
    trial: int = key(0, 'which of the splits, from 0 (any number for "random" and "named")', least=0)
    num_known: int = key(6, 'number of known classes, for benchmark "random" only; 0: 60 % of the classes', least=0)
    known: tuple[str, ...] = key((), 'names of the known classes in label order, for benchmark "named" only')
    unknown: tuple[str, ...] = key((), 'names of the unknown classes, for benchmark "named" only; empty: all others')
    negative: tuple[str, ...] = key(
        (),
        'classes of dataset.name to train on as examples of "unknown", never tested on: names, or "published" alone '
        "for those of the benchmark",
    )
    num_negative: int = key(
        0,
        "how many classes to take as dataset.negative: the first unknown ones in the order of the split; if those "
        "are of another dataset, the first classes of dataset.name that are not known",
        least=0,
    )
    image_size: int = key(16, "height and width in pixels; others are resized; 0: by the training images", least=0)
    channels: int = key(1, "1 (gray) or 3 (color); images are converted; 0: 1 if all training images are gray")
    validation_fraction: float = key(
        0.1, "share of the training images of each known class kept out of training", least=0, below=1
    )
    test_fraction: float = key(
        0.2, "share of each class used as the test part, for class folders and lists without parts", above=0, below=1
    )
    test_seed: int = key(0, "seed of that test part", least=0)
    background: str = key("white", "background of transparent images", choices=BACKGROUNDS)
    storage: str = key(
        "resident", '"resident": uint8 on the device; "stream": read from disk during training', choices=STORAGE
    )
    root: str = key("", "folder that paths in names of datasets are relative to", may_change=True)
    data_dir: str = key("", "TFDS directory; empty: its default", may_change=True)
    download: bool = key(True, "let TFDS download and prepare missing datasets", may_change=True)
    bad_images: str = key(
        "error",
        'unreadable images: "error", or "skip" with a warning that names them (reads every image once more)',
        choices=BAD_IMAGES,
        may_change=True,
    )

    def check(self):
        readers.check_name("dataset.name", self.name)
        if self.unknown_name:
            check_unknown_name("dataset.unknown_name", self.unknown_name)
        if self.channels not in (0, 1, 3):
            raise ValueError(f"dataset.channels must be 1 or 3, or 0 to derive it, got {self.channels}.")
        self._check_split()
        if self.negative and self.num_negative:
            raise ValueError(f"dataset.num_negative must be 0 with dataset.negative, got {self.num_negative}.")

    def _check_split(self):
        trials = len(splits.BENCHMARKS.get(self.benchmark, ()))
        name = f"dataset.trial (of benchmark {self.benchmark!r})"
        check_number(name, self.trial, least=0, most=trials - 1 if trials else None, whole=True)
        if self.benchmark == NAMED and not self.known:
            raise ValueError("dataset.benchmark 'named' needs the names of the known classes; set dataset.known.")
        if self.benchmark not in (NAMED, AUTO) and (self.known or self.unknown):
            raise ValueError(
                f"dataset.known and dataset.unknown are for dataset.benchmark 'named', got {self.benchmark!r}; set "
                "dataset.benchmark to 'named'."
            )
        if PUBLISHED in self.negative:
            self._check_published_negative()
        self._check_unknown_data()
        if self.benchmark == "all" and same_data(self.name, self.unknown_data):
            raise ValueError(
                f"dataset.benchmark 'all' leaves no class of {self.name!r} unknown; name another dataset as "
                "dataset.unknown_name."
            )
        if self.benchmark == "all" and self.has_negatives:
            name = "num_negative" if self.num_negative else "negative"
            raise ValueError(
                f"dataset.benchmark 'all' leaves no class of {self.name!r} for dataset.{name}, got "
                f"{getattr(self, name)}; use another benchmark, or no negative classes."
            )

    def _check_unknown_data(self):
        """Require dataset.unknown_name for a benchmark whose unknown classes are in another dataset."""
        for split in splits.BENCHMARKS.get(self.benchmark, ())[:1]:
            elsewhere = split.known_dataset != split.unknown_dataset and split.unknown_dataset not in readers.READERS
            alone = not split.unknown and same_data(self.name, self.unknown_data)
            if (elsewhere and not self.unknown_name) or alone:
                what = split.unknown_dataset if elsewhere else "other data"
                raise ValueError(
                    f"dataset.benchmark {self.benchmark!r} has unknown classes of {what}; set dataset.unknown_name."
                )

    def _check_published_negative(self):
        if len(self.negative) > 1:
            raise ValueError(f"dataset.negative must be {PUBLISHED!r} alone or names of classes, got {self.negative}.")
        if not any(split.negative for split in splits.BENCHMARKS.get(self.benchmark, ())):
            raise ValueError(
                f"dataset.negative {PUBLISHED!r} needs a benchmark with negative classes, got {self.benchmark!r}; name "
                "the classes."
            )

    @property
    def has_negatives(self) -> bool:
        """Whether training has images of negative classes."""
        return bool(self.negative or self.num_negative)

    @property
    def unknown_data(self) -> str:
        """Name of the dataset of the unknown classes."""
        return unknown_data_of(self.name, self.unknown_name, self.benchmark)


def unknown_data_of(name: str, unknown_name: str, benchmark: str) -> str:
    """Name of the dataset of the unknown classes, from three keys of the section."""
    published = splits.BENCHMARKS.get(benchmark)
    if unknown_name or not published or published[0].known_dataset == published[0].unknown_dataset:
        return unknown_name or name
    return published[0].unknown_dataset


def same_data(name: str, other: str) -> bool:
    """Whether two names mean the same dataset."""
    return readers.canonical(name) == readers.canonical(other)


def check_unknown_name(label: str, name: str) -> None:
    """Raises ValueError if `name`, the value of the key `label`, is not the name of a dataset with test images."""
    readers.check_name(label, name, with_train=False)
