"""The safetensors format, read and written with NumPy alone.

A file is the length of its header (8 bytes, little-endian), the header (JSON: of each array its dtype, shape, and where
its bytes begin and end behind the header) and the bytes (row-major, little-endian, without gaps). Nothing in it can
be run.
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LARGEST_HEADER = 100_000_000  # bytes, the limit of the format's own library


def read(path: str) -> dict[str, np.ndarray]:
    """{name: array}, read-only.

    Raises:
      ValueError: it is not a safetensors file, or its header does not fit the bytes after it. One line with the file.
    """
    with open(path, "rb") as file:
        prefix = file.read(8)
        size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if not 0 <= size <= min(LARGEST_HEADER, os.path.getsize(path) - 8):
            raise ValueError(f"{path} is no safetensors file: its header does not fit into it.")
        try:
            header = json.loads(file.read(size))
            if not isinstance(header, dict):
                raise ValueError(f"its header must be a JSON object, got {header!r:.40}")
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            data = file.read()
            arrays = {name: _array(data, name, entry) for name, entry in entries.items()}
        except (ValueError, RecursionError) as error:
            said = " ".join(str(error).split())[:200]
            raise ValueError(f"{path} cannot be read as a safetensors file: {said.rstrip('.')}.") from error
    if sum(array.nbytes for array in arrays.values()) != len(data):
        raise ValueError(f"{path} cannot be read as a safetensors file: its arrays do not fill its {len(data)} bytes.")
    return arrays


def _array(data: bytes, name: str, entry: Any) -> np.ndarray:
    name = name[:60]
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of {name!r} must have a dtype, a shape and data_offsets, got {entry!r:.60}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"the dtype of {name!r} is {dtype!r:.20}, which is not supported")
    lists = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    if not lists or any(type(number) is not int or number < 0 for number in [*shape, *offsets]):
        raise ValueError(f"the shape or offsets of {name!r} are not integers from 0 up")
    begin, end = offsets
    if end > len(data) or end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"the offsets of {name!r} do not fit its shape or the file")
    return np.frombuffer(data[begin:end], DTYPES[dtype]).reshape(shape)


def write(path: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write {name: array} as a safetensors file, which PyTorch's users open with `safetensors.torch.load_file`.

    Raises:
      ValueError: an array has a dtype that is not supported here.
    """
    header, offset = {}, 0
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    for name, array in arrays.items():
        if array.dtype not in NAMES:
            raise ValueError(f"{name} is of dtype {array.dtype}, which a safetensors file cannot hold.")
        offsets = [offset, offset + array.nbytes]
        header[name] = {"dtype": NAMES[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
        offset = offsets[1]
    encoded = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for array in arrays.values():
            file.write(array.tobytes())
