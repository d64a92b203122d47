"""The original takes each step of a training of this project, from this project's state before it
(see every_step.py). Its own interpreter runs this file:

python every_step_original.py FOLDER STATES OUT.npz
"""

import argparse
import time
from pathlib import Path

import numpy as np

ARMS = ("ours", "original")
MODULES = ("backbone", "transformer.encoder", "transformer.decoder", "others")
STATISTICS = "BatchNorm's statistics"
AVERAGES = ("exp_avg", "exp_avg_sq")
GROUPS = (*MODULES, STATISTICS, *AVERAGES)


class Layout:
    """The numbers of a state as one vector, in the order of GROUPS."""

    def __init__(self, weights, trained):
        """weights, trained: names of all and of the trained ones."""
        names = {group: [] for group in GROUPS}
        for name in weights:
            if "running" in name:
                names[STATISTICS].append(f"weights/{name}")
            elif name in trained:
                module = next((m for m in MODULES if name.startswith(m)), "others")
                names[module].append(f"weights/{name}")
        for kind in AVERAGES:
            names[kind] = [f"{kind}/{name}" for name in trained]
        self.names = names

    def vectors(self, state):
        """One float64 vector for each of GROUPS. state: name -> array."""
        return [
            np.concatenate([state[name].ravel() for name in names]).astype(np.float64)
            for names in self.names.values()
        ]


def take_state(path):
    """name -> array, from a file of train_ours.py --states, which is waited for and removed."""
    while not path.exists():
        time.sleep(0.005)
    with np.load(path) as arrays:
        state = dict(arrays)
    path.unlink()
    return {**state, "step": int(state["step"])}


class Errors:
    """What is kept of the errors of each step.

    lengths: squared lengths of the exact steps [steps, groups]. Of each arm: squares, the squared
    lengths of its errors, and along, the products of error and step [steps, groups]; sums, the sum
    of all errors as a vector for each group.
    """

    def __init__(self):
        self.lengths = []
        self.squares, self.along = ({arm: [] for arm in ARMS} for _ in range(2))
        self.sums = {arm: [0] * len(GROUPS) for arm in ARMS}

    def add(self, start, exact, found):
        """start, exact: vectors before and after the step; found: arm -> vectors after it."""
        steps = [after - before for after, before in zip(exact, start)]
        self.lengths.append([step @ step for step in steps])
        for arm, vectors in found.items():
            errors = [vector - after for vector, after in zip(vectors, exact)]
            self.squares[arm].append([error @ error for error in errors])
            self.along[arm].append([error @ step for error, step in zip(errors, steps)])
            self.sums[arm] = [total + error for total, error in zip(self.sums[arm], errors)]

    def arrays(self):
        found = {"lengths": self.lengths}
        for arm in ARMS:
            found[f"{arm}/squares"] = self.squares[arm]
            found[f"{arm}/along"] = self.along[arm]
            found[f"{arm}/sum"] = [total @ total for total in self.sums[arm]]
        return found


def main():
    import torch
    import training
    from late_steps_original import Training

    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("states", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    single, double = (Training(options.folder, dtype) for dtype in (torch.float32, torch.float64))
    layout = Layout(single.weights(), single.parameters)
    before = {f"weights/{name}": value for name, value in single.weights().items()}
    for name, parameter in single.parameters.items():
        before.update({f"{kind}/{name}": np.zeros(parameter.shape, "f4") for kind in AVERAGES})
    before["step"] = 0
    errors = Errors()
    for path in sorted((options.folder / "epochs").iterdir()):
        for batch in training.load_epoch(path):
            after = take_state(options.states / f"{before['step'] + 1:06}.npz")
            for job in (single, double):
                job.load({**before, "rates": after["rates"]})
                job.step(batch)
            errors.add(
                layout.vectors(before),
                layout.vectors(double.state()),
                dict(zip(ARMS, (layout.vectors(after), layout.vectors(single.state())))),
            )
            before = after
        print(path.stem, flush=True)
    np.savez(options.out, **errors.arrays())


if __name__ == "__main__":
    main()
