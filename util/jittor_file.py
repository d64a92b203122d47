"""Read and write checkpoints in `jt.save`'s format. Reading never executes code from a file."""

import hashlib
import math
import os
import pickle
import re

import numpy as np

from util import pickles
from util.errors import InputError
from util.files import atomic_write, convert_read_errors

_MAGIC = b"HCAJSLHD"  # file layout: pickle, SHA-1, magic
_TRAILER_SIZE = 20 + len(_MAGIC)


def write_jittor_file(obj, path):
    """Write obj to path, so that `read_jittor_file` and `jt.load` return it.

    obj: a dict of plain containers, numbers, strings and NumPy arrays; TypeError for anything else.
    Raises InputError if the disk is full or the folder cannot be written. A failure leaves an
    earlier file at path unchanged.
    """
    with atomic_write(path) as file:
        hashed = _HashedWriter(file)
        _Pickler(hashed, protocol=4).dump(obj)
        file.write(hashed.sha1.digest() + _MAGIC)


def read_jittor_file(path):
    """Return the object in the file at path (Path).

    Raises InputError if it is damaged or cannot be read without executing code.
    """
    if problem := _check_checksum(path):
        raise InputError(
            f"{path}: {problem}; check the path, or download or copy the file "
            f"again{_suggest_intact(path)}"
        )
    with open(path, "rb") as file, convert_read_errors(path):
        return pickles.load(file, path, _GLOBALS)


class _DType(pickles.Pending):
    """Stands in for `numpy.dtype`; `build` gets the byte order."""

    def __init__(self, name, *_align_and_copy):
        super().__init__()
        if not re.fullmatch(r"[biufc]\d{1,2}", name):
            raise ValueError(f"unsupported dtype {name!r}")
        self.name = name

    def build(self, state):
        version, order, *rest = state
        if order not in ("<", ">", "|", "=") or rest[:3] != [None, None, None]:
            raise ValueError("a dtype with an unexpected state")
        return np.dtype(order + self.name)


class _Array(pickles.Pending):
    """Stands in for `numpy._reconstruct`; `build` gets shape, dtype and content."""

    def __init__(self, *_class_and_placeholders):
        super().__init__()

    def build(self, state):
        _version, shape, dtype, is_fortran, content = state
        if min((0, *shape)) < 0 or math.prod(shape) * dtype.itemsize != len(content):
            raise ValueError(f"{len(content)} bytes do not match shape {shape} of {dtype}")
        return np.ndarray(shape, dtype, content, order="F" if is_fortran else "C")


def _scalar(dtype, content):
    return np.frombuffer(content, dtype, 1)[0]


_GLOBALS = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _DType,
    **{
        (f"numpy.{core}.multiarray", name): value  # NumPy 2 renamed core to _core
        for core in ("core", "_core")
        for name, value in (("_reconstruct", _Array), ("scalar", _scalar))
    },
}


class _HashedWriter:
    """Write to a file and compute the SHA-1 of what is written."""

    def __init__(self, file):
        self.file = file
        self.sha1 = hashlib.sha1()

    def write(self, data):
        self.sha1.update(data)
        return self.file.write(data)


class _Pickler(pickle.Pickler):
    allowed = (np.ndarray, np.dtype, np.zeros(1).__reduce__()[0], np.float32(0).__reduce__()[0])

    def reducer_override(self, obj):
        # Called for all objects except plain containers, numbers and strings.
        is_array = isinstance(obj, (np.ndarray, np.generic)) and not obj.dtype.hasobject
        if is_array or isinstance(obj, np.dtype) or any(obj is each for each in self.allowed):
            return NotImplemented  # pickle as usual
        raise TypeError(f"a checkpoint cannot hold a {type(obj).__name__}: {str(obj)[:80]}")


def _check_checksum(path):
    """Verify magic and checksum; return a description of the problem, or None."""
    with open(path, "rb") as file:
        remaining, sha1 = max(0, os.fstat(file.fileno()).st_size - _TRAILER_SIZE), hashlib.sha1()
        while chunk := file.read(min(remaining, 1 << 20)):
            sha1.update(chunk)
            remaining -= len(chunk)
        checksum, magic = file.read(20), file.read()
    if magic != _MAGIC:
        return (
            "neither a checkpoint of this program nor a PyTorch or safetensors file, or truncated"
        )
    if checksum != sha1.digest():
        return "the file is damaged (its checksum does not match)"
    return None


def _suggest_intact(path):
    """Return a hint to use the newest intact checkpoint in the same folder, or ''."""
    others = [other for other in path.parent.glob("checkpoint*.pkl") if other.name != path.name]
    others.sort(key=lambda other: other.stat().st_mtime, reverse=True)
    for other in others:
        if not _check_checksum(other):
            return f", or take {other}, the newest intact one there"
    return ""
