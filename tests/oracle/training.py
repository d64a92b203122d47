"""What the two training drivers share (NumPy only): initial weights, batches, and what a run
writes.

A folder that `train_ours.py --prepare` filled:
    flags.json        the flags of main.py, and `classes`, the number of classes
    weights.npz       the initial weights
    epochs/NNN.npz    an epoch's batches, in their order
A run writes steps.npz (`loss`, `loss_ce`, … [steps]), log.txt (as main.py) and weights.npz into a
folder of its own.
"""

import json

import numpy as np

MEAN = np.float32([0.485, 0.456, 0.406]).reshape(3, 1, 1)
STD = np.float32([0.229, 0.224, 0.225]).reshape(3, 1, 1)


def save_epoch(path, batches):
    """batches: list of (images, targets); images: list of float32 [3, h, w], normalised, stored as
    the bytes they were.
    """
    arrays = {}
    for i, (images, targets) in enumerate(batches):
        for j, (image, target) in enumerate(zip(images, targets)):
            arrays[f"{i}/{j}/image"] = np.rint((image * STD + MEAN) * 255).astype(np.uint8)
            arrays[f"{i}/{j}/boxes"], arrays[f"{i}/{j}/labels"] = target["boxes"], target["labels"]
    np.savez(path, **arrays)


def load_epoch(path):
    """Yields what save_epoch was given, to the bit."""
    with np.load(path) as arrays:
        last = {}
        for name in arrays.files:
            batch, image, _ = name.split("/")
            last[int(batch)] = max(last.get(int(batch), 0), int(image))
        for batch, count in sorted(last.items()):
            images = [
                ((arrays[f"{batch}/{i}/image"].astype(np.float32) / np.float32(255)) - MEAN) / STD
                for i in range(count + 1)
            ]
            targets = [
                {key: arrays[f"{batch}/{i}/{key}"] for key in ("boxes", "labels")}
                for i in range(count + 1)
            ]
            yield images, targets


class Recorder:
    """The losses of a run, step by step, and its log.txt."""

    def __init__(self, folder):
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "log.txt").unlink(missing_ok=True)
        self.steps = []

    def step(self, losses):
        self.steps.append({name: float(value) for name, value in losses.items()})

    def epoch(self, epoch, train_stats, test_stats):
        """Ends an epoch: a line of log.txt of what the engines return."""
        line = {
            **{f"train_{name}": value for name, value in train_stats.items()},
            **{f"test_{name}": value for name, value in test_stats.items()},
            "epoch": epoch,
        }
        with open(self.folder / "log.txt", "a") as file:
            file.write(json.dumps(line) + "\n")

    def save(self, weights):
        np.savez(
            self.folder / "steps.npz",
            **{name: [step[name] for step in self.steps] for name in self.steps[0]},
        )
        np.savez(self.folder / "weights.npz", **weights)
