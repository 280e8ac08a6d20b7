"""The published protocols have the published classes, and every one has a config."""

import hashlib
import importlib.resources
import pathlib
import runpy

import pytest
from miniature import CONFIGS
from stored_data import make_spec, write_folder

from gradmix_jax import config as config_lib
from gradmix_jax import data as data_lib
from gradmix_jax.data import class_names, published, splits
from gradmix_jax.data.class_names import CLASS_NAMES
from gradmix_jax.data.protocols import PROTOCOLS

# (known, negative, {group: unknown classes}) as the papers state them.
COUNTS = {
    "ssb_cub": (100, 0, {"easy": 32, "medium": 34, "hard": 34}),
    "ssb_aircraft": (50, 0, {"easy": 20, "medium": 17, "hard": 13}),
    "ssb_cars": (98, 0, {"easy": 76, "medium": 15, "hard": 7}),
    "ssb_imagenet": (1000, 0, {"easy": 1000, "hard": 1000}),
    "ssb_imagenet_w21": (1000, 0, {"easy": 1000, "hard": 980}),
    "imagenet_p1": (116, 67, {"": 166}),
    "imagenet_p2": (30, 31, {"": 55}),
    "imagenet_p3": (151, 97, {"": 164}),
    "imagenet100": (100, 0, {"": 900}),
    "imagenet200": (200, 0, {"": 0}),
    "cifar100_macro": (6, 0, {"": 6}),
}
# Hashes of repr of the class names or ids of each side, computed from the published lists, not by this package.
ID_DIGESTS = {"ssb_cub": "e34bf7489ed13630", "ssb_aircraft": "e2c07f8a1a6c97aa", "ssb_cars": "af837547ee5126d7"}
NAME_DIGESTS = {"imagenet_p1": "2a0eaff6352a5f43", "imagenet_p2": "b6a7ad58b13aaef1", "imagenet_p3": "9e895e7827f6207d"}
KNOWN_DIGESTS = {"imagenet100": "b592ab27d02df80e", "imagenet200": "4d498a4c7d8f04ad"}
GROUP_DIGESTS = {"ssb_imagenet": "e812fc2c9bfc9bd2", "ssb_imagenet_w21": "a4df238b9db95f10"}


