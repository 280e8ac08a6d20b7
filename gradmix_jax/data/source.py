"""Images of one size and channel count, decoded on demand, with labels known in advance."""

import contextlib
import dataclasses
import functools
import hashlib
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from absl import logging
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from tqdm.auto import tqdm

# Decoding a photograph mostly releases Python's lock, and threads wait for slow disks in parallel.
THREADS = 2 * (os.cpu_count() or 1)
# Opening a small image does not: below this many seconds per image, several threads are slower than one, and slower
# the more there are (benchmarks/README.md, Streaming).
_QUICK = 2e-4
_TRIED = 8
_CHUNK = 32
# Seconds before a progress bar is shown.
_BAR_AFTER = 1.0
_SHOWN = 5
# Share of copies among training images above which a warning is given.
_MANY_COPIES = 0.1
BACKGROUNDS = {"white": (255, 255, 255, 255), "gray": (128, 128, 128, 255), "black": (0, 0, 0, 255)}


def hash_of(*arrays: np.ndarray) -> str:
    """16 hex digits that differ between arrays with different bytes; shapes and types do not count."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()[:16]


class Records(Protocol):
    """The images of one part (train or test) of a dataset as they are stored, and `labels`: class ids, int32 [N]."""

    labels: np.ndarray

    def open(self, index: int) -> Image.Image:
        """The stored image, of any size and mode."""

    def describe(self, index: int) -> str:
        """The image's name in an error message: its path, or dataset, part and position."""

    def fingerprint(self, indices: np.ndarray) -> str:
        """A string that differs if the images at `indices` differ, which invalidates anything computed from them."""


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayRecords:
    """Images entirely in memory: uint8 [N, H, W] gray or [N, H, W, 3] RGB, labels int32 [N]."""

    images: np.ndarray
    labels: np.ndarray
    name: str

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])

    def describe(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def fingerprint(self, indices: np.ndarray) -> str:
        return hash_of(self.images[indices])


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A dataset as stored. Class ids index `class_names`; `train` is None if only the test part was requested.

    `name` is its name in the config, which the loaders do not know.
    """

    class_names: tuple[str, ...]
    train: Records | None
    test: Records
    name: str = ""


class BadImage(ValueError):
    """An image that cannot be decoded."""


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Some images of a dataset: `source[i]` is uint8 [H, W, C], decoded, converted and resized on access.

    Attributes:
      records: where the images come from.
      indices: int64 [N], their positions in `records`.
      labels: int32 [N], 0..K-1 for known classes, -1 for unknown ones.
      image_size: H and W in pixels. Other sizes are resized with Pillow's bilinear filter, which is antialiased; the
        aspect ratio is not kept.
      channels: C, 1 (gray) or 3 (RGB).
      names: name of every class of the dataset, by class id.
      dataset: name of the dataset in the config.
      background: background of transparent images, a key of `BACKGROUNDS`.
    """

    records: Records
    indices: np.ndarray
    labels: np.ndarray
    image_size: int
    channels: int
    names: tuple[str, ...] = ()
    dataset: str = ""
    background: str = "white"

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> np.ndarray:
        position = int(self.indices[index])
        # Pillow's decoders raise anything for a broken file: OSError, SyntaxError, EOFError, zlib.error ...
        try:
            with self.records.open(position) as image:
                return to_array(image, self.image_size, self.channels, background=self.background)
        except Exception as error:
            what = self.records.describe(position)
            raise BadImage(f"{what} ({reason_of(error, what)})") from error

    @functools.cached_property
    def threads(self) -> int:
        """Number of threads that decode these images fastest, one or two per core, measured on the first few."""
        times = []
        for i in range(min(_TRIED, len(self))):
            began = time.perf_counter()
            with contextlib.suppress(BadImage):
                self[i]
            times.append(time.perf_counter() - began)
        return 1 if min(times, default=0.0) < _QUICK else THREADS

    @property
    def class_ids(self) -> np.ndarray:
        """int32 [N]: class ids of the dataset, for unknown images too."""
        return self.records.labels[self.indices]

    @property
    def classes(self) -> np.ndarray:
        """str [N]: the name of each image's class."""
        return np.array(self.names)[self.class_ids]

    def as_unknown(self) -> "Source":
        """The same images, all labeled -1."""
        return dataclasses.replace(self, labels=np.full_like(self.labels, -1))

    def take(self, places: Sequence[int] | np.ndarray) -> "Source":
        """A source of the images at `places` (indices or a mask), with their labels."""
        return dataclasses.replace(self, indices=self.indices[places], labels=self.labels[places])


def reason_of(error: Exception, what: str) -> str:
    """Why the image called `what` cannot be read, in one line without its name; public like `to_array`."""
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image of a known format, or its header is damaged"
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    # Pillow often repeats the path.
    reason = reason.replace(repr(what), "it").replace(what, "it") if what else reason
    return reason or f"its data is damaged ({type(error).__name__})"


def to_array(image: Image.Image, size: int, channels: int, *, background: str = "white") -> np.ndarray:
    """The pixels of an image of any size and mode; public, for images that come from elsewhere.

    - Animations: the first frame.
    - EXIF orientation: applied, so that the image is upright.
    - 16-bit gray: the upper 8 bits. 16-bit color: the same, by Pillow. Floating-point pixels have no known range and
      are refused.
    - Transparency (alpha channel, palette or color key): laid on the background.
    - Palettes, CMYK, YCbCr, 1 bit: converted by Pillow to gray (ITU-R 601 luma) or RGB, without color management.

    Args:
      image: with at most `Image.MAX_IMAGE_PIXELS` pixels (89 million, Pillow's limit against decompression bombs).
      size: height and width of the result, in pixels; bilinear with antialiasing.
      channels: 1 (gray) or 3 (RGB).
      background: key of `BACKGROUNDS`.

    Returns:
      uint8 [size, size, channels].

    Raises:
      ValueError: the image has too many pixels, or floating-point ones.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit and math.prod(image.size) > limit:
        raise ValueError(f"{image.width}x{image.height} pixels are more than the limit of {limit}")
    if image.mode == "F":
        raise ValueError("floating-point pixels; save the image with 8 or 16 bits per channel")
    # Only files have a format, and only their metadata has an orientation.
    if image.format and image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # 16-bit gray: Pillow's own conversion clips at 255 instead of scaling.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    elif image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, BACKGROUNDS[background])
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    # Resize after conversion: palette indices must not be interpolated.
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8).reshape(size, size, channels)


def _decode(source: Source, start: int, stop: int, out: np.ndarray | None, progress: bool) -> dict[int, str]:
    """Decode images start..stop-1 in threads, into `out` if given; returns {position: problem} for bad ones."""
    if out is None:  # whether an image can be read does not depend on its size, but time and memory do
        source = dataclasses.replace(source, image_size=1)

    def decode_chunk(first: int) -> dict[int, str]:
        problems = {}
        for i in range(first, min(first + _CHUNK, stop)):
            try:
                image = source[i]
            except BadImage as error:
                problems[i] = str(error)
            else:
                if out is not None:
                    out[i - start] = image
        return problems

    chunks = range(start, stop, _CHUNK)
    bad = {}
    with ThreadPoolExecutor(source.threads) as pool:
        done = pool.map(decode_chunk, chunks)
        for problems in tqdm(done, total=len(chunks), desc="reading images", disable=not progress, delay=_BAR_AFTER):
            bad.update(problems)
    return bad


def _summary(bad: dict[int, str], total: int) -> str:
    shown = "; ".join(list(bad.values())[:_SHOWN])
    more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    return f"{len(bad)} of {total} images cannot be read: {shown}{more}"


def read_range(source: Source, start: int, stop: int, *, progress: bool = False) -> np.ndarray:
    """Decode images start..stop-1 of a source in threads.

    Returns:
      images_NxHxWxC uint8, in the order of the source.

    Raises:
      ValueError: some cannot be read; the message says how many and names the first ones.
    """
    stop = min(stop, len(source))
    images_NxHxWxC = np.empty((stop - start, source.image_size, source.image_size, source.channels), np.uint8)
    _refuse(_decode(source, start, stop, images_NxHxWxC, progress), stop - start)
    return images_NxHxWxC


def _refuse(bad: dict[int, str], total: int) -> None:
    if bad:
        raise ValueError(f"{_summary(bad, total)}. Repair or remove them, or set dataset.bad_images to 'skip'.")


def check_readable(source: Source, *, progress: bool = False) -> None:
    """Decode every image that is not in memory anyway, and keep none; raises as `read_range`."""
    if not isinstance(source.records, ArrayRecords):
        _refuse(_decode(source, 0, len(source), None, progress), len(source))


def read_all(source: Source, *, progress: bool = False) -> np.ndarray:
    """Every image of a source: images_NxHxWxC uint8; see `read_range`."""
    return read_range(source, 0, len(source), progress=progress)


def resident(source: Source, *, progress: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A source as arrays, to be kept on the device: images_NxHxWxC uint8 and labels_N int32; see `read_range`.

    Warns if many decoded images are copies of others.
    """
    images = read_all(source, progress=progress)
    _warn_of_copies(images, "training images")
    return images, source.labels


def check_copies(source: Source, *, count: int = 256) -> None:
    """Warn if many of `count` evenly spaced images are copies of others; for streamed data.

    Unreadable images are left to the stream, which names them.
    """
    places = np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int))
    with contextlib.suppress(ValueError):
        _warn_of_copies(read_all(source.take(places)), "training images looked at")


def _warn_of_copies(images: np.ndarray, what: str) -> None:
    copies = len(images) - len({hashlib.blake2b(image, digest_size=16).digest() for image in images})
    if copies > _MANY_COPIES * len(images):
        logging.warning(
            "%d of %d %s are exact copies of others at %dx%d pixels and %d channel(s); check the files, and "
            "dataset.background if they are transparent.",
            copies,
            len(images),
            what,
            *images.shape[1:],
        )


def without_bad_images(source: Source) -> Source:
    """The readable images of a source, with their labels; a warning counts and names the others.

    Decodes every image once, so that lengths and labels are right before any batch is drawn.
    """
    bad = _decode(source, 0, len(source), out=None, progress=False)
    if not bad:
        return source
    logging.warning("Left out: %s.", _summary(bad, len(source)))
    return source.take(np.setdiff1d(np.arange(len(source)), list(bad)))
