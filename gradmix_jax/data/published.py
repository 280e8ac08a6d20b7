"""Class lists of the larger published protocols, decoded from `protocols.json`.

Sources, for facts only: the Semantic Shift Benchmark (Vaze et al. 2022, arXiv 2110.06207) as its authors publish
it; the open set protocols P1 to P3 on ImageNet (Palechor et al. 2022, arXiv 2210.06789); ImageNet-100 and the twelve
classes of CIFAR-100 of the authors of GradMix (arXiv 2505.12803); the 200 classes of OpenOOD 1.5 (Zhang et al. 2023,
arXiv 2306.09301), which are those of ImageNet-R.
"""

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from typing import Any

# Class names that contain spaces are separated by bars.
_WITH_SPACES = ("aircraft", "cars")


@dataclasses.dataclass(frozen=True)
class Lists:
    """The classes of one trial of a protocol, as ids from 0.

    Attributes:
      of: key of `class_names` (or of `class_names.CLASS_NAMES`) that known and negative ids index.
      unknown_of: the key that unknown ids index.
      known: in label order.
      negative: classes that may be trained on as examples of "unknown".
      groups: unknown ids by the name of their group; a single group "" if they are not divided.
    """

    of: str
    unknown_of: str
    known: tuple[int, ...]
    negative: tuple[int, ...]
    groups: Mapping[str, tuple[int, ...]]


@functools.cache
def _content() -> dict[str, Any]:
    path = importlib.resources.files("gradmix_jax.data") / "protocols.json"
    return json.loads(path.read_text(encoding="utf-8"))


@functools.cache
def class_names() -> dict[str, tuple[str, ...]]:
    """{list of classes: their names, in the order of the ids}."""
    separator = lambda name: "|" if name in _WITH_SPACES else " "
    joined = {name: separator(name).join(lines) for name, lines in _content()["class_names"].items()}
    return {name: tuple(text.split(separator(name))) for name, text in joined.items()}


@functools.cache
def superclasses(dataset: str = "cifar100") -> dict[str, tuple[str, ...]]:
    """{name of a superclass: names of its classes}."""
    return {name: tuple(text.split()) for name, text in _content()["superclasses"][dataset].items()}


@functools.cache
def lists() -> dict[str, Lists]:
    """{protocol: its classes}."""
    return {name: _decoded(entry) for name, entry in _content()["splits"].items()}


def _decoded(entry: Mapping[str, Any]) -> Lists:
    unknown = entry["unknown"]
    groups = unknown if isinstance(unknown, Mapping) else {"": unknown}
    return Lists(
        of=entry["of"],
        unknown_of=entry.get("unknown_of", entry["of"]),
        known=ids(entry["known"]),
        negative=ids(entry.get("negative", "")),
        groups={name: ids(text) for name, text in groups.items()},
    )


def ids(text: str | Sequence[str]) -> tuple[int, ...]:
    """The ids of a text such as "3 7-9 2": (3, 7, 8, 9, 2); a list of lines counts as one text."""
    found: list[int] = []
    for word in (text if isinstance(text, str) else " ".join(text)).split():
        first, _, last = word.partition("-")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)
