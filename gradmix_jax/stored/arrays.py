"""The .npz files of a run, checked from the headers of their arrays and read one array at a time.

Nothing in them is unpickled, and an array that claims more than its file can hold is refused before it is read.
"""

import dataclasses
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np

from gradmix_jax.stored.sums import digest
from gradmix_jax.workdir import storage, temporary

# An archive of zeros unpacks to a thousand times its size and is refused if that exceeds the size of a few images and
# labels; scores and features hardly compress.
LARGEST_RATIO = 100
ROOM = 2**26
# The errors of zipfile and NumPy for a broken file.
_BROKEN = (zipfile.BadZipFile, zlib.error, OSError, EOFError, KeyError, NotImplementedError, RuntimeError)
_BROKEN += (SyntaxError, TypeError, ValueError, OverflowError, MemoryError, UnicodeDecodeError)


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """The allowed type and shape of an array.

    Attributes:
      kinds: kinds of the dtype, as NumPy's `dtype.kind`: "f" floating, "iu" integers, "U" strings.
      dimensions: number of dimensions.
      finite: whether NaN and infinity are refused when it is read.
      dtype: the one dtype that it must have; None: any of the kinds.
      channels: lengths that the last dimension of images may have, which must not be empty; (): no images.
    """

    kinds: str
    dimensions: int
    finite: bool = False
    dtype: Any = None
    channels: tuple[int, ...] = ()

    def problem(self, shape: tuple[int, ...], dtype: np.dtype) -> str:
        """Why an array with this header does not fit; "" if it does."""
        wanted = np.dtype(self.dtype).name if self.dtype else {"f": "floating", "iu": "integer", "U": "string"}
        wanted = wanted if isinstance(wanted, str) else wanted.get(self.kinds, self.kinds)
        fits = dtype.kind in self.kinds and (self.dtype is None or dtype == self.dtype)
        if fits and len(shape) == self.dimensions:
            if not self.channels or (all(shape[1:]) and shape[-1] in self.channels):
                return ""
            return f"must be images of {' or '.join(map(str, self.channels))} channels, got {list(shape)}"
        return f"must be {wanted} with {self.dimensions} dimension(s), got {dtype} {list(shape)}"


class Arrays:
    """An .npz file whose arrays are read one at a time: a file of 100,000 images may be larger than memory.

    Args:
      path: path of the file.
      spec_of: name of an array -> its spec; None: any array is allowed.

    Raises:
      ValueError: the file is damaged, or an array violates its spec; one line with file and array. The methods raise
        it too.
    """

    def __init__(self, path: str, spec_of: Callable[[str], ArraySpec | None] = lambda name: None):
        self._path, self._spec_of, self._file = path, spec_of, path
        if storage.is_remote(path):  # because it is read many times, and finally all of it
            self._copy = temporary.directory()
            self._file = os.path.join(self._copy.name, os.path.basename(path))
            storage.download(path, self._file)
        with self._checked("") as archive:
            infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            if len(infos) < len(archive.infolist()):
                raise ValueError("it holds something other than arrays")
            self._names = [info.filename.removesuffix(".npy") for info in infos]
            total, size = sum(info.file_size for info in infos), os.path.getsize(self._file)
            if total > ROOM + LARGEST_RATIO * size:
                raise ValueError(f"it claims {total:,} bytes of arrays in a file of {size:,}")
            self._headers = {name: self._header(archive, name) for name in self._names}
        for name, (shape, dtype, _) in self._headers.items():
            spec = spec_of(name)
            problem = spec.problem(shape, dtype) if spec else ""
            if problem:
                raise ValueError(f"{path} is damaged: {name} {problem}.")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._headers

    def __getitem__(self, name: str) -> np.ndarray:
        (array,) = self._blocks(name, None)
        return array

    def length(self, name: str) -> int:
        """Number of rows of an array, from its header alone."""
        return self.shape(name)[0]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array, from its header alone."""
        if name not in self._headers:
            raise ValueError(f"{self._path} is damaged: it has no array {name}.")
        return self._headers[name][0]

    def sha256(self) -> str:
        """SHA-256 of the file, in hexadecimal."""
        return digest(self._file)

    def rows(self, name: str, chosen: np.ndarray) -> np.ndarray:
        """The rows at the ascending places `chosen`; no more than a few thousand are in memory at any time."""
        found, start = [], 0
        for block in self._blocks(name, 4096):
            inside = chosen[(chosen >= start) & (chosen < start + len(block))]
            found.append(block[inside - start])
            start += len(block)
        if not found:
            shape, dtype, _ = self._headers[name]
            return np.zeros((0, *shape[1:]), dtype)
        return np.concatenate(found)

    def _checked(self, name: str) -> "_Opened":
        return _Opened(self._file, self._path, name)

    def _header(self, archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype, bool]:
        with archive.open(f"{name}.npy") as file:
            shape, fortran, dtype = _read_header(file)
            stored = archive.getinfo(f"{name}.npy").file_size
            held = stored - file.tell()
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects, which are not loaded")
        if any(length < 0 for length in shape) or math.prod(shape) * dtype.itemsize > held:
            raise ValueError(f"{name} is cut short")
        if math.prod(shape) * dtype.itemsize < held:
            raise ValueError(f"{name} is longer than its header says")
        return shape, dtype, fortran and len(shape) > 1

    def _blocks(self, name: str, size: int | None) -> Iterator[np.ndarray]:
        (first, *rest), is_scalar = (self.shape(name) or (1,)), not self.shape(name)
        (_, dtype, by_column), spec = self._headers[name], self._spec_of(name)
        with self._checked(name) as archive, archive.open(f"{name}.npy") as file:
            _read_header(file)
            if by_column and size is not None:
                raise ValueError("it is in Fortran order and cannot be read row by row")
            step = first if size is None else size
            for start in range(0, first, step) if first else [0]:
                count = min(step, first - start)
                block = np.frombuffer(_exactly(file, count * math.prod(rest) * dtype.itemsize), dtype)
                block = block.reshape(() if is_scalar else (count, *rest), order="F" if by_column else "C")
                if spec and spec.finite and not np.isfinite(block).all():
                    raise ValueError("it must be finite, got NaN or infinity")
                yield block.copy()
            file.read(1)  # at the end, the checksum of the whole array is checked


class _Opened:
    """A zip archive; any error while it is open becomes one line."""

    def __init__(self, file: str, path: str, name: str):
        self._file, self._path, self._name, self._archive = file, path, name, None

    def __enter__(self) -> zipfile.ZipFile:
        try:
            self._archive = zipfile.ZipFile(self._file)
        except _BROKEN as error:
            raise self._said(error) from error
        return self._archive

    def __exit__(self, kind, error, trace) -> None:
        self._archive.close()
        if isinstance(error, _BROKEN):
            raise self._said(error) from error

    def _said(self, error: Exception) -> ValueError:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__
        of = f"{self._name}: " if self._name else ""
        return ValueError(f"{self._path} is damaged: {of}{reason.rstrip('.')}.")


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file, max_header_size=10_000)


def _exactly(file: IO[bytes], size: int) -> bytes:
    content = file.read(size)
    if len(content) < size:
        raise ValueError("it is cut short")
    return content


def read_npz(path: str) -> dict[str, np.ndarray]:
    """Every array of an .npz file, without pickles; raises ValueError as `Arrays`."""
    found = Arrays(path)
    return {name: found[name] for name in found}
