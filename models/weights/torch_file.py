"""Read and write PyTorch files without PyTorch, and without running code in them.

A PyTorch file is a pickle of Python containers in which each tensor is a call with a storage, an
offset, a size and strides. The zip format (PyTorch 1.6 and later) stores each storage as an entry;
the legacy format appends all storages to the pickle. The pickle may only reference the globals in
`_GLOBALS`.
"""

import io
import math
import os
import pickle
import struct
import zipfile

import numpy as np

from util import pickles
from util.errors import InputError
from util.files import convert_read_errors

_LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
_ZIP_MAGIC = b"PK\x03\x04"
_STORAGE_DTYPES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "BoolStorage": "bool",
}
_STORAGE_NAMES = {dtype: name for name, dtype in _STORAGE_DTYPES.items()}


def is_torch_file(path):
    """Return whether the file has the header of either PyTorch format. Raises OSError."""
    with open(path, "rb") as file:
        start = file.read(len(_LEGACY_MAGIC))
    return start == _LEGACY_MAGIC or start.startswith(_ZIP_MAGIC)


def read_torch_file(path):
    """Return the object in a PyTorch file of either format. Nothing in the file is executed.

    Tensors and parameters become read-only NumPy arrays of the same dtype (bfloat16: float32),
    which share memory if the tensors did; OrderedDict and argparse.Namespace become dicts,
    torch.Size a tuple, torch.dtype and torch.device strings.
    Raises InputError if the file is missing, damaged, not a PyTorch file, or references any other
    global.
    """
    with convert_read_errors(path), open(path, "rb") as file:
        start = file.read(len(_LEGACY_MAGIC))
        file.seek(0)
        if start == _LEGACY_MAGIC:
            return _read_legacy(file, path)
        if start.startswith(_ZIP_MAGIC):
            return _read_zip(file, path)
        raise InputError(f"{path}: not a PyTorch file, or damaged; download or copy it again")


def write_torch_file(obj, file):
    """Write obj in PyTorch's zip format, so that `torch.load(file, weights_only=True)` returns it.

    obj: dicts, lists, tuples, strings, numbers, booleans, None, and NumPy arrays of PyTorch's
    dtypes, which become tensors. file: a path or a binary file. Raises TypeError for anything else
    in obj.
    """
    storages = []
    content = b"\x80\x02" + _encode(obj, storages) + pickle.STOP
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", "little")
        for key, array in enumerate(storages):
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", "3\n")


class _Storage:
    """Flat array that tensors are views of; None until it is read."""

    def __init__(self, data=None):
        self.data = data


class _Namespace(pickles.Pending):
    def build(self, state):
        return dict(state)


def _rebuild_tensor(storage, offset, size, stride, *_requires_grad_and_hooks):
    return None if storage.data is None else _view(storage.data, offset, tuple(size), tuple(stride))


def _rebuild_parameter(data, *_requires_grad_and_hooks):
    return data


def _rebuild_device(kind, index=None):
    pickles.check_keys((kind, index))
    return kind if index is None else f"{kind}:{index}"


def _rebuild_set(items=()):
    return set(pickles.check_keys(items))


_GLOBALS = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch.nn.parameter", "Parameter"): _rebuild_parameter,
    ("torch", "Size"): tuple,
    ("torch", "device"): _rebuild_device,
    ("collections", "OrderedDict"): pickles.OrderedDict,
    ("argparse", "Namespace"): _Namespace,
    ("__builtin__", "set"): _rebuild_set,
    ("builtins", "set"): _rebuild_set,
    **{("torch", name): name for name in _STORAGE_DTYPES},
    **{("torch", dtype): dtype for dtype in _STORAGE_NAMES},
}


def _load(file, path, storage=None):
    """Return the object in a pickle of PyTorch.

    storage: function of (dtype name, key, number of elements, view or None) that returns a
    _Storage.
    """

    def persistent(pid):
        kind, storage_name, key, _device, numel, *view = pid
        pickles.check_keys((kind, storage_name, key, numel, *(view[0] or () if view else ())))
        if kind != "storage":
            raise ValueError(f"unknown kind of persistent object {kind!r:.80}")
        return storage(_STORAGE_DTYPES[storage_name], str(key), numel, view[0] if view else None)

    return pickles.load(file, path, _GLOBALS, storage and persistent)


