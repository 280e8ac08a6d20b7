"""The published class splits of open set recognition: `BENCHMARKS`, by name and trial.

The six small benchmarks, of five trials each, are listed here; their class ids are those of the TFDS datasets of the
same name; TinyImageNet's index the sorted list of its 200 WordNet ids. Source: the splits of the open set
literature, on which independent code bases agree, order included. The larger ones come from `published`, and
`protocols.PROTOCOLS` says more about each. Known classes are listed in published order, which is also the order of the
training labels 0..K-1.
"""

import collections
import dataclasses

import numpy as np

from gradmix_jax.data import class_names, published
from gradmix_jax.fields import check_choice, check_number


@dataclasses.dataclass(frozen=True)
class Split:
    """Known and unknown class ids, each counted within its own dataset.

    Attributes:
      known: ids of the classes to train on; the k-th one gets the training label k.
      unknown: ids of the classes that appear only at test time, as "unknown".
      known_dataset: name of the dataset of the `known` ids; "" if it has no TFDS name.
      unknown_dataset: name of the dataset of the `unknown` ids.
      negative: ids of the classes that may be trained on as examples of "unknown", numbered like `known`; they are
        neither known nor in the test.
      groups: (name, ids) of parts of `unknown` that are reported separately, such as "easy" and "hard".

    Raises:
      ValueError: no known class, a class listed twice, an id below 0, a class of one dataset on two sides, or a class
        of a group that is not unknown.
    """

    known: tuple[int, ...]
    unknown: tuple[int, ...]
    known_dataset: str
    unknown_dataset: str
    negative: tuple[int, ...] = ()
    groups: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def __post_init__(self):
        if not self.known:
            raise ValueError("a split must have at least one known class, got none.")
        for side in ("known", "unknown", "negative"):
            classes = getattr(self, side)
            repeated = sorted(c for c, count in collections.Counter(classes).items() if count > 1)
            if repeated:
                raise ValueError(f"{side} classes must be listed once each, got {repeated} more than once.")
            if any(c < 0 for c in classes):
                raise ValueError(f"{side} classes must be at least 0, got {min(classes)}.")
        known, unknown, negative = set(self.known), set(self.unknown), set(self.negative)
        same = self.known_dataset == self.unknown_dataset
        overlap = sorted((known & negative) | ((known | negative) & unknown if same else set()))
        if overlap:
            raise ValueError(f"classes {overlap} of dataset {self.known_dataset!r} must be on one side only.")
        for name, classes in self.groups:
            if not unknown.issuperset(classes):
                raise ValueError(f"group {name!r} must have unknown classes only, got {sorted({*classes} - unknown)}.")


def _within(dataset: str, num_classes: int, *trials: tuple[int, ...]) -> tuple[Split, ...]:
    """Trials within one dataset: every class that is not known is unknown, as published."""
    return tuple(
        Split(known, tuple(c for c in range(num_classes) if c not in known), dataset, dataset) for known in trials
    )


