"""Which images an open set experiment gets, and with which labels."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats
from stored_data import SPEC, make_spec, write_folder, write_idx

from gradmix_jax import data as data_lib
from gradmix_jax.data import build, noise, splits
from gradmix_jax.data.class_names import CLASS_NAMES

ANIMALS = ("ant", "bee", "cat", "dog", "eel")


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    return write_folder(
        tmp_path_factory.mktemp("animals") / "set", train=dict.fromkeys(ANIMALS, 8), test=dict.fromkeys(ANIMALS, 3)
    )


def values(source):
    """The value of each (flat) image."""
    return data_lib.read_all(source)[:, 0, 0, 0].tolist()


def test_known_and_unknown_images_and_their_labels(animals):
    data = data_lib.open_set(make_spec(name=animals, trial=1, num_known=3))
    known, unknown = data.split.known, data.split.unknown
    assert sorted(known + unknown) == list(range(5)) and len(known) == 3
    assert list(known) != sorted(known), "this trial must show that labels follow the order of the split"
    assert data.class_names == tuple(ANIMALS[c] for c in known) and data.num_classes == 3
    for source, count in ((data.train, 8), (data.test_known, 3)):
        assert sorted(values(source)) == sorted(10 * c + place for c in known for place in range(count))
        assert [known[label] for label in source.labels] == [value // 10 for value in values(source)]
        assert source.labels.dtype == np.int32
    assert sorted(values(data.test_unknown)) == sorted(10 * c + place for c in unknown for place in range(3))
    assert data.test_unknown.labels.tolist() == [-1] * 6
    assert data.test_unknown.class_ids.tolist() == [value // 10 for value in values(data.test_unknown)]


def test_validation_is_a_stratified_seeded_part_of_the_training_images(animals):
    of = lambda fraction, trial=0: data_lib.open_set(
        make_spec(name=animals, num_known=4, trial=trial, validation_fraction=fraction)
    )
    data = of(0.25)
    assert np.bincount(data.train.labels).tolist() == [6] * 4
    assert np.bincount(data.validation.labels).tolist() == [2] * 4
    assert sorted(values(data.train) + values(data.validation)) == sorted(values(of(0.0).train))
    assert values(of(0.25).validation) == values(data.validation)
    assert len(of(0.0).validation) == 0
    assert len(of(0.01).validation) == 4 and len(of(0.99).train) == 4, "neither side may lose a class"


def test_validation_depends_on_the_seed():
    labels = np.repeat([0, 1], 50)
    chosen = [build.stratified(labels, 0.3, seed=seed) for seed in (0, 0, 1)]
    assert np.array_equal(chosen[0], chosen[1]) and not np.array_equal(chosen[0], chosen[2])
    assert chosen[0][:50].sum() == chosen[0][50:].sum() == 15
    assert build.stratified(np.array([0, 1, 1]), 0.5, seed=0).tolist()[0] is False, "a single image stays"


def test_all_classes_known_and_another_dataset_unknown(animals, tmp_path):
    other = write_folder(tmp_path / "other", train={"fly": 1}, test={"fly": 2, "gnu": 1})
    data = data_lib.open_set(make_spec(name=animals, unknown_name=other, benchmark="all"))
    assert data.class_names == ANIMALS and values(data.test_unknown) == [0, 1, 10]
    assert data.split == splits.Split(tuple(range(5)), (0, 1), animals, other)


def test_unknown_images_of_another_dataset_come_from_all_its_classes(animals, tmp_path):
    other = write_idx(tmp_path / "other", train_labels=[0], test_labels=[2, 0, 1, 0])
    data = data_lib.open_set(make_spec(name=animals, unknown_name=other, num_known=3))
    assert data.split.unknown == (0, 1, 2) and values(data.test_unknown) == [2, 0, 1, 0]


def test_a_benchmark_across_datasets(tmp_path):
    ten = write_idx(tmp_path / "ten", train_labels=range(10), test_labels=range(10))
    hundred = write_idx(tmp_path / "hundred", train_labels=[0], test_labels=range(100))
    data = data_lib.open_set(make_spec(name=ten, unknown_name=hundred, benchmark="cifar+10", trial=2))
    published = splits.get("cifar+10", 2)
    assert (data.split.known, data.split.unknown) == (published.known, published.unknown)
    assert sorted(values(data.train)) == sorted(published.known)
    assert sorted(values(data.test_unknown)) == sorted(published.unknown)
    with pytest.raises(
        ValueError, match="'cifar[+]10' does not fit .* 10 classes 0, 1, .*needs the 100 classes apple, .*0 to 99"
    ):
        data_lib.open_set(make_spec(name=ten, unknown_name=ten, benchmark="cifar+10"))


def test_unknown_data_of_a_benchmark_across_datasets():
    assert make_spec(name="cifar10", benchmark="cifar+50").unknown_data == "cifar100"
    assert make_spec(name="cifar10", benchmark="cifar+50", unknown_name="mnist").unknown_data == "mnist"
    assert make_spec(name="cifar10", benchmark="cifar10").unknown_data == "cifar10"


def test_classes_are_counted_over_train_and_test_together(tmp_path):
    """As for TinyImageNet, whose training images of unknown classes are not needed."""
    names = CLASS_NAMES[""]
    published = splits.get("tiny_imagenet", 0)
    name = write_folder(
        tmp_path / "tiny",
        train={names[c]: 1 for c in published.known},
        test=dict.fromkeys(names, 1),
        test_name="val",
        size=4,
    )
    data = data_lib.open_set(make_spec(name=name, benchmark="tiny_imagenet", image_size=4))
    assert data.class_names == tuple(names[c] for c in published.known)
    assert [published.known[label] * 10 % 256 for label in data.train.labels] == values(data.train)
    assert len(data.test_unknown) == 180
    with pytest.raises(ValueError, match="18 of the 20 classes of this split have no images in the train part"):
        data_lib.open_set(make_spec(name=name, benchmark="tiny_imagenet", trial=1))


def test_one_class_more_or_less_than_the_benchmark_has(tmp_path):
    for count in (9, 11):
        name = write_idx(tmp_path / str(count), train_labels=range(count), test_labels=range(count))
        with pytest.raises(ValueError, match=f"the {count} classes 0, 1, 2, 3, 4, ..., but the benchmark needs the 10"):
            data_lib.open_set(make_spec(name=name, benchmark="mnist"))


def test_a_benchmark_selects_classes_by_name_not_position(tmp_path):
    """CIFAR-10 with one capital: 'Truck' sorts first, and every class is still the published one."""
    names = [name.title() if name == "truck" else name for name in CLASS_NAMES["cifar10"]]
    name = write_folder(tmp_path / "ten", train=dict.fromkeys(names, 2), test=dict.fromkeys(names, 1))
    data = data_lib.open_set(make_spec(name=name, benchmark="cifar10", trial=2))
    assert data.class_names == ("automobile", "dog", "horse", "cat", "Truck", "deer")
    assert sorted(set(data.stored_names) - set(data.class_names)) == ["airplane", "bird", "frog", "ship"]
    stored = sorted(names)
    assert values(data.train)[0] // 10 == stored.index(data.class_names[data.train.labels[0]])
    digits = write_folder(
        tmp_path / "digits", train=dict.fromkeys("0123456789", 1), test=dict.fromkeys("0123456789", 1)
    )
    with pytest.raises(ValueError, match="'mnist' does not fit 'folder:.*ten', which has the 10 classes Truck, airpl"):
        data_lib.open_set(make_spec(name=name, benchmark="mnist"))
    for benchmark in ("mnist", "cifar10"):
        data = data_lib.open_set(make_spec(name=digits, benchmark=benchmark))
        assert data.class_names == tuple(str(c) for c in splits.get(benchmark, 0).known)


def test_numbered_classes_are_ordered_as_numbers(tmp_path):
    names = [str(c) for c in range(200)]
    name = write_folder(tmp_path / "set", train=dict.fromkeys(names, 1), test=dict.fromkeys(names, 1), size=4)
    data = data_lib.open_set(make_spec(name=name, benchmark="tiny_imagenet", trial=3, image_size=4))
    assert data.stored_names == tuple(names)
    assert data.class_names == tuple(str(c) for c in splits.get("tiny_imagenet", 3).known)


def test_classes_by_name(animals, tmp_path):
    named = lambda **keys: data_lib.open_set(make_spec(name=animals, benchmark="named", **keys))
    data = named(known=("dog", "ant"), unknown=("bee",))
    assert data.class_names == ("dog", "ant") and set(values(data.test_unknown)) == {10, 11, 12}
    assert sorted(values(data.train.take(data.train.labels == 0))) == list(range(30, 38))
    data = named(known=("dog", "ant"))
    assert [ANIMALS[c] for c in data.split.unknown] == ["bee", "cat", "eel"]
    other = write_folder(tmp_path / "other", train={}, test={"fly": 2, "gnu": 1})
    assert values(named(known=("dog", "ant"), unknown_name=other).test_unknown) == [0, 1, 10]
    assert values(named(known=("dog", "ant"), unknown_name=other, unknown=("gnu",)).test_unknown) == [10]


def name_of_a_set(kind, root):
    """Ant, bee and cat (0, 1 and 2 in IDX files), stored for one of the readers; returns the dataset's name."""
    counts = dict.fromkeys(ANIMALS[:3], 2)
    folder = write_folder(root / "folder", train=counts, test=counts)
    if kind == "csv":
        files = sorted((root / "folder").glob("*/*/*.png"))
        rows = [f"{file},{file.parent.name},{file.parent.parent.name}" for file in files]
        (root / "list.csv").write_text("\n".join(["path,label,split", *rows]))
        return f"csv:{root}/list.csv"
    return write_idx(root / "idx", train_labels=[0, 1, 2], test_labels=[0, 1, 2]) if kind == "idx" else folder


