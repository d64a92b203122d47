"""Safetensors files: round trips, dtypes and damage; hostile files: test_hostile.py."""

import io
import json
import struct

import numpy as np
import pytest

from models.weights.checkpoint import load_checkpoint
from models.weights.safetensors_file import read_safetensors, write_safetensors
from util.errors import InputError

ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "double": np.array([1 / 3]),
    "half": np.float16([0.5, -2]),
    "scalar": np.array(7, np.int64),
    "flags": np.array([True, False, True]),
    "empty": np.zeros((0, 4), np.float32),
    "重み": np.uint8([1, 2]),
}


def content(arrays=ARRAYS):
    file = io.BytesIO()
    write_safetensors(arrays, file)
    return file.getvalue()


def test_a_written_file_reads_back_equal(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content())
    found = read_safetensors(path)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert load_checkpoint(path)["model"].keys() == ARRAYS.keys()


def test_the_layout_is_the_documented_one():
    written = content({"a": np.float32([[1, 2]])})
    [length] = struct.unpack("<Q", written[:8])
    assert length % 8 == 0 and written[8 + length :] == struct.pack("<2f", 1, 2)
    assert json.loads(written[8 : 8 + length]) == {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
    }


def test_bfloat16_becomes_float32(tmp_path):
    numbers = np.float32([1.5, -0.0078125, 3e38])
    upper = (numbers.view(np.uint32) >> 16).astype(np.uint16)
    path = tmp_path / "model"  # recognized by its content
    path.write_bytes(content({"a": upper.view(np.int16)}).replace(b'"I16"', b'"BF16"', 1))
    header, body = path.read_bytes()[8:-6], upper.tobytes()
    path.write_bytes(struct.pack("<Q", len(header)) + header + body)
    found = load_checkpoint(path)["model"]["a"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, (upper.astype(np.uint32) << 16).view(np.float32))


def test_truncated_anywhere_is_an_input_error(tmp_path):
    whole, path = content(), tmp_path / "cut.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="cut.safetensors: .*download or copy it again"):
            read_safetensors(path)


def test_flipped_bytes_never_escape_as_another_exception(tmp_path):
    whole, path = content(), tmp_path / "flipped.safetensors"
    refused = 0
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 0x55
        path.write_bytes(flipped)
        try:
            read_safetensors(path)
        except InputError:
            refused += 1
    assert refused > 100
