"""Arrays in a file that processes map into their memory, and so share.

The file: 8 bytes MAGIC, 32 bytes SHA-256 of all that follows, 8 bytes length of the header, the
header as JSON, and the arrays, each at a multiple of ALIGNMENT bytes. The header is
{"extra": …, "arrays": {name: [dtype, shape, offset after the header]}}.
"""

import hashlib
import json
import mmap

import numpy as np

from util.files import replacing

MAGIC = b"ARRAYS 1"
HASHED = len(MAGIC) + 32  # where the hashed part begins
FIXED = HASHED + 8
ALIGNMENT = 64


def write_arrays(path, arrays, extra):
    """Writes a dictionary of arrays, and `extra`, anything that JSON takes.

    Raises InputError where the file cannot be written; one that was there before stays then.
    """
    places, parts, offset = {}, [], 0
    for name, array in arrays.items():
        places[name] = [array.dtype.str, array.shape, offset]
        padding = -array.nbytes % ALIGNMENT
        parts += [np.ascontiguousarray(array).data, b"\0" * padding]
        offset += array.nbytes + padding
    header = json.dumps({"extra": extra, "arrays": places}).encode()
    header += b" " * (-(FIXED + len(header)) % ALIGNMENT)
    parts = [len(header).to_bytes(8, "little"), header, *parts]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    with replacing(path) as file:
        for part in [MAGIC, digest.digest(), *parts]:
            file.write(part)


def read_arrays(path):
    """(dictionary of arrays, extra), or None where the file is missing or not intact.

    The arrays cannot be written to. Their memory is the file's, which all processes that read it
    share.
    """
    try:
        with open(path, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # missing, or empty
        return None
    digest = content[len(MAGIC) : HASHED]
    if (
        content[: len(MAGIC)] != MAGIC
        or digest != hashlib.sha256(memoryview(content)[HASHED:]).digest()
    ):
        return None
    start = FIXED + int.from_bytes(content[HASHED:FIXED], "little")
    header = json.loads(content[FIXED:start])
    arrays = {
        name: np.frombuffer(content, dtype, int(np.prod(shape)), start + offset).reshape(shape)
        for name, (dtype, shape, offset) in header["arrays"].items()
    }
    return arrays, header["extra"]