def digest(*sides):
    return hashlib.sha256(repr(list(sides)).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", COUNTS)
def test_numbers_of_classes(name):
    known, negative, groups = COUNTS[name]
    (split,) = splits.BENCHMARKS[name]
    assert (len(split.known), len(split.negative), len(split.unknown)) == (known, negative, sum(groups.values()))
    assert {group: len(ids) for group, ids in split.groups} == {each: n for each, n in groups.items() if each}
    assert {group: len(ids) for group, ids in published.lists()[name].groups.items()} == groups
    assert not split.groups or sorted(c for _, ids in split.groups for c in ids) == sorted(split.unknown)


def test_every_list_is_counted_here():
    assert COUNTS.keys() == published.lists().keys()
    assert {name: len(names) for name, names in published.class_names().items()} == {
        **{"imagenet": 1000, "imagenet21k": 2000, "cub": 200, "aircraft": 100, "cars": 196}
    }
    assert all(len(set(names)) == len(names) for names in published.class_names().values())


@pytest.mark.parametrize("name", ID_DIGESTS)
def test_classes_by_id_are_the_published_ones_in_their_order(name):
    (split,) = splits.BENCHMARKS[name]
    assert digest((split.known, split.unknown)) == ID_DIGESTS[name]
    assert sorted(split.known + split.unknown) == list(range(len(CLASS_NAMES[split.known_dataset])))


@pytest.mark.parametrize("name", NAME_DIGESTS)
def test_classes_by_name_are_the_published_ones_in_their_order(name):
    (split,) = splits.BENCHMARKS[name]
    named = lambda ids: tuple(CLASS_NAMES["imagenet"][c] for c in ids)
    assert digest(*map(named, (split.known, split.negative, split.unknown))) == NAME_DIGESTS[name]
    assert list(split.known) == sorted(split.known), "the label order of ILSVRC2012"


@pytest.mark.parametrize("name", KNOWN_DIGESTS)
def test_subsets_of_imagenet_are_the_published_ones(name):
    (split,) = splits.BENCHMARKS[name]
    assert digest(tuple(CLASS_NAMES["imagenet"][c] for c in split.known)) == KNOWN_DIGESTS[name]
    assert not split.unknown or sorted(split.known + split.unknown) == list(range(1000))


@pytest.mark.parametrize("name", GROUP_DIGESTS)
def test_unknown_classes_of_imagenet_21k(name):
    (split,) = splits.BENCHMARKS[name]
    groups = dict(split.groups)
    named = lambda ids: tuple(sorted(CLASS_NAMES["imagenet21k"][c] for c in ids))
    assert digest(named(groups["easy"]), named(groups["hard"])) == GROUP_DIGESTS[name]
    assert not set(named(split.unknown)) & set(CLASS_NAMES["imagenet"])


def test_names_that_ids_refer_to():
    """The first and last of each list, and places where sorting would change the order."""
    cars = CLASS_NAMES["cars"]
    assert (cars[0], cars[5], cars[195]) == (
        *("AM General Hummer SUV 2000", "Acura Integra Type R 2001"),
        "smart fortwo Convertible 2012",
    )
    assert list(cars) != sorted(cars)
    assert [int(name[:3]) for name in CLASS_NAMES["cub"]] == list(range(1, 201))
    assert list(CLASS_NAMES["aircraft"]) == sorted(CLASS_NAMES["aircraft"])
    assert list(CLASS_NAMES["imagenet"]) == sorted(CLASS_NAMES["imagenet"])


def test_superclasses():
    groups = published.superclasses()
    assert len(groups) == 20 and {len(names) for names in groups.values()} == {5}
    assert sorted(name for names in groups.values() for name in names) == sorted(CLASS_NAMES["cifar100"])
    trials = splits.BENCHMARKS["cifar100_superclasses"]
    assert len(trials) == 20 and {(len(s.known), len(s.unknown), len(s.groups)) for s in trials} == {(5, 95, 19)}
    people = trials[sorted(groups).index("people")]
    assert {CLASS_NAMES["cifar100"][c] for c in people.known} == {"baby", "boy", "girl", "man", "woman"}
    macro = splits.get("cifar100_macro", 0)
    of = {name: group for group, names in groups.items() for name in names}
    assert len({of[CLASS_NAMES["cifar100"][c]] for c in macro.known + macro.unknown}) == 12
    named = lambda ids: " ".join(CLASS_NAMES["cifar100"][c] for c in ids)
    assert named(macro.known) == "beaver orchid bear clock crab bicycle"
    assert named(macro.unknown) == "aquarium_fish apple bed fox bee lawn_mower"


def test_ids():
    assert published.ids("3 7-9 2") == (3, 7, 8, 9, 2)
    assert published.ids(["0-2", "5"]) == (0, 1, 2, 5) and published.ids("") == ()


def test_the_lists_are_installed_with_the_package():
    assert (importlib.resources.files("gradmix_jax.data") / "protocols.json").is_file()
    assert '"gradmix_jax.data": ["protocols.json"]' in (pathlib.Path(__file__).parents[2] / "setup.py").read_text()


# Every benchmark is a protocol, and every protocol has a config


def test_every_benchmark_is_in_the_table():
    of_table = {protocol.benchmark for protocol in PROTOCOLS.values()} - {"all"}
    assert of_table | {"imagenet200"} == set(splits.BENCHMARKS), "imagenet200 is OpenOOD's without its lists"


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_config_of_a_protocol(name):
    protocol = PROTOCOLS[name]
    file, _, variant = protocol.config.partition(":")
    get_config = runpy.run_path(str(CONFIGS / f"{file}.py"))["get_config"]
    for text in (variant, f"{variant},layer") if variant else ("layer",):
        config = get_config(text) if text else get_config()
        assert (config.dataset.name, config.dataset.benchmark) == (protocol.name, protocol.benchmark)
        assert config.dataset.unknown_name == protocol.unknown_name
        for kind in ("near", "far", "shifted"):
            assert tuple(config.evaluate[kind]) == getattr(protocol, kind)
    if protocol.benchmark != "all":
        assert {len(split.known) for split in splits.BENCHMARKS[protocol.benchmark]} == {protocol.classes}


def test_openood_datasets_are_those_of_its_tables():
    short = lambda names: [name.rpartition("/")[2] for name in names]
    large = PROTOCOLS["openood_imagenet200"], PROTOCOLS["openood_imagenet"]
    for protocol in large:
        assert short(protocol.near) == ["ssb_hard", "ninco"]
        assert short(protocol.far) == ["inaturalist", "textures", "openimage_o"]
        assert [name[-2:] for name in short(protocol.shifted)] == ["v2", "_c", "_r"]
    for protocol, other in ((PROTOCOLS["openood_cifar10"], "cifar100"), (PROTOCOLS["openood_cifar100"], "cifar10")):
        assert short(protocol.near) == [other, "tin"]
        assert short(protocol.far) == ["mnist", "svhn", "texture", "places365"]
    assert large[0].near[0] == "imglist:benchmark_imglist/imagenet/ssb_hard"


def test_variant_and_recipe_after_the_colon():
    of = lambda text: config_lib.variant_of(text, ("cub", "cars"), recipe="none")
    assert of("cars") == ("cars", "none") and of("cars,layer") == ("cars", "layer") and of("layer") == ("cub", "layer")
    for text, message in (
        ("bus", "the variant must be one of cub, cars"),
        ("cub,x", "the recipe must be one of input"),
    ):
        with pytest.raises(ValueError, match=message):
            of(text)


# Class lists against stored datasets


def test_imagenet_may_be_stored_in_part_or_with_more_classes(tmp_path):
    p2, wnids = splits.get("imagenet_p2", 0), CLASS_NAMES["imagenet"]
    needed = [wnids[c] for c in p2.known + p2.unknown]
    assert class_names.ids_in(needed, "imagenet", p2.known, whole=True) == tuple(range(30))
    assert class_names.ids_in(wnids, "imagenet", p2.known, whole=True) == p2.known
    assert class_names.ids_in([*map(str, range(1000))], "imagenet", p2.known, whole=True) == p2.known
    with pytest.raises(ValueError, match="lacks 29 of the 30 classes n02088094, .*name their folders by WordNet id"):
        class_names.ids_in(needed[:1], "imagenet", p2.known, whole=True)
    with pytest.raises(ValueError, match="lacks 30 of the 30"):
        class_names.ids_in([*map(str, range(300))], "imagenet", p2.known, whole=True)


def test_a_slash_in_a_class_name_is_replaced_in_a_folder_name():
    names = [name.replace("/", "-") for name in CLASS_NAMES["aircraft"]]
    assert class_names.ids_in(names, "aircraft", (72, 73), whole=True) == (72, 73)
    assert CLASS_NAMES["aircraft"][72:74] == ("F-16A/B", "F/A-18")


def test_a_benchmark_with_unknown_classes_elsewhere_asks_for_them(tmp_path):
    with pytest.raises(ValueError, match="'ssb_imagenet' has unknown classes of imagenet21k; set dataset.unknown_name"):
        make_spec(name="imagenet:x", benchmark="ssb_imagenet")
    with pytest.raises(ValueError, match="'imagenet200' has unknown classes of other data; set dataset.unknown_name"):
        make_spec(name="imagenet:x", benchmark="imagenet200")
    names = [CLASS_NAMES["imagenet"][c] for c in splits.get("imagenet200", 0).known]
    known = write_folder(tmp_path / "known", train=dict.fromkeys(names, 1), test=dict.fromkeys(names, 1))
    other = write_folder(tmp_path / "other", train={"fly": 1}, test={"fly": 2})
    data = data_lib.open_set(make_spec(name=known, unknown_name=other, benchmark="imagenet200"))
    assert data.class_names == tuple(names) and len(data.test_unknown) == 2


def test_groups_follow_the_stored_ids(tmp_path):
    """Class folders of Cars sort differently from their class ids."""
    names = sorted(name.replace("/", "-") for name in CLASS_NAMES["cars"])
    name = write_folder(tmp_path / "cars", train=dict.fromkeys(names, 1), test=dict.fromkeys(names, 1), size=4)
    data = data_lib.open_set(make_spec(name=name, benchmark="ssb_cars", image_size=4))
    published_groups = dict(splits.get("ssb_cars", 0).groups)
    for group, ids in data.split.groups:
        expected = [CLASS_NAMES["cars"][c].replace("/", "-") for c in published_groups[group]]
        assert [names[c] for c in ids] == expected


# Documentation


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_page_of_protocols_has_a_row_for_each(name):
    protocol = PROTOCOLS[name]
    file, _, variant = protocol.config.partition(":")
    config = f"configs/{file}.py:{variant}" if variant else f"configs/{file}.py"
    page = (pathlib.Path(__file__).parents[2] / "docs" / "protocols.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith(f"| {protocol.title} | `configs/")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    trials = splits.BENCHMARKS.get(protocol.benchmark, (None,))
    assert cells[1:5] == [f"`{config}`", f"`{protocol.benchmark}`", str(len(trials)), str(protocol.classes)]
    assert cells[7] == protocol.source
    if protocol.benchmark == "all":
        assert cells[6] == f"{len(protocol.near)} near, {len(protocol.far)} far sets"
        return
    split = trials[0]
    groups = ", ".join(f"{len(ids)} {group}" for group, ids in split.groups) if len(split.groups) < 5 else ""
    assert cells[5:7] == [str(len(split.negative) or "–"), groups or str(len(split.unknown))]
