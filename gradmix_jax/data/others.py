"""Datasets for tests only: out-of-distribution images, corrupted images, and labeled datasets to probe."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from gradmix_jax.data import class_names, readers
from gradmix_jax.data.build import OpenSet, listed, pick, stratified
from gradmix_jax.data.source import ArrayRecords, DataSet, Records, Source
from gradmix_jax.data.spec import Spec

VALIDATION_SHARE = 0.1


def out_of_distribution(spec: Spec, name: str) -> Source:
    """The test images of another dataset, at the size and channels of `spec`, labeled -1.

    Raises:
      ValueError: the dataset is missing.
    """
    data = readers.load(spec, name, with_train=False)
    return pick(spec, data, "test", sorted(set(data.test.labels.tolist()))).as_unknown()


def shifted(spec: Spec, data: OpenSet, name: str) -> Source:
    """The test images of another dataset that belong to the run's known classes, with the run's labels.

    Classes are matched by name; not every known class needs images there. Images of other classes are
    left out.

    Raises:
      ValueError: the dataset is missing, or has no image of a known class.
    """
    stored = readers.load(spec, name, with_train=False)
    present = set(stored.test.labels.tolist())
    label_of = {known: label for label, known in enumerate(data.class_names)}
    classes = [c for c, each in enumerate(stored.class_names) if each in label_of and c in present]
    if not classes:
        raise ValueError(
            f"evaluate.shifted must have images of known classes, but {name!r} has none; its classes are "
            f"{listed(stored.class_names)}, the known ones {listed(data.class_names)}."
        )
    source = pick(spec, stored, "test", classes)
    labels = np.array([label_of[stored.class_names[c]] for c in classes], np.int32)
    return dataclasses.replace(source, labels=labels[source.labels])


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled:
    """A dataset to probe: all its classes, with its own labels; validation images are cut from its training images."""

    train: Source
    validation: Source
    test: Source
    num_classes: int


def labeled(spec: Spec, name: str) -> Labelled:
    """All classes of a dataset, at the size and channels of `spec`.

    Raises:
      ValueError: the dataset is missing, or a class lacks training or test images.
    """
    data = readers.load(spec, name, with_train=True)
    # A folder may have test images of classes without training images; only classes that can be learned are probed.
    classes = sorted(set(data.train.labels.tolist()))
    train = pick(spec, data, "train", classes)
    held_out = stratified(train.labels, VALIDATION_SHARE, seed=0)
    return Labelled(train.take(~held_out), train.take(held_out), pick(spec, data, "test", classes), len(classes))


def corrupted(
    spec: Spec,
    data: OpenSet,
    source: str,
    corruption: str,
    severity: int,
    places: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[Source, Source]:
    """The test images of the known and the unknown classes from a published set of corrupted images.

    Args:
      spec, data: those of the run; known and unknown classes must be of one dataset.
      source: "cifar10_corrupted" (TFDS), or "folder:PATH" with either <corruption>.npy and labels.npy (the release of
        CIFAR-10-C: severities one after the other) or <corruption>/<severity>/<class>/* (that of TinyImageNet-C).
      corruption: its name, a key of `corruptions.CORRUPTIONS`.
      severity: 1 to 5.
      places: positions of the images of `data.test_known` and `data.test_unknown` to take; None: all of them.

    Returns:
      Sources with the labels of `data`.

    Raises:
      ValueError: the files are missing, their classes are not those of the run's dataset, or some images must be
        left out and cannot be identified here.
    """
    if data.split.known_dataset != data.split.unknown_dataset:
        raise ValueError(
            f"evaluate.corruptions {source!r} has no images of {data.split.unknown_dataset!r} (unknown classes); "
            "set it to 'regenerated'."
        )
    kind, _, path = source.partition(":")
    if kind != "folder":
        stored = readers.load(spec, f"{source}/{corruption}_{severity}", with_train=False)
    else:
        stored = _release(
            Path(os.path.expanduser(readers.located(spec, path))), source, corruption, severity, data.stored_names
        )
    if stored.class_names != data.stored_names:
        raise ValueError(
            f"evaluate.corruptions must have the {len(data.stored_names)} classes of {data.split.known_dataset!r}, got "
            f"{source!r} with {len(stored.class_names)} classes; name corrupted images of the same dataset."
        )
    known, unknown = (pick(spec, stored, "test", side) for side in (data.split.known, data.split.unknown))
    if places is not None:
        known, unknown = map(_those_at, (known, unknown), (data.test_known, data.test_unknown), places, 2 * [source])
    return known, unknown.as_unknown()


def _those_at(images: Source, clean: Source, places: np.ndarray, name: str) -> Source:
    """The corrupted versions of the clean images at `places`, matched by their position in the dataset."""
    wanted, records = clean.indices[places], clean.records
    left_out = np.isin(records.labels, images.class_ids).sum() - len(wanted)
    if not left_out:
        return images
    if not _same_order(images.records, records):
        raise ValueError(
            f"evaluate.corruptions {name!r} has images in another order than the run's test images, so the {left_out} "
            "test images that are left out cannot be found in it; set it to 'regenerated', or remove the duplicates."
        )
    return images.take(np.isin(images.indices, wanted))


def _same_order(records: Records, others: Records) -> bool:
    if not np.array_equal(records.labels, others.labels):
        return False
    files = [getattr(each, "paths", None) for each in (records, others)]
    if None in files:
        return True
    return all(Path(one).stem == Path(other).stem for one, other in zip(*files))


def _release(root: Path, source: str, corruption: str, severity: int, names: tuple[str, ...]) -> DataSet:
    from gradmix_jax.data import folder

    arrays, classes = root / f"{corruption}.npy", root / corruption / str(severity)
    if arrays.is_file() and (root / "labels.npy").is_file():
        images, labels = _stored_array(arrays), _stored_array(root / "labels.npy")
        labels = _checked_labels(root / "labels.npy", labels, arrays, images, len(names))
        count = len(images) // 5
        rows = slice((severity - 1) * count, severity * count)
        return DataSet(names, None, ArrayRecords(images[rows], labels[rows], str(arrays)), source)
    if classes.is_dir():
        found = class_names.in_order(entry.name for entry in os.scandir(classes) if entry.is_dir())
        return DataSet(found, None, folder.read_part(classes, found), source)
    raise ValueError(
        f"{root} has neither {arrays.name} with labels.npy nor {corruption}/{severity}; give the folder of a release."
    )


def _stored_array(path: Path) -> np.ndarray:
    """The array of a .npy file, left on disk until it is used; nothing is unpickled.

    Raises:
      ValueError: the file is not such an array, truncated or damaged; one line.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # NumPy raises anything for a broken header
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path} is damaged or not a .npy file ({reason.rstrip('.')}).") from error


def _checked_labels(path: Path, labels: np.ndarray, images_path: Path, images: np.ndarray, num_classes: int):
    """The labels of a release as int32 [N]; a column [N, 1] is accepted too.

    Raises:
      ValueError: images or labels that do not fit, one line.
    """
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)):
        raise ValueError(f"{images_path} must be uint8 [N, H, W] or [N, H, W, 1 or 3], got {_described(images)}.")
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape not in ((len(images),), (len(images), 1)):
        raise ValueError(f"{path} must be integers [{len(images)}], a label per image, got {_described(labels)}.")
    if not len(images) or len(images) % 5:
        raise ValueError(f"{images_path} must have as many images of each of 5 severities, got {len(images)} in all.")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"{path} must be from 0 to {num_classes - 1}, got {labels.min()} to {labels.max()}.")
    return labels.reshape(-1).astype(np.int32)


def _described(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"