@pytest.mark.parametrize("kind", ["folder", "csv", "idx"])
def test_classes_by_name_with_every_reader_of_files(kind, tmp_path):
    name = name_of_a_set(kind, tmp_path)
    first, second, third = "012" if kind == "idx" else ANIMALS[:3]
    named = lambda **keys: data_lib.open_set(make_spec(name=name, benchmark="named", **keys))
    data = named(known=(third, first), unknown=(second,))
    assert data.class_names == (third, first) and set(data.test_unknown.classes) == {second}
    assert set(named(known=(third,)).test_unknown.classes) == {first, second}
    with pytest.raises(ValueError, match=f"dataset.known .* got '{third}s'; did you mean '{third}'?"):
        named(known=(f"{third}s",))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"known": ("cot", "dog")},
            "element of dataset.known .* must be one of ant, .*, got 'cot'; did you mean 'cat'",
        ),
        ({"known": ("cat",), "unknown": ("dgo",)}, "dataset.unknown .*, got 'dgo'; did you mean 'dog'"),
        ({"known": ("cat", "dog", "cat")}, "dataset.known must name every class once, got 'cat' 2 times"),
        ({"known": ("cat",), "unknown": ("cat",)}, "dataset.unknown must not have known classes, got cat; remove"),
        ({"known": ANIMALS}, "dataset.known has every class; leave one out"),
    ],
)
def test_classes_by_name_rejects(animals, keys, message):
    with pytest.raises(ValueError, match=message):
        data_lib.open_set(make_spec(name=animals, benchmark="named", **keys))


