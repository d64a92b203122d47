"""Weights convert to and from transformers. All models: -m "soak or not soak"."""

import subprocess
import sys

import numpy as np
import ours
import pytest
from processes import REPO

from arguments import apply_checkpoint_args, parse_args
from models.detr import build_model
from models.weights.checkpoint import count_classes, load_checkpoint, read_class_names
from models.weights.model import load_model_state
from util.misc import nested_tensor_from_arrays

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


def make_batch(case):
    rng = np.random.default_rng(0)
    sizes = SIZES.get(case, [(320, 427), (201, 333)])
    images = [rng.standard_normal((3, *size), np.float32) for size in sizes]
    return nested_tensor_from_arrays(images)


def run_ours(source, samples):
    """Return checkpoint and outputs of this program, which builds its model as --resume does."""
    args = parse_args(["--eval", "--coco_path", ".", "--resume", str(source)])
    checkpoint = load_checkpoint(source)
    apply_checkpoint_args(args, checkpoint, source)
    model, _, _ = build_model(args, count_classes(checkpoint))
    load_model_state(model, checkpoint["model"], source)
    return checkpoint, ours.run(model, samples)


def compare(title, case, outputs, expected, measured):
    assert outputs.keys() == expected.keys()
    for name, array in expected.items():
        difference = np.abs(outputs[name] - array).max()
        if name == "boxes":
            measured(f"transformers {title}, boxes", case, difference, 1e-5)
        else:
            difference /= np.abs(array).max()
            measured(f"transformers {title}, {name} over the largest", case, difference, 1e-4)


@pytest.mark.parametrize(
    "case, form", [*FAST, *(pytest.param(*both, marks=pytest.mark.soak) for both in ALL)]
)
def test_weights_go_both_ways(run_script, original, tmp_path, measured, case, form):
    samples = make_batch(case)
    np.savez(tmp_path / "batch.npz", images=samples.tensors, mask=samples.mask)
    run_script("run_huggingface.py", "make", case, form, tmp_path / "in")
    expected = original("run_huggingface.py", "run", tmp_path / "in", tmp_path / "batch.npz")
    assert np.ptp(expected["boxes"], axis=1).max() > 1e-3, "queries must differ"

    checkpoint, outputs = run_ours(tmp_path / "in", samples)
    compare("to ours", f"{case}, {form}", outputs, expected, measured)
    if case == "three-classes":
        assert read_class_names(checkpoint, "") == {0: "ballon", 2: "自行车"}

    command = [sys.executable, "-m", "models.weights", tmp_path / "in", tmp_path / "out"]
    subprocess.run([str(word) for word in command], cwd=REPO, check=True)
    back = original("run_huggingface.py", "run", tmp_path / "out", tmp_path / "batch.npz")
    compare("and back", f"{case}, {form}", back, expected, measured)
    written = load_checkpoint(tmp_path / "out")
    assert read_class_names(written, "") == read_class_names(checkpoint, "")
