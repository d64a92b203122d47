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
            if "masks" in target:
                arrays[f"{i}/{j}/masks"] = np.packbits(target["masks"], axis=-1)
    np.savez(path, **arrays)


def load_epoch(path, rank=0, processes=1):
    """Yields what save_epoch was given, to the bit; of each batch the images of one process."""
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
            targets = []
            for i, image in enumerate(images):
                target = {key: arrays[f"{batch}/{i}/{key}"] for key in ("boxes", "labels")}
                if f"{batch}/{i}/masks" in arrays.files:
                    packed = arrays[f"{batch}/{i}/masks"]
                    width = image.shape[2]
                    target["masks"] = np.unpackbits(packed, axis=-1, count=width).astype(bool)
                targets.append(target)
            yield images[rank::processes], targets[rank::processes]


class Gradients:
    """The gradients of some batches, each a row of an array float [batches, numbers] on the disk.

    The file PATH.npy holds the array, PATH.json the names of the parameters and their sizes.
    """

    def __init__(self, path, batches, sizes, dtype):
        """path: without its suffix; sizes: dictionary name -> count of numbers."""
        path.with_suffix(".json").write_text(json.dumps(sizes))
        shape = (batches, sum(sizes.values()))
        self.rows = np.lib.format.open_memmap(path.with_suffix(".npy"), "w+", dtype, shape)
        self.done = 0

    def add(self, arrays):
        """arrays: a batch's gradients, in the order of the names."""
        np.concatenate([array.ravel() for array in arrays], out=self.rows[self.done])
        self.done += 1


class Recorder:
    """The losses of a run, step by step, and its log.txt."""

    def __init__(self, folder):
        """folder: a Path, or None to write nothing."""
        self.folder = folder
        self.steps = []
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "log.txt").unlink(missing_ok=True)

    def step(self, losses):
        self.steps.append({name: float(value) for name, value in losses.items()})

    def epoch(self, epoch, train_stats, test_stats):
        """Ends an epoch: a line of log.txt of what the engines return.

        test_stats: {} for an epoch without evaluation.
        """
        if not self.folder:
            return
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
