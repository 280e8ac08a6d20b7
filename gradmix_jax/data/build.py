"""Builds the four sources of an open set experiment from stored datasets and a class split."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from gradmix_jax.data import class_names, readers, splits
from gradmix_jax.data.source import DataSet, Records, Source, without_bad_images
from gradmix_jax.data.spec import AUTO, NAMED, PUBLISHED, Spec, same_data
from gradmix_jax.fields import check_choice

_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class OpenSet:
    """The result of `open_set`. Train and validation images are of known classes only; no test image is negative.

    Attributes:
      train, validation: training images of the known classes, labels 0..K-1; no image is in both.
      test_known: test images of the known classes, labels 0..K-1.
      test_unknown: test images of the unknown classes, labels -1.
      split: class ids of both sides, as numbered by their datasets.
      class_names: names of the known classes in label order.
      stored_names: names of all classes in the dataset of the known ones.
      negative: training images of the negative classes (`dataset.negative`), labels -1; None if there are none.
    """

    train: Source
    validation: Source
    test_known: Source
    test_unknown: Source
    split: splits.Split
    class_names: tuple[str, ...]
    stored_names: tuple[str, ...]
    negative: Source | None = None

    @property
    def num_classes(self) -> int:
        """K, the number of known classes."""
        return len(self.class_names)

    @property
    def negative_names(self) -> tuple[str, ...]:
        """Names of the negative classes."""
        return tuple(self.stored_names[c] for c in self.split.negative)

    @property
    def for_training(self) -> Source:
        """The images that batches are drawn from: `train`, then `negative` with label -1."""
        if self.negative is None:
            return self.train
        both = lambda what: np.concatenate([getattr(each, what) for each in (self.train, self.negative)])
        return dataclasses.replace(self.train, indices=both("indices"), labels=both("labels"))


def open_set(spec: Spec) -> OpenSet:
    """The images of one open set experiment, not decoded yet unless bad images are skipped.

    Raises:
      ValueError: the data is missing or does not fit the spec: classes other than the benchmark's, a known class
        without training or test images, an unknown one without test images, a class on both sides.
    """
    if not (spec.image_size and spec.channels) or spec.benchmark == AUTO:
        raise ValueError(
            "dataset.image_size, channels and benchmark must be set; `run.finished` derives them from the data."
        )
    known = readers.load(spec, spec.name, with_train=True)
    same = same_data(spec.name, spec.unknown_data)
    unknown = known if same else readers.load(spec, spec.unknown_data, with_train=False)
    split = split_of(spec, known.class_names, unknown.class_names)
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
        negative=pick(spec, known, "train", split.negative).as_unknown() if split.negative else None,
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


def split_of(spec: Spec, known_names: Sequence[str], unknown_names: Sequence[str]) -> splits.Split:
    """The split of this experiment; class ids are positions in the class names of the two datasets.

    Negative classes are those requested by `spec.negative` or `spec.num_negative`; they are no longer unknown. Other
    negative classes of a benchmark are in no part.

    Args:
      spec: the section.
      known_names: all class names of `spec.name`, as stored.
      unknown_names: all class names of `spec.unknown_data`, which may be the same dataset.

    Raises:
      ValueError: the classes are not those of the published benchmark, or named classes do not exist.
    """
    split = _split_of(spec, known_names, unknown_names)
    if not spec.has_negatives:
        return dataclasses.replace(split, negative=())
    if spec.negative == (PUBLISHED,):
        return split
    negative = _named("dataset.negative", spec.negative, spec.name, known_names)
    if spec.num_negative:
        same = split.known_dataset == split.unknown_dataset
        others = split.unknown if same else tuple(c for c in range(len(known_names)) if c not in split.known)
        negative = others[: spec.num_negative]
        if len(negative) < spec.num_negative:
            raise ValueError(f"dataset.num_negative must be at most {len(others)}, got {spec.num_negative}.")
    if set(negative) & set(split.known):
        names = listed([known_names[c] for c in negative if c in split.known])
        raise ValueError(f"dataset.negative must not have known classes, got {names}; remove them.")
    left = set(negative) if split.known_dataset == split.unknown_dataset else set()
    without = lambda ids: tuple(c for c in ids if c not in left)
    if not without(split.unknown):
        key = f"dataset.num_negative {spec.num_negative}" if spec.num_negative else "dataset.negative"
        raise ValueError(f"{key} takes every unknown class; leave one out to test on.")
    groups = tuple((name, without(ids)) for name, ids in split.groups if without(ids))
    return dataclasses.replace(split, unknown=without(split.unknown), negative=negative, groups=groups)


def _split_of(spec: Spec, known_names: Sequence[str], unknown_names: Sequence[str]) -> splits.Split:
    """`split_of` with all negative classes of a benchmark, and none of `spec.negative`."""
    same = same_data(spec.name, spec.unknown_data)
    names = {"known_dataset": spec.name, "unknown_dataset": spec.name if same else spec.unknown_data}
    others = tuple(range(len(unknown_names)))
    if spec.benchmark == "all":
        return splits.Split(tuple(range(len(known_names))), others, **names)
    if spec.benchmark == NAMED:
        known = _named("dataset.known", spec.known, spec.name, known_names)
        left = tuple(c for c in others if not (same and c in known))
        unknown = _named("dataset.unknown", spec.unknown, spec.unknown_data, unknown_names) or left
        if not unknown:
            raise ValueError("dataset.known has every class; leave one out, or set dataset.unknown_name.")
        both = [known_names[c] for c in known if same and c in unknown]
        if both:
            raise ValueError(f"dataset.unknown must not have known classes, got {listed(both)}; remove them.")
        return splits.Split(known, unknown, **names)
    if spec.benchmark == "random":
        split = splits.random_split(len(known_names), spec.num_known, trial=spec.trial)
        return splits.Split(split.known, split.unknown if same else others, **names)
    split = splits.get(spec.benchmark, spec.trial)
    across = split.known_dataset != split.unknown_dataset
    found = lambda ids: _published(spec, spec.name, known_names, split.known_dataset, ids, whole=not across)
    known, negative = found(split.known), found(split.negative) if split.negative else ()
    if same or across:
        parts = (spec.unknown_data, unknown_names, split.unknown_dataset, split.unknown)
        unknown = _published(spec, *parts, whole=not across)
        place = dict(zip(split.unknown, unknown))
        groups = tuple((name, tuple(place[c] for c in ids)) for name, ids in split.groups)
        return splits.Split(known, unknown, **names, negative=negative, groups=groups)
    # A split of one dataset says nothing about another one: there, every class is unknown.
    return splits.Split(known, others, **names, negative=negative)


def _published(
    spec: Spec, name: str, stored: Sequence[str], dataset: str, ids: Sequence[int], *, whole: bool
) -> tuple[int, ...]:
    try:
        return class_names.ids_in(stored, dataset, ids, whole=whole)
    except ValueError as error:
        raise ValueError(f"dataset.benchmark {spec.benchmark!r} does not fit {name!r}, which {error}") from None


def _named(label: str, wanted: Sequence[str], dataset: str, stored: Sequence[str]) -> tuple[int, ...]:
    for name in wanted:
        check_choice(f"each element of {label} (classes of {dataset!r})", name, stored)
    repeated = [name for name in wanted if wanted.count(name) > 1]
    if repeated:
        raise ValueError(f"{label} must name every class once, got {repeated[0]!r} {wanted.count(repeated[0])} times.")
    return tuple(stored.index(name) for name in wanted)


def _check_names_differ(split: splits.Split, known: DataSet, unknown: DataSet) -> None:
    """Raises if a class trained on and an unknown class of another dataset share a name; numbers do not count."""
    trained = (*split.known, *split.negative)
    shared = shared_classes((known.class_names[c] for c in trained), (unknown.class_names[c] for c in split.unknown))
    if shared:
        side = "known" if not split.negative else "known or negative"
        raise ValueError(
            f"classes {listed(shared)} are {side} in {split.known_dataset!r} and unknown in {split.unknown_dataset!r}; "
            "leave them out on one side."
        )


def pick(spec: Spec, data: DataSet, part: str, classes: Sequence[int]) -> Source:
    """The images of some classes of one part, labeled by the position of their class in `classes`."""
    records: Records | None = getattr(data, part)
    label_of = np.full(len(data.class_names), -1, np.int32)
    label_of[list(classes)] = np.arange(len(classes))
    labels = label_of[records.labels]
    indices = np.flatnonzero(labels >= 0)
    shape = spec.image_size, spec.channels
    source = Source(records, indices, labels[indices], *shape, data.class_names, data.name, spec.background)
    if spec.bad_images == "skip":
        source = without_bad_images(source)
    absent = [data.class_names[c] for c in np.array(classes)[np.setdiff1d(range(len(classes)), source.labels)]]
    if absent:
        raise ValueError(
            f"{len(absent)} of the {len(classes)} classes of this split have no images in the {part} part of their "
            f"dataset: {listed(absent)}; add images, or choose other classes (known ones need training and test "
            "images, unknown ones test images)."
        )
    return source


def _assert_no_leak(data: OpenSet) -> None:
    """Unknown classes never reach training or model selection, and negative ones never the test.

    Checks the stored class ids, not our labels.
    """
    for part in (data.train, data.validation):
        leaked = set(part.class_ids.tolist()) - set(data.split.known)
        if leaked:
            raise AssertionError(f"images of the classes {sorted(leaked)}, which are not known, are in training data")
        if not np.array_equal(np.array(data.split.known, np.int32)[part.labels], part.class_ids):
            raise AssertionError("labels do not belong to the classes of the split")
    ids = [] if data.negative is None else data.negative.class_ids.tolist()
    if set(ids) != set(data.split.negative) or (ids and (data.negative.labels != -1).any()):
        raise AssertionError("negative images must be of the negative classes and labeled -1")
    same = data.split.known_dataset == data.split.unknown_dataset
    for part in (data.test_known, *((data.test_unknown,) if same else ())):
        leaked = set(part.class_ids.tolist()) & set(data.split.negative)
        if leaked:
            raise AssertionError(f"images of the negative classes {sorted(leaked)} are in test data")
    if np.intersect1d(data.train.indices, data.validation.indices).size:
        raise AssertionError("training and validation images overlap")


def shared_classes(known: Iterable[str], unknown: Iterable[str]) -> list[str]:
    """Names on both sides, sorted. Numbers do not count, since they mean different classes in different datasets."""
    return sorted(name for name in set(known) & set(unknown) if not name.isdigit())


def listed(names: Sequence[str]) -> str:
    """The first few names and how many more there are, for an error message."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
