"""Write and read PyTorch's files, in the original's interpreter:

    ORACLE_PYTHON tests/oracle/run_checkpoint.py --make-golden FOLDER
    ORACLE_PYTHON tests/oracle/run_checkpoint.py --read FILE OUT.npz

--make-golden writes torch_zip.pth, torch_legacy.pth and torch_expected.npz. --read loads FILE with
weights_only=True and writes its tensors, their names joined by "/".
"""

import argparse
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch


def sample():
    """Return a tree with everything in a DETR checkpoint, and with what is harder to read."""
    torch.manual_seed(0)
    matrix = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    return {
        "model": module.state_dict(),
        "nested": {
            "list": [torch.tensor(1.5), (torch.tensor([True, False]), "text", None)],
            "ordered": OrderedDict(a=1),
        },
        "transposed": matrix.t(),
        "slice": matrix[1:, 2:5],
        "whole": matrix,
        "half": torch.linspace(-3, 3, 7, dtype=torch.float16),
        "bfloat16": torch.linspace(-3, 3, 7).to(torch.bfloat16),
        "float64": torch.linspace(0, 1, 3, dtype=torch.float64),
        "int64": torch.tensor([-(2**40), 0, 2**40]),
        "int32": torch.tensor([[-5, 5]], dtype=torch.int32),
        "uint8": torch.tensor([0, 255], dtype=torch.uint8),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(torch.tensor([0.25, -0.5])),
        "args": argparse.Namespace(lr=1e-4, backbone="resnet50", masks=False),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "size": torch.Size([2, 3]),
        "epoch": 299,
    }


def flatten(obj, name=""):
    """Return the tensors and numbers in a tree: names joined by "/" -> array."""
    if isinstance(obj, dict):
        obj = list(obj.items())
    elif isinstance(obj, (list, tuple)):
        obj = list(enumerate(obj))
    elif isinstance(obj, torch.Tensor):
        obj = obj.detach()
        return {name: (obj.float() if obj.dtype == torch.bfloat16 else obj).numpy()}
    else:
        return {name: np.array(obj)} if isinstance(obj, (bool, int, float, str)) else {}
    return {
        key: value
        for part, child in obj
        for key, value in flatten(child, f"{name}/{part}".strip("/")).items()
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--make-golden", type=Path)
    parser.add_argument("--read", nargs=2)
    arguments = parser.parse_args()
    if folder := arguments.make_golden:
        tree = sample()
        torch.save(tree, folder / "torch_zip.pth")
        torch.save(tree, folder / "torch_legacy.pth", _use_new_zipfile_serialization=False)
        np.savez_compressed(folder / "torch_expected.npz", **flatten(tree))
    if arguments.read:
        source, target = arguments.read
        np.savez(target, **flatten(torch.load(source, weights_only=True)))


if __name__ == "__main__":
    main()
