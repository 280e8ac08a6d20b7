"""TFDS datasets, read without TensorFlow once they are prepared as array_record files."""

import contextlib
import dataclasses
import importlib.util
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from gradmix_jax.data.source import DataSet

# The part used as the test set; imagenet2012's test labels are not public.
TEST_PARTS = {
    "digits": "test",
    "mnist": "test",
    "fashion_mnist": "test",
    "svhn_cropped": "test",
    "cifar10": "test",
    "cifar100": "test",
    "cifar10_corrupted": "test",  # no train part; corruptions have names like cifar10_corrupted/fog_3
    "imagenet2012": "validation",
}
# Packages that TFDS 4.9.10 needs to prepare its own datasets but does not install.
_NEEDED_TO_PREPARE = {"tensorflow": "tensorflow-cpu", "importlib_resources": "importlib_resources"}
_CHUNK = 1024
# Encoded parts smaller than this stay in memory, because reading records one by one takes longer than decoding.
_KEEP_BYTES = 2**30
_REASON_LENGTH = 300


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedRecords:
    """One part of a prepared dataset.

    Attributes:
      encoded: a sequence of encoded images: a list of bytes, or one that reads array_record files.
      labels: class ids, int32 [N].
      name: what to call it in errors.
    """

    encoded: Sequence[bytes]
    labels: np.ndarray
    name: str

    def open(self, index: int) -> Image.Image:
        return Image.open(io.BytesIO(self.encoded[index]))

    def describe(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def fingerprint(self, indices: np.ndarray) -> str:
        # Prepared data does not change: other images have another version.
        return self.name


def load(name: str, *, data_dir: str, download: bool, with_train: bool) -> DataSet:
    """A TFDS dataset by name, or `digits`; prepared first if it is missing.

    The labels of all examples are read, which means reading all files once: seconds, but minutes for ImageNet.

    Args:
      name: a key of `TEST_PARTS`, with a TFDS config after a slash if the dataset has any.
      data_dir: TFDS directory; "" for its default ($TFDS_DATA_DIR or ~/tensorflow_datasets).
      download: whether to download and prepare missing data. Needs TensorFlow, except for `digits`, which is
        always prepared when missing.
      with_train: whether to load the train part.

    Raises:
      ValueError: the dataset is missing and cannot be prepared, or is damaged or prepared in another format. Damaged
        digits are prepared again, with a warning, since they come with scikit-learn.
    """
    data_dir = os.path.expanduser(data_dir)
    if name != "digits":
        return _load(name, data_dir, download, with_train)
    from gradmix_jax.data import digits  # noqa: F401  registers the name

    try:
        return _load(name, data_dir, download, with_train)
    except _DamagedError as error:
        if not _moved_away(name, data_dir):
            raise
        print(f"warning: {str(error).partition(';')[0]}; it is prepared again.", file=sys.stderr)
    return _load(name, data_dir, download, with_train)


class _DamagedError(ValueError):
    """A prepared dataset cannot be read."""


def _moved_away(name: str, data_dir: str) -> bool:
    """Move the folder of a dataset away, atomically for other processes; returns whether it is gone."""
    import tensorflow_datasets as tfds

    root = data_dir or tfds.core.constants.DATA_DIR
    try:
        with tempfile.TemporaryDirectory(dir=root, ignore_cleanup_errors=True) as aside:
            shutil.move(os.path.join(root, name), aside)
    except OSError:
        return False
    return True


def _load(name: str, data_dir: str, download: bool, with_train: bool) -> DataSet:
    """`load` without repairing damaged files."""
    builder = _find(name, data_dir) or _prepare(name, data_dir, download)
    with _named_if_damaged(name, str(builder.data_dir)):
        names = tuple(builder.info.features["label"].names)
    test = TEST_PARTS[name.split("/")[0]]
    parts = {part: _records(builder, part) for part in [test, "train"][: 1 + with_train]}
    for part, records in parts.items():
        if len(records.labels) and not 0 <= records.labels.min() <= records.labels.max() < len(names):
            labels = f"{records.labels.min()} to {records.labels.max()}"
            raise _damaged(name, str(builder.data_dir), f"labels of {part} are {labels} for {len(names)} classes")
    return DataSet(names, parts.get("train"), parts[test])


def _damaged(name: str, where: str, reason: str) -> _DamagedError:
    said = " ".join(reason.split())[:_REASON_LENGTH].rstrip(".")
    return _DamagedError(f"dataset {name!r} in {where} is damaged ({said}); delete its folder and prepare it again.")


@contextlib.contextmanager
def _named_if_damaged(name: str, where: str):
    """Turn anything that TFDS raises for a missing, short or changed file into one line."""
    try:
        yield
    except NotImplementedError:  # of another file format
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise _damaged(name, where, reason) from error


def _find(name: str, data_dir: str):
    """The builder of a prepared dataset of any version, or None."""
    from tensorflow_datasets.core import read_only_builder, registered

    with _named_if_damaged(name, _where(data_dir)):
        try:
            return read_only_builder.builder_from_files(name, data_dir=data_dir or None)
        except registered.DatasetNotFoundError:
            return None


def _prepare(name: str, data_dir: str, download: bool):
    """Download and prepare a dataset; safe to run in several processes at once."""
    import tensorflow_datasets as tfds

    if name != "digits":
        _check_can_prepare(name, data_dir, download)
    failure = prepared = None
    try:
        prepared = tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
        if name == "digits":
            _prepare_quietly(prepared)
        else:
            prepared.download_and_prepare()
    except Exception as error:
        # TFDS writes to a temporary directory and renames it at the end, where all but one of several processes fail
        # and then find what the first one left.
        failure = error
    builder = _find(name, data_dir)
    if builder is None:
        if failure is None:  # TFDS takes a folder of that name as prepared
            raise _damaged(name, str(prepared.data_dir), "files are missing")
        reason = f"{type(failure).__name__}: {' '.join(str(failure).split())[:_REASON_LENGTH]}"
        raise ValueError(f"preparing dataset {name!r} in {_where(data_dir)} failed: {reason}") from failure
    return builder


def _prepare_quietly(builder) -> None:
    """Prepare without TFDS's announcements, which are excessive for the digits."""
    import tensorflow_datasets as tfds

    logging.info("Preparing %s in %s.", builder.name, builder.data_dir)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    finally:
        tfds.enable_progress_bar()


def _check_can_prepare(name: str, data_dir: str, download: bool) -> None:
    if not download:
        raise ValueError(
            f"dataset {name!r} is not prepared in {_where(data_dir)}; set dataset.data_dir to where it is, or "
            "dataset.download to True."
        )
    missing = [package for module, package in _NEEDED_TO_PREPARE.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ValueError(
            f"dataset {name!r} is not prepared in {_where(data_dir)}, and TFDS needs {' and '.join(missing)} to "
            f"prepare it: run `pip install {' '.join(missing)}` (reading prepared data does not need it)."
        )


def _records(builder, part: str) -> PreparedRecords:
    import tensorflow_datasets as tfds

    name = f"{builder.info.full_name}:{part}"
    if part not in builder.info.splits:
        raise ValueError(f"{name} does not exist; the dataset has {', '.join(builder.info.splits)}.")
    # Images stay encoded: labels are then cheap to read, and decoding is the same for every kind of dataset.
    encoded = {
        key: tfds.decode.SkipDecoding()
        for key, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    try:
        with _named_if_damaged(name, str(builder.data_dir)):
            examples = builder.as_data_source(part, decoders=encoded)
            labels, images = _read(examples, keep=builder.info.splits[part].num_bytes <= _KEEP_BYTES)
    except NotImplementedError as error:
        raise ValueError(
            f"{name} must be prepared as array_record, got {builder.info.file_format.value} in {builder.data_dir}; set "
            "dataset.data_dir to another folder and dataset.download to True (needs TensorFlow)."
        ) from error
    return PreparedRecords(_OnDisk(examples) if images is None else images, labels, name)


def _read(examples: Any, *, keep: bool) -> tuple[np.ndarray, list[bytes] | None]:
    """(labels_N, encoded images unless they stay on disk)."""
    labels, images = [], []
    for start in range(0, len(examples), _CHUNK):
        chunk = examples.__getitems__(range(start, min(start + _CHUNK, len(examples))))
        labels += [example["label"] for example in chunk]
        images += [example["image"] for example in chunk] if keep else []
    return np.array(labels, np.int32), images if keep else None


@dataclasses.dataclass(frozen=True)
class _OnDisk:
    """The images of examples, read when asked for."""

    examples: Any

    def __getitem__(self, index: int) -> bytes:
        return self.examples[index]["image"]


def _where(data_dir: str) -> str:
    return data_dir or "the default directory of TFDS"
