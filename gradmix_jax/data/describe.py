"""Describes the contents of a dataset before training."""

import collections
import dataclasses
import hashlib
import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image
from tqdm.auto import tqdm

from gradmix_jax.data import class_names, divide, measure, splits
from gradmix_jax.data.source import BACKGROUNDS, THREADS, DataSet, Records, reason_of
from gradmix_jax.fields import one_line

PARTS = ("train", "test")
# Printed entries of a list.
SHOWN = 5
# Printed classes of the table.
SHOWN_CLASSES = 30


class Facts(NamedTuple):
    """Facts of one stored image; `problem` says why it cannot be read. If it is "", the rest is set.

    Sizes are as stored, before EXIF orientation. `divide.group_alike` compares thumbnails; `is_gray` looks at
    the pixels, not at the mode.
    """

    problem: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    format: str = ""
    is_transparent: bool = False
    is_rotated: bool = False
    is_animated: bool = False
    is_gray: bool = False
    digest: bytes = b""
    thumbnail: np.ndarray = np.zeros(0, np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Description:
    """A dataset and the facts of its images.

    Attributes:
      data: with both parts.
      facts: {part: facts in the order of its records}.
      groups: groups of copies, each of two images or more as (part, index); see `divide.group_alike`.
    """

    data: DataSet
    facts: dict[str, list[Facts]]
    groups: list[list[tuple[str, int]]]

    @property
    def readable(self) -> list[Facts]:
        """Facts of all images that can be read."""
        return [each for facts in self.facts.values() for each in facts if not each.problem]

    @property
    def across(self) -> list[list[tuple[str, int]]]:
        """The groups with images of both parts."""
        return [group for group in self.groups if len({part for part, _ in group}) > 1]

    @property
    def conflicting(self) -> list[list[tuple[str, int]]]:
        """The groups with images of more than one class."""
        return [group for group in self.groups if len({self.label(*image) for image in group}) > 1]

    def records(self, part: str) -> Records:
        return getattr(self.data, part)

    def label(self, part: str, index: int) -> int:
        """Class id of an image."""
        return int(self.records(part).labels[index])

    def name(self, part: str, index: int) -> str:
        """Name of an image in the output."""
        return self.records(part).describe(index)

    def counts(self, part: str) -> np.ndarray:
        """int [number of classes]: images of each class."""
        return np.bincount(self.records(part).labels, minlength=len(self.data.class_names))


def describe(data: DataSet, *, progress: bool = False) -> Description:
    """Read every image of a dataset with both parts, in threads.

    Args:
      data: the dataset.
      progress: whether to show a progress bar.
    """
    parts = [part for part in PARTS if getattr(data, part) is not None]
    images = [(part, index) for part in parts for index in range(len(getattr(data, part).labels))]
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda image: inspect(getattr(data, image[0]), image[1]), images)
        found = list(tqdm(found, total=len(images), desc="reading images", disable=not progress, delay=1.0))
    facts = {part: [each for (of, _), each in zip(images, found) if of == part] for part in parts}
    return Description(data, facts, _groups(images, found))


def inspect(records: Records, index: int) -> Facts:
    """The facts of one image."""
    try:
        content = records.content(index) if hasattr(records, "content") else None
        with records.open(index) if content is None else Image.open(io.BytesIO(content)) as image:
            facts = dict(width=image.width, height=image.height, mode=image.mode, format=image.format or "pixels")
            facts["is_animated"] = getattr(image, "is_animated", False)
            facts["is_transparent"] = image.has_transparency_data
            facts["is_rotated"] = bool(image.format) and image.getexif().get(ExifTags.Base.Orientation, 1) != 1
            facts["is_gray"] = _is_gray(image)
            digest = hashlib.sha256(np.asarray(image).tobytes() if content is None else content).digest()
            return Facts("", **facts, digest=digest, thumbnail=divide.thumbnail(image))
    except Exception as error:  # Pillow's decoders raise anything for a broken file
        return Facts(reason_of(error, records.describe(index)))


def _is_gray(image: Image.Image) -> bool:
    if image.mode in ("1", "L", "LA") or image.mode.startswith("I"):
        return True
    return measure.is_gray(np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))[..., :3])


