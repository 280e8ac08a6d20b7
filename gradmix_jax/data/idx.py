"""IDX files, the format of MNIST: {train,t10k}-{images-idx3,labels-idx1}-ubyte, gzipped or not."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from gradmix_jax.data.source import ArrayRecords, DataSet

_UINT8 = 0x08


def load(path: str, *, with_train: bool) -> DataSet:
    """A data set of four IDX files in one folder; class names are "0", "1", ... up to the largest label.

    Raises:
      ValueError: a file is missing, is not an IDX file of unsigned bytes, is cut short, does not fit its partner, or
        has images of no pixels.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f"data set 'idx:{path}' does not exist; give the path of a folder.")
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
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        zeros, kind, rank = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{dimensions}I", data, 4)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise ValueError(f"{file} cannot be read: {error}.") from error
    if (zeros, kind, rank) != (0, _UINT8, dimensions):
        raise ValueError(f"{file} is not an IDX file of unsigned bytes with {dimensions} dimension(s).")
    header = 4 + 4 * dimensions
    if len(data) != header + math.prod(shape):
        raise ValueError(f"{file} must have {math.prod(shape)} bytes of data, by its shape, got {len(data) - header}.")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
