"""The original and this project on the same weights and batches: outputs, matching, losses, gradients, training steps."""
import numpy as np
import ours
import pytest
import recipe


@pytest.mark.parametrize("case", recipe.CASES)
def test_model(case, original, measured):
    theirs, mine = original("run_model.py", case), ours.compare(case)
    compared = {name for name in theirs if not name.startswith("rounding/")}
    assert compared == set(mine)

    largest_logit = np.abs(theirs["logits"]).max()
    measured("logits of all layers, over the largest", case,
             np.abs(mine["logits"] - theirs["logits"]).max() / largest_logit, 1e-4)
    measured("boxes of all layers", case, np.abs(mine["boxes"] - theirs["boxes"]).max(), 1e-5)
    for name in (n for n in compared if n.startswith("match/")):
        assert np.array_equal(mine[name], theirs[name]), name
    measured("losses, relative", case, max(relative(mine[n], theirs[n]) for n in compared if n.startswith("loss/")), 1e-5)
    measured("detections: scores", case, np.abs(mine["scores"] - theirs["scores"]).max(), 1e-4)
    measured("detections: boxes, pixels", case, np.abs(mine["pixels"] - theirs["pixels"]).max(), 0.05)
    assert np.array_equal(mine["labels"], theirs["labels"])
    check_gradients(case, theirs, mine, measured)


def check_gradients(case, theirs, mine, measured):
    """Relative L2 of each parameter's gradient.

    Two kinds of parameters need another yardstick. Those whose true gradient is zero (the first decoder layer attends
    over equal values) hold rounding errors only: they are held against the norm of the whole gradient. And where the
    original in float32 is further from itself in float64 than the tolerance (units whose sign before a ReLU is decided
    by rounding, in deep nets), the yardstick is three times that distance.
    """
    names = [name[len("grad/"):] for name in theirs if name.startswith("grad/")]
    total = np.sqrt(sum(np.sum(np.square(theirs["grad/" + name], dtype=np.float64)) for name in names))
    ordinary, rounded = [0.0], []
    for name in names:
        difference = np.linalg.norm(mine["grad/" + name] - theirs["grad/" + name])
        norm, rounding = np.linalg.norm(theirs["grad/" + name]), float(theirs["rounding/" + name])
        if norm < 1e-6 * total:
            assert difference < 1e-6 * total, name
        elif rounding > 1e-3 / 3:
            rounded.append(difference / norm / (3 * rounding))
        else:
            ordinary.append(difference / norm)
    measured("gradients, relative L2", f"{case} ({len(ordinary) - 1} parameters)", max(ordinary), 1e-3)
    if rounded:
        measured("gradients, over 3 x the original's own rounding", f"{case} ({len(rounded)} parameters)", max(rounded), 1)


@pytest.mark.parametrize("case", ["resnet50", "pre-norm"])
def test_training_steps(case, original, measured):
    theirs, mine = original("run_model.py", "--steps", 20, case)["losses"], ours.train(case, 20)["losses"]
    measured("loss at each of 20 training steps, relative", case, np.abs(mine / theirs - 1).max(), 1e-3)
    assert theirs[-1] < theirs[0], "the steps must train, or they would compare nothing"


def relative(a, b):
    return abs(a - b) / max(abs(b), 1e-12)