def _across(*trials: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[Split, ...]:
    """Trials with known classes of CIFAR-10 and unknown classes of CIFAR-100."""
    return tuple(Split(known, unknown, "cifar10", "cifar100") for known, unknown in trials)


def _listed(lists: published.Lists) -> Split:
    """The only trial of a protocol of `published`."""
    unknown = tuple(c for ids in lists.groups.values() for c in ids)
    groups = tuple((name, ids) for name, ids in lists.groups.items() if name)
    return Split(lists.known, unknown, lists.of, lists.unknown_of, lists.negative, groups)


def _superclasses(dataset: str) -> tuple[Split, ...]:
    """One trial for each superclass, alphabetically: its classes are known, every other superclass is a group."""
    place = {name: c for c, name in enumerate(class_names.CLASS_NAMES[dataset])}
    groups = {name: tuple(place[each] for each in names) for name, names in published.superclasses(dataset).items()}
    splits = []
    for chosen, known in sorted(groups.items()):
        others = tuple((name, ids) for name, ids in groups.items() if name != chosen)
        splits.append(Split(known, tuple(c for _, ids in others for c in ids), dataset, dataset, groups=others))
    return tuple(splits)


# fmt: off
BENCHMARKS: dict[str, tuple[Split, ...]] = {
    "mnist": _within(
        "mnist", 10,
        (2, 4, 5, 9, 8, 3),
        (3, 2, 6, 9, 4, 0),
        (5, 8, 3, 2, 4, 6),
        (3, 7, 8, 4, 0, 5),
        (6, 3, 4, 9, 8, 2),
    ),
    "svhn": _within(
        "svhn_cropped", 10,
        (5, 3, 7, 2, 8, 6),
        (3, 8, 7, 6, 2, 5),
        (8, 9, 4, 7, 2, 1),
        (3, 8, 2, 5, 0, 6),
        (4, 9, 2, 7, 1, 0),
    ),
    "cifar10": _within(
        "cifar10", 10,
        (0, 6, 4, 9, 1, 7),
        (7, 6, 4, 9, 0, 1),
        (1, 5, 7, 3, 9, 4),
        (8, 6, 1, 9, 0, 7),
        (2, 4, 1, 7, 9, 6),
    ),
    "cifar+10": _across(
        ((4, 7, 9, 1), (30, 25, 1, 9, 8, 0, 46, 52, 49, 71)),
        ((6, 7, 1, 9), (41, 9, 49, 40, 73, 60, 48, 30, 95, 71)),
        ((9, 6, 1, 7), (8, 9, 49, 40, 73, 60, 48, 95, 30, 71)),
        ((6, 4, 9, 1), (95, 60, 30, 73, 46, 49, 68, 99, 8, 71)),
        ((1, 0, 9, 8), (33, 2, 3, 97, 46, 21, 64, 63, 88, 43)),
    ),
    "cifar+50": _across(
        ((4, 7, 9, 1), (
            27, 94, 29, 77, 88, 26, 69, 48, 75, 5, 59, 93, 39, 57, 45, 40, 78, 20, 98, 47, 66, 70,
            91, 76, 41, 83, 99, 32, 53, 72, 2, 95, 21, 73, 84, 68, 35, 11, 55, 60, 30, 25, 1, 9,
            8, 0, 46, 52, 49, 71,
        )),
        ((6, 7, 1, 9), (
            65, 97, 86, 24, 45, 67, 2, 3, 91, 98, 79, 29, 62, 82, 33, 76, 0, 35, 5, 16, 54, 11,
            99, 52, 85, 1, 25, 66, 28, 84, 23, 56, 75, 46, 21, 72, 55, 68, 8, 69, 41, 9, 49, 40,
            73, 60, 48, 30, 95, 71,
        )),
        ((9, 6, 1, 7), (
            20, 83, 65, 97, 94, 2, 93, 16, 67, 29, 62, 33, 24, 98, 5, 86, 35, 54, 0, 91, 52, 66,
            85, 84, 56, 11, 1, 76, 25, 55, 21, 99, 72, 41, 23, 75, 28, 68, 69, 46, 8, 9, 49, 40,
            73, 60, 48, 95, 30, 71,
        )),
        ((6, 4, 9, 1), (
            92, 82, 77, 64, 5, 33, 62, 56, 70, 0, 20, 28, 67, 14, 84, 53, 91, 29, 85, 2, 52, 83,
            75, 35, 11, 21, 72, 98, 55, 1, 41, 76, 25, 66, 69, 9, 48, 54, 40, 23, 95, 60, 30, 73,
            46, 49, 68, 99, 8, 71,
        )),
        ((1, 0, 9, 8), (
            47, 6, 19, 0, 62, 93, 59, 65, 54, 70, 34, 55, 23, 38, 72, 76, 53, 31, 78, 96, 77, 27,
            92, 18, 82, 50, 98, 32, 1, 75, 83, 4, 51, 35, 80, 11, 74, 66, 36, 42, 33, 2, 3, 97,
            46, 21, 64, 63, 88, 43,
        )),
    ),
    "tiny_imagenet": _within(
        "", 200,
        (108, 147, 17, 58, 193, 123, 72, 144, 75, 167, 134, 14, 81, 171, 44, 197, 152, 66, 1, 133),
        (198, 161, 91, 59, 57, 134, 61, 184, 90, 35, 29, 23, 199, 38, 133, 19, 186, 18, 85, 67),
        (177, 0, 119, 26, 78, 80, 191, 46, 134, 92, 31, 152, 27, 60, 114, 50, 51, 133, 162, 93),
        (98, 36, 158, 177, 189, 157, 170, 191, 82, 196, 138, 166, 43, 13, 152, 11, 75, 174, 193, 190),
        (95, 6, 145, 153, 0, 143, 31, 23, 189, 81, 20, 21, 89, 26, 36, 170, 102, 177, 108, 169),
    ),
    "cifar100_superclasses": _superclasses("cifar100"),
    **{name: (_listed(lists),) for name, lists in published.lists().items()},
}
# fmt: on


def get(name: str, trial: int) -> Split:
    """The published split `trial`, from 0, of a benchmark.

    Raises:
      ValueError: unknown benchmark, or trial out of range.
    """
    check_choice("dataset.benchmark", name, BENCHMARKS)
    label = f"dataset.trial (of benchmark {name!r})"
    check_number(label, trial, least=0, most=len(BENCHMARKS[name]) - 1, whole=True)
    return BENCHMARKS[name][trial]


def random_split(num_classes: int, num_known: int, *, trial: int) -> Split:
    """A split of any other dataset: `num_known` classes drawn with seed `trial`, all others unknown.

    A larger `num_known` with the same trial adds classes and keeps those drawn before, so that the effect of the
    number of known classes can be studied in isolation.

    Raises:
      ValueError: fewer than two classes, num_known is not in 1..num_classes-1, or trial is negative.
    """
    if num_classes < 2:
        raise ValueError(f"a random split needs a dataset of two or more classes, got {num_classes}.")
    check_number(f"dataset.num_known (of {num_classes} classes)", num_known, least=1, most=num_classes - 1, whole=True)
    check_number("dataset.trial", trial, least=0, whole=True)
    drawn = tuple(int(c) for c in np.random.default_rng(trial).permutation(num_classes))
    return Split(drawn[:num_known], tuple(sorted(drawn[num_known:])), "", "")
