"""Files as `jt.save` writes them: plain containers, numbers, strings and NumPy arrays.

Reading one never executes what it says.
"""

import hashlib
import math
import os
import pickle
import re

import numpy as np

from util import pickles
from util.errors import InputError
from util.files import replacing

# A pickle, its SHA-1, and this mark.
_MARK = b"HCAJSLHD"
_TRAILER = 20 + len(_MARK)


def write_jittor_file(obj, path):
    """Write obj to path, so that `read_jittor_file` and `jt.load` return it.

    obj: a dict of plain containers, numbers, strings and NumPy arrays; TypeError for anything else.
    A failure leaves an earlier file at path as it was, and raises InputError where the disk is full
    or the folder cannot be written.
    """
    with replacing(path) as file:
        hashed = _HashedWriter(file)
        _Pickler(hashed, protocol=4).dump(obj)
        file.write(hashed.sha1.digest() + _MARK)


def read_jittor_file(path):
    """What the file at path (Path) holds.

    Raises InputError where it is damaged, or would need code to be run.
    """
    if fault := _checksum_fault(path):
        raise InputError(
            f"{path}: {fault}; check the path, or download or copy the file "
            f"again{_newest_intact(path)}"
        )
    with open(path, "rb") as file:
        try:
            return pickles.load(file, path, _GLOBALS)
        except InputError:
            raise
        except Exception as error:
            # Only a forged file gets here, and it may raise almost any exception.
            raise InputError(
                f"{path}: the file is damaged; copy it again ({type(error).__name__}: "
                f"{str(error)[:200]})"
            ) from error


class _DType(pickles.Pending):
    """`numpy.dtype(name, align, copy)`, and then its byte order."""

    def __init__(self, name, *_align_and_copy):
        super().__init__()
        if not re.fullmatch(r"[biufc]\d{1,2}", name):
            raise ValueError(f"arrays of {name!r}")
        self.name = name

    def build(self, state):
        version, order, *rest = state
        if order not in ("<", ">", "|", "=") or rest[:3] != [None, None, None]:
            raise ValueError("a dtype with an unexpected state")
        return np.dtype(order + self.name)


class _Array(pickles.Pending):
    """`numpy._reconstruct(…)`, and then shape, type and content."""

    def __init__(self, *_class_and_placeholders):
        super().__init__()

    def build(self, state):
        _version, shape, dtype, by_columns, content = state
        if min((0, *shape)) < 0 or math.prod(shape) * dtype.itemsize != len(content):
            raise ValueError(f"{len(content)} bytes for an array of shape {shape} of {dtype}")
        return np.ndarray(shape, dtype, content, order="F" if by_columns else "C")


def _scalar(dtype, content):
    return np.frombuffer(content, dtype, 1)[0]


_GLOBALS = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _DType,
    **{
        (f"numpy.{core}.multiarray", name): value  # NumPy 2 says _core
        for core in ("core", "_core")
        for name, value in (("_reconstruct", _Array), ("scalar", _scalar))
    },
}


class _HashedWriter:
    """Passes what is written on to file, and keeps its SHA-1."""

    def __init__(self, file):
        self.file = file
        self.sha1 = hashlib.sha1()

    def write(self, data):
        self.sha1.update(data)
        return self.file.write(data)


class _Pickler(pickle.Pickler):
    allowed = (np.ndarray, np.dtype, np.zeros(1).__reduce__()[0], np.float32(0).__reduce__()[0])

    def reducer_override(self, obj):
        # Asked about everything but plain containers, numbers and strings.
        array = isinstance(obj, (np.ndarray, np.generic)) and not obj.dtype.hasobject
        if array or isinstance(obj, np.dtype) or any(obj is allowed for allowed in self.allowed):
            return NotImplemented
        raise TypeError(f"a checkpoint cannot hold a {type(obj).__name__}: {str(obj)[:80]}")


def _checksum_fault(path):
    """What is wrong with the checksum at the file's end, as a phrase, or None."""
    with open(path, "rb") as file:
        left, sha1 = max(0, os.fstat(file.fileno()).st_size - _TRAILER), hashlib.sha1()
        while chunk := file.read(min(left, 1 << 20)):
            sha1.update(chunk)
            left -= len(chunk)
        checksum, mark = file.read(20), file.read()
    if mark != _MARK:
        return (
            "neither a checkpoint of this program nor a PyTorch or safetensors file, or truncated"
        )
    if checksum != sha1.digest():
        return "the file is damaged (its checksum does not match)"
    return None


def _newest_intact(path):
    """The end of a sentence that names the newest intact checkpoint beside path, or ''."""
    others = [other for other in path.parent.glob("checkpoint*.pkl") if other.name != path.name]
    others.sort(key=lambda other: other.stat().st_mtime, reverse=True)
    for other in others:
        if not _checksum_fault(other):
            return f", or take {other}, the newest intact one there"
    return ""
