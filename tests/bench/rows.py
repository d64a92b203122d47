"""Benchmark rows, their images and the clock, for both interpreters (NumPy only)."""

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "helpers"), str(TESTS / "oracle")]

from process_memory import proportional_memory  # noqa: E402


class Model(NamedTuple):
    """flags: as in recipe.CASES; sizes: (height, width) of the images of a batch."""

    title: str
    flags: dict
    sizes: list
    warmup: int
    repeats: int


R50 = {"backbone": "resnet50"}
DEMO = {
    "backbone": "tiny",
    "backbone_norm": "batch",
    "enc_layers": 2,
    "dec_layers": 2,
    "hidden_dim": 128,
    "dim_feedforward": 256,
    "num_queries": 15,
    "pre_norm": True,
}
MODELS = {
    "forward": Model("forward, DETR-R50, 1 image 800x1066", R50, [(800, 1066)], 2, 5),
    "train": Model(
        "training step, DETR-R50, 2 images 640x853",
        {**R50, "dropout": 0.1},
        [(640, 853)] * 2,
        warmup=1,
        repeats=4,
    ),
    "forward-dc5": Model(
        "forward, DETR-R50-DC5, 1 image 800x1066", {**R50, "dilation": True}, [(800, 1066)], 1, 3
    ),
    "forward-masks": Model(
        "forward with masks and their RLE, R50, 100 queries, 1 image 800x1333",
        {**R50, "masks": True},
        [(800, 1333)],
        warmup=1,
        repeats=2,
    ),
    "train-demo": Model("training step of the demo, 16 images 96x96", DEMO, [(96, 96)] * 16, 5, 60),
}
REPEATS_CUDA = 10, 50  # warm-up and repeats
DATA = {
    "transforms-val": "one image through the validation transforms",
    "transforms-train": "and the training transforms",
}
EVAL = "`--eval` of 80 images, batch size 2, wall time"
START = "warm start of `--eval` to the first result"
LOADER = {
    "images_per_second": "one epoch, 2 workers, batches of 2, images per second",
    "start": "the dataset is ready, s",
    "memory": "most memory of the three processes, GB",
}
# row -> what one would run instead: name -> title
PEERS = {
    "forward": {
        "openvino": "OpenVINO",
        "onnxruntime": "ONNX Runtime",
        "compile": "PyTorch, torch.compile",
        "channels_last": "PyTorch, channels_last",
    },
    "train": {"compile": "PyTorch, torch.compile", "channels_last": "PyTorch, channels_last"},
}


def make_batch(sizes):
    """Return images, a list of float32 [3, h, w], and targets with 1 to 4 labels and boxes."""
    rng = np.random.default_rng(0)
    images = [rng.standard_normal((3, *size), np.float32) for size in sizes]
    counts = rng.integers(1, 5, len(sizes))
    targets = [
        {"labels": rng.integers(1, 4, n), "boxes": rng.uniform(0.2, 0.4, (n, 4)).astype(np.float32)}
        for n in counts
    ]
    return images, targets


class Clock:
    """An iterable, also in place of a data loader, that times what is done with each item."""

    def __init__(self, options, item=None):
        model = MODELS[options.row]
        self.warmup, self.repeats = (
            REPEATS_CUDA if options.device == "cuda" else (model.warmup, model.repeats)
        )
        self.item = item
        self.moments = []

    def set_epoch(self, epoch, start=0):
        pass

    def __len__(self):
        return self.warmup + self.repeats + 1

    def __iter__(self):
        for _ in range(len(self)):
            self.moments.append(time.perf_counter())
            yield self.item

    def figures(self):
        """Return the median time of an item after the warm-up, in seconds."""
        return {"seconds": float(np.median(np.diff(self.moments)[self.warmup :]))}


def measure(step, options):
    """Time step(), which must return when its results are on the host."""
    clock = Clock(options)
    for _ in clock:
        step()
    return clock.figures()


def measure_data(dataset):
    """Return the mean seconds per image of one pass over a dataset, after 5 warm-up images."""
    for i in range(5):
        dataset[i]
    start = time.perf_counter()
    for i in range(len(dataset)):
        dataset[i]
    return {"seconds": (time.perf_counter() - start) / len(dataset)}


def measure_loader(loader, start):
    """Time one pass over a data loader with batches of 2, after 100 warm-up images.

    start: when building the dataset began. Memory is proportional, of this process and its
    workers, in GB.
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
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="for model rows")
    parser.add_argument("--coco_path")
    parser.add_argument("--weights")
    parser.add_argument("--peer")
    return parser.parse_args()


def report(figures):
    """Print the figures as the last line, with the peak memory of this process in GB."""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"memory": memory, **figures}))
