"""Read the arrays of a PyTorch checkpoint (.pth, .pt) without PyTorch and without running its pickle.

A pickle is a program: unpickling a file runs what its author wrote. This reader takes the few opcodes and the few names
that a state dict consists of and refuses all others, so that a file can only ever give arrays, numbers, strings and
their containers. Both formats of `torch.save` are read: the zip archive (since PyTorch 1.6) and the stream of pickles
before it. The sizes that a file declares are checked against its own length before anything is built from them.
"""

import io
import math
import os
import pickle
import re
import reprlib
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# Containers, numbers and strings, names, calls of names, references to storages. BUILD sets attributes: see below.
OPCODES = re.findall(
    r"\w+",
    """
PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT
BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES BINSTRING SHORT_BINSTRING
EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS
BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD BINPERSID
    """,
)


def read(path: str) -> Any:
    """The object in a `torch.save` file, with NumPy arrays (read-only views of the file's bytes) for its tensors.

    Args:
      path: a file of `torch.save`, of either format.

    Returns:
      The saved object: usually a dict of arrays, or a dict of such dicts, numbers and strings; None for SETTINGS.

    Raises:
      ValueError: it is not such a file, it is damaged, or it needs more than arrays, numbers, strings and containers.
        One line, naming the file. Nothing of the file has been run.
    """
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        with open(path, "rb") as file:
            return _read_legacy(file.read())
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle or archive can fail in any way
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{path} cannot be read as a PyTorch checkpoint: {said.rstrip('.')}.") from error


def _read_zip(path: str) -> Any:
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise ValueError("the archive holds no single data.pkl")
        # torch.save never compresses. A compressed member, or members that overlap, could unpack to far more than the
        # file is long.
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise ValueError("the archive is compressed, which torch.save never does")
        if sum(member.file_size for member in members.values()) > os.path.getsize(path):
            raise ValueError("the archive declares more bytes than the file has")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("its numbers are big-endian; only little-endian files are supported")
        storages: dict[str, bytes] = {}

        def storage(key: str, dtype: np.dtype, count: int) -> np.ndarray:
            if key not in storages:
                name = f"{root}data/{key}"
                if name not in members:
                    raise ValueError(f"storage {key!r} is missing")
                storages[key] = archive.read(name)
            return _elements(storages[key], dtype, count, key)

        return _Unpickler(io.BytesIO(archive.read(pickles[0])), storage).load()


def _read_legacy(data: bytes) -> Any:
    """Five pickles (magic number, protocol, system, object, storage keys), then per storage its size and bytes."""
    if data.startswith(b"PK"):
        raise ValueError("it is a zip archive without its end, perhaps from an interrupted download")
    if not data.startswith(b"\x80"):
        raise ValueError("it is neither a zip archive nor a pickle")
    stream = io.BytesIO(data)
    if _Unpickler(stream, _no_storage).load() != LEGACY_MAGIC:
        raise ValueError("it is a pickle, but not one of torch.save")
    if _Unpickler(stream, _no_storage).load() != LEGACY_PROTOCOL:
        raise ValueError("its protocol version is unknown")
    if not _Unpickler(stream, _no_storage).load().get("little_endian", True):
        raise ValueError("its numbers are big-endian; only little-endian files are supported")
    start = stream.tell()
    # The object comes before its numbers. A first pass, on arrays without memory, finds the size of each storage.
    sizes: dict[str, tuple[np.dtype, int]] = {}

    def declared(key: str, dtype: np.dtype, count: int) -> np.ndarray:
        if sizes.setdefault(key, (dtype, count)) != (dtype, count):
            raise ValueError(f"storage {key!r} is declared twice, differently")
        return np.broadcast_to(np.zeros((), dtype), (count,))

    _Unpickler(stream, declared).load()
    found: dict[str, bytes] = {}
    for key in _Unpickler(stream, _no_storage).load():
        if key not in sizes:
            raise ValueError(f"storage {key!r} is not declared")
        dtype, count = sizes[key]
        header = stream.read(8)
        if len(header) < 8 or struct.unpack("<q", header)[0] != count:
            raise ValueError(f"storage {key!r} has not the declared {count} elements")
        found[key] = stream.read(count * dtype.itemsize)

    def storage(key: str, dtype: np.dtype, count: int) -> np.ndarray:
        if key not in found:
            raise ValueError(f"storage {key!r} is missing")
        return _elements(found[key], dtype, count, key)

    stream.seek(start)
    return _Unpickler(stream, storage).load()


def _elements(data: bytes, dtype: np.dtype, count: int, key: str) -> np.ndarray:
    if len(data) != count * dtype.itemsize:
        raise ValueError(f"storage {key!r} has {len(data)} bytes, not those of {count} elements of {dtype.name}")
    return np.frombuffer(data, dtype)