def test_classes_without_images(tmp_path):
    one_sided = write_folder(tmp_path / "a", train={"ant": 1, "bee": 1}, test={"bee": 1, "cat": 1})
    messages = {}
    for trial in range(8):
        with pytest.raises(ValueError) as caught:
            data_lib.open_set(make_spec(name=one_sided, num_known=1, trial=trial))
        known = splits.random_split(3, 1, trial=trial).known[0]
        messages[known] = str(caught.value)
    assert "test part of their dataset: ant" in messages[0], "a known class without test images"
    assert "test part of their dataset: ant" in messages[1], "an unknown class without test images"
    assert "train part of their dataset: cat" in messages[2], "a known class without training images"


def test_one_class_on_both_sides(animals, tmp_path):
    other = write_folder(tmp_path / "other", train={"cow": 1}, test={"cow": 1, "dog": 1})
    with pytest.raises(ValueError, match="classes dog are known in .* and unknown in"):
        data_lib.open_set(make_spec(name=animals, unknown_name=other, benchmark="all"))


def test_one_dataset_under_two_names_is_one_dataset(animals):
    other = animals.replace("/set", "/../" + animals.split("/")[-2] + "/set/")
    with pytest.raises(ValueError, match="'all' leaves no class"):
        make_spec(name=animals, unknown_name=other, benchmark="all")
    data = data_lib.open_set(make_spec(name=animals, unknown_name=other))
    assert not set(data.split.known) & set(data.split.unknown)


def test_unknown_classes_in_training_data_are_found(animals, monkeypatch):
    spec = make_spec(name=animals, num_known=3, validation_fraction=0.25)
    honest = build.pick

    def leaky(spec, data, part, classes):
        source = honest(spec, data, part, classes)
        if part == "train":
            source.indices[-1] = np.flatnonzero(~np.isin(source.records.labels, classes))[0]
        return source

    monkeypatch.setattr(build, "pick", leaky)
    with pytest.raises(AssertionError, match="not known, are in training data"):
        data_lib.open_set(spec)


