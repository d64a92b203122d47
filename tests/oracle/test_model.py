"""The original and this project on the same weights and batches: outputs, matching, losses,
gradients, training steps.
"""

import numpy as np
import ours
import pytest
import recipe


@pytest.mark.parametrize("case", recipe.CASES)
def test_model(case, original, measured):
    theirs, mine = original("run_model.py", case), ours.compare(case)
    assert set(theirs) == set(mine)

    largest_logit = np.abs(theirs["logits"]).max()
    measured(
        "logits of all layers, over the largest",
        case,
        np.abs(mine["logits"] - theirs["logits"]).max() / largest_logit,
        1e-4,
    )
    measured("boxes of all layers", case, np.abs(mine["boxes"] - theirs["boxes"]).max(), 1e-5)
    if "masks" in theirs:
        measured(
            "masks, over the largest",
            case,
            np.abs(mine["masks"] - theirs["masks"]).max() / np.abs(theirs["masks"]).max(),
            1e-4,
        )
    measured(
        "matching: results that differ",
        case,
        sum(not np.array_equal(mine[n], theirs[n]) for n in theirs if n.startswith("match/")),
        0,
    )
    measured(
        "losses, relative",
        case,
        max(relative(mine[n], theirs[n]) for n in theirs if n.startswith("loss/")),
        1e-5,
    )
    measured("detections: scores", case, np.abs(mine["scores"] - theirs["scores"]).max(), 1e-4)
    measured(
        "detections: boxes, pixels", case, np.abs(mine["pixels"] - theirs["pixels"]).max(), 0.05
    )
    assert np.array_equal(mine["labels"], theirs["labels"])
    distances = ours.gradient_distances(theirs, mine)
    measured(
        "gradients, relative L2",
        f"{case} ({len(distances)} parameters)",
        max(distances.values()),
        1e-3,
    )


@pytest.mark.parametrize(
    "case, steps", [("resnet50", 20), ("pre-norm", 20), ("masks-frozen", 10), ("tiny", 10)]
)
def test_training_steps(case, steps, original, measured):
    theirs, mine = original("run_model.py", "--steps", steps, case), ours.train(case, steps)
    statistics = theirs.keys() - {"losses"}
    assert statistics == mine.keys() - {"losses"}
    measured(
        f"BatchNorm's statistics after {steps} training steps, relative L2",
        case,
        max(np.linalg.norm(mine[n] - theirs[n]) / np.linalg.norm(theirs[n]) for n in statistics),
        1e-5,
    )
    theirs, mine = theirs["losses"], mine["losses"]
    measured(
        f"loss at each of {steps} training steps, relative",
        case,
        np.abs(mine / theirs - 1).max(),
        1e-3,
    )
    assert theirs[-2] < theirs[0], "the steps must train, or they would compare nothing"


@pytest.mark.parametrize("case", ["resnet50"])
def test_attention(case, original, measured):
    """Of the last encoder and decoder layer, as --attention draws it; the batch is padded."""
    theirs, mine = original("run_model.py", "--attention", case), ours.attention(case)
    assert theirs.keys() == mine.keys() == {"encoder", "decoder"}
    for name, array in theirs.items():
        assert array.shape == mine[name].shape
        measured(
            f"attention of the {name}, relative L2",
            case,
            np.linalg.norm(mine[name] - array) / np.linalg.norm(array),
            1e-4,
        )
        measured(
            f"attention of the {name}, over the largest",
            case,
            np.abs(mine[name] - array).max() / array.max(),
            1e-4,
        )


def relative(a, b):
    return abs(a - b) / max(abs(b), 1e-12)
