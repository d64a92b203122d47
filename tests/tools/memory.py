"""Plot the memory of thousands of training steps and evaluated images of varying sizes:

    python -m tests.tools.memory [--steps 3000] [--images 2000] [--coco_path PATH]
        [--out memory.png]

main.py trains a small model on real images with the original's transforms; its memory is read from
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
FIRST = 500  # memory should not grow from here on
MARKS = (0, FIRST, 1000, 2000, 3000)


def repeat_coco(source, folder, counts):
    """Write a folder in COCO's layout that lists the images of source again and again.

    counts: image set -> number of images.
    """
    for image_set, count in counts.items():
        name = f"instances_{image_set}2017.json"
        data = json.loads((source / "annotations" / name).read_text())
        images, annotations = [], []
        for number in range(count):
            image = data["images"][number % len(data["images"])]
            images.append({**image, "id": number})
            for ann in data["annotations"]:
                if ann["image_id"] == image["id"]:
                    annotations.append({**ann, "id": len(annotations) + 1, "image_id": number})
        data.update(images=images, annotations=annotations)
        (folder / "annotations").mkdir(parents=True, exist_ok=True)
        (folder / "annotations" / name).write_text(json.dumps(data))
        (folder / f"{image_set}2017").symlink_to((source / f"{image_set}2017").resolve())


def read_memory(pid):
    """Return resident memory of a process, and proportional memory of its data workers, in GB."""
    folder = Path("/proc") / str(pid)
    [resident] = re.findall(r"VmRSS:\s+(\d+)", (folder / "status").read_text())
    workers = (folder / "task" / str(pid) / "children").read_text().split()
    return int(resident) / 2**20, proportional_memory(workers)


def measure(coco):
    """Run main.py; return {"Epoch" or "Test": [(batches done, GB, GB of the workers)]}."""
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
            curves[part].append((int(batch), *read_memory(process.pid)))
            if int(batch) % 100 == 0:
                print(f"{part} {batch}: {curves[part][-1][1]:.3f} GB", file=sys.stderr)
    if process.wait():
        raise RuntimeError(f"main.py ended with exit code {process.returncode}")
    return curves


def plot(path, parts):
    """Plot memory. parts: title -> (name of a unit, [(units done, GB, GB of the workers)])."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    for axes, (title, (unit, curve)) in zip(figure.subplots(1, len(parts)), parts.items()):
        done, main, workers = zip(*curve)
        axes.plot(done, main, label="main process")
        axes.plot(done, workers, label="two data workers")
        axes.axvline(FIRST, color="black", linestyle=":", alpha=0.5)
        axes.set(title=title, xlabel=unit, ylabel="resident memory, GB", ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=100)


def summarize(title, unit, curve):
    """Print a part's rows, and return a line about its trend after FIRST."""
    batch = curve[1][0] // PRINT_FREQ  # units in one
    curve = curve[:-1]  # the last reading comes after the end
    held = [row for row in curve if row[0] // batch % StepMemory.BATCHES_BETWEEN_TRIMS == 0]
    held_first = None
    for before, mark in zip(MARKS, MARKS[1:]):
        since = [row for row in curve if before <= row[0] < mark]
        if not since:
            break
        mean = fmean(gigabytes for done, gigabytes, _ in held if before <= done < mark)
        held_first = held_first or mean
        _, main, workers = zip(*since)
        print(
            f"| {mark} {unit} ({title}) | {mean:.3f} | {mean / held_first - 1:+.1%} | "
            f"{fmean(main):.3f} | {max(main):.3f} | {workers[-1]:.3f} |"
        )
    done, held = np.array([row[:2] for row in held if row[0] >= FIRST]).T
    (slope, _), covariance = np.polyfit(done, held, 1, cov=True)
    growth = np.array([slope, covariance[0, 0] ** 0.5]) * (done[-1] - done[0]) / held.mean()
    return (
        f"{title}: linear trend of held memory after {FIRST} {unit}: {growth[0]:+.1%} ± "
        f"{growth[1]:.1%} at {done[-1]:.0f} (standard deviation of a reading: "
        f"{held.std() / held.mean():.1%})"
    )


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
    counts = {"train": 2 * (args.steps + 1), "val": args.images + 2}
    with tempfile.TemporaryDirectory() as folder:
        repeat_coco(args.coco_path, Path(folder), counts)
        curves = measure(Path(folder))
    parts = {
        "training": ("steps of 2 images", curves["Epoch"]),
        "evaluation": ("images", [(2 * batch, *rest) for batch, *rest in curves["Test"]]),
    }
    print(
        "Held: right after memory is returned to the system. Mean and highest: since the row above."
    )
    print(f"| after | held, GB | against {FIRST} | mean | highest | workers |")
    print("| --- | --- | --- | --- | --- | --- |")
    trends = [summarize(title, *part) for title, part in parts.items()]
    print("\n".join(["", *trends]))
    plot(args.out, parts)


if __name__ == "__main__":
    main()
