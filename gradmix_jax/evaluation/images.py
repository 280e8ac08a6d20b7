"""The images of an evaluation by name, so that every process of a pod can open the same ones."""

import functools
from collections.abc import Iterator

import jax
import numpy as np

from gradmix_jax import corruptions
from gradmix_jax import data as data_lib
from gradmix_jax.evaluation.features import Images, Joined, read
from gradmix_jax.evaluation.spec import Setup

SIDES = ("test_known", "test_unknown")
# The kinds of names, and the number of words that follow.
RUN, OTHER, PROBE, CORRUPTED, SHIFTED = "run", "out of distribution", "probe", "corrupted", "shifted"


class Opener:
    """Opens images by name.

    ("run", part): a part of the run's data. ("out of distribution", dataset): its test images. ("shifted", dataset):
    those of known classes. ("probe", dataset, part): images of a labeled dataset. ("corrupted", corruption,
    severity): the test images that `places` chooses, known ones first.

    Args:
      setup: sections of the config.
      data: the run's data.
    """

    def __init__(self, setup: Setup, data: data_lib.OpenSet):
        self._setup, self._data = setup, data
        # Positions of the test images to corrupt, by side; None: all.
        self.places: tuple[np.ndarray, np.ndarray] | None = None
        self._clean: dict[tuple[int, int], np.ndarray] = {}
        self.probe = functools.cache(lambda name: data_lib.labeled(setup.dataset, name))
        self.other = functools.cache(lambda name: data_lib.out_of_distribution(setup.dataset, name))
        self.shifted = functools.cache(lambda name: data_lib.shifted(setup.dataset, data, name))

    def share(self, name: tuple, index: int = 0, count: int = 1) -> tuple[Images, int]:
        """(images of one of `count` contiguous shares of equal size, the number of all images)."""
        kind, *rest = name
        regenerated = kind == CORRUPTED and self._setup.evaluate.corruptions == "regenerated"
        images = self._clean_test() if regenerated else self._open(kind, *rest)
        start, stop = share_of(len(images), index, count)
        if regenerated:
            return self._corrupt(images, start, stop, *rest), len(images)
        if (start, stop) != (0, len(images)):
            return images.take(np.arange(start, stop)), len(images)
        return images, len(images)

    def _open(self, kind: str, *rest) -> data_lib.Source | Joined:
        if kind == RUN:
            return getattr(self._data, rest[0])
        if kind == OTHER:
            return self.other(rest[0])
        if kind == SHIFTED:
            return self.shifted(rest[0])
        if kind == PROBE:
            return getattr(self.probe(rest[0]), rest[1])
        source = self._setup.evaluate.corruptions
        return Joined(data_lib.corrupted(self._setup.dataset, self._data, source, *rest, self.places))

    def _clean_test(self) -> Joined:
        parts = [getattr(self._data, side) for side in SIDES]
        if self.places is not None:
            parts = [part.take(places) for part, places in zip(parts, self.places)]
        return Joined(tuple(parts))

    def _corrupt(self, clean: Joined, start: int, stop: int, corruption: str, severity: int) -> np.ndarray:
        if (start, stop) not in self._clean:
            self._clean = {(start, stop): read(clean, start, stop)}
        return corrupt(self._clean[start, stop], corruption, severity, first=start)


def names(setup: Setup, data: data_lib.OpenSet) -> Iterator[tuple]:
    """The name of everything that an evaluation reads and training does not, except corrupted images."""
    yield from ((RUN, part) for part in ("validation", *SIDES) if len(getattr(data, part)))
    yield from ((OTHER, name) for name in (*setup.evaluate.near, *setup.evaluate.far))
    yield from ((SHIFTED, name) for name in setup.evaluate.shifted)
    yield from ((PROBE, name, part) for name in setup.evaluate.probes for part in ("train", "validation", "test"))


def share_of(size: int, index: int, count: int) -> tuple[int, int]:
    """(start, stop) of one of `count` contiguous shares; all except the last ones have ceil(size / count) images."""
    each = -(-size // count)
    return min(index * each, size), min((index + 1) * each, size)


def corrupt(images_NxHxWxC: np.ndarray, corruption: str, severity: int, *, first: int = 0) -> np.ndarray:
    """Corrupted images uint8 [N, H, W, C]; the randomness of an image depends on its number, starting at `first`."""
    # All severities share the key, so the noise is the same but stronger.
    key = jax.random.fold_in(jax.random.key(0), corruptions.NAMES.index(corruption))
    parts = [
        np.asarray(corruptions.corrupt(key, block, name=corruption, severity=severity, first=first + start))
        for start, block in _blocks(images_NxHxWxC)
    ]
    return np.concatenate(parts)[: len(images_NxHxWxC)] if parts else images_NxHxWxC


def _blocks(images: np.ndarray, size: int = 500) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks of one size, so that only one program is compiled; the last is padded with copies of the first images."""
    for start in range(0, len(images), size):
        block = images[start : start + size]
        yield start, np.concatenate([block, np.resize(images, (size - len(block), *images.shape[1:]))])
