"""PyTorch and safetensors files: their contents and what is refused, without executing anything in a file.

The stored files are made by tests/models/references/make_torch_references.py.
"""

import argparse
import collections
import io
import json
import os
import pathlib
import pickle
import pickletools
import re
import struct
import sys
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from gradmix_jax.models import safetensors_file, torch_file

REFERENCES = pathlib.Path(__file__).parent / "references"
sys.path.append(str(REFERENCES))

from drawn_weights import drawn

NUMBERS = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
TENSORS = {
    "parameter": NUMBERS[0],
    "strided": NUMBERS.transpose(2, 0, 1)[1:, :, ::2],
    "half": NUMBERS.astype(np.float16),
    "bfloat16": NUMBERS.astype(np.dtype(jnp.bfloat16)),
    "double": NUMBERS.astype(np.float64),
    "integers": np.arange(-3, 3),
    "bytes": np.arange(3, dtype=np.uint8),
    "flags": np.array([True, False]),
    "scalar": np.array(7),
    "empty": np.zeros((0, 3), np.float32),
}


def assert_tensors(found):
    for name, wanted in TENSORS.items():
        assert found[name].dtype == wanted.dtype, name
        np.testing.assert_array_equal(found[name], wanted)


@pytest.mark.parametrize("name", ["small_zip.pth", "small_legacy.pth"])
def test_what_torch_save_wrote(name):
    content = torch_file.read(str(REFERENCES / name))
    assert_tensors(content)
    np.testing.assert_array_equal(content["state_dict"]["weight"], drawn("weight", (2, 3)))
    np.testing.assert_array_equal(content["state_dict"]["bias"], drawn("bias", (2,)))
    assert content["epoch"] == 3 and content["best"] == 0.5 and content["name"] == "größe"
    assert content["done"] == (True, None, [1, 2]) and content["shape"] == (2, 3, 4)
    assert content["optimizer"]["param_groups"] == [{"lr": 0.1, "params": [0, 1]}]
    assert content["optimizer"]["state"][0]["step"] == 1
    assert not content["parameter"].flags.writeable


def test_settings_beside_the_weights_are_not_built(tmp_path):
    # SupCon, DINO and MAE save their options with the weights.
    options = argparse.Namespace(lr=0.1, classes={1, 2}, best=np.float64(0.5), out=pathlib.Path("x"))
    content = {"epoch": 3, "opt": options, "milestones": collections.Counter([5, 10]), "best": np.float32(0.5)}
    path = archive(tmp_path / "x.pth", pickle.dumps(content, 2))
    assert torch_file.read(path) == {"epoch": 3, "opt": None, "milestones": None, "best": None}


def test_safetensors_of_its_own_library():
    content = safetensors_file.read(str(REFERENCES / "small.safetensors"))
    assert content.keys() == TENSORS.keys()
    assert_tensors(content)


def test_safetensors_written_and_read(tmp_path):
    path = str(tmp_path / "x.safetensors")
    safetensors_file.write(path, TENSORS)
    assert_tensors(safetensors_file.read(path))
    assert struct.unpack("<Q", pathlib.Path(path).read_bytes()[:8])[0] % 8 == 0
    with pytest.raises(ValueError, match="x is of dtype complex64"):
        safetensors_file.write(path, {"x": np.zeros(1, np.complex64)})


# --- hostile and damaged files


class Call:
    """Pickled as a call."""

    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


def archive(path, data, storages=(("0", b"\0" * 16),), compression=zipfile.ZIP_STORED, order=b"little"):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/byteorder", order)
        for key, content in storages:
            file.writestr(f"archive/data/{key}", content)
    return str(path)


def tensor(dtype=b"FloatStorage", count=4, offset=0, shape=(4,), strides=(1,), key="0"):
    """The pickle of one tensor, as torch.save writes it."""
    number = lambda value: pickle.dumps(value, 2)[2:-1]
    reference = b"(" + number("storage") + b"ctorch\n" + dtype + b"\n" + number(key) + number("cpu") + number(count)
    arguments = b"(" + reference + b"tQ" + number(offset) + number(shape) + number(strides) + b"\x89" + b"]t"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R."


def refused(path):
    with pytest.raises(ValueError) as caught:
        torch_file.read(path)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600 and message.startswith(f"{path} cannot be read")
    return message


