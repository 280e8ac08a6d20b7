"""The readers of stored datasets: one entry per name, or kind of name, that `dataset.name` may have.

A new reader is a function `load(spec, name, with_train) -> DataSet` and one entry of `READERS`. It may come from
another package: `READERS["lmdb"] = Reader(load, argument="PATH")` before the config is made.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from gradmix_jax.data import csv_list, fine_grained, folder, hub, idx, imagenet, imglist, noise, prepared
from gradmix_jax.data.source import DataSet
from gradmix_jax.fields import check_choice, nearest


class Options(Protocol):
    """The keys of the `dataset` section that readers use; see `spec.Spec`, which checks names with this module."""

    root: str
    data_dir: str
    download: bool
    image_size: int
    channels: int
    test_fraction: float
    test_seed: int


@dataclasses.dataclass(frozen=True)
class Reader:
    """How datasets of one kind are read.

    Attributes:
      load: (`Options`, text after the colon or slash, with_train) -> `DataSet`; without training images if `with_train`
        is False. Raises ValueError, in one line, for data that is missing or does not fit.
      argument: the text after "kind:" in the name: "PATH", "NAME" (anything), or a tuple of choices; "": the name has
        no colon.
      has_train: whether there are training images; without them, a dataset can only be the unknown one.
    """

    load: Callable[[Options, str, bool], DataSet]
    argument: str | tuple[str, ...] = ""
    has_train: bool = True

    def forms(self, kind: str) -> tuple[str, ...]:
        """The names that this reader takes, as listed in error messages."""
        if not self.argument:
            return (kind,)
        arguments = (self.argument,) if isinstance(self.argument, str) else self.argument
        return tuple(f"{kind}:{argument}" for argument in arguments)

    def takes(self, kind: str, name: str) -> bool:
        """Whether `name` is a name of this kind."""
        if not self.argument:
            return name.split("/")[0] == kind  # a TFDS config may follow
        argument = name.partition(":")[2]
        return bool(argument) and (isinstance(self.argument, str) or argument in self.argument)


def _folder(spec, path, with_train):
    return folder.load(path, with_train=with_train, test_fraction=spec.test_fraction, seed=spec.test_seed)


def _csv(spec, path, with_train):
    return csv_list.load(path, with_train=with_train, test_fraction=spec.test_fraction, seed=spec.test_seed)


def _hub(spec, name, with_train):
    options = dict(test_fraction=spec.test_fraction, seed=spec.test_seed, download=spec.download)
    return hub.load(name, with_train=with_train, **options)


def _at_path(load):
    """The reader of a layout that itself defines which images are test images."""
    return Reader(lambda spec, path, with_train: load(path, with_train=with_train), argument="PATH")


def _noise(spec, kind, with_train):
    return noise.load(kind, image_size=spec.image_size, channels=spec.channels)


def _prepared(spec, name, with_train):
    return prepared.load(name, data_dir=spec.data_dir, download=spec.download, with_train=with_train)


READERS: dict[str, Reader] = {
    **{name: Reader(_prepared) for name in prepared.TEST_PARTS},
    "folder": Reader(_folder, argument="PATH"),
    "csv": Reader(_csv, argument="PATH"),
    "idx": _at_path(idx.load),
    "cub": _at_path(fine_grained.load_cub),
    "aircraft": _at_path(fine_grained.load_aircraft),
    "cars": _at_path(fine_grained.load_cars),
    "imagenet": _at_path(imagenet.load),
    "imglist": _at_path(imglist.load),
    "hf": Reader(_hub, argument="NAME"),
    "noise": Reader(_noise, argument=tuple(noise.KINDS), has_train=False),
}


def kind_of(name: str) -> str:
    """The key of `READERS` that a name belongs to, if any."""
    return name.partition(":")[0] if ":" in name else name.split("/")[0]


def check_name(label: str, name: str, *, with_train: bool = True) -> None:
    """Raises ValueError if `name`, the value of the key `label`, is not the name of a dataset.

    Args:
      label: name of the value in the message.
      name: the value.
      with_train: whether training images are needed.
    """
    table = {kind: reader for kind, reader in READERS.items() if reader.has_train or not with_train}
    kind = kind_of(name)
    if kind in table and table[kind].takes(kind, name):
        return
    if os.path.exists(os.path.expanduser(name)):
        raise ValueError(f"{label} must say how to read a path, got {name!r}; did you mean {guess(name)!r}?")
    forms = [form for kind, reader in table.items() for form in reader.forms(kind)]
    near = nearest(kind, [kind for kind, reader in table.items() if reader.argument]) if ":" in name else ""
    argument = name.partition(":")[2]
    check_choice(label, name, forms, guess=f"{near}:{argument}" if near and argument else "")


def guess(path: str) -> str:
    """The name of the dataset at an existing path, with its kind: csv, idx, hf (saved by `datasets`) or folder."""
    place = Path(os.path.expanduser(path))
    if place.is_file():
        return f"csv:{path}"
    if hub.is_saved(place):
        return f"hf:{path}"
    return f"idx:{path}" if any(place.glob("t10k-images*")) else f"folder:{path}"


def load(spec: Options, name: str, *, with_train: bool) -> DataSet:
    """The dataset `name`, from the location in `spec`."""
    check_name("dataset.name", name, with_train=with_train)
    kind = kind_of(name)
    argument = name.partition(":")[2] if READERS[kind].argument else name
    if READERS[kind].argument == "PATH":
        argument = located(spec, argument)
    return dataclasses.replace(READERS[kind].load(spec, argument, with_train), name=name)


def located(spec: Options, path: str) -> str:
    """The path in a dataset's name, relative to `dataset.root` unless it is absolute or starts with ~."""
    return path if path.startswith("~") else os.path.join(spec.root, path)


def canonical(name: str) -> str:
    """The same string for all names of one dataset: paths are resolved."""
    kind, _, path = name.partition(":")
    is_path = kind in READERS and READERS[kind].argument == "PATH"
    return f"{kind}:{os.path.realpath(os.path.expanduser(path))}" if is_path else name
