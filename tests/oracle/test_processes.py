"""Training steps of two processes, under mpirun and torch.distributed, on the same batches."""

import numpy as np
from processes import run_part


def test_steps_of_two_processes(original, measured, tmp_path):
    theirs = original("run_processes.py", "--processes", 2, "--steps", 10)
    mine = run_part("train", 2, tmp_path / "mine.npz", "--steps", 10)
    losses = np.abs(mine["losses"] / theirs["losses"] - 1)
    measured("2 processes: loss at each of 10 steps, relative", "resnet18", losses.max(), 1e-3)
    for kind, what in (("grad/", "gradients"), ("weight/", "weights")):
        names = {name for name in theirs if name.startswith(kind)}
        assert names == {name for name in mine if name.startswith(kind)}
        # Gradients that are zero in theory hold only rounding errors, small beside the whole.
        floor = 1e-6 * np.sqrt(sum(np.square(theirs[name]).sum() for name in names))
        distances = [
            np.linalg.norm(mine[name] - theirs[name]) / max(np.linalg.norm(theirs[name]), floor)
            for name in names
        ]
        title = f"2 processes: {what} of the first step, relative L2"
        measured(title, f"resnet18 ({len(names)} parameters)", max(distances), 1e-3)