def _no_storage(key: str, dtype: np.dtype, count: int) -> np.ndarray:
    raise ValueError("a storage where none belongs")


def _whole(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or any(type(value) is not int or value < 0 for value in values):
        raise ValueError(f"a shape, stride or offset is {reprlib.repr(values)}, not a tuple of integers from 0 up")
    return values


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *ignored: Any) -> np.ndarray:
    """The view of a storage: strides and offset count elements, and must stay inside."""
    if not isinstance(storage, np.ndarray) or storage.ndim != 1:
        raise ValueError("a tensor without a storage")
    (offset,), shape, strides = _whole((offset,)), _whole(shape), _whole(strides)
    if len(shape) != len(strides):
        raise ValueError(f"a tensor has the shape {shape} but the strides {strides}")
    # An expanded tensor could be declared far larger than what it repeats.
    if len(shape) > 32 or math.prod(shape) > storage.size:
        raise ValueError(f"a tensor of shape {shape} does not fit its storage of {storage.size} elements")
    if 0 in shape:
        return np.zeros(shape, storage.dtype)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if last >= storage.size:
        raise ValueError(f"a tensor of shape {shape} reaches beyond its storage of {storage.size} elements")
    step = storage.strides[0]
    return np.lib.stride_tricks.as_strided(
        storage[offset:], shape, [stride * step for stride in strides], writeable=False
    )


def _rebuild_parameter(data: Any, *ignored: Any) -> np.ndarray:
    if not isinstance(data, np.ndarray):
        raise ValueError("a parameter without a tensor")
    return data


def _ordered(pairs: Any = ()) -> OrderedDict:
    return OrderedDict((_name(key), value) for key, value in pairs)


def _name(key: Any) -> str | int:
    # Nothing else, because the hash or text of a nested tuple can take arbitrarily long.
    if type(key) not in (str, int):
        raise ValueError(f"a {type(key).__name__} as a name")
    return key


def _setting(*ignored: Any) -> None:
    """Returns None in place of a setting."""


# Objects that training code saves beside the weights: options (SupCon, DINO, MAE), a best accuracy, the milestones of a
# schedule. None of them is constructed.
SETTINGS = (
    ("argparse", "Namespace"),
    ("collections", "Counter"),
    ("pathlib", "PosixPath"),
    ("torch", "device"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),  # the bytes of a NumPy scalar
    ("__builtin__", "set"),
    ("builtins", "set"),
)
# Functions, because a class could be given attributes or be instantiated in other ways.
NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _ordered,
    ("torch", "Size"): lambda sizes: tuple(sizes),
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **dict.fromkeys(SETTINGS, _setting),
}


class _Unpickler(pickle._Unpickler):
    """The standard library's Python unpickler, restricted to OPCODES. The C version allocates what a file asks for."""

    def __init__(self, file: io.BytesIO, storage: Callable[[str, np.dtype, int], np.ndarray]):
        super().__init__(file, encoding="latin1")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return np.dtype(STORAGES[name])
        if (module, name) not in NAMES:
            raise ValueError(
                f"it needs the Python name {f'{module}.{name}'[:100]!r}, and only tensors and plain containers are "
                "read; save the state dict alone, torch.save(model.state_dict(), path)"
            )
        return NAMES[module, name]

    def persistent_load(self, reference: Any) -> np.ndarray:
        kind, dtype, key, _, count, *view = reference
        if kind != "storage" or not isinstance(dtype, np.dtype) or any(part is not None for part in view):
            raise ValueError(f"an unknown reference, {reprlib.repr(reference)}")
        return self._storage(str(_name(key)), dtype, _whole((count,))[0])

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not any(function is allowed for allowed in NAMES.values()):
            raise ValueError(f"a call of a {type(function).__name__}")
        self.stack[-1] = function(*arguments)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def load_setitems(self) -> None:
        self._fill(self.pop_mark())

    def _fill(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict):
            raise ValueError(f"items of a {type(self.stack[-1]).__name__}")
        self.stack[-1].update((_name(key), value) for key, value in zip(items[::2], items[1::2], strict=True))

    def load_build(self) -> None:
        # The attributes of an OrderedDict (a state dict's _metadata) and of a setting are not needed.
        self.stack.pop()
        if self.stack[-1] is not None and not isinstance(self.stack[-1], OrderedDict):
            raise ValueError(f"attributes of a {type(self.stack[-1]).__name__}")

    def _refuse(self) -> None:
        raise ValueError("its pickle holds instructions that no state dict needs")

    dispatch = dict.fromkeys(pickle._Unpickler.dispatch, _refuse) | {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in OPCODES
    }
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_reduce  # a class and its arguments, which are on the stack as for REDUCE
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