def test_wrong_labels_and_shared_validation_images_are_found(animals):
    data = data_lib.open_set(make_spec(name=animals, num_known=3, validation_fraction=0.25))
    swap = lambda **parts: build.dataclasses.replace(data, **parts)
    wrong = build.dataclasses.replace(data.train, labels=np.roll(data.train.labels, 1))
    with pytest.raises(AssertionError, match="labels"):
        build._assert_no_leak(swap(train=wrong))
    with pytest.raises(AssertionError, match="overlap"):
        build._assert_no_leak(swap(validation=data.train.take([0, 3])))
    with pytest.raises(AssertionError, match="not known"):
        build._assert_no_leak(swap(validation=data.test_unknown))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "foler:a/b"}, "dataset.name must be one of .*, got 'foler:a/b'; did you mean 'folder:a/b'"),
        ({"name": "cifar11"}, "dataset.name must be one of .*folder:PATH.*, got 'cifar11'; did you mean 'cifar10"),
        ({"name": ""}, "dataset.name must be one of .*, got ''"),
        ({"name": "folder:"}, "dataset.name must be one of .*, got 'folder:'"),
        (
            {"unknown_name": "mnits"},
            "dataset.unknown_name must be .*noise:uniform.*, got 'mnits'; did you mean 'mnist'",
        ),
        (
            {"benchmark": "cifar"},
            "dataset.benchmark must be one of mnist.*random, named, all, auto, got 'cifar'; .*'cifar10'",
        ),
        ({"benchmark": "all"}, "another dataset as dataset.unknown_name"),
        (
            {"benchmark": "mnist", "trial": 5},
            "dataset.trial .of benchmark 'mnist'. must be an integer from 0 to 4, got 5",
        ),
        ({"trial": -1}, "dataset.trial must be an integer at least 0, got -1"),
        ({"trial": "0"}, "dataset.trial .*, got '0'"),
        ({"num_known": -1}, "dataset.num_known must be an integer at least 0, got -1"),
        ({"image_size": -1}, "dataset.image_size must be an integer at least 0, got -1"),
        ({"channels": 2}, "dataset.channels must be 1 or 3, or 0 to derive it, got 2"),
        ({"validation_fraction": 1.0}, "dataset.validation_fraction must be a number at least 0 and below 1, got 1.0"),
        ({"storage": "disk"}, "dataset.storage must be one of resident, stream, got 'disk'"),
        ({"download": "False"}, "dataset.download must be True or False, got 'False'"),
        ({"bad_images": "ignore"}, "dataset.bad_images must be one of error, skip, got 'ignore'"),
        ({"background": "red"}, "dataset.background must be one of white, gray, black, got 'red'"),
        ({"test_fraction": 0.0}, "dataset.test_fraction must be .*above 0.*, got 0.0"),
        ({"benchmark": "named"}, "needs the names of the known classes; set dataset.known"),
        ({"known": ("cat",)}, "are for dataset.benchmark 'named', got 'random'; set dataset.benchmark to 'named'"),
        ({"name": "noise:uniform"}, "dataset.name must be one of"),
        ({"unknown_name": "noise:pink"}, "dataset.unknown_name must be one of .*, got 'noise:pink'"),
    ],
)
def test_spec_rejects(change, message):
    with pytest.raises(ValueError, match=message):
        make_spec(**change)


def test_spec_has_no_other_keys():
    with pytest.raises(TypeError, match="color"):
        data_lib.Spec(**SPEC, color=True)


def test_slow_packages_are_imported_only_when_needed():
    code = (
        "import sys, gradmix_jax.data; "
        "print([m for m in ('tensorflow', 'tensorflow_datasets', 'grain', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("channels", [1, 3])
def test_noise_has_the_named_distribution(channels):
    """SciPy's tests: uniform noise has equally frequent values, Gaussian noise is clipped."""
    pixels = {}
    for kind in noise.KINDS:
        loaded = noise.load(kind, image_size=8, channels=channels)
        images = np.stack([np.asarray(loaded.test.open(index)) for index in range(100)])
        pixels[kind] = images.reshape(-1).astype(int)
        assert len(loaded.test.labels) == noise.NUM_IMAGES and images.shape[1:3] == (8, 8)
    assert stats.chisquare(np.bincount(pixels["uniform"], minlength=256)).pvalue > 1e-3
    levels = np.bincount(pixels["gaussian"], minlength=256) / len(pixels["gaussian"])
    edges = stats.norm.cdf(np.arange(1, 256), 127.5, 64)  # values are cut off to whole numbers
    assert np.abs(levels.cumsum()[:-1] - edges).max() < 0.02
