"""Files shared by the two training scripts (NumPy only: the original's interpreter imports it too).

A folder that `train_ours.py --prepare` filled:
    flags.json        the flags of main.py, and `classes`, the number of classes
    weights.npz       the initial weights
    epochs/NNN.npz    the batches of an epoch, in order
A run writes log.txt (as main.py does) and weights.npz into a new folder.
"""

import json

import numpy as np

MEAN = np.float32([0.485, 0.456, 0.406]).reshape(3, 1, 1)
STD = np.float32([0.229, 0.224, 0.225]).reshape(3, 1, 1)


def save_epoch(path, batches):
    """Save a list of (images, targets).

    images: list of float32 [3, h, w], normalised; stored as the uint8 pixels they were made of.
    targets: dictionaries with labels, boxes and possibly masks, as the datasets return them.
    """
    images = [image for images, _ in batches for image in images]
    targets = [target for _, targets in batches for target in targets]
    pixels = [np.rint((image * STD + MEAN) * 255).astype(np.uint8) for image in images]
    arrays = {
        "batches": [len(images) for images, _ in batches],
        "sizes": [image.shape[1:] for image in images],
        "pixels": _concatenate(pixels),
        "objects": [len(target["labels"]) for target in targets],
        "boxes": _concatenate([target["boxes"] for target in targets]),
        "labels": _concatenate([target["labels"] for target in targets]),
    }
    if "masks" in targets[0]:
        arrays["masks"] = np.packbits(_concatenate([target["masks"] for target in targets]))
    np.savez(path, **arrays)


def load_epoch(path, rank=0, world_size=1):
    """Yield the batches given to save_epoch, bit for bit.

    Rank r of n gets images r, r + n, … of each batch.
    """
    with np.load(path) as file:
        arrays = dict(file)
    (height, width), objects = arrays["sizes"].T, arrays["objects"]
    pixels = _split(arrays["pixels"], 3 * height * width)
    fields = {
        "boxes": _split(arrays["boxes"], 4 * objects),
        "labels": _split(arrays["labels"], objects),
    }
    if "masks" in arrays:
        counts = objects * height * width
        fields["masks"] = _split(np.unpackbits(arrays["masks"], count=counts.sum()), counts)
    end = 0
    for count in arrays["batches"]:
        start, end = end, end + count
        images, targets = [], []
        for i in range(start + rank, end, world_size):
            image = pixels[i].reshape(3, height[i], width[i]).astype(np.float32)
            images.append((image / np.float32(255) - MEAN) / STD)
            target = {key: values[i] for key, values in fields.items()}
            target["boxes"] = target["boxes"].reshape(-1, 4)
            if "masks" in target:
                target["masks"] = target["masks"].reshape(-1, height[i], width[i]).astype(bool)
            targets.append(target)
        yield images, targets


def _concatenate(arrays):
    return np.concatenate([array.ravel() for array in arrays])


def _split(array, sizes):
    return np.split(array, np.cumsum(sizes)[:-1])


def log_epoch(folder, epoch, train_stats, test_stats):
    """Append a line to log.txt as main.py does. test_stats: {} without an evaluation."""
    line = {
        **{f"train_{name}": value for name, value in train_stats.items()},
        **{f"test_{name}": value for name, value in test_stats.items()},
        "epoch": epoch,
    }
    with open(folder / "log.txt", "a") as file:
        file.write(json.dumps(line) + "\n")