def _groups(images: Sequence[tuple[str, int]], facts: Sequence[Facts]) -> list[list[tuple[str, int]]]:
    readable = [place for place, each in enumerate(facts) if not each.problem]
    if not readable:
        return []
    digests = tuple(facts[place].digest for place in readable)
    group_N = divide.group_alike(digests, np.stack([facts[place].thumbnail for place in readable]))
    members = collections.defaultdict(list)
    for place, group in zip(readable, group_N.tolist()):
        members[group].append(images[place])
    return [group for group in members.values() if len(group) > 1]


def text(found: Description) -> str:
    """The description in lines to print."""
    data = found.data
    total = sum(map(len, found.facts.values()))
    parts = " and ".join(f"{len(facts)} {part}" for part, facts in found.facts.items())
    head = one_line(f"{data.name}: {len(data.class_names)} classes, {total} images ({parts})")
    lines = [head, "", *_classes(found), ""]
    if found.readable:
        lines += _properties(found)
    unreadable = [
        f"{found.name(part, i)} ({each.problem})"
        for part, facts in found.facts.items()
        for i, each in enumerate(facts)
        if each.problem
    ]
    lines += _listed("unreadable", unreadable, "dataset.bad_images=skip leaves them out")
    pairs = lambda groups: [" = ".join(found.name(*image) for image in group[:2]) for group in groups]
    within = [group for group in found.groups if group not in found.across]
    lines += _listed("copies within a part", pairs(within), "groups of the same image")
    lines += _listed("copies across train and test", pairs(found.across), "evaluate.duplicates=drop leaves them out")
    lines += _listed("copies in two classes", pairs(found.conflicting), "one label of each is wrong")
    return "\n".join([*lines, *_published(data)])


def _classes(found: Description) -> list[str]:
    names = found.data.class_names
    shown = [one_line(name) for name in names[:SHOWN_CLASSES]]
    width = max(5, *map(len, shown))
    counts = {part: found.counts(part) for part in found.facts}
    lines = [f"{'class':{width}}" + "".join(f"{part:>8}" for part in counts)]
    for place, name in enumerate(shown):
        lines.append(f"{name:{width}}" + "".join(f"{each[place]:>8}" for each in counts.values()))
    if len(names) > SHOWN_CLASSES:
        lines.append(f"... and {len(names) - SHOWN_CLASSES} more classes")
    return lines


def _properties(found: Description) -> list[str]:
    """Sizes, modes, formats, and how each kind of image is converted."""
    facts = found.readable
    areas = sorted((each.width * each.height, each.width, each.height) for each in facts)
    side = int(np.median([min(each.width, each.height) for each in facts]))
    sizes = f"{areas[0][1]}x{areas[0][2]}"
    if areas[0][1:] != areas[-1][1:]:
        sizes += f" to {areas[-1][1]}x{areas[-1][2]}, median shorter side {side}"
    gray = sum(each.is_gray for each in facts)
    lines = [
        f"sizes: {sizes} pixels",
        f"modes: {_counted(each.mode for each in facts)}; {gray} of {len(facts)} are gray",
        f"formats: {_counted(each.format for each in facts)}",
    ]
    meanings = {
        "is_transparent": f"transparent: laid on dataset.background ({', '.join(BACKGROUNDS)})",
        "is_rotated": "with an EXIF orientation: turned upright",
        "is_animated": "animated: the first frame counts",
    }
    for field, meaning in meanings.items():
        count = sum(getattr(each, field) for each in facts)
        lines += [f"{count} {meaning}"] if count else []
    deep = sum(each.mode.startswith("I") for each in facts)
    lines += [f"{deep} of 16 bits: the upper 8 count"] if deep else []
    return lines


def _counted(values: Iterable[str]) -> str:
    return ", ".join(f"{count} {value}" for value, count in collections.Counter(values).most_common())


def _listed(what: str, entries: Sequence[str], remedy: str) -> list[str]:
    if not entries:
        return [f"{what}: none"]
    more = [f"    ... and {len(entries) - SHOWN} more"] if len(entries) > SHOWN else []
    return [f"{what}: {len(entries)} ({remedy})", *(f"    {one_line(each)}" for each in entries[:SHOWN]), *more]


def _published(data: DataSet) -> list[str]:
    """The published benchmarks that have these classes, by name."""
    datasets = class_names.datasets_of(data.class_names)
    fitting = [name for name, trials in splits.BENCHMARKS.items() if trials[0].known_dataset in datasets]
    return [f"published class splits that fit, as dataset.benchmark: {', '.join(fitting)}"] if fitting else []
