"""Files that no honest program writes, in the four forms of a checkpoint.

What they would run leaves a mark, a new file.
"""

import io
import json
import os
import pickle
import struct
import zipfile
from hashlib import sha1

MAGIC = b"".join(
    pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
)


FOREIGN = """
    posix system, nt system, os popen, subprocess Popen, subprocess check_output, builtins eval,
    builtins exec, builtins __import__, builtins open, builtins getattr, builtins compile,
    __builtin__ eval, runpy _run_code, pickle loads, marshal loads, functools partial,
    operator attrgetter, types FunctionType, shutil rmtree, importlib import_module,
    webbrowser open, pty spawn, code InteractiveInterpreter, torch load, torch.hub load,
    torch.serialization load, jittor load, numpy load, numpy.testing._private.utils runstring,
    numpy.core.multiarray _reconstruct.__globals__, collections OrderedDict.fromkeys,
    copyreg _reconstructor, argparse FileType, pathlib Path, ctypes CDLL,
    socket create_connection, urllib.request urlretrieve
"""
FOREIGN = [name.strip() for name in FOREIGN.split(",")]


def pkl(content):
    """This program's form: a pickle and its checksum."""
    return content + sha1(content).digest() + b"HCAJSLHD"


def zipped(content, *storages, compression=zipfile.ZIP_STORED, names=None):
    """PyTorch's zip form."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        for name, storage in zip(names or range(len(storages)), storages):
            archive.writestr(f"archive/data/{name}", storage)
    return buffer.getvalue()


def legacy(content, rest=b"\x80\x02]."):
    """PyTorch's form before 1.6."""
    return MAGIC + content + rest


def push(*values, protocol=2):
    """The opcodes that push values."""
    return b"".join(pickle.dumps(value, protocol)[2:-1] for value in values)


def call(name, *arguments):
    """A pickle of {"model": name(*arguments)}."""
    module, function = name.split(" ")
    return (
        b"\x80\x02}"
        + push("model")
        + f"c{module}\n{function}\n(".encode()
        + push(*arguments)
        + b"tRs."
    )


def storage(*pid):
    return b"(" + push("storage") + b"ctorch\nFloatStorage\n" + push(*pid) + b"tQ"


def tensor(numel=6, offset=0, size=(6,), stride=(1,), key="0", times=1, pid=None):
    """A pickle of {"model": {0: tensor, 1: the same tensor, …}} in PyTorch's way."""
    one = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + (pid or storage(key, "cpu", numel))
        + push(offset, size, stride, False)
        + b"NtR"
    )
    return (
        b"\x80\x02}"
        + push("model")
        + b"}"
        + b"".join(push(str(i)) + one + b"s" for i in range(times))
        + b"s."
    )


def array(shape=(2,), dtype="f4", content=bytes(8), state=(3, "<", None, None, None, -1, -1, 0)):
    """A pickle of {"model": {"a": array}} in NumPy's way."""
    kind = b"cnumpy\ndtype\n(" + push(dtype, False, True) + b"tR" + push(state) + b"b"
    return (
        b"\x80\x04}"
        + push("model")
        + b"}"
        + push("a")
        + b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
        + push((0,))
        + push(b"b", protocol=3)
        + b"tR("
        + push(1, shape)
        + kind
        + push(False)
        + push(content, protocol=3)
        + b"tbss."
    )


def shared(levels=200):
    """Pushes a tuple of two of the same tuple, and so on: of 2^levels leaves."""
    return b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(levels))


