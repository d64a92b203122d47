"""Reads and writes `.safetensors` files: a length, a JSON header, and the tensors' numbers.

Source: https://github.com/huggingface/safetensors#format
"""

import json
import math
import os

import numpy as np

from util.errors import InputError

_MAX_HEADER = 100_000_000  # bytes, as in the safetensors library
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",  # the upper half of a float32
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items() if name != "BF16"}


def is_safetensors_file(path):
    """Whether the file begins as such a file does, after the length. Raises OSError."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def read_safetensors(path):
    """The arrays in a file, name -> NumPy array; bfloat16 becomes float32.

    Everything is checked against the size of the file before memory is taken for it.
    Raises InputError for a file that is missing or damaged, or of a type that NumPy does not have.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = _read_header(file, size)
            start = file.tell()
            places = _places(header, size - start)
            arrays = {}
            for name, (begin, dtype, shape) in places.items():
                file.seek(start + begin)
                array = np.fromfile(file, _DTYPES[dtype], math.prod(shape)).reshape(shape)
                if dtype == "BF16":
                    array = (array.astype(np.uint32) << 16).view(np.float32)
                arrays[name] = array
            return arrays
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # also what JSON and UTF-8 raise
        raise InputError(
            f"{path}: the file is truncated or damaged; download or copy it again "
            f"({str(error)[:200]})"
        ) from error


def write_safetensors(arrays, file):
    """Writes arrays (name -> NumPy array) to a binary file."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)  # the numbers begin at a multiple of 8
    file.write(len(content).to_bytes(8, "little"))
    file.write(content)
    for array in arrays.values():
        file.write(array.tobytes())


def _read_header(file, size):
    """The JSON header of a file of so many bytes. Raises ValueError."""
    length = int.from_bytes(file.read(8), "little")
    if length > min(_MAX_HEADER, size - 8):
        raise ValueError(f"a header of {length} bytes in a file of {size}")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("the header is no JSON object")
    header.pop("__metadata__", None)
    return header


def _places(header, size):
    """Where each tensor is: name -> (first byte, dtype, shape).

    size: bytes after the header, which the tensors fill without gaps. Raises ValueError.
    """
    places, expected = [], {}
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{name}: no dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not (_are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2):
            raise ValueError(f"{name}: shape {shape!r:.80}, data_offsets {offsets!r:.80}")
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise ValueError(f"{name}: cannot be read as {dtype!r:.80}")
        begin, end = offsets
        if end - begin != math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize:
            raise ValueError(f"{name}: {end - begin} bytes for {dtype} of shape {shape}"[:200])
        places.append((begin, end, name))
        expected[name] = begin, dtype, shape
    last = 0
    for begin, end, name in sorted(places):
        if begin != last:
            raise ValueError(f"{name}: begins at byte {begin} instead of {last}")
        last = end
    if last != size:
        raise ValueError(f"{size} bytes of tensors instead of {last}")
    return expected


def _are_sizes(value):
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)