def test_the_tensor_that_hostile_files_are_made_from(tmp_path):
    numbers = np.arange(4, dtype=np.float32)
    path = archive(tmp_path / "x.pth", tensor(), [("0", numbers.tobytes())])
    np.testing.assert_array_equal(torch_file.read(path), numbers)
    path = archive(tmp_path / "y.pth", tensor(offset=1, shape=(2,), strides=(2,)), [("0", numbers.tobytes())])
    np.testing.assert_array_equal(torch_file.read(path), [1, 3])


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["zip", "legacy"])
@pytest.mark.parametrize("function, name", [(os.system, "system"), (eval, "eval"), (exec, "exec")])
def test_a_call_is_refused_and_not_made(tmp_path, protocol, kind, function, name):
    made = tmp_path / "made"
    code = f"touch {made}" if function is os.system else f"open({str(made)!r}, 'w')"
    path = str(tmp_path / "x.pth")
    content = {"state_dict": {"a": Call(function, code)}}
    if kind == "zip":
        archive(path, pickle.dumps(content, protocol))
    else:
        header = [torch_file.LEGACY_MAGIC, torch_file.LEGACY_PROTOCOL, {"little_endian": True}]
        pathlib.Path(path).write_bytes(
            b"".join(pickle.dumps(part, 2) for part in header) + pickle.dumps(content, protocol)
        )
    message = refused(path)
    assert not made.exists()
    if protocol > 1:
        assert f".{name}'" in message
    pickle.loads(pickle.dumps(content, protocol))  # what the file tried to do
    assert made.exists()


@pytest.mark.parametrize(
    "data, message",
    [
        (b"\x80\x02cbuiltins\neval\n.", "it needs the Python name 'builtins.eval'"),
        (
            b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n.",
            "'numpy.core.multiarray._reconstruct'.*save the state dict alone",
        ),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "'posix.system'"),
        (b"\x80\x02ctorch\n__name__\n.", "'torch.__name__'"),
        (b"\x80\x02K\x01)\x81.", "a call of a int"),  # NEWOBJ
        (b"\x80\x02(icollections\nOrderedDict\n.", "instructions"),  # INST
        (b"\x80\x02ccollections\nOrderedDict\n}b.", "attributes of a function"),  # BUILD
        (b"\x80\x02K\x01)R.", "a call of a int"),
        (b"\x80\x02]K\x01K\x02s.", "items of a list"),
        (b"\x80\x02}K\x01K\x02\x86K\x03s.", "a tuple as a name"),
        (b"\x80\x02r\xff\xff\xff\x7f.", "cannot be read"),  # LONG_BINPUT without a value
        (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".", "instructions"),  # BYTEARRAY8
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "cannot be read"),  # BINUNICODE
        (b"\x80\x02", "cannot be read"),
        (b"", "cannot be read"),
        (b"\x80\x02NN\x86Q.", "cannot be read"),  # BINPERSID
    ],
)
def test_hostile_pickles(tmp_path, data, message):
    said = refused(archive(tmp_path / "x.pth", data))
    assert re.search(message, said), said


def test_a_nested_tuple_cannot_take_forever(tmp_path):
    """Sixty doublings would, as a dict key or in a message."""
    nested = b"K\x01" + b"q\x01h\x01\x86" * 60
    for data in (b"}" + nested + b"Ns.", nested + b"Q.", b"ctorch._utils\n_rebuild_tensor_v2\n" + nested + b"R."):
        refused(archive(tmp_path / "x.pth", b"\x80\x02" + data))


def test_a_large_memo_index_takes_no_memory(tmp_path):
    data = b"\x80\x02K\x05r\xff\xff\xff\xff."
    assert torch_file.read(archive(tmp_path / "x.pth", data)) == 5


@pytest.mark.parametrize(
    "data, message",
    [
        (tensor(count=2**40), "storage '0' has 16 bytes, not those of 1099511627776 elements of float32"),
        (tensor(count=5), "has 16 bytes"),
        (tensor(count=-4), "integers from 0 up"),
        (tensor(dtype=b"DoubleStorage"), "has 16 bytes"),
        (tensor(dtype=b"QInt8Storage"), "'torch.QInt8Storage'"),
        (tensor(offset=1), "reaches beyond its storage of 4 elements"),
        (tensor(offset=-1), "integers from 0 up"),
        (tensor(strides=(2,)), "reaches beyond"),
        (tensor(strides=(-1,)), "integers from 0 up"),
        (tensor(shape=(2**40,), strides=(0,)), "does not fit its storage"),
        (tensor(shape=(2, 2)), r"the shape \(2, 2\) but the strides \(1,\)"),
        (tensor(shape=(1,) * 33, strides=(1,) * 33), "does not fit"),
        (tensor(key="1"), "storage '1' is missing"),
        (tensor(key="../data.pkl"), "is missing"),
    ],
)
def test_tensors_that_do_not_fit_their_storage(tmp_path, data, message):
    path = archive(tmp_path / "x.pth", data)
    with pytest.raises(ValueError, match=message):
        torch_file.read(path)
    refused(path)


def test_a_zip_bomb(tmp_path):
    bomb = archive(tmp_path / "x.pth", tensor(count=2**24), [("0", b"\0" * 2**26)], zipfile.ZIP_DEFLATED)
    assert os.path.getsize(bomb) < 10**6
    assert "compressed" in refused(bomb)


