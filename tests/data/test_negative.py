"""Negative classes are trained on as examples of "unknown" with label -1, and never tested on."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from stored_data import make_spec, write_folder

from gradmix_jax import data as data_lib
from gradmix_jax import objectives
from gradmix_jax.data import build, splits
from gradmix_jax.evaluation import guards
from gradmix_jax.objectives.contrastive import of_same_class

ANIMALS = ("ant", "bee", "cat", "dog", "eel")


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    root = tmp_path_factory.mktemp("animals") / "set"
    return write_folder(root, train=dict.fromkeys(ANIMALS, 4), test=dict.fromkeys(ANIMALS, 2))


def open_named(animals, **changes):
    named = {"name": animals, "benchmark": "named", "known": ("dog", "ant"), "negative": ("bee", "eel")}
    return data_lib.open_set(make_spec(**named | changes))


def values(source):
    return data_lib.read_all(source)[:, 0, 0, 0].tolist()


def test_negative_classes_are_trained_on_and_not_tested_on(animals):
    data = open_named(animals, validation_fraction=0.25)
    assert sorted(values(data.negative)) == [10, 11, 12, 13, 40, 41, 42, 43]
    assert set(data.negative.labels.tolist()) == {-1} and set(data.test_unknown.classes) == {"cat"}
    both = data.for_training
    assert len(data.train) == 6 and len(both) == 14
    assert values(both) == values(data.train) + values(data.negative)
    assert both.labels.tolist() == data.train.labels.tolist() + [-1] * 8 and both.labels.dtype == np.int32
    assert both.classes.tolist() == data.train.classes.tolist() + data.negative.classes.tolist()
    assert set(data.validation.classes) == {"ant", "dog"}


def test_without_negative_classes_nothing_changes(animals):
    data = open_named(animals, negative=())
    assert data.negative is None and data.for_training is data.train
    assert set(data.test_unknown.classes) == {"bee", "cat", "eel"}


def test_negative_classes_of_a_benchmark_are_used_only_on_request(animals, monkeypatch):
    published = splits.Split((3,), (2, 4), "five", "five", negative=(0,), groups=(("easy", (4,)), ("hard", (2,))))
    monkeypatch.setitem(splits.BENCHMARKS, "five", (published,))
    monkeypatch.setitem(build.class_names.CLASS_NAMES, "five", ANIMALS)
    of = lambda *negative: data_lib.open_set(make_spec(name=animals, benchmark="five", negative=negative))
    data = of()
    assert data.negative is None and data.split.negative == ()
    assert set(data.train.classes) == {"dog"} and set(data.test_unknown.classes) == {"cat", "eel"}
    assert set(of("published").negative.classes) == {"ant"}
    data = of("bee", "eel")
    assert set(data.negative.classes) == {"bee", "eel"}
    assert data.split.unknown == (2,) and data.split.groups == (("hard", (2,)),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"negative": ("dog", "bee")}, "dataset.negative must not have known classes, got dog"),
        ({"negative": ("fly",)}, "each element of dataset.negative .*must be one of ant, .*got 'fly'"),
        ({"negative": ("bee", "bee")}, "dataset.negative must name every class once, got 'bee' 2 times"),
        ({"negative": ("bee", "cat", "eel")}, "dataset.negative takes every unknown class; leave one out"),
        ({"negative": ("published",)}, "'published' needs a benchmark with negative classes, got 'named'"),
        ({"negative": ("published", "bee")}, "must be 'published' alone or names of classes"),
    ],
)
def test_what_cannot_be_negative(animals, changes, message):
    with pytest.raises(ValueError, match=message):
        open_named(animals, **changes)


def test_a_negative_class_must_not_be_unknown_in_another_dataset(animals, tmp_path):
    other = write_folder(tmp_path / "other", train={"bee": 1}, test={"bee": 1, "fly": 1})
    with pytest.raises(ValueError, match="classes bee are known or negative in .* and unknown in"):
        open_named(animals, unknown_name=other)


def test_a_negative_image_in_the_test_is_a_leak(animals):
    data = open_named(animals)
    leaking = dataclasses.replace(data, split=dataclasses.replace(data.split, unknown=(), negative=(1, 2, 4)))
    with pytest.raises(AssertionError, match="negative images must be"):
        build._assert_no_leak(leaking)
    leaking = dataclasses.replace(data, test_unknown=data.negative)
    with pytest.raises(AssertionError, match=r"negative classes \[1, 4\] are in test data"):
        build._assert_no_leak(leaking)


def test_negative_images_count_as_training_images_for_the_leak_guards():
    parts = {"train": 1, "negative": 2, "validation": 3, "test_known": 4}
    assert guards.of_training(parts) == (1, 3, 2) and guards.of_selection(parts) == (1, 3)


def test_supcon_treats_every_negative_image_as_its_own_class():
    labels = np.array([0, -1, -1, 0])
    features = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    of = lambda labels: of_same_class(
        objectives.make_batch(jnp.asarray(features), jnp.asarray(features), jnp.asarray(labels), views=2), jnp.arange(8)
    )
    assert np.array_equal(of(labels), of(np.array([0, 7, 8, 0])))
