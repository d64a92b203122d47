"""Outputs, matching, losses, gradients and training steps on the same weights and batches."""

import numpy as np
import ours
import pytest
import recipe


@pytest.mark.parametrize("case", recipe.CASES)
def test_model(case, original, measured):
    theirs, mine = original("run_model.py", case), ours.compare(case)
    assert set(theirs) == set(mine)

    def check(part, name, tolerance, unit=1):
        measured(part, case, np.abs(mine[name] - theirs[name]).max() / unit, tolerance)

    largest = {name: np.abs(theirs[name]).max() for name in ("logits", "masks") if name in theirs}
    check("logits of all layers, over the largest", "logits", 1e-4, largest["logits"])
    check("boxes of all layers", "boxes", 1e-5)
    if "masks" in theirs:
        check("masks, over the largest", "masks", 1e-4, largest["masks"])
    matches = [name for name in theirs if name.startswith("match/")]
    different = sum(not np.array_equal(mine[name], theirs[name]) for name in matches)
    measured("matching: results that differ", case, different, 0)
    losses = [name for name in theirs if name.startswith("loss/")]
    relative = [abs(mine[n] - theirs[n]) / max(abs(theirs[n]), 1e-12) for n in losses]
    measured("losses, relative", case, max(relative), 1e-5)
    check("detections: scores", "scores", 1e-4)
    check("detections: boxes, pixels", "pixels", 0.05)
    assert np.array_equal(mine["labels"], theirs["labels"])
    distances = ours.gradient_distances(theirs, mine)
    configuration = f"{case} ({len(distances)} parameters)"
    measured("gradients, relative L2", configuration, max(distances.values()), 1e-3)


@pytest.mark.parametrize(
    "case, steps", [("resnet50", 20), ("pre-norm", 20), ("masks-frozen", 10), ("tiny", 10)]
)
def test_training_steps(case, steps, original, measured):
    theirs, mine = original("run_model.py", "--steps", steps, case), ours.train(case, steps)
    statistics = theirs.keys() - {"losses"}
    assert statistics == mine.keys() - {"losses"}
    part = f"BatchNorm's statistics after {steps} training steps, relative L2"
    measured(part, case, max(relative_l2(mine[n], theirs[n]) for n in statistics), 1e-5)
    theirs, mine = theirs["losses"], mine["losses"]
    part = f"loss at each of {steps} training steps, relative"
    measured(part, case, np.abs(mine / theirs - 1).max(), 1e-3)
    assert theirs[-2] < theirs[0], "the steps must train, or they would compare nothing"


@pytest.mark.parametrize("case", ["resnet50"])
def test_attention(case, original, measured):
    """Compare the last encoder and decoder layer, as --attention draws it, on a padded batch."""
    theirs, mine = original("run_model.py", "--attention", case), ours.attention(case)
    assert theirs.keys() == mine.keys() == {"encoder", "decoder"}
    for name, array in theirs.items():
        assert array.shape == mine[name].shape
        part = f"attention of the {name}"
        measured(f"{part}, relative L2", case, relative_l2(mine[name], array), 1e-4)
        largest = np.abs(mine[name] - array).max() / array.max()
        measured(f"{part}, over the largest", case, largest, 1e-4)


def relative_l2(mine, theirs):
    return np.linalg.norm(mine - theirs) / np.linalg.norm(theirs)
