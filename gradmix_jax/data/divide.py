"""Divides data into train and test parts: seeded, stratified, and with copies of an image kept together."""

import dataclasses
import functools
import hashlib
import io
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
from absl import logging
from PIL import Image

from gradmix_jax.data.source import THREADS, to_array

THUMBNAIL = 16  # pixels
# Two images are copies if the RMS difference of their thumbnails over their standard deviation is below this;
# another size or JPEG quality gives 0.01 to 0.03.
ALIKE = 0.05
_BLOCK = 1024


class Encoded(Protocol):
    """Records that can be divided and whose encoded images can be read."""

    labels: np.ndarray

    @property
    def identity(self) -> Hashable:
        """Equal for records of the same images, whose groups are then computed once."""

    def content(self, index: int) -> bytes:
        """The encoded image: the content of its file."""

    def describe(self, index: int) -> str:
        """See `source.Records`."""

    def take(self, chosen_N: np.ndarray) -> "Encoded":
        """The records where a mask is True."""


AnyEncoded = TypeVar("AnyEncoded", bound=Encoded)


def divide(records: AnyEncoded, *, test_fraction: float, seed: int) -> tuple[AnyEncoded, AnyEncoded]:
    """(train, test), with about `test_fraction` of the images of every class as test images.

    Files with the same bytes, and images that differ only in size, compression or a shift in brightness, stay on
    one side. A class has at least one test image and keeps at least one group of copies for training.

    Args:
      records: all images.
      test_fraction: above 0, below 1.
      seed: seed of the choice.
    """
    group_N = _groups(_Keyed(records.identity, records))
    is_test_N = choose(records.labels, group_N, share=test_fraction, seed=seed)
    logging.info("No test folder: %d of %d images are test images.", is_test_N.sum(), len(is_test_N))
    return records.take(~is_test_N), records.take(is_test_N)


def choose(labels_N: np.ndarray, group_N: np.ndarray, *, share: float, seed: int) -> np.ndarray:
    """bool [N]: a seeded, stratified choice of whole groups; a group belongs to the class of its first image."""
    random = np.random.default_rng(seed)
    first_G, size_G = np.unique(group_N, return_index=True, return_counts=True)[1:]
    chosen_G = np.zeros(len(first_G), bool)
    for label in np.unique(labels_N[first_G]):
        groups = random.permutation(np.flatnonzero(labels_N[first_G] == label))
        # Taking small groups first comes closest to the share; groups of equal size stay in random order.
        wanted, taken = max(1, round(share * size_G[groups].sum())), 0
        for group in groups[np.argsort(size_G[groups], kind="stable")][: len(groups) - 1]:
            if taken + size_G[group] > wanted and taken:
                break
            chosen_G[group] = True
            taken += size_G[group]
    return chosen_G[np.unique(group_N, return_inverse=True)[1]]


@dataclasses.dataclass(frozen=True)
class _Keyed:
    """Records as the argument of a cached function."""

    identity: Hashable
    records: Encoded = dataclasses.field(compare=False)


@functools.lru_cache(maxsize=4)  # a run opens its data several times
def _groups(keyed: _Keyed) -> np.ndarray:
    records = keyed.records
    with ThreadPoolExecutor(THREADS) as pool:
        digests, thumbnails = zip(*pool.map(lambda i: _summarize(records, i), range(len(records.labels))))
    return group_alike(digests, np.stack(thumbnails))


def _summarize(records: Encoded, index: int) -> tuple[bytes, np.ndarray]:
    """(hash of the bytes, gray thumbnail); an unreadable image gets a thumbnail of unique noise."""
    try:
        content = records.content(index)
        with Image.open(io.BytesIO(content)) as image:
            return hashlib.sha256(content).digest(), thumbnail(image)
    except Exception:  # reported when the image is read
        digest = hashlib.sha256(records.describe(index).encode()).digest()
        return digest, np.random.default_rng(list(digest)).uniform(0, 255, THUMBNAIL**2).astype(np.float32)


def thumbnail(image: Image.Image) -> np.ndarray:
    """float32 [THUMBNAIL ** 2]: the gray image, 0 to 255, for `group_alike`."""
    image.draft("L", (8 * THUMBNAIL, 8 * THUMBNAIL))
    return to_array(image, THUMBNAIL, 1).reshape(-1).astype(np.float32)


def group_alike(digests: tuple[bytes, ...], thumbnails_NxP: np.ndarray) -> np.ndarray:
    """int [N]: equal numbers for images with equal digests or similar thumbnails.

    Thumbnails are similar up to a shift in brightness; constant ones (no standard deviation) only if they are equal.
    """
    parent = list(range(len(digests)))

    def root(i):
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    def join(one, other):
        one, other = sorted((root(int(one)), root(int(other))))
        parent[other] = one

    exact = digests, [row.tobytes() for row in thumbnails_NxP]
    for values in exact:
        first = {}
        for i, value in enumerate(values):
            join(first.setdefault(value, i), i)
    centered_NxP = thumbnails_NxP - thumbnails_NxP.mean(axis=1, keepdims=True)
    std_N = np.sqrt(np.mean(centered_NxP**2, axis=1))
    # |std_i - std_j| <= difference <= ALIKE * min(std), so candidates are neighbors when sorted by std.
    order = np.argsort(std_N, kind="stable")
    order = order[std_N[order] > 0]
    for start in range(0, len(order), _BLOCK):
        rows = order[start : start + _BLOCK]
        stop = np.searchsorted(std_N[order], std_N[rows[-1]] * (1 + ALIKE), side="right")
        columns = order[start:stop]
        product = centered_NxP[rows] @ centered_NxP[columns].T / centered_NxP.shape[1]
        squared = std_N[rows, None] ** 2 + std_N[columns] ** 2 - 2 * product
        for i, j in zip(*np.nonzero(squared <= (ALIKE * np.minimum(std_N[rows, None], std_N[columns])) ** 2)):
            join(rows[i], columns[j])
    return np.array([root(i) for i in range(len(parent))])
