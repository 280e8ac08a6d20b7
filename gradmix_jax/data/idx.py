"""IDX files, the format of MNIST: {train,t10k}-{images-idx3,labels-idx1}-ubyte, gzipped or not."""

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from gradmix_jax.data.source import ArrayRecords, DataSet

_UINT8 = 0x08
# A gzipped file that unpacks to more than this does not hold images.
_ROOM, _LARGEST_RATIO = 2**26, 200


def load(path: str, *, with_train: bool) -> DataSet:
    """A dataset of four IDX files in one folder; class names are "0", "1", ... up to the largest label.

    Raises:
      ValueError: a file is missing, is not an IDX file of unsigned bytes, is truncated, does not match its partner, or
        has images without pixels.
    """
    root = Path(os.path.expanduser(path))
    if not root.is_dir():
        raise ValueError(f"dataset 'idx:{path}' does not exist; give the path of a folder.")
    test = _records(root, "t10k")
    train = _records(root, "train") if with_train else None
    largest = max(int(part.labels.max()) for part in (train, test) if part is not None)
    return DataSet(tuple(str(label) for label in range(largest + 1)), train, test)


def _records(root: Path, part: str) -> ArrayRecords:
    images = _read(root, f"{part}-images", dimensions=3)
    labels = _read(root, f"{part}-labels", dimensions=1)
    if not len(images) or len(images) != len(labels):
        raise ValueError(
            f"the {part} files of {root} must have one label per image and at least one image, got {len(images)} "
            f"images and {len(labels)} labels."
        )
    if 0 in images.shape:
        raise ValueError(
            f"the {part} images of {root} must have at least one pixel, got {images.shape[1]}x{images.shape[2]}."
        )
    return ArrayRecords(images, labels.astype(np.int32), f"{root}/{part}-images")


def _read(root: Path, stem: str, *, dimensions: int) -> np.ndarray:
    """uint8 array of one file. Both spellings, `-idx3-ubyte` and `.idx3-ubyte`, are in use."""
    names = [f"{stem}{dot}idx{dimensions}-ubyte{ending}" for dot in "-." for ending in ("", ".gz")]
    file = next((root / name for name in names if (root / name).is_file()), None)
    if file is None:
        raise ValueError(f"{root} has no {stem} file; add one of {', '.join(names)}.")
    header = 4 + 4 * dimensions
    try:
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as opened:
            start = opened.read(header)
            zeros, kind, rank = struct.unpack_from(">HBB", start)
            shape = struct.unpack_from(f">{dimensions}I", start, 4)
            most = _ROOM + _LARGEST_RATIO * file.stat().st_size
            # Read no more than expected, because a small file may unpack to any size.
            data = opened.read(max(min(math.prod(shape), most), 2**20) + 1)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise ValueError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if (zeros, kind, rank) != (0, _UINT8, dimensions):
        raise ValueError(f"{file} is not an IDX file of unsigned bytes with {dimensions} dimension(s).")
    if len(data) != math.prod(shape):
        got = f"{len(data)}" if len(data) < math.prod(shape) else "more"
        raise ValueError(f"{file} must have {math.prod(shape)} bytes of data, by its shape, got {got}.")
    return np.frombuffer(data, np.uint8).reshape(shape)
