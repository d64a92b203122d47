"""Measure time and memory of starting on a dataset of COCO's size:

    python ../shared/tools/make_coco_size.py 118287 /tmp/coco train
    python ../shared/tools/make_coco_size.py 5000 /tmp/coco val
    python -m tests.tools.coco_size /tmp/coco [--processes 4] [--images 5000]

Each process builds the training data as main.py does, loads images with two workers, and waits for
the others. Memory is proportional: a page shared by n processes counts 1 / n.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.helpers.process_memory import proportional_memory

REPO = Path(__file__).resolve().parents[2]
PERIOD = 5  # seconds between two readings


def load(options):
    """Build the dataset and load images in this process; print how long each takes."""
    from util.startup.prepare import prepare_device

    prepare_device("cpu")
    from arguments import parse_args
    from datasets import build_dataset
    from datasets.loader import DataLoader

    args = parse_args(["--coco_path", str(options.coco), "--device", "cpu"])
    start = time.time()
    dataset = build_dataset("train", args)
    print(f"data after {time.time() - start:.1f} s", flush=True)
    if options.images:
        ranks = dict(rank=options.rank, world_size=options.processes)
        loader = DataLoader(dataset, 2, shuffle=True, drop_last=True, num_workers=2, **ranks)
        batches = iter(loader)
        for _ in range(options.images // 2):
            next(batches)
        print(f"{options.images} images after {time.time() - start:.0f} s", flush=True)
        sys.stdin.read()  # until the last process is done


def start(options, images, rank, folder):
    """Start a loading process whose output goes to a file in folder; return both."""
    command = [sys.executable, "-m", "tests.tools.coco_size", options.coco, "--rank", rank]
    command += ["--processes", options.processes, "--images", images]
    output = folder / f"{rank}.txt"
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=REPO,
        env={**os.environ, "XDG_CACHE_HOME": str(folder)},
        stdin=subprocess.PIPE,
        stdout=open(output, "w"),
    )
    return process, output


def main(options):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name in ("first start", "second start"):
            process, output = start(options, 0, 0, folder)
            process.communicate()
            print(f"{name}: {output.read_text().splitlines()[-1]}", flush=True)
        begin, loading = time.time(), True
        started = [
            start(options, options.images, rank, folder) for rank in range(options.processes)
        ]
        while loading:
            time.sleep(PERIOD)
            gigabytes = proportional_memory([process.pid for process, _ in started])
            print(f"{time.time() - begin:.0f} s: {gigabytes:.2f} GB", flush=True)
            assert all(process.poll() is None for process, _ in started), "a process has ended"
            loading = not all("images after" in output.read_text() for _, output in started)
        for process, output in started:
            process.communicate()
            print(output.read_text().splitlines()[-1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("coco", type=Path)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--images", type=int, default=5000, help="images per process")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    (main if options.rank is None else load)(options)
