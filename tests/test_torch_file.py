"""Files of PyTorch: what PyTorch wrote (tests/golden), damaged files and hostile files."""

import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hostile_files import call, legacy, tensor, zipped

from models.weights.torch_file import is_torch_file, read_torch_file, write_torch_file
from util.errors import InputError

GOLDEN = Path(__file__).parent / "golden"
FORMATS = ["torch_zip.pth", "torch_legacy.pth"]


def flatten(obj, name=""):
    """Return names joined by "/" -> array, for the arrays, numbers and strings in obj."""
    if isinstance(obj, (dict, list, tuple)):
        parts = obj.items() if isinstance(obj, dict) else enumerate(obj)
        flat = [flatten(child, f"{name}/{part}".strip("/")) for part, child in parts]
        return {key: value for part in flat for key, value in part.items()}
    return {} if obj is None else {name: np.asarray(obj)}


@pytest.mark.parametrize("name", FORMATS)
def test_golden_files_read_as_pytorch_reads_them(name):
    tree = read_torch_file(GOLDEN / name)
    assert tree.pop("args") == {"lr": 1e-4, "backbone": "resnet50", "masks": False}
    assert (tree.pop("dtype"), tree.pop("device")) == ("float16", "cpu")
    assert tree["nested"]["list"][1][2] is None
    found, expected = flatten(tree), np.load(GOLDEN / "torch_expected.npz")
    assert sorted(found) == sorted(expected)
    for key, value in found.items():
        assert value.dtype == expected[key].dtype and value.shape == expected[key].shape, key
        np.testing.assert_array_equal(value, expected[key], err_msg=key)
    with pytest.raises(ValueError, match="read-only"):  # it shares memory with tree["whole"]
        tree["slice"][:] = 0


@pytest.mark.parametrize("name", FORMATS)
def test_truncated_anywhere_is_an_input_error(name, tmp_path):
    content = (GOLDEN / name).read_bytes()
    path = tmp_path / "cut.pth"
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match="cut.pth: .*download or copy it again") as error:
            read_torch_file(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FORMATS)
def test_flipped_bytes_never_escape_as_another_exception(name, tmp_path):
    content = bytearray((GOLDEN / name).read_bytes())
    path = tmp_path / "flipped.pth"
    refused = 0
    for place in range(0, len(content), 5):
        damaged = content.copy()
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            read_torch_file(path)
        except InputError:
            refused += 1
    assert refused > 100


def read(path, content):
    """Return the tensor in a file that `hostile_files.tensor` describes."""
    path.write_bytes(content)
    return read_torch_file(path)["model"]["0"]


def test_a_view_reads_what_its_strides_say(tmp_path):
    content = zipped(tensor(6, 1, (2, 2), (1, 3)), np.arange(6, dtype="<f4").tobytes())
    np.testing.assert_array_equal(read(tmp_path / "view.pth", content), [[1, 4], [2, 5]])


@pytest.mark.parametrize(
    "view",
    [
        (6, 0, (7,), (1,)),
        (6, 5, (2,), (1,)),
        (6, -1, (2,), (1,)),
        (6, 0, (2, 2), (6, 1)),
        (6, 0, (2,), (-1,)),
        (6, 0, (2,), (1, 1)),
        (6, 0, (7,), (0,)),
        (10**12, 0, (6,), (1,)),
        (5, 0, (5,), (1,)),
    ],
)
def test_views_beyond_their_storage_are_refused(tmp_path, view):
    """view: number of elements, offset, size and stride."""
    with pytest.raises(InputError, match="damaged"):
        read(tmp_path / "beyond.pth", zipped(tensor(*view), bytes(24)))


@pytest.mark.parametrize("compressed", ["archive/data.pkl", "archive/data/0"])
def test_compressed_entries_are_refused(tmp_path, compressed):
    content = io.BytesIO(zipped(tensor(1000, size=(1000,)), bytes(4000)))
    with zipfile.ZipFile(content) as source, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as bomb:
        for name in source.namelist():
            method = zipfile.ZIP_DEFLATED if name == compressed else zipfile.ZIP_STORED
            bomb.writestr(name, source.read(name), method)
    with pytest.raises(InputError, match="damaged"):
        read_torch_file(tmp_path / "bomb.pth")


