"""Weights convert to and from PyTorch's files, checked by PyTorch itself."""

import numpy as np
import pytest

from models.weights.__main__ import main
from models.weights.torch_file import read_torch_file
from util.jittor_file import write_jittor_file


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_files_of_pytorch_are_read_exactly(run_script, tmp_path, name):
    run_script("run_checkpoint.py", "--make-golden", tmp_path)
    expected = np.load(tmp_path / "torch_expected.npz")
    tree = read_torch_file(tmp_path / name)
    tensors = {key: value for key, value in tree.items() if isinstance(value, np.ndarray)}
    tensors.update({f"model/{key}": value for key, value in tree["model"].items()})
    assert len(tensors) > 15
    for key, value in tensors.items():
        assert value.dtype == expected[key].dtype, key
        np.testing.assert_array_equal(value, expected[key], err_msg=key)


def test_converted_weights_are_read_exactly_with_weights_only(run_script, tmp_path, monkeypatch):
    random = np.random.RandomState(0)
    model = {
        "conv.weight": random.randn(4, 3, 2, 2).astype(np.float32),
        "bias": random.randn(5).astype(np.float32),
        "transposed": random.randn(3, 2).astype(np.float32).T,
        "scalar": np.array(2.5, np.float32),
        "half": random.randn(3).astype(np.float16),
        "count": np.array([2**40]),
        "mask": np.array([True, False]),
        "empty": np.zeros((0, 2), np.float32),
    }
    saved, converted = tmp_path / "checkpoint.pkl", tmp_path / "weights.pth"
    write_jittor_file({"model": model, "epoch": 3}, saved)
    monkeypatch.setattr("sys.argv", ["checkpoint", str(saved), str(converted)])
    main()
    run_script("run_checkpoint.py", "--read", converted, tmp_path / "read.npz")
    read = np.load(tmp_path / "read.npz")
    assert sorted(read) == sorted(f"model/{name}" for name in model)
    for name, value in model.items():
        assert read[f"model/{name}"].dtype == value.dtype
        np.testing.assert_array_equal(read[f"model/{name}"], value)