def overlapping(count=2000, size=1 << 20):
    """A zip file whose many storages lie on top of each other."""
    content = zipped(tensor(size // 4), bytes(size))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        start = archive.start_dir
        entries = archive.infolist()
    body, directory = content[:start], b""
    for number in range(-1, count):
        entry = entries[0] if number < 0 else entries[1]
        name = b"archive/data.pkl" if number < 0 else f"archive/data/{number}".encode()
        directory += (
            struct.pack(
                "<4s6H3L5H2L",
                b"PK\1\2",
                20,
                20,
                0,
                0,
                0,
                0,
                entry.CRC,
                entry.compress_size,
                entry.file_size,
                len(name),
                0,
                0,
                0,
                0,
                0,
                entry.header_offset,
            )
            + name
        )
    end = struct.pack(
        "<4s4H2LH",
        b"PK\5\6",
        0,
        0,
        (count + 1) % 65536,
        (count + 1) % 65536,
        len(directory),
        len(body),
        0,
    )
    return body + directory + end


def safetensors(header, body=bytes(24), length=None):
    """The form of safetensors; header: the entry of one tensor, all entries, or the bytes."""
    if isinstance(header, dict):
        header = json.dumps({"a": header} if "dtype" in header else header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def entry(dtype="F32", shape=(6,), data_offsets=(0, 24)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(data_offsets)}


def files(mark):
    """{kind: {name: content}}; mark: path of the file that a run would make."""
    touch = f"touch {mark}"
    good = call("builtins set", [1])
    kinds = {
        "foreign code, .pkl": {name: pkl(call(name, touch)) for name in FOREIGN},
        "foreign code, zip": {name: zipped(call(name, touch)) for name in FOREIGN[:12]},
        "foreign code, legacy": {name: legacy(call(name, touch)) for name in FOREIGN[:12]},
        "other ways to call": {
            "STACK_GLOBAL": pkl(
                b"\x80\x04" + push("posix", "system", protocol=4) + b"\x93(" + push(touch) + b"tR."
            ),
            "INST": pkl(b"(" + push(touch) + b"iposix\nsystem\n."),
            "OBJ": pkl(b"(cposix\nsystem\n" + push(touch) + b"o."),
            "NEWOBJ": pkl(b"\x80\x02cposix\nsystem\n(" + push(touch) + b"t\x81."),
            "NEWOBJ_EX": pkl(b"\x80\x04cposix\nsystem\n(" + push(touch) + b"t}\x92."),
            "EXT1": pkl(b"\x80\x02\x82\x01."),
            "a string as function": pkl(
                b"\x80\x02" + push("posix.system") + b"(" + push(touch) + b"tR."
            ),
            "control characters": pkl(
                b"\x80\x04" + push("posix\n\x1b[2J", "system", protocol=4) + b"\x93."
            ),
            "the class ndarray": pkl(b"\x80\x02cnumpy\nndarray\n(" + push((10**12,)) + b"tR."),
            "persistent id in .pkl": pkl(b"\x80\x02" + push(touch) + b"Q."),
        },
        "changed stand-ins": {
            f"{name.split()[1]}, {form.__name__}": form(
                b"\x80\x02c"
                + name.encode()
                + b"\n"
                + push({"build": touch, "__class__": touch})
                + b"b."
            )
            for name in (
                "torch._utils\n_rebuild_tensor_v2",
                "collections\nOrderedDict",
                "argparse\nNamespace",
            )
            for form in (zipped, legacy)
        },
        "sizes without content": {
            "zip storage of 1 TB": zipped(tensor(1 << 38, size=(1 << 38,)), bytes(24)),
            "legacy storage of 1 TB": legacy(
                tensor(1 << 38, size=(1 << 38,)).replace(b"tQ", b"NtQ"),
                push(["0"]).join([b"\x80\x02", b"."]) + struct.pack("<q", 1 << 38),
            ),
            "array of 1 TB": pkl(array((1 << 38,))),
            "array whose size overflows": pkl(array((1 << 32, 1 << 32))),
            "array of a negative size": pkl(array((-1, -2))),
            "bytes of 1 TB": pkl(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"."),
            "text of 1 TB": pkl(b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"."),
            "frame of 1 TB": pkl(b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"."),
            "memo of 64 GB": pkl(b"\x80\x04]r\xff\xff\xff\x7f."),
            "memo of 64 GB, zip": zipped(b"\x80\x02]r\xff\xff\xff\x7f."),
            "empty tensor of many dimensions": zipped(
                tensor(6, size=(0,) * 100, stride=(1,) * 100), bytes(24)
            ),
        },
        "views outside their storage": {
            f"offset {o}, size {s}, stride {t}": zipped(tensor(6, o, s, t), bytes(24))
            for o, s, t in [
                (0, (7,), (1,)),
                (5, (2,), (1,)),
                (-1, (2,), (1,)),
                (0, (2, 2), (6, 1)),
                (0, (2,), (-1,)),
                (0, (1 << 40,), (0,)),
                (1 << 62, (1,), (1,)),
                (0, (1 << 62, 1 << 62), (1, 1)),
            ]
        },
        "copies without end": {
            "a storage of 4 MB as 15,000 tensors and an alien": zipped(
                tensor(1 << 20, size=(1 << 20,), times=15000)[:-1] + b"cposix\nsystem\n.",
                bytes(4 << 20),
            ),
            "entries on top of each other": overlapping(),
        },
        "bombs of nesting": {
            "lists, 900 thousand deep": pkl(b"\x80\x02" + b"](" * 450_000 + b"e" * 450_000 + b"."),
            "tuples, 900 thousand deep": pkl(b"\x80\x02)" + b"\x85" * 900_000 + b"."),
            "deep tuple as key": pkl(b"\x80\x02})" + b"\x85" * 500_000 + b"Ns."),
            "shared tuples as key": pkl(b"\x80\x02}" + shared() + b"Ns."),
            "shared tuples in a set": zipped(b"\x80\x02cbuiltins\nset\n(](" + shared() + b"etR."),
            "shared tuples as pairs": zipped(
                b"\x80\x02ccollections\nOrderedDict\n(](" + shared(5) + b"N\x86" + b"etR."
            ),
            "shared tuples as storage": zipped(
                b"\x80\x02("
                + push("storage")
                + b"ctorch\nFloatStorage\n"
                + shared()
                + push("cpu", 1)
                + b"tQ."
            ),
            "shared tuples as device": zipped(b"\x80\x02ctorch\ndevice\n(" + shared() + b"tR."),
            "shared tuples as model": pkl(b"\x80\x02}" + push("model") + shared() + b"s."),
            "ten million instructions": pkl(b"\x80\x02" + b"N0" * 5_000_000 + b"."),
            "three million values": pkl(b"\x80\x02](" + b"N" * 3_000_000 + b"e."),
        },
        "numbers": {
            "2,000 bits": pkl(b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b"."),
            "8 million bits": pkl(
                b"\x80\x02\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b"."
            ),
            "a million digits": pkl(b"L" + b"9" * 10**6 + b"L\n."),
            "a negative length": pkl(b"\x80\x02\x8b" + struct.pack("<i", -5) + b"."),
        },
        "types of arrays": {
            "objects": pkl(array(dtype="O8")),
            "fields": pkl(array(dtype="V8", state=(3, "|", None, ("a",), {"a": 1}, 8, 1, 0))),
            "subarray": pkl(array(state=(3, "<", ("f4", (1 << 30,)), None, None, -1, -1, 0))),
            "text": pkl(array(dtype="U1000000000")),
            "unknown": pkl(array(dtype="f9")),
            "a byte order": pkl(array(state=(3, "?", None, None, None, -1, -1, 0))),
            "a list as state": pkl(array(state=[1])),
            "complex weights": pkl(array((1,), "c16", bytes(16))[:-1] + b"\x00."),
        },
        "zip bombs": {
            "compressed storage": zipped(
                tensor(1 << 22, size=(1 << 22,)), bytes(1 << 24), compression=zipfile.ZIP_DEFLATED
            ),
            "compressed pickle": zipped(
                b"\x80\x02](" + b"N" * (1 << 22) + b"e.", compression=zipfile.ZIP_DEFLATED
            ),
            "LZMA": zipped(
                tensor(1 << 20, size=(1 << 20,)), bytes(1 << 22), compression=zipfile.ZIP_LZMA
            ),
            "20,000 entries": zipped(good, *[b""] * 20_000),
            "two pickles": zipped(good)[:-22] + zipped(good),
            "a path that leaves the archive": zipped(
                tensor(key="../../../../etc/passwd"), bytes(24)
            ),
        },
        "persistent ids": {
            name: zipped(tensor(pid=pid), bytes(24))
            for name, pid in {
                "of another kind": b"(" + push("module", "FloatStorage", "0", "cpu", 6) + b"tQ",
                "a number": push(3) + b"Q",
                "of an unknown type": b"(" + push("storage", "EvilStorage", "0", "cpu", 6) + b"tQ",
                "of a negative size": storage("0", "cpu", -6),
                "of a fraction": storage("0", "cpu", 1.5),
                "of a storage that is absent": storage("7", "cpu", 6),
            }.items()
        },
        "safetensors": {
            "a header of 1 TB": safetensors(entry(), length=1 << 40),
            "a header of 2^64 bytes": safetensors(entry(), length=2**64 - 1),
            "a header to its end": safetensors(entry(), b"", length=10**4),
            "truncated numbers": safetensors(entry(), bytes(20)),
            "more numbers": safetensors(entry(), bytes(28)),
            "a tensor of 1 TB": safetensors(entry(shape=(1 << 38,), data_offsets=(0, 1 << 40))),
            "a size that overflows": safetensors(entry(shape=(1 << 32, 1 << 32))),
            "a negative size": safetensors(entry(shape=(-2, -3))),
            "a fraction as size": safetensors(entry(shape=(1.5, 4))),
            "true as size": safetensors(entry(shape=(True, 6))),
            "overlapping": safetensors({"a": entry(), "b": entry(data_offsets=(0, 24))}),
            "half overlapping": safetensors(
                {"a": entry("F32", (4,), (0, 16)), "b": entry("F32", (4,), (8, 24))}
            ),
            "a gap": safetensors(
                {"a": entry("F32", (2,), (0, 8)), "b": entry("F32", (2,), (16, 24))}
            ),
            "a negative offset": safetensors(entry(data_offsets=(-24, 0))),
            "backwards": safetensors(entry(shape=(0,), data_offsets=(24, 0))),
            "three offsets": safetensors(entry(data_offsets=(0, 24, 24))),
            "a wrong type": safetensors(entry("F64")),
            "an unknown type": safetensors(entry("F8_E4M3", (24,))),
            "a list as type": safetensors(entry(["F32"])),
            "no shape": safetensors({"a": {"dtype": "F32", "data_offsets": [0, 24]}}),
            "a list": safetensors({"a": [1, 2, 3]}),
            "no tensor": safetensors({"__metadata__": {}}, b""),
            "no JSON": safetensors(b"{" * 100),
            "nested without end": safetensors(b'{"a":' * 100_000),
            "broken UTF-8": safetensors(b'{"\xff\xfe": 1}'),
            "NaN as shape": safetensors(b'{"a":{"dtype":"F32","shape":NaN,"data_offsets":[0,24]}}'),
            "control characters": safetensors({"\x1b[2J\n": entry("\x1b[2J")}),
        },
        "damaged": {
            "empty": b"",
            "text": b"a" * 1000,
            "only the mark": b"HCAJSLHD",
            "a mark too few": pkl(array())[:-1],
            "a wrong checksum": array() + bytes(20) + b"HCAJSLHD",
            "no end": pkl(b"\x80\x02}"),
            "two values": pkl(b"\x80\x02}}."),
            "nothing": pkl(b"\x80\x02."),
            "an open mark": pkl(b"\x80\x02(."),
            "zip without its end": zipped(good)[:-30],
            "legacy without its end": legacy(good)[:-20],
            "items for a number": pkl(b"\x80\x02K\x01(NNe."),
            "odd items": pkl(b"\x80\x02}(Nu."),
            "an unknown memo": pkl(b"\x80\x02h\x09."),
            "broken UTF-8": pkl(b"\x80\x04\x8c\x02\xff\xfe."),
        },
        "no model": {
            "a list": pkl(b"\x80\x02]."),
            "a set": zipped(good),
            "numbers as names": pkl(array().replace(push("a"), push(7))),
            "itself": pkl(b"\x80\x02}q\x00" + push("model") + b"h\x00s."),
            "strings": pkl(b"\x80\x02" + push({"model": {"a": "b" * 10**6}}) + b"."),
        },
    }
    return kinds


def special(folder):
    """{name: path} of things in the file system that are no file, or not one to read."""
    os.mkfifo(folder / "fifo")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "folder").mkdir()
    with open(folder / "sparse", "wb") as file:
        file.truncate(1 << 40)
    return {name: folder / name for name in ("fifo", "zero", "folder", "sparse", "absent")}
