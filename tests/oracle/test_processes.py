"""Two processes of this project under mpirun and of the original under torch.distributed, on the
same batches.
"""

import numpy as np
from processes import run_part


def test_steps_of_two_processes(original, measured, tmp_path):
    theirs = original("run_original.py", "--processes", 2, "--steps", 10)
    mine = run_part("train", 2, tmp_path / "mine.npz", "--steps", 10)
    measured(
        "2 processes: loss at each of 10 training steps, relative",
        "resnet18",
        np.abs(mine["losses"] / theirs["losses"] - 1).max(),
        1e-3,
    )
    for kind, what in (("grad/", "gradients"), ("weight/", "weights")):
        names = {name for name in theirs if name.startswith(kind)}
        assert names == {name for name in mine if name.startswith(kind)}
        whole = np.sqrt(sum(np.square(theirs[name]).sum() for name in names))
        # Where the true gradient is zero there are only rounding errors to compare, small beside
        # the whole.
        distances = [
            np.linalg.norm(mine[name] - theirs[name])
            / max(np.linalg.norm(theirs[name]), 1e-6 * whole)
            for name in names
        ]
        measured(
            f"2 processes: {what} of the first step, relative L2",
            f"resnet18 ({len(names)} parameters)",
            max(distances),
            1e-3,
        )
