"""Class names of the benchmarks' datasets, and the order of class names in general."""

from collections.abc import Iterable, Sequence

from gradmix_jax.data import published

_DIGITS = tuple(map(str, range(10)))
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""
_TINY_IMAGENET = """
n01443537 n01629819 n01641577 n01644900 n01698640 n01742172 n01768244 n01770393 n01774384 n01774750 n01784675
n01855672 n01882714 n01910747 n01917289 n01944390 n01945685 n01950731 n01983481 n01984695 n02002724 n02056570
n02058221 n02074367 n02085620 n02094433 n02099601 n02099712 n02106662 n02113799 n02123045 n02123394 n02124075
n02125311 n02129165 n02132136 n02165456 n02190166 n02206856 n02226429 n02231487 n02233338 n02236044 n02268443
n02279972 n02281406 n02321529 n02364673 n02395406 n02403003 n02410509 n02415577 n02423022 n02437312 n02480495
n02481823 n02486410 n02504458 n02509815 n02666196 n02669723 n02699494 n02730930 n02769748 n02788148 n02791270
n02793495 n02795169 n02802426 n02808440 n02814533 n02814860 n02815834 n02823428 n02837789 n02841315 n02843684
n02883205 n02892201 n02906734 n02909870 n02917067 n02927161 n02948072 n02950826 n02963159 n02977058 n02988304
n02999410 n03014705 n03026506 n03042490 n03085013 n03089624 n03100240 n03126707 n03160309 n03179701 n03201208
n03250847 n03255030 n03355925 n03388043 n03393912 n03400231 n03404251 n03424325 n03444034 n03447447 n03544143
n03584254 n03599486 n03617480 n03637318 n03649909 n03662601 n03670208 n03706229 n03733131 n03763968 n03770439
n03796401 n03804744 n03814639 n03837869 n03838899 n03854065 n03891332 n03902125 n03930313 n03937543 n03970156
n03976657 n03977966 n03980874 n03983396 n03992509 n04008634 n04023962 n04067472 n04070727 n04074963 n04099969
n04118538 n04133789 n04146614 n04149813 n04179913 n04251144 n04254777 n04259630 n04265275 n04275548 n04285008
n04311004 n04328186 n04356056 n04366367 n04371430 n04376876 n04398044 n04399382 n04417672 n04456115 n04465501
n04486054 n04487081 n04501370 n04507155 n04532106 n04532670 n04540053 n04560804 n04562935 n04596742 n04597913
n06596364 n07579787 n07583066 n07614500 n07615774 n07695742 n07711569 n07715103 n07720875 n07734744 n07747607
n07749582 n07753592 n07768694 n07871810 n07873807 n07875152 n07920052 n09193705 n09246464 n09256479 n09332890
n09428293 n12267677
"""

# By the dataset of a `splits.Split`, in the order of its class ids. TinyImageNet has no TFDS name; its
# classes are 200 WordNet ids, sorted.
CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "mnist": _DIGITS,
    "svhn_cropped": _DIGITS,
    "cifar10": _CIFAR10,
    "cifar100": tuple(_CIFAR100.split()),
    "": tuple(_TINY_IMAGENET.split()),
    **published.class_names(),
}
# Datasets that may be stored in part, or with more classes, because every class has a unique WordNet id.
IN_PARTS = ("imagenet", "imagenet21k")
_SHOWN = 5
_PLAIN = str.maketrans("_-/", "   ")


def is_numbered(names: Iterable[str]) -> bool:
    """Whether all names are numbers, such as "0" to "199" or "000" to "199"."""
    return all(name.isascii() and name.isdigit() for name in names)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct class names in the order of their ids: numbers by value, other names alphabetically."""
    names = tuple(sorted(set(names)))
    return tuple(sorted(names, key=int)) if is_numbered(names) else names


def ids_in(names: Sequence[str], dataset: str, ids: Sequence[int], *, whole: bool) -> tuple[int, ...]:
    """The positions of some classes of a benchmark's dataset in a list of class names.

    Args:
      names: class names as stored. Names that are numbers from 0 on are taken as the published class ids.
      dataset: key of `CLASS_NAMES`.
      ids: the classes, as numbered by the benchmark.
      whole: whether `names` must list exactly the classes of the dataset; otherwise only those of `ids`, as
        always for `IN_PARTS`.

    Raises:
      ValueError: the names are neither those of the dataset (ignoring case, "_", "-", "/" and spaces) nor numbers.
    """
    expected = CLASS_NAMES[dataset]
    in_parts = dataset in IN_PARTS
    place_of = {_plain(name): place for place, name in enumerate(names)}
    wanted = [_plain(expected[c]) for c in ids]
    if set(place_of) == set(map(_plain, expected)) if whole and not in_parts else set(wanted) <= set(place_of):
        return tuple(place_of[name] for name in wanted)
    counted = is_numbered(names) and [*map(int, names)] == [*range(len(names))]
    if counted and (len(names) == len(expected) or (not (whole or in_parts) and len(names) > max(ids))):
        return tuple(ids)
    if in_parts:
        missing = [name for name in wanted if name not in place_of]
        raise ValueError(
            f"lacks {len(missing)} of the {len(wanted)} classes {_listed(missing)}; name their folders by WordNet id."
        )
    raise ValueError(
        f"has the {len(names)} classes {_listed(names)}, but the benchmark needs the {len(expected)} classes "
        f"{_listed(expected)}; rename them, or number them 0 to {len(expected) - 1} in this order."
    )


def datasets_of(names: Sequence[str]) -> list[str]:
    """The keys of `CLASS_NAMES` with exactly these classes, ignoring case, "_", "-" and spaces."""
    plain = set(map(_plain, names))
    return [dataset for dataset, expected in CLASS_NAMES.items() if plain == set(map(_plain, expected))]


def _plain(name: str) -> str:
    return name.lower().translate(_PLAIN)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