def test_a_legacy_file_without_one_of_its_storages_is_damaged(tmp_path):
    # A storage of the legacy format also names a view, None here.
    content = tensor(2, size=(2,)).replace(b"tQ", b"NtQ")
    data = pickle.dumps(["0"], 2) + struct.pack("<q2f", 2, 1.5, -2)
    found = read(tmp_path / "a.pth", legacy(content, data))
    np.testing.assert_array_equal(found, [1.5, -2])
    with pytest.raises(InputError, match="storage 0 is not in the file"):
        read(tmp_path / "a.pth", legacy(content, pickle.dumps([], 2)))


def test_a_legacy_view_of_a_storage_is_read(tmp_path):
    view = pickle.dumps(("view", 1, 2), 2)[2:-1]
    content = tensor(3, 1, (1,)).replace(b"tQ", view + b"tQ")
    data = pickle.dumps(["0"], 2) + struct.pack("<q3f", 3, 1, 2, 3)
    np.testing.assert_array_equal(read(tmp_path / "a.pth", legacy(content, data)), [3])


@pytest.mark.parametrize("form", [zipped, legacy])
def test_a_file_that_calls_os_system_is_refused_and_not_run(tmp_path, form):
    path, proof = tmp_path / "evil.pth", tmp_path / "proof"
    path.write_bytes(form(call("posix system", f"touch {proof}")))
    with pytest.raises(InputError, match="evil.pth: refused, because the file names posix.system"):
        read_torch_file(path)
    assert not proof.exists()


def test_a_file_cannot_change_how_the_next_one_is_read(tmp_path):
    state = pickle.dumps((None, {"__new__": None, "__setstate__": None}), 2)[2:-1]
    for name in (
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ccollections\nOrderedDict\n",
        b"cargparse\nNamespace\n",
    ):
        with pytest.raises(InputError):
            read(tmp_path / "poison.pth", zipped(b"\x80\x02" + name + state + b"b."))
    read_torch_file(GOLDEN / "torch_zip.pth")


def test_big_endian_storages_are_read(tmp_path):
    content = io.BytesIO(zipped(tensor(2, size=(2,)), struct.pack(">2f", 1.5, -2)))
    with zipfile.ZipFile(content, "a") as archive:
        archive.writestr("archive/byteorder", "big")
    value = read(tmp_path / "big.pth", content.getvalue())
    np.testing.assert_array_equal(value, [1.5, -2])
    assert value.dtype == np.float32 and value.dtype.isnative


def test_other_files_are_recognized(tmp_path):
    other = tmp_path / "other.pth"
    other.write_bytes(pickle.dumps({"model": 1}, 4))
    assert not is_torch_file(other)
    assert all(is_torch_file(GOLDEN / name) for name in FORMATS)
    with pytest.raises(InputError, match="other.pth: not a PyTorch file"):
        read_torch_file(other)
    with pytest.raises(InputError, match="absent.pth: No such file"):
        read_torch_file(tmp_path / "absent.pth")
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme.txt", "no weights")
    with pytest.raises(InputError, match="no data.pkl"):
        read_torch_file(other)


def test_a_written_file_reads_back_equal(tmp_path):
    tree = {
        "model": {
            "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3).T,
            "b": np.array(2.5, np.float64),
        },
        "list": [1, -(2**70), (True, None, "é"), 0.1],
        "mask": np.array([True, False]),
        "none": np.zeros((0, 3), np.int64),
    }
    write_torch_file(tree, tmp_path / "written.pth")
    found = read_torch_file(tmp_path / "written.pth")
    assert found["list"] == tree["list"]
    for key, value in flatten(tree).items():
        np.testing.assert_array_equal(flatten(found)[key], value)
        assert flatten(found)[key].dtype == value.dtype


@pytest.mark.parametrize(
    "value", [np.zeros(2, object), np.zeros(2, np.complex64), np.float32(1), {1, 2}, object()]
)
def test_other_objects_are_a_type_error(value):
    with pytest.raises(TypeError, match="a PyTorch file cannot hold"):
        write_torch_file({"value": value}, io.BytesIO())