def _read_zip(file, path):
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        # Overlapping entries could expand to any size.
        if sum(entry.file_size for entry in entries.values()) > os.fstat(file.fileno()).st_size:
            raise ValueError("its entries exceed the file's size")
        names = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(names) != 1:
            raise InputError(
                f"{path}: a zip file, but not PyTorch's: it has no data.pkl; give a .pth file"
            )
        folder = names[0].removesuffix("data.pkl")
        order = archive.read(folder + "byteorder") if folder + "byteorder" in entries else b"little"
        storages = {}

        def storage(dtype, key, numel, _view):
            if key not in storages:
                entry = entries[f"{folder}data/{key}"]
                # PyTorch never compresses; a compressed entry could expand to any size.
                size = numel * _disk_dtype(dtype).itemsize
                if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != size:
                    raise ValueError(f"storage {key} has {entry.file_size} bytes, not {size}")
                content = _decode(archive.read(entry), dtype, ">" if order == b"big" else "<")
                storages[key] = _Storage(content)
            return storages[key]

        if entries[names[0]].compress_type != zipfile.ZIP_STORED:
            raise ValueError("data.pkl is compressed")
        return _load(io.BytesIO(archive.read(names[0])), path, storage)


def _read_legacy(file, path):
    for _ in ("magic number", "protocol version", "system information"):
        _load(file, path)
    start = file.tell()
    storages, views, types = {}, {}, {}

    def storage(dtype, key, numel, view):
        whole = storages.setdefault(key, _Storage())
        types.setdefault(key, (dtype, numel))
        if view is None:
            return whole
        view_key, offset, size = view
        part = views.setdefault(view_key, _Storage())
        if whole.data is not None:
            part.data = _view(whole.data, offset, (size,), (1,))
        return part

    # The storages follow the pickle, so it is loaded twice: for their types, then for the result.
    _load(file, path, storage)
    for key in map(str, _load(file, path)):
        dtype, numel = types[key]
        size = numel * _disk_dtype(dtype).itemsize
        [stored] = struct.unpack("<q", file.read(8))
        if stored != numel or file.tell() + size > os.fstat(file.fileno()).st_size:
            raise ValueError(f"storage {key} does not hold {numel} {dtype}")
        storages[key].data = _decode(file.read(size), dtype, "<")
    missing = [key for key, whole in storages.items() if whole.data is None]
    if missing:
        raise ValueError(f"storage {missing[0]} is not in the file")
    file.seek(start)
    return _load(file, path, storage)


def _disk_dtype(dtype):
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


def _decode(content, dtype, order):
    array = np.frombuffer(content, _disk_dtype(dtype).newbyteorder(order))
    if dtype == "bfloat16":  # the upper half of a float32
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(dtype, copy=False)


def _view(data, offset, size, stride):
    """Return the view of data (1-D array) with PyTorch's offset, size and stride, in elements."""
    if len(size) != len(stride) or min((offset, *size, *stride)) < 0:
        raise ValueError(f"a tensor has offset {offset}, size {size} and stride {stride}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    numel = math.prod(size)
    if numel == 0:
        return data[:0].reshape(size)
    # Strides of 0 repeat elements, so a small file could describe a tensor of any size.
    if last >= len(data) or numel > len(data):
        raise ValueError(f"size {size} and stride {stride} exceed the {len(data)} elements")
    steps = [step * data.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(data[offset:], size, steps, writeable=False)


def _encode(obj, storages):
    """Return the opcodes (bytes) that push obj, and append its arrays to storages."""
    if isinstance(obj, np.ndarray):
        return _encode_tensor(obj, storages)
    if type(obj) in (type(None), bool, int, float, str):
        # Without a pickle's first and last opcodes.
        return pickle.dumps(obj, protocol=2)[2:-1]
    if isinstance(obj, dict):
        items = b"".join(_encode(part, storages) for item in obj.items() for part in item)
        return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
    if isinstance(obj, (list, tuple)):
        items = pickle.MARK + b"".join(_encode(item, storages) for item in obj)
        if isinstance(obj, tuple):
            return items + pickle.TUPLE
        return pickle.EMPTY_LIST + items + pickle.APPENDS
    raise TypeError(f"a PyTorch file cannot hold a {type(obj).__name__}")


def _encode_tensor(array, storages):
    if str(array.dtype) not in _STORAGE_NAMES:
        raise TypeError(f"a PyTorch file cannot hold an array of {array.dtype}")

    def call(module, name, arguments):
        return pickle.GLOBAL + f"{module}\n{name}\n".encode() + arguments + pickle.REDUCE

    key = str(len(storages))
    storages.append(array)
    kind = pickle.GLOBAL + f"torch\n{_STORAGE_NAMES[str(array.dtype)]}\n".encode()
    rest = b"".join(_encode(part, storages) for part in (key, "cpu", array.size))
    storage = pickle.MARK + _encode("storage", storages) + kind + rest + pickle.TUPLE
    storage += pickle.BINPERSID
    stride = tuple(step // array.itemsize for step in np.empty(array.shape, array.dtype).strides)
    view = b"".join(_encode(part, storages) for part in (0, array.shape, stride, False))
    hooks = call("collections", "OrderedDict", pickle.EMPTY_TUPLE)
    arguments = pickle.MARK + storage + view + hooks + pickle.TUPLE
    return call("torch._utils", "_rebuild_tensor_v2", arguments)
