"""Weights go both ways between this program and PyTorch, checked with PyTorch itself."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from models.weights.__main__ import main
from models.weights.torch_file import read_torch_file
from util.jittor_file import write_jittor_file

SCRIPT = Path(__file__).parent / "run_checkpoint.py"


def run(oracle_python, *arguments):
    subprocess.run([oracle_python, SCRIPT, *map(str, arguments)], check=True)


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_what_pytorch_writes_is_read_equal(oracle_python, tmp_path, name):
    run(oracle_python, "--make-golden", tmp_path)
    expected = np.load(tmp_path / "torch_expected.npz")
    found = read_torch_file(tmp_path / name)
    tensors = {key: value for key, value in found.items() if isinstance(value, np.ndarray)}
    tensors.update({f"model/{key}": value for key, value in found["model"].items()})
    assert len(tensors) > 15
    for key, value in tensors.items():
        assert value.dtype == expected[key].dtype, key
        np.testing.assert_array_equal(value, expected[key], err_msg=key)


def test_what_is_converted_for_pytorch_is_read_equal_with_weights_only(
    oracle_python, tmp_path, monkeypatch
):
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
    write_jittor_file({"model": model, "epoch": 3}, tmp_path / "checkpoint.pkl")
    monkeypatch.setattr(
        "sys.argv", ["checkpoint", str(tmp_path / "checkpoint.pkl"), str(tmp_path / "weights.pth")]
    )
    main()
    run(oracle_python, "--read", tmp_path / "weights.pth", tmp_path / "read.npz")
    read = np.load(tmp_path / "read.npz")
    assert sorted(read) == sorted(f"model/{name}" for name in model)
    for name, value in model.items():
        assert read[f"model/{name}"].dtype == value.dtype
        np.testing.assert_array_equal(read[f"model/{name}"], value)
