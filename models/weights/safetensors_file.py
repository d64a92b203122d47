"""Read and write `.safetensors` files."""

import numpy as np
import safetensors
from safetensors.numpy import save

from util.files import convert_read_errors

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,  # the upper half of a float32
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def is_safetensors_file(path):
    """Return whether the file has a safetensors header. Raises OSError."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"  # after the length of the JSON header


def read_safetensors(path):
    """Return the arrays in a file (Path), name -> NumPy array; bfloat16 becomes float32.

    Raises InputError if the file is missing or damaged, or contains an unsupported dtype.
    """
    with convert_read_errors(path):
        with safetensors.safe_open(path, framework="np"):
            pass  # checks the sizes in the header before memory is allocated for them
        entries = safetensors.deserialize(path.read_bytes())
        return {name: _to_array(**entry) for name, entry in entries}


def write_safetensors(arrays, file):
    """Write arrays (name -> NumPy array) to a binary file."""
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    file.write(save(arrays, metadata={"format": "pt"}))  # transformers requires this metadata


def _to_array(dtype, shape, data):
    if dtype not in _DTYPES:
        raise ValueError(f"arrays of {dtype} are not supported")
    array = np.frombuffer(data, _DTYPES[dtype]).reshape(shape)
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array
