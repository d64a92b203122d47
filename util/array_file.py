"""Read and write array files that processes share by memory-mapping them.

Layout: 8 bytes MAGIC, 32 bytes SHA-256 of all that follows, 8 bytes length of the header, the
header, and the arrays, each at a multiple of ALIGNMENT bytes. The header is JSON:
{"extra": …, "arrays": {name: [dtype, shape, offset after the header]}}.
"""

import hashlib
import json
import mmap

import numpy as np

from util.files import atomic_write

MAGIC = b"ARRAYS 1"
HASH_START = len(MAGIC) + 32
HEADER_START = HASH_START + 8
ALIGNMENT = 64


def write_arrays(path, arrays, extra):
    """Write a dict of arrays and `extra`, any JSON-serializable value.

    Raises InputError if the file cannot be written; an existing file is kept.
    """
    entries, parts, offset = {}, [], 0
    for name, array in arrays.items():
        entries[name] = [array.dtype.str, array.shape, offset]
        padding = -array.nbytes % ALIGNMENT
        parts += [np.ascontiguousarray(array).data, b"\0" * padding]
        offset += array.nbytes + padding
    header = json.dumps({"extra": extra, "arrays": entries}).encode()
    header += b" " * (-(HEADER_START + len(header)) % ALIGNMENT)
    parts = [len(header).to_bytes(8, "little"), header, *parts]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    with atomic_write(path) as file:
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
    digest = hashlib.sha256(memoryview(content)[HASH_START:]).digest()
    if content[:HASH_START] != MAGIC + digest:
        return None
    start = HEADER_START + int.from_bytes(content[HASH_START:HEADER_START], "little")
    header = json.loads(content[HEADER_START:start])
    arrays = {
        name: np.frombuffer(content, dtype, int(np.prod(shape)), start + offset).reshape(shape)
        for name, (dtype, shape, offset) in header["arrays"].items()
    }
    return arrays, header["extra"]
