"""What the benchmark measures, for both interpreters (NumPy only): rows, images, and the clock."""

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))

from process_memory import proportional_memory  # noqa: E402

# name -> (title, flags of recipe.CASES, sizes (height, width) of a batch)
MODELS = {
    "forward": ("forward, DETR-R50, 1 image 800x1066", {"backbone": "resnet50"}, [(800, 1066)]),
    "train": (
        "training step, DETR-R50, 2 images 640x853",
        {"backbone": "resnet50", "dropout": 0.1},
        [(640, 853)] * 2,
    ),
    "forward-dc5": (
        "forward, DETR-R50-DC5, 1 image 800x1066",
        {"backbone": "resnet50", "dilation": True},
        [(800, 1066)],
    ),
    "forward-masks": (
        "forward with masks and their RLE, R50, 100 queries, 1 image 800x1333",
        {"backbone": "resnet50", "masks": True},
        [(800, 1333)],
    ),
    "train-demo": (
        "training step of the demo, 16 images 96x96",
        {
            "backbone": "tiny",
            "backbone_norm": "batch",
            "enc_layers": 2,
            "dec_layers": 2,
            "hidden_dim": 128,
            "dim_feedforward": 256,
            "num_queries": 15,
            "pre_norm": True,
        },
        [(96, 96)] * 16,
    ),
}
DATA = {
    "transforms-val": "one image through the validation transforms",
    "transforms-train": "and the training transforms",
}
EVAL = "`--eval` of 80 images, batch size 2, wall time"
LOADER = {
    "images_per_second": "one epoch, 2 workers, batches of 2, images per second",
    "start": "the data set is ready, s",
    "memory": "most memory of the three processes, GB",
}
START = "warm start of `--eval` to the first result"
# row -> the peers that a user would take instead, and their titles (bench_peers.py)
PEERS = {
    "forward": {
        "openvino": "OpenVINO",
        "onnxruntime": "ONNX Runtime",
        "compile": "PyTorch, torch.compile",
        "channels_last": "PyTorch, channels_last",
    },
    "train": {"compile": "PyTorch, torch.compile", "channels_last": "PyTorch, channels_last"},
}
REPEATS = {
    "forward": (2, 5),
    "train": (1, 4),
    "forward-dc5": (1, 3),
    "forward-masks": (1, 2),
    "train-demo": (5, 60),
}
REPEATS_CUDA = 10, 50


def make_batch(sizes):
    """images: list of float32 [3, h, w]; targets: list of dictionaries labels, boxes (1 to 4
    objects), as recipe's.
    """
    rng = np.random.default_rng(0)
    images = [rng.standard_normal((3, *size), np.float32) for size in sizes]
    counts = rng.integers(1, 5, len(sizes))
    targets = [
        {"labels": rng.integers(1, 4, n), "boxes": rng.uniform(0.2, 0.4, (n, 4)).astype(np.float32)}
        for n in counts
    ]
    return images, targets


def measure(step, options):
    """Times step(), which returns when it is done, after some without a clock."""
    clock = Clock(options)
    for _ in clock:
        step()
    return clock.figures()


class Clock:
    """An iterable that times what is done between its items, after some that warm up."""

    def __init__(self, options, item=None):
        self.warmup, self.repeats = (
            REPEATS_CUDA if options.device == "cuda" else REPEATS[options.row]
        )
        self.item = item
        self.moments = []

    def set_epoch(self, epoch, start=0):
        """As a data loader."""

    def __len__(self):
        return self.warmup + self.repeats + 1

    def __iter__(self):
        for _ in range(len(self)):
            self.moments.append(time.perf_counter())
            yield self.item

    def figures(self):
        """The median of the seconds between one item and the next."""
        return {"seconds": float(np.median(np.diff(self.moments)[self.warmup :]))}


def measure_data(dataset):
    """Seconds per image of a data set that is gone through once; its first images warm up."""
    for i in range(5):
        dataset[i]
    start = time.perf_counter()
    for i in range(len(dataset)):
        dataset[i]
    return {"seconds": (time.perf_counter() - start) / len(dataset)}


def measure_loader(loader, start):
    """One pass over a data loader with batches of 2. start: when the data set was begun.

    The first 100 images warm up. Memory is proportional, of this process and its workers.
    """
    ready, images, memory = time.time(), 0, []
    for _ in loader:
        images += 2
        if images == 100:
            warm = time.time()
        if images % 1000 == 0:
            memory.append(proportional_memory([os.getpid()]))
    seconds = time.time() - warm
    return {
        "images_per_second": (images - 100) / seconds,
        "start": ready - start,
        "memory": max(memory),
        "all_memory": memory,
    }


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("row")
    parser.add_argument(
        "--device", default="cpu", choices=["cpu", "cuda"], help="of the models' rows"
    )
    parser.add_argument("--coco_path")
    parser.add_argument("--weights")
    parser.add_argument("--peer")
    return parser.parse_args()


def report(figures):
    """Prints the figures, with the process's peak memory in GB, as the last line."""
    print(
        json.dumps({**figures, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6})
    )
