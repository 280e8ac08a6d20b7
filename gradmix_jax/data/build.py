"""From stored data sets and a class split to the four sources of an open set experiment."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from gradmix_jax.data import noise, prepared, splits
from gradmix_jax.data.source import DataSet, Records, Source, without_bad_images
from gradmix_jax.data.spec import PATH_KINDS, Spec, same_data

_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class OpenSet:
    """What `open_set` returns. Training and validation images are of known classes only.

    Attributes:
      train, validation: training images of the known classes, labels 0..K-1; no image is in both.
      test_known: test images of the known classes, labels 0..K-1.
      test_unknown: test images of the unknown classes, labels -1.
      split: class ids of both sides, as their data sets count them.
      class_names: names of the known classes in label order.
      stored_names: names of all classes of the data set of the known ones.
    """

    train: Source
    validation: Source
    test_known: Source
    test_unknown: Source
    split: splits.Split
    class_names: tuple[str, ...]
    stored_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """K, the number of known classes."""
        return len(self.class_names)


def open_set(spec: Spec) -> OpenSet:
    """The images of one open set experiment; none is decoded yet, unless bad images are to be skipped.

    Raises:
      ValueError: the data is missing or does not fit the spec: another number of classes than the benchmark's, a known
        class without training or test images, an unknown one without test images, a class on both sides.
    """
    known = load_stored(spec, spec.name, with_train=True)
    same = same_data(spec.name, spec.unknown_data)
    unknown = known if same else load_stored(spec, spec.unknown_data, with_train=False)
    split = _split(spec, len(known.class_names), len(unknown.class_names), same)
    if not same:
        _check_names_differ(split, known, unknown)

    labeled = pick(spec, known, "train", split.known)
    held_out = stratified(labeled.labels, spec.validation_fraction, seed=spec.trial)
    test_unknown = pick(spec, unknown, "test", split.unknown)
    data = OpenSet(
        train=labeled.take(~held_out),
        validation=labeled.take(held_out),
        test_known=pick(spec, known, "test", split.known),
        test_unknown=test_unknown.as_unknown(),
        split=split,
        class_names=tuple(known.class_names[c] for c in split.known),
        stored_names=known.class_names,
    )
    _assert_no_leak(data)
    return data


def stratified(labels_N: np.ndarray, share: float, *, seed: int) -> np.ndarray:
    """bool [N]: a seeded choice of the same share of every class, at least one image and never all.

    A class with a single image gives none.
    """
    random = np.random.default_rng(seed)
    chosen_N = np.zeros(len(labels_N), bool)
    for label in np.unique(labels_N) if share else ():
        places = random.permutation(np.flatnonzero(labels_N == label))
        count = min(max(1, round(share * len(places))), len(places) - 1)
        chosen_N[places[:count]] = True
    return chosen_N


def load_stored(spec: Spec, name: str, *, with_train: bool) -> DataSet:
    """A data set by name, from where `spec` says; `with_train`, else noise will do as well."""
    kind, _, path = name.partition(":")
    if name in noise.KINDS and not with_train:
        data = noise.load(name, image_size=spec.image_size, channels=spec.channels)
    elif path:
        data = PATH_KINDS[kind](path, with_train=with_train)
    else:
        data = prepared.load(name, data_dir=spec.data_dir, download=spec.download, with_train=with_train)
    return dataclasses.replace(data, name=name)


def _split(spec: Spec, num_classes: int, num_other: int, same: bool) -> splits.Split:
    """The split of this experiment, with the names of the data sets that are used for it."""
    names = {"known_dataset": spec.name, "unknown_dataset": spec.name if same else spec.unknown_data}
    if spec.benchmark == "all":
        return splits.Split(tuple(range(num_classes)), tuple(range(num_other)), **names)
    if spec.benchmark == "random":
        split = splits.random_split(num_classes, spec.num_known, trial=spec.trial)
        across = False
    else:
        split = splits.get(spec.benchmark, spec.trial)
        across = split.known_dataset != split.unknown_dataset
        _check_classes(spec, spec.name, num_classes, split.known if across else split.known + split.unknown, not across)
        if across:
            _check_classes(spec, spec.unknown_data, num_other, split.unknown, False)
    # A split of one data set says nothing about another one: there, every class is unknown.
    unknown = split.unknown if same or across else tuple(range(num_other))
    return splits.Split(split.known, unknown, **names)


def _check_classes(spec: Spec, name: str, num_classes: int, ids: Sequence[int], is_all: bool) -> None:
    """The ids of a published split are places in a class list: one class too many or too few shifts them all."""
    needed = max(ids) + 1
    if num_classes < needed or (is_all and num_classes != needed):
        raise ValueError(
            f"data set {name!r} has {num_classes} classes; allowed for dataset.benchmark {spec.benchmark!r}: "
            f"{needed}{'' if is_all else ' or more'}."
        )


def _check_names_differ(split: splits.Split, known: DataSet, unknown: DataSet) -> None:
    """Classes of the same name in two data sets are the same class; names that are mere numbers say nothing."""
    shared = shared_classes(
        (known.class_names[c] for c in split.known), (unknown.class_names[c] for c in split.unknown)
    )
    if shared:
        raise ValueError(
            f"classes {listed(shared)} are known in {split.known_dataset!r} and unknown in {split.unknown_dataset!r}; "
            "allowed: no class on both sides."
        )


def pick(spec: Spec, data: DataSet, part: str, classes: Sequence[int]) -> Source:
    """The images of some classes of one part, labelled by the place of their class in `classes`."""
    records: Records | None = getattr(data, part)
    label_of = np.full(len(data.class_names), -1, np.int32)
    label_of[list(classes)] = np.arange(len(classes))
    labels = label_of[records.labels]
    indices = np.flatnonzero(labels >= 0)
    shape = spec.image_size, spec.channels
    source = Source(records, indices, labels[indices], *shape, data.class_names, data.name)
    if spec.bad_images == "skip":
        source = without_bad_images(source)
    absent = [data.class_names[c] for c in np.array(classes)[np.setdiff1d(range(len(classes)), source.labels)]]
    if absent:
        raise ValueError(
            f"{len(absent)} of the {len(classes)} classes of this split have no images in the {part} part of their "
            f"data set: {listed(absent)}; allowed: known classes with training and test images, unknown classes with "
            "test images."
        )
    return source


def _assert_no_leak(data: OpenSet) -> None:
    """Unknown classes never reach training or model selection. Looks at the stored class ids, not at our labels."""
    for part in (data.train, data.validation):
        leaked = set(part.class_ids.tolist()) - set(data.split.known)
        if leaked:
            raise AssertionError(f"images of the classes {sorted(leaked)}, which are not known, are in training data")
        if not np.array_equal(np.array(data.split.known, np.int32)[part.labels], part.class_ids):
            raise AssertionError("labels do not belong to the classes of the split")
    if np.intersect1d(data.train.indices, data.validation.indices).size:
        raise AssertionError("training and validation images overlap")


def shared_classes(known: Iterable[str], unknown: Iterable[str]) -> list[str]:
    """Names on both sides, sorted, without mere numbers: those mean one thing here and another there."""
    return sorted(name for name in set(known) & set(unknown) if not name.isdigit())


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are, for an error."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
