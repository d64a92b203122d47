"""Train one epoch over many images, kill it halfway and resume it:

    python ../shared/tools/make_coco_size.py 20000 /tmp/coco train
    python ../shared/tools/make_coco_size.py 500 /tmp/coco val
    python -m tests.tools.long_epoch /tmp/coco [--out long_epoch.png]

The data loader runs alone first. Then main.py trains a small model, is killed with SIGKILL in the
middle of the epoch, and resumes from its last checkpoint. Plots the memory of all its processes,
proportional: a page shared by n processes counts 1 / n.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple, Optional

from matplotlib.figure import Figure

from tests.helpers.process_memory import proportional_memory

REPO = Path(__file__).resolve().parents[2]
PERIOD = 10  # seconds between two readings
BATCH_SIZE = 8
INTERVAL = 250  # steps between two checkpoints
FLAGS = f"""
    --backbone resnet18 --backbone_weights none --enc_layers 2 --dec_layers 2 --num_queries 50
    --img_scales 96 --eval_size 96 --max_size 160 --batch_size {BATCH_SIZE} --num_workers 2
    --epochs 1 --checkpoint_interval {INTERVAL} --device cpu
""".split()
STEP = re.compile(r"^Epoch: \[0\] +\[ *(\d+)/(\d+)\]", re.MULTILINE)


class Reading(NamedTuple):
    """Seconds since the start; steps done and in all, or None outside of training; memory in GB."""

    seconds: float
    step: Optional[int]
    steps: Optional[int]
    memory: float


def load(coco):
    """Run the data loader alone, in this process; print images per second."""
    from util.startup.prepare import prepare_device

    prepare_device("cpu")
    from arguments import parse_args
    from datasets import build_dataset
    from datasets.loader import DataLoader

    dataset = build_dataset("train", parse_args([*FLAGS, "--coco_path", coco]))
    loader = DataLoader(dataset, BATCH_SIZE, shuffle=True, drop_last=True, num_workers=2)
    for number, _ in enumerate(loader):
        if number == 0:
            start = time.time()
    print(f"the loader alone: {number * BATCH_SIZE / (time.time() - start):.0f} images per second")


def train(coco, output, *, kill, begin, resume=()):
    """Run main.py to its end, or kill it after half of the steps; return its readings.

    begin: time of the start, in seconds since the epoch.
    """
    command = [sys.executable, "main.py", *FLAGS, "--coco_path", coco, "--output_dir", output]
    log = Path(output) / ("killed.txt" if kill else "resumed.txt")
    readings = []
    with open(log, "w") as file:
        process = subprocess.Popen([*command, *resume], cwd=REPO, stdout=file)
        while process.poll() is None:
            time.sleep(PERIOD)
            text = log.read_text()
            matches = STEP.findall(text)
            training = matches and "Test:" not in text
            step, steps = map(int, matches[-1]) if training else (None, None)
            memory = proportional_memory([process.pid])
            readings.append(Reading(time.time() - begin, step, steps, memory))
            if kill and step and step > steps // 2:
                process.kill()
                process.wait()
                return readings
    assert process.returncode == 0, log.read_text()[-2000:]
    return readings[:-1]  # at the last one the program was ending


def summarize(title, readings):
    """Print images per second, and the mean memory in each third of the training."""
    trained = [reading for reading in readings if reading.step is not None]
    first, last = trained[0], trained[-1]
    speed = (last.step - first.step) * BATCH_SIZE / (last.seconds - first.seconds)
    third = -(-len(trained) // 3)
    parts = [trained[:third], trained[third:-third], trained[-third:]]
    means = ", ".join(f"{sum(r.memory for r in part) / len(part):.2f}" for part in parts)
    print(
        f"{title}: steps {first.step} to {last.step} of {last.steps}, {speed:.0f} images per "
        f"second; GB in three thirds {means}, at most {max(r.memory for r in readings):.2f}"
    )


def plot(path, runs):
    """Plot memory over time. runs: title -> readings."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for title, readings in runs.items():
        minutes = [reading.seconds / 60 for reading in readings]
        axes.plot(minutes, [reading.memory for reading in readings], marker=".", label=title)
    axes.set(xlabel="minutes", ylabel="memory of all processes, GB", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)


def main(options):
    command = [sys.executable, "-m", "tests.tools.long_epoch", options.coco, "--only-load"]
    subprocess.run(command, cwd=REPO, check=True)
    with tempfile.TemporaryDirectory() as output:
        begin = time.time()
        killed = train(options.coco, output, kill=True, begin=begin)
        summarize("killed", killed)
        resume = ["--resume", f"{output}/checkpoint.pkl"]
        resumed = train(options.coco, output, kill=False, begin=begin, resume=resume)
        [line] = re.findall(r"training on .*", (Path(output) / "resumed.txt").read_text())
        print(line)
        summarize("resumed", resumed)
    plot(options.out, {"killed after half of the epoch": killed, "resumed": resumed})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("coco", help="folder in COCO's layout")
    parser.add_argument("--out", default="long_epoch.png", help="the plot")
    parser.add_argument("--only-load", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    load(options.coco) if options.only_load else main(options)
