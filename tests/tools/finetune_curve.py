"""Compare fine-tuning with training from scratch: a detector of shapes learns stars as a new class.

    python -m tests.tools.finetune_curve output/demo/checkpoint.pkl output/finetune [--epochs 22]

Draws a variant of the shapes with one more class and other category ids, trains on it from scratch,
fine-tunes the demo's detector for a quarter of the epochs, and plots both into FOLDER/curve.png.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from datasets import shapes

REPO = Path(__file__).resolve().parents[2]
IDS = {"star": 1, "triangle": 2, "circle": 5, "rectangle": 9}
# The demo's model and schedule, on data in another layout.
FLAGS = "--demo --dataset_file coco --img_scales 96 --eval_size 96 --max_size 96".split()


def polygon(kind, size, rng, original=shapes._sample_polygon):
    """Return a polygon as shapes.py does, or a star whose inner radius is 0.4 of the outer one."""
    if kind != "star":
        return original(kind, size, rng)
    outline = original("circle", size, rng)
    centre = outline.mean(0)
    angles = np.arange(10) * np.pi / 5 + rng.uniform(0, 2 * np.pi)
    radius = np.where(np.arange(10) % 2, 0.4, 1)
    half = np.ptp(outline, axis=0) / 2
    return centre + half * (radius * np.stack([np.cos(angles), np.sin(angles)])).T


def write(folder, counts, size=96):
    """Write the images as train/, val/, train.json and val.json, which is not COCO's layout."""
    shapes.CLASSES, shapes._sample_polygon = (*shapes.CLASSES, "star"), polygon
    categories = [{"id": i, "name": name} for name, i in IDS.items()]
    for part, (image_set, count) in enumerate(counts.items()):
        (folder / image_set).mkdir(parents=True)
        data = {"images": [], "annotations": [], "categories": categories}
        for index in range(count):
            image, drawn = shapes.draw_image(size, 1, part, index)
            name = f"{index:05}.png"
            Image.fromarray(image).save(folder / image_set / name)
            data["images"].append({"id": index, "file_name": name, "width": size, "height": size})
            for kind, outline in drawn:
                annotation = shapes._make_annotation(kind, outline)
                annotation.update(image_id=index, category_id=IDS[shapes.CLASSES[kind]])
                data["annotations"].append({**annotation, "id": len(data["annotations"]) + 1})
        (folder / f"{image_set}.json").write_text(json.dumps(data))


def train(folder, data, epochs, *flags):
    """Run main.py and return AP after each epoch."""
    command = [sys.executable, "main.py", *FLAGS, "--epochs", epochs, "--output_dir", folder]
    for image_set in ("train", "val"):
        command += [f"--{image_set}_images", data / image_set]
        command += [f"--{image_set}_ann", data / f"{image_set}.json"]
    subprocess.run([str(word) for word in [*command, *flags]], cwd=REPO, check=True)
    lines = (folder / "log.txt").read_text().splitlines()
    return [json.loads(line)["test_coco_eval_bbox"][0] for line in lines]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=22)
    options = parser.parse_args()
    folder = options.folder.resolve()
    data = folder / "data"
    if not data.exists():
        write(data, {"train": 4000, "val": 200})
    epochs = options.epochs // 4
    flags = ["--lr_drop", epochs - 1, "--finetune", options.weights.resolve()]
    curves = {
        "fine-tuned": train(folder / "finetuned", data, epochs, *flags),
        "from scratch": train(folder / "from_scratch", data, options.epochs),
    }
    figure = Figure(figsize=(6.4, 4.8))
    axes = figure.subplots()
    for name, values in reversed(curves.items()):
        print(f"{name}: AP after each epoch {' '.join(f'{value:.3f}' for value in values)}")
        axes.plot(range(1, len(values) + 1), values, marker=".", label=name)
    axes.set(xlabel="epochs of 250 steps", ylabel="AP on the validation images")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / "curve.png", dpi=100)


if __name__ == "__main__":
    main()
