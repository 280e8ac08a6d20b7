"""The published splits match the publications, and no split can mix its two sides."""

import hashlib

import pytest

from gradmix_jax.data import splits

# Hashes of repr([(known, unknown), ...]) of the five trials, computed from the published lists, not by this module.
DIGESTS = {
    "mnist": "0a70bfec1154eaf3",
    "svhn": "883a72f5c349f8dc",
    "cifar10": "b9f6e702c608401f",
    "cifar+10": "00f583bef020f2c2",
    "cifar+50": "d561833b23a3ea18",
    "tiny_imagenet": "2cb3e341cd965f35",
}
SIZES = {
    "mnist": (6, 4),
    "svhn": (6, 4),
    "cifar10": (6, 4),
    "cifar+10": (4, 10),
    "cifar+50": (4, 50),
    "tiny_imagenet": (20, 180),
}


def test_every_small_benchmark_is_there():
    assert set(DIGESTS) <= set(splits.BENCHMARKS)


@pytest.mark.parametrize("name", DIGESTS)
def test_published_classes_in_published_order(name):
    trials = [splits.get(name, trial) for trial in range(5)]
    assert {(len(split.known), len(split.unknown)) for split in trials} == {SIZES[name]}
    listed = repr([(split.known, split.unknown) for split in trials])
    assert hashlib.sha256(listed.encode()).hexdigest().startswith(DIGESTS[name])


def test_datasets_of_the_benchmarks():
    named = {name: (splits.get(name, 0).known_dataset, splits.get(name, 0).unknown_dataset) for name in DIGESTS}
    assert named == {
        "mnist": ("mnist", "mnist"),
        "svhn": ("svhn_cropped", "svhn_cropped"),
        "cifar10": ("cifar10", "cifar10"),
        "cifar+10": ("cifar10", "cifar100"),
        "cifar+50": ("cifar10", "cifar100"),
        "tiny_imagenet": ("", ""),
    }


@pytest.mark.parametrize(
    ("name", "trial", "message"),
    [
        ("cifar+1", 0, "must be one of .*cifar\\+50.*'cifar\\+1'; did you mean 'cifar\\+10'"),
        ("mnist", 5, "dataset.trial .of benchmark 'mnist'. must be an integer from 0 to 4, got 5"),
        ("mnist", -1, "from 0 to 4, got -1"),
    ],
)
def test_get_rejects(name, trial, message):
    with pytest.raises(ValueError, match=message):
        splits.get(name, trial)


@pytest.mark.parametrize(
    ("known", "unknown", "message"),
    [
        ((1, 2), (2, 3), r"\[2\] of dataset 'a' must be on one side only"),
        ((1, 1), (2,), r"known classes must be listed once each, got \[1\]"),
        ((1,), (2, 2), r"unknown classes must be listed once each, got \[2\]"),
        ((1, -2), (3,), "at least 0, got -2"),
        ((), (3,), "at least one known class"),
    ],
)
def test_split_rejects(known, unknown, message):
    with pytest.raises(ValueError, match=message):
        splits.Split(known, unknown, "a", "a")


def test_equal_ids_of_two_datasets_are_different_classes():
    assert splits.Split((1, 2), (2, 3), "a", "b").unknown == (2, 3)


def test_random_split_is_seeded_and_complete():
    split = splits.random_split(12, 5, trial=3)
    assert split == splits.random_split(12, 5, trial=3)
    assert sorted(split.known + split.unknown) == list(range(12))
    assert (len(split.known), split.known_dataset, split.unknown_dataset) == (5, "", "")
    assert len({splits.random_split(12, 5, trial=trial).known for trial in range(5)}) == 5


def test_random_split_keeps_its_classes_as_it_grows():
    known = splits.random_split(12, 9, trial=1).known
    assert all(splits.random_split(12, count, trial=1).known == known[:count] for count in range(1, 9))


@pytest.mark.parametrize(
    ("num_known", "trial", "message"), [(0, 0, "from 1 to 9"), (10, 0, "from 1 to 9"), (3, -1, "at least 0, got -1")]
)
def test_random_split_rejects(num_known, trial, message):
    with pytest.raises(ValueError, match=message):
        splits.random_split(10, num_known, trial=trial)


def test_a_single_class_cannot_be_split():
    with pytest.raises(ValueError, match="two or more classes, got 1"):
        splits.random_split(1, 1, trial=0)
