"""Published evaluation protocols: `PROTOCOLS`, the table that configs and docs/protocols.md are checked against.

A protocol is a benchmark of `splits.BENCHMARKS`, or a dataset with all classes known and other datasets to detect.
"""

import dataclasses

_LISTS = "imglist:benchmark_imglist"


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A protocol, and the config that runs it.

    Attributes:
      title: its name.
      config: a file of configs/, with the variant after its colon.
      source: the paper, or the authors of the lists.
      benchmark: key of `splits.BENCHMARKS`; "all": every class of `name` is known.
      classes: number of known classes.
      name: the dataset of the known classes, as in its config before paths are set.
      unknown_name: the dataset of the unknown classes, if it is another one.
      near, far, shifted: datasets of an evaluation against out-of-distribution images (`evaluate.near` and so on).
    """

    title: str
    config: str
    source: str
    benchmark: str
    classes: int
    name: str
    unknown_name: str = ""
    near: tuple[str, ...] = ()
    far: tuple[str, ...] = ()
    shifted: tuple[str, ...] = ()


def _small(title: str, config: str, benchmark: str, classes: int, name: str) -> Protocol:
    return Protocol(title, config, "Neal et al. 2018 (ECCV), arXiv 2110.06207", benchmark, classes, name)


def _ssb(title: str, variant: str, classes: int, name: str, **rest: str) -> Protocol:
    source = "Semantic Shift Benchmark, Vaze et al. 2022, arXiv 2110.06207"
    return Protocol(
        f"Semantic Shift Benchmark, {title}", f"ssb:{variant}", source, f"ssb_{variant}", classes, name, **rest
    )


def _imagenet(number: int, classes: int) -> Protocol:
    title, source = f"ImageNet open set protocol P{number}", "Palechor et al. 2022, arXiv 2210.06789"
    return Protocol(title, f"imagenet_osr:p{number}", source, f"imagenet_p{number}", classes, "imagenet:imagenet")


def _openood(title: str, variant: str, classes: int, near: str, far: str, shifted: str = "") -> Protocol:
    """Datasets are named by their image lists, preceded by the folder of the lists if it is another one."""
    named = lambda names: tuple(f"{_LISTS}/{each if '/' in each else f'{variant}/{each}'}" for each in names.split())
    return Protocol(
        title=f"OpenOOD 1.5, {title}",
        config=f"openood:{variant}",
        source="Zhang et al. 2023, arXiv 2306.09301",
        benchmark="all",
        classes=classes,
        name=f"{_LISTS}/{variant}/{variant}",
        unknown_name=named(near)[0],
        near=named(near),
        far=named(far),
        shifted=named(shifted),
    )


_LARGE = {
    "near": "imagenet/ssb_hard imagenet/ninco",
    "far": "imagenet/inaturalist imagenet/textures imagenet/openimage_o",
}
_21K = "imagenet:imagenet21k_resized"
_SMALL_FAR = "mnist svhn texture places365"
_OWN = "Xu, Kao and Keuper 2025, arXiv 2505.12803, and the authors' class lists"
PROTOCOLS: dict[str, Protocol] = {
    "mnist": _small("MNIST", "mnist_osr", "mnist", 6, "mnist"),
    "svhn": _small("SVHN", "svhn_osr", "svhn", 6, "svhn_cropped"),
    "cifar10": _small("CIFAR-10", "cifar_osr", "cifar10", 6, "cifar10"),
    "cifar+10": _small("CIFAR+10", "cifar_plus10", "cifar+10", 4, "cifar10"),
    "cifar+50": _small("CIFAR+50", "cifar_plus50", "cifar+50", 4, "cifar10"),
    "tiny_imagenet": _small("TinyImageNet", "tiny_imagenet_osr", "tiny_imagenet", 20, "folder:tiny-imagenet-200"),
    "ssb_cub": _ssb("CUB", "cub", 100, "cub:CUB_200_2011"),
    "ssb_aircraft": _ssb("FGVC-Aircraft", "aircraft", 50, "aircraft:fgvc-aircraft-2013b"),
    "ssb_cars": _ssb("Stanford Cars", "cars", 98, "cars:stanford_cars"),
    "ssb_imagenet": _ssb("ImageNet", "imagenet", 1000, "imagenet:imagenet", unknown_name=_21K),
    "ssb_imagenet_w21": _ssb("ImageNet (Winter 2021)", "imagenet_w21", 1000, "imagenet:imagenet", unknown_name=_21K),
    "imagenet_p1": _imagenet(1, 116),
    "imagenet_p2": _imagenet(2, 30),
    "imagenet_p3": _imagenet(3, 151),
    "openood_cifar10": _openood("CIFAR-10", "cifar10", 10, "cifar100 tin", _SMALL_FAR, "cifar10c"),
    "openood_cifar100": _openood("CIFAR-100", "cifar100", 100, "cifar10 tin", _SMALL_FAR),
    "openood_imagenet200": _openood(
        "ImageNet-200", "imagenet200", 200, **_LARGE, shifted="imagenet200_v2 imagenet200_c imagenet200_r"
    ),
    "openood_imagenet": _openood(
        "ImageNet-1K", "imagenet", 1000, **_LARGE, shifted="imagenet_v2 imagenet_c imagenet_r"
    ),
    "imagenet100": Protocol(
        "ImageNet-100, self-supervised", "imagenet100_ssl", _OWN, "imagenet100", 100, "imagenet:imagenet"
    ),
    "cifar100_superclasses": Protocol(
        "CIFAR-100, a superclass against the others",
        "cifar100_superclasses",
        "the 20 superclasses of Krizhevsky 2009, one known at a time as in Golan and El-Yaniv 2018, arXiv 1805.10917",
        "cifar100_superclasses",
        5,
        "cifar100",
    ),
    "cifar100_macro": Protocol(
        "CIFAR-100, classes of 12 superclasses", "cifar100_superclasses:macro", _OWN, "cifar100_macro", 6, "cifar100"
    ),
}
