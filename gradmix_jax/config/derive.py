"""Config keys derived from the data: measured once, printed, and recorded in the run's config.json.

A key is left to the data by a value that it cannot have in a run (`OPEN`): 0, () or "auto". `configs/folder_osr.py`
leaves all of them open. A run that is resumed or evaluated keeps the values it was trained with.
"""

import copy
from typing import Any, NamedTuple

from gradmix_jax import data as data_lib
from gradmix_jax.data import measure, readers
from gradmix_jax.data.spec import AUTO, NAMED

# Key -> the value that leaves it to the data.
OPEN = {
    "dataset.benchmark": AUTO,
    "dataset.num_known": 0,
    "dataset.image_size": 0,
    "dataset.channels": 0,
    "normalization.mean": [],
    "normalization.std": [],
    "train.batch_size": 0,
}
KNOWN_SHARE = 0.6
FEWEST_CLASSES = 3
# The least number of steps per epoch, if there are enough images.
STEPS = 8
LARGEST_BATCH = 128


class Derived(NamedTuple):
    """A value and what it was derived from."""

    value: Any
    reason: str


def missing(config: dict[str, Any]) -> list[str]:
    """The keys of a plain config that are left to the data."""
    keys = [key for key, value in OPEN.items() if _get(config, key) == value]
    counts = config["dataset"]["benchmark"] in ("random", AUTO)
    return [key for key in keys if key != "dataset.num_known" or counts]


def with_values(config: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A copy of a plain config with {"section.key": value} set."""
    config = copy.deepcopy(config)
    for name, value in values.items():
        section, key = name.split(".")
        config[section][key] = value
    return config


def from_recorded(config: dict[str, Any], recorded: dict[str, Any]) -> dict[str, Any]:
    """A plain config that takes the keys left to the data from a run's config."""
    config = with_values(config, _benchmark(config))
    return with_values(config, {key: _get(recorded, key) for key in missing(config)})


def from_data(config: dict[str, Any], *, num_devices: int) -> dict[str, Derived]:
    """{key: value and reason} of every key left to the data, from the training images of the known classes.

    - dataset.benchmark: see `data.Spec`.
    - dataset.num_known: 60 % of the classes, rounded; at least two, and at least one class stays unknown.
    - dataset.image_size: the one of `measure.SIZES` closest to the median of the images' shorter sides.
    - dataset.channels: 1 if every image is gray, else 3.
    - normalization: over all pixels of `measure.SAMPLE` images.
    - train.batch_size: at most 128, at least 8 steps an epoch if the images allow, a multiple of
      the devices times mix.group_size.

    Args:
      config: a plain config with valid values.
      num_devices: number of devices of all processes.

    Raises:
      ValueError: the data is missing, has unreadable images, too few classes or too few images; one line.
    """
    found = {key: Derived(value, "") for key, value in _benchmark(config).items()}
    config = with_values(config, _values(found))
    if config["dataset"]["benchmark"] == "random" and not config["dataset"]["num_known"]:
        found["dataset.num_known"] = _num_known(data_lib.Spec(**config["dataset"]))
        config = with_values(config, _values(found))
    data = data_lib.open_set(_provisional(config))
    if "dataset.benchmark" in found:
        found["dataset.benchmark"] = Derived(config["dataset"]["benchmark"], _classes(data))
    found |= _of_images(config, data.train)
    if "train.batch_size" in missing(config):
        found["train.batch_size"] = _batch_size(config, len(data.train), num_devices)
    return found


def _classes(data: data_lib.OpenSet) -> str:
    unknown = [data.test_unknown.names[c] for c in data.split.unknown]
    return f"known: {data_lib.listed(data.class_names)}; unknown: {data_lib.listed(unknown)}"


def _values(found: dict[str, Derived]) -> dict[str, Any]:
    return {key: derived.value for key, derived in found.items()}


def _get(config: dict[str, Any], name: str) -> Any:
    section, key = name.split(".")
    return config[section][key]


def _benchmark(config: dict[str, Any]) -> dict[str, Any]:
    """The benchmark, from the config alone."""
    spec = data_lib.Spec(**config["dataset"])
    if spec.benchmark != AUTO:
        return {}
    elsewhere = not data_lib.same_data(spec.name, spec.unknown_data)
    named = spec.known or spec.unknown
    return {"dataset.benchmark": NAMED if named else "all" if elsewhere else "random"}


def _num_known(spec: data_lib.Spec) -> Derived:
    names = readers.load(spec, spec.name, with_train=True).class_names
    if len(names) < FEWEST_CLASSES:
        raise ValueError(
            f"{spec.name!r} must have at least {FEWEST_CLASSES} classes to keep some unknown, got {', '.join(names)}; "
            "add classes, or name a dataset of unknown images as dataset.unknown_name."
        )
    return Derived(min(max(2, round(KNOWN_SHARE * len(names))), len(names) - 1), f"60 % of {len(names)} classes")


def _provisional(config: dict[str, Any]) -> data_lib.Spec:
    """The dataset section with a placeholder size and channel count, to open the data."""
    any_shape = {"dataset.image_size": measure.SIZES[0], "dataset.channels": 3}
    return data_lib.Spec(**with_values(config, any_shape)["dataset"])


def _of_images(config: dict[str, Any], train: data_lib.Source) -> dict[str, Derived]:
    """Image size, channels and normalization."""
    found, absent = {}, missing(config)
    if not {"dataset.image_size", "dataset.channels", "normalization.mean", "normalization.std"} & set(absent):
        return found
    looked_at = measure.sample(train)
    of = f"of {len(looked_at)} training images"
    size, channels = config["dataset"]["image_size"], config["dataset"]["channels"]
    if not size:
        side = measure.shorter_side(looked_at)
        size = measure.size_for(side)
        found["dataset.image_size"] = Derived(size, f"median shorter side {of}: {side} pixels")
    images = measure.decoded(looked_at, image_size=size, channels=channels or 3)
    if not channels:
        channels = 1 if measure.is_gray(images) else 3
        images = images[..., :channels]
        found["dataset.channels"] = Derived(channels, f"{'all' if channels == 1 else 'not all'} {of} are gray")
    measured = measure.channels(images)
    for name in ("mean", "std"):
        if f"normalization.{name}" in absent:
            found[f"normalization.{name}"] = Derived(list(getattr(measured, name)), f"{of}, in [0, 1]")
    return found


def _batch_size(config: dict[str, Any], num_images: int, num_devices: int) -> Derived:
    # Count mixing groups even if nothing is mixed, so that all recipes have the same batch size.
    group = config["mix"]["group_size"]
    unit = num_devices * group
    if num_images < unit:
        raise ValueError(
            f"a batch needs {unit} training images of known classes (mix.group_size {group} on {num_devices} "
            f"device(s)), got {num_images}; add images, or lower mix.group_size."
        )
    wanted = min(LARGEST_BATCH, num_images // STEPS)
    return Derived(max(unit, wanted // unit * unit), f"{num_images} training images, {num_devices} device(s)")
