"""Trains a small model for thousands of steps on images of varying sizes, evaluates it on
thousands, and draws its memory:

    python -m tests.tools.memory [--steps 3000] [--images 2000] [--coco_path PATH] [--out
    memory.png]

The program itself runs, on real images with the original's transforms; its memory is read from
outside, whenever it prints.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.figure import Figure

from engine import PRINT_FREQ
from tests.helpers.process_memory import proportional_memory
from util.step_memory import StepMemory

REPO = Path(__file__).resolve().parents[2]
FLAGS = """
    --backbone tiny --backbone_norm batch --backbone_weights none --enc_layers 1 --dec_layers 1
    --hidden_dim 64 --nheads 1 --dim_feedforward 128 --num_queries 20 --batch_size 2 --epochs 1
    --device cpu
""".split()
PROGRESS = re.compile(r"^(Epoch|Test):.*?\[ *(\d+)/\d+\]")
FIRST = 500  # where memory should have come to its end
MARKS = (0, FIRST, 1000, 2000, 3000)


def repeat_coco(source, folder, counts):
    """A folder like COCO's, in which the images of source are listed again and again. counts: image
    set -> images.
    """
    for image_set, count in counts.items():
        name = f"instances_{image_set}2017.json"
        data = json.loads((source / "annotations" / name).read_text())
        images, annotations = [], []
        for number in range(count):
            image = data["images"][number % len(data["images"])]
            images.append({**image, "id": number})
            annotations += [
                {**ann, "id": len(annotations) + i, "image_id": number}
                for i, ann in enumerate(
                    (ann for ann in data["annotations"] if ann["image_id"] == image["id"]), 1
                )
            ]
        (folder / "annotations").mkdir(parents=True, exist_ok=True)
        (folder / "annotations" / name).write_text(
            json.dumps({**data, "images": images, "annotations": annotations})
        )
        (folder / f"{image_set}2017").symlink_to((source / f"{image_set}2017").resolve())


def memory(pid):
    """Resident memory of the process and, shared pages by parts, of its data workers; GB."""

    folder = Path("/proc") / str(pid)
    [resident] = re.findall(r"VmRSS:\s+(\d+)", (folder / "status").read_text())
    workers = (folder / "task" / str(pid) / "children").read_text().split()
    return int(resident) / 2**20, proportional_memory(workers)


def measure(coco):
    """Runs the program: {"Epoch" or "Test": [(batches done, GB, GB of the workers)]}."""
    curves = {"Epoch": [], "Test": []}
    process = subprocess.Popen(
        [sys.executable, "main.py", *FLAGS, "--coco_path", str(coco)],
        cwd=REPO,
        text=True,
        bufsize=1,
        stdout=subprocess.PIPE,
    )
    for line in process.stdout:
        if match := PROGRESS.match(line):
            part, batch = match.groups()
            curves[part].append((int(batch), *memory(process.pid)))
            if int(batch) % 100 == 0:
                print(f"{part} {batch}: {curves[part][-1][1]:.3f} GB", file=sys.stderr)
    if process.wait():
        raise RuntimeError(f"main.py ended with exit code {process.returncode}")
    return curves


def draw(path, parts):
    """parts: title -> (name of a unit, [(units done, GB, GB of the workers)])."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    for axes, (title, (unit, curve)) in zip(figure.subplots(1, len(parts)), parts.items()):
        done, main, workers = zip(*curve)
        axes.plot(done, main, label="the program")
        axes.plot(done, workers, label="its two data workers")
        axes.axvline(FIRST, color="black", linestyle=":", alpha=0.5)
        axes.set(title=title, xlabel=unit, ylabel="resident memory, GB", ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument(
        "--coco_path", type=Path, default=REPO.parent / "shared" / "data" / "coco_tiny"
    )
    parser.add_argument("--out", type=Path, default="memory.png")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        repeat_coco(
            args.coco_path, Path(folder), {"train": 2 * (args.steps + 1), "val": args.images + 2}
        )
        curves = measure(Path(folder))
    parts = {
        "training": ("steps of 2 images", curves["Epoch"]),
        "evaluation": ("images", [(2 * batch, *rest) for batch, *rest in curves["Test"]]),
    }
    print(
        "Memory goes back to the system at intervals: what is held then, the mean and the highest "
        "since the row above, in GB."
    )
    print(
        f"| after | held | against {FIRST} | mean | highest | workers |\n"
        "| --- | --- | --- | --- | --- | --- |"
    )
    trends = []
    for title, (unit, curve) in parts.items():
        batch = curve[1][0] // PRINT_FREQ  # units in one
        held_first = None
        for before, mark in zip(MARKS, MARKS[1:]):
            # The last one comes after the end.
            since = [row for row in curve[:-1] if before <= row[0] < mark]
            if not since:
                break
            held = fmean(
                row[1] for row in since if row[0] // batch % StepMemory.BATCHES_BETWEEN_TRIMS == 0
            )
            held_first = held_first or held
            _, main, workers = zip(*since)
            print(
                f"| {mark} {unit} ({title}) | {held:.3f} | {held / held_first - 1:+.1%} | "
                f"{fmean(main):.3f} | {max(main):.3f} | {workers[-1]:.3f} |"
            )
        done, held = np.array(
            [
                row[:2]
                for row in curve[:-1]
                if row[0] >= FIRST and row[0] // batch % StepMemory.BATCHES_BETWEEN_TRIMS == 0
            ]
        ).T
        (slope, _), covariance = np.polyfit(done, held, 1, cov=True)
        growth = np.array([slope, covariance[0, 0] ** 0.5]) * (done[-1] - done[0]) / held.mean()
        trends.append(
            f"{title}: held memory from {FIRST} {unit} on, by a straight line: {growth[0]:+.1%} ± "
            f"{growth[1]:.1%} at {done[-1]:.0f} (single readings differ by "
            f"{held.std() / held.mean():.1%})"
        )
    print("\n".join(["", *trends]))
    draw(args.out, parts)


if __name__ == "__main__":
    main()
