"""A file of arrays that processes memory-map and so share.

Format: 8 bytes MAGIC, 32 bytes SHA-256 of all that follows, 8 bytes length of the header, the
header, and the arrays, each at a multiple of ALIGNMENT bytes. The header is JSON:
{"extra": …, "arrays": {name: [dtype, shape, offset after the header]}}.
"""

import hashlib
import json
import mmap

import numpy as np

from util.files import replacing

MAGIC = b"ARRAYS 1"
HASHED = len(MAGIC) + 32  # offset of the hashed part
FIXED = HASHED + 8  # offset of the header
ALIGNMENT = 64


def write_arrays(path, arrays, extra):
    """Write a dictionary of arrays, and `extra`, anything that JSON can represent.

    Raises InputError if the file cannot be written; an earlier file stays then.
    """
    entries, parts, offset = {}, [], 0
    for name, array in arrays.items():
        entries[name] = [array.dtype.str, array.shape, offset]
        padding = -array.nbytes % ALIGNMENT
        parts += [np.ascontiguousarray(array).data, b"\0" * padding]
        offset += array.nbytes + padding
    header = json.dumps({"extra": extra, "arrays": entries}).encode()
    header += b" " * (-(FIXED + len(header)) % ALIGNMENT)
    parts = [len(header).to_bytes(8, "little"), header, *parts]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    with replacing(path) as file:
        for part in [MAGIC, digest.digest(), *parts]:
            file.write(part)


def read_arrays(path):
    """Return (dictionary of arrays, extra), or None if the file is missing or damaged.

    The arrays are read-only views of the file, which all processes that read it share in memory.
    """
    try:
        with open(path, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # missing, or empty
        return None
    digest = hashlib.sha256(memoryview(content)[HASHED:]).digest()
    if content[:HASHED] != MAGIC + digest:
        return None
    start = FIXED + int.from_bytes(content[HASHED:FIXED], "little")
    header = json.loads(content[FIXED:start])
    arrays = {
        name: np.frombuffer(content, dtype, int(np.prod(shape)), start + offset).reshape(shape)
        for name, (dtype, shape, offset) in header["arrays"].items()
    }
    return arrays, header["extra"]
