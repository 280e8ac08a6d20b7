"""Image files on disk: which files of a tree are images, and their records."""

import collections
import dataclasses
import functools
import os
import stat
from collections.abc import Hashable, Iterable
from pathlib import Path

import numpy as np
from absl import logging
from PIL import Image

from gradmix_jax.data.source import hash_of

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")


@dataclasses.dataclass(frozen=True, eq=False)
class FileRecords:
    """Image files and their class ids, int32 [N]."""

    paths: list[str]
    labels: np.ndarray

    def open(self, index: int) -> Image.Image:
        return Image.open(self.paths[index])

    def content(self, index: int) -> bytes:
        return Path(self.paths[index]).read_bytes()

    def describe(self, index: int) -> str:
        return self.paths[index]

    @property
    def identity(self) -> Hashable:
        """Equal for records of the same files."""
        return tuple(self.paths)

    def fingerprint(self, indices: np.ndarray) -> str:
        # Not of the content, because reading all files would take as long as computing the features to be cached.
        paths = [self.paths[index] for index in indices]
        found = map(os.stat, paths)
        return hash_of(np.array(paths), np.array([(each.st_size, each.st_mtime_ns) for each in found]))

    def take(self, chosen_N: np.ndarray) -> "FileRecords":
        """The records where a mask is True."""
        return FileRecords([self.paths[i] for i in np.flatnonzero(chosen_N)], self.labels[chosen_N])


def find_images(folders: Iterable[tuple[int, Path]], *, what: str) -> FileRecords:
    """The images in labeled folders, at any depth, in sorted order.

    Not images: names that start with a dot, endings other than `EXTENSIONS` (in any case), and anything but files
    (named pipes, sockets, devices). Links are followed, but a file counts once, however many paths lead to it.

    Args:
      folders: (label, folder).
      what: the tree, for warnings and errors.

    Raises:
      ValueError: there are no images, or one file is in two classes.
    """
    paths, labels, skipped = [], [], collections.defaultdict(list)
    seen: dict[object, tuple[str, int]] = {}
    for label, folder in folders:
        kept = []
        for path in _walk(folder, skipped):
            problem, identity = _examine(path)
            if problem:
                skipped[problem].append(path)
            elif identity not in seen:
                seen[identity] = path, label
                kept.append(path)
            elif seen[identity][1] == label:
                skipped["links to an image that already counts"].append(path)
            else:
                raise ValueError(f"{path} and {seen[identity][0]} are one file in two classes; remove one of them.")
        paths += sorted(kept)
        labels += [label] * len(kept)
    for problem, files in skipped.items():
        _warn(f"Skipped in {what}: {len(files)} {problem}, the first is {files[0]}.")
    if not paths:
        raise ValueError(f"{what} has no images: files <class>/* that end in {', '.join(EXTENSIONS)}.")
    return FileRecords(paths, np.array(labels, np.int32))


@functools.cache  # a run reads its folders several times
def _warn(sentence: str) -> None:
    logging.warning("%s", sentence)


def _walk(folder: Path, skipped: dict[str, list[str]]) -> list[str]:
    """All paths in a folder that may be images; those reached through links come last."""
    found, visited = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        here, kept = os.path.realpath(parent), []
        visited.add(here)
        for name in sorted(folders):
            path = os.path.join(parent, name)
            if name.startswith("."):
                continue
            target = os.path.realpath(path)
            # Following a link to an enclosing folder, or a circle of links, would never end.
            if os.path.islink(path) and (target in visited or f"{here}/".startswith(f"{target}/")):
                skipped["links to a folder that is read anyway"].append(path)
            else:
                kept.append(name)
        folders[:] = kept
        behind_link = here != os.path.join(os.path.realpath(folder), os.path.relpath(parent, folder)).removesuffix("/.")
        for name in files:
            path = os.path.join(parent, name)
            if not name.startswith("."):
                found.append((behind_link or os.path.islink(path), path))
    return [path for _, path in sorted(found)]


def _examine(path: str) -> tuple[str, object]:
    """(why the path is not an image, or ""; an identity shared by all paths that lead to the file)."""
    try:
        found = os.stat(path)
    except OSError:  # a broken link, reported when its image is read
        return "" if path.lower().endswith(EXTENSIONS) else "files with other endings than images", path
    if not stat.S_ISREG(found.st_mode):
        return "pipes, sockets or devices", path
    if not path.lower().endswith(EXTENSIONS):
        return f"files with other endings than {', '.join(EXTENSIONS)}", path
    # Inode numbers of some network file systems are not unique, so they count only if there are hard links.
    return "", (found.st_dev, found.st_ino) if found.st_nlink > 1 else os.path.realpath(path)