def test_an_archive_that_declares_more_than_the_file(tmp_path):
    """Two names for the same bytes; overlapping zip bombs have thousands."""
    path = archive(tmp_path / "x.pth", tensor(), [("0", b"\0" * 5000), ("1", b"\0" * 10)])
    data = bytearray(pathlib.Path(path).read_bytes())
    central = data.rindex(b"PK\x01\x02")
    data[central + 20 : central + 28] = struct.pack("<LL", 5000, 5000)
    pathlib.Path(path).write_bytes(data)
    assert "more bytes than the file has" in refused(path)


def test_other_kinds_of_archives(tmp_path):
    assert "big-endian" in refused(archive(tmp_path / "x.pth", tensor(), order=b"big"))
    with zipfile.ZipFile(tmp_path / "y.pth", "w") as file:
        file.writestr("what", b"")
    assert "no single data.pkl" in refused(str(tmp_path / "y.pth"))


@pytest.mark.parametrize("name", ["small_zip.pth", "small_legacy.pth", "small.safetensors"])
def test_truncated_files(tmp_path, name):
    data = (REFERENCES / name).read_bytes()
    path = str(tmp_path / name)
    read = safetensors_file.read if name.endswith("safetensors") else torch_file.read
    for length in range(0, len(data), 7 if len(data) < 4000 else 29):
        pathlib.Path(path).write_bytes(data[:length])
        with pytest.raises(ValueError) as caught:
            read(path)
        assert "\n" not in str(caught.value) and path in str(caught.value)
        assert ("interrupted" in str(caught.value)) == (name.endswith("zip.pth") and length > 1)


@pytest.mark.parametrize("name", ["small_zip.pth", "small_legacy.pth", "small.safetensors"])
def test_damaged_files_give_a_value_error_or_something_harmless(tmp_path, name):
    data, rng = (REFERENCES / name).read_bytes(), np.random.default_rng(0)
    path = tmp_path / name
    read = safetensors_file.read if name.endswith("safetensors") else torch_file.read
    errors = 0
    for _ in range(200):
        broken = bytearray(data)
        for position in rng.integers(0, len(data), 3):
            broken[position] = rng.integers(256)
        path.write_bytes(broken)
        try:
            read(str(path))
        except ValueError as error:
            errors += 1
            assert "\n" not in str(error)
    assert errors > 20


def test_files_that_are_not_checkpoints(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"hello")
    assert "neither a zip archive nor a pickle" in refused(str(path))
    path.write_bytes(pickle.dumps({"a": 1}))
    assert "not one of torch.save" in refused(str(path))


def safetensors_bytes(header, data=b""):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


@pytest.mark.parametrize(
    "content, message",
    [
        (b"abc", "its header does not fit"),
        (struct.pack("<Q", 2**60) + b"{}", "its header does not fit"),
        (safetensors_bytes(b"[" * 100_000), "cannot be read"),
        (safetensors_bytes([]), r"its header must be a JSON object, got \[\]."),
        (safetensors_bytes(None), "its header must be a JSON object, got None."),
        (safetensors_bytes({"a": 3}), "the entry of 'a' must have a dtype, a shape and data_offsets, got 3."),
        (safetensors_bytes({"a": {"dtype": "F32"}}), "the entry of 'a' must have a dtype, a shape and data_offsets"),
        (safetensors_bytes({"a": {"dtype": [], "shape": [], "data_offsets": [0, 0]}}), r"the dtype of 'a' is \[\]"),
        (safetensors_bytes({"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}, b"1234"), "from 0 up"),
        (safetensors_bytes({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4]}}, b"1234"), "from 0 up"),
        (safetensors_bytes({"a": {"dtype": "F4", "shape": [], "data_offsets": [0, 0]}}), "the dtype of 'a' is 'F4'"),
        (safetensors_bytes({"a": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 4]}}, b"1234"), "do not fit"),
        (safetensors_bytes({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"1234"), "do not fit"),
        (safetensors_bytes({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}, b"1234"), "from 0 up"),
        (safetensors_bytes({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"12345"), "do not fill"),
        (
            safetensors_bytes({k: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for k in "ab"}, b"1234"),
            "do not fill",
        ),
    ],
)
def test_hostile_safetensors(tmp_path, content, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        safetensors_file.read(str(path))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_every_opcode_that_torch_uses_is_among_the_few():
    names = {getattr(pickle, name) for name in torch_file.OPCODES}
    for name in ("small_zip.pth", "small_legacy.pth"):
        data = (REFERENCES / name).read_bytes()
        if name.endswith("zip.pth"):
            with zipfile.ZipFile(io.BytesIO(data)) as file:
                data = file.read(next(n for n in file.namelist() if n.endswith("data.pkl")))
        assert {op.code.encode("latin1") for op, _, _ in pickletools.genops(data)} <= names
