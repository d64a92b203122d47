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
    images = [image for images, _ in batches for image in images]
    targets = [target for _, targets in batches for target in targets]
    arrays = {
        "batches": [len(images) for images, _ in batches],
        "sizes": [image.shape[1:] for image in images],
        "pixels": joined(
            [np.rint((image * STD + MEAN) * 255).astype(np.uint8) for image in images]
        ),
        "objects": [len(target["labels"]) for target in targets],
        "boxes": joined([target["boxes"] for target in targets]),
        "labels": joined([target["labels"] for target in targets]),
    }
    if "masks" in targets[0]:
        arrays["masks"] = np.packbits(joined([target["masks"] for target in targets]))
    np.savez(path, **arrays)


def load_epoch(path, rank=0, processes=1):
    """Yields what save_epoch was given, to the bit; of each batch the images of one process."""
    with np.load(path) as file:
        arrays = dict(file)
    (height, width), objects = arrays["sizes"].T, arrays["objects"]
    pixels = cut(arrays["pixels"], 3 * height * width)
    parts = {"boxes": cut(arrays["boxes"], 4 * objects), "labels": cut(arrays["labels"], objects)}
    if "masks" in arrays:
        counts = objects * height * width
        parts["masks"] = cut(np.unpackbits(arrays["masks"], count=counts.sum()), counts)
    end = 0
    for count in arrays["batches"]:
        start, end = end, end + count
        images, targets = [], []
        for i in range(start + rank, end, processes):
            image = pixels[i].reshape(3, height[i], width[i]).astype(np.float32)
            images.append((image / np.float32(255) - MEAN) / STD)
            target = {key: values[i] for key, values in parts.items()}
            target["boxes"] = target["boxes"].reshape(-1, 4)
            if "masks" in target:
                target["masks"] = target["masks"].reshape(-1, height[i], width[i]).astype(bool)
            targets.append(target)
        yield images, targets


def joined(arrays):
    return np.concatenate([array.ravel() for array in arrays])


def cut(array, sizes):
    """The pieces that `joined` made one of."""
    return np.split(array, np.cumsum(sizes)[:-1])


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


def weights_of(state):
    """name -> array: the weights in a state's file (see Steps). state: its path."""
    with np.load(state) as arrays:
        return {
            name.removeprefix("weights/"): arrays[name]
            for name in arrays
            if name.startswith("weights/")
        }


class Steps:
    """Steps from a state on a training's way: their batches, and the weights after some of them.

    A state NNN.npz, from after NNN epochs, has weights/NAME, exp_avg/NAME and exp_avg_sq/NAME of
    AdamW, step, and rates, the learning rates of AdamW's groups.
    """

    def __init__(self, folder, state, numbers):
        """folder: the training's; state: the file's path; numbers: of steps to keep the weights
        after.
        """
        epochs = sorted((folder / "epochs").iterdir())
        batches = load_epoch(epochs[int(state.stem) % len(epochs)])
        self.batches = [batch for _, batch in zip(range(max(numbers)), batches)]
        self.numbers = numbers
        self.arrays = {}

    def add(self, number, weights):
        if number in self.numbers:
            self.arrays.update({f"{number}/{name}": value for name, value in weights.items()})

    def save(self, path):
        np.savez(path, **self.arrays)


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
