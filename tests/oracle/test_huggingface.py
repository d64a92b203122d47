"""Weights go both ways between this program and transformers.

python -m pytest tests/oracle/test_huggingface.py -m "soak or not soak"   # all models
"""

import subprocess
import sys

import numpy as np
import pytest
from conftest import HERE

from arguments import apply_checkpoint_args, parse_args
from models.detr import build_model
from models.weights.checkpoint import count_classes, load_checkpoint, read_class_names
from models.weights.model import load_model_state
from util.backend import jt
from util.misc import nested_tensor_from_arrays

REPO = HERE.parents[1]
SIZES = {"masks": [(96, 128), (64, 90)], "r50-panoptic": [(128, 160), (96, 120)]}
FAST = [
    ("three-classes", "safetensors"),
    ("three-classes", "sharded"),
    ("three-classes", "bin"),
    ("masks", "sharded"),
]
ALL = [
    ("three-classes", "new-names"),
    ("masks", "new-names"),
    ("own-resnet", "safetensors"),
    ("own-resnet", "new-names"),
    ("learned", "safetensors"),
    *((case, form) for case in ("r50", "r50-dc5", "r101", "r50-panoptic")
      for form in ("safetensors", "sharded", "bin")),
]  # fmt: skip


def batch(case):
    rng = np.random.default_rng(0)
    sizes = SIZES.get(case, [(320, 427), (201, 333)])
    images = [rng.standard_normal((3, *size), np.float32) for size in sizes]
    return nested_tensor_from_arrays(images)


def run_ours(source, samples):
    """Outputs of this program, which takes all it needs from source, as --resume does."""
    args = parse_args(["--eval", "--coco_path", ".", "--resume", str(source)])
    checkpoint = load_checkpoint(source)
    apply_checkpoint_args(args, checkpoint, source)
    model, _, _ = build_model(args, count_classes(checkpoint))
    load_model_state(model, checkpoint["model"], source)
    model.eval()
    with jt.no_grad():
        outputs = model(samples.to_jittor())
    names = [name for name in ("logits", "boxes", "masks") if f"pred_{name}" in outputs]
    return checkpoint, {name: outputs[f"pred_{name}"].numpy() for name in names}


def compare(title, case, found, expected, measured):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        difference = np.abs(found[name] - array).max()
        if name == "boxes":
            measured(f"transformers {title}, boxes", case, difference, 1e-5)
        else:
            difference /= np.abs(array).max()
            measured(f"transformers {title}, {name} over the largest", case, difference, 1e-4)


@pytest.mark.parametrize(
    "case, form", [*FAST, *(pytest.param(*both, marks=pytest.mark.soak) for both in ALL)]
)
def test_weights_go_both_ways(oracle_python, tmp_path, measured, case, form):
    def theirs(*arguments):
        command = [oracle_python, "-W", "ignore", HERE / "run_huggingface.py", *arguments]
        subprocess.run([str(word) for word in command], check=True)

    samples = batch(case)
    np.savez(tmp_path / "batch.npz", images=samples.tensors, mask=samples.mask)
    theirs("make", case, form, tmp_path / "in")
    theirs("run", tmp_path / "in", tmp_path / "batch.npz", tmp_path / "expected.npz")
    with np.load(tmp_path / "expected.npz") as data:
        expected = dict(data)
    assert np.ptp(expected["boxes"], axis=1).max() > 1e-3, "queries must differ"

    checkpoint, found = run_ours(tmp_path / "in", samples)
    compare("to ours", f"{case}, {form}", found, expected, measured)
    if case == "three-classes":
        assert read_class_names(checkpoint, "") == {0: "ballon", 2: "自行车"}

    command = [sys.executable, "-m", "models.weights", tmp_path / "in", tmp_path / "out"]
    subprocess.run([str(word) for word in command], cwd=REPO, check=True)
    theirs("run", tmp_path / "out", tmp_path / "batch.npz", tmp_path / "back.npz")
    with np.load(tmp_path / "back.npz") as data:
        compare("and back", f"{case}, {form}", dict(data), expected, measured)
    assert read_class_names(load_checkpoint(tmp_path / "out"), "") == read_class_names(
        checkpoint, ""
    )
