"""Fine-tuning against training from scratch: a detector of circles, rectangles and triangles learns
stars too.

    python -m tests.tools.finetune_curve output/demo/checkpoint.pkl output/finetune [--epochs 22]

Draws a variant of the shapes with one more class and other category ids, trains on it from scratch
for the given number of epochs, and fine-tunes the demo's detector for a quarter of them; then draws
both curves into FOLDER/curve.png and prints them.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from datasets import shapes

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

REPO = Path(__file__).resolve().parents[2]
IDS = {"star": 1, "triangle": 2, "circle": 5, "rectangle": 9}
# The demo's model and schedule, on data in the user's own layout.
DEMO = ["--demo", "--dataset_file", "coco"]
SIZES = ["--img_scales", "96", "--eval_size", "96", "--max_size", "96"]


def polygon(kind, size, rng, original=shapes._sample_polygon):
    """As that of shapes.py, and a star: five points, the inner corners at two fifths of the outer
    ones' distance.
    """
    if kind != "star":
        return original(kind, size, rng)
    outline = original("circle", size, rng)
    centre = outline.mean(0)
    angles = np.arange(10) * np.pi / 5 + rng.uniform(0, 2 * np.pi)
    radius = np.where(np.arange(10) % 2, 0.4, 1)
    half = np.ptp(outline, axis=0) / 2
    return centre + half * (radius * np.stack([np.cos(angles), np.sin(angles)])).T


def write(folder, counts, size=96):
    """train/, val/, train.json, val.json: not COCO's layout."""
    shapes.CLASSES, shapes._sample_polygon = (*shapes.CLASSES, "star"), polygon
    for part, (image_set, count) in enumerate(counts.items()):
        (folder / image_set).mkdir(parents=True)
        data = {
            "images": [],
            "annotations": [],
            "categories": [{"id": i, "name": name} for name, i in IDS.items()],
        }
        for index in range(count):
            image, drawn = shapes.draw_image(size, 1, part, index)
            name = f"{index:05}.png"
            Image.fromarray(image).save(folder / image_set / name)
            data["images"].append({"id": index, "file_name": name, "width": size, "height": size})
            for kind, outline in drawn:
                annotation = shapes._make_annotation(kind, outline)
                annotation.update(
                    id=len(data["annotations"]) + 1,
                    image_id=index,
                    category_id=IDS[shapes.CLASSES[kind]],
                )
                data["annotations"].append(annotation)
        (folder / f"{image_set}.json").write_text(json.dumps(data))


def train(folder, data, epochs, *flags):
    """AP after each epoch."""
    command = [
        sys.executable,
        "main.py",
        *DEMO,
        *SIZES,
        "--epochs",
        str(epochs),
        "--output_dir",
        str(folder),
    ]
    for image_set in ("train", "val"):
        command += [
            f"--{image_set}_images",
            str(data / image_set),
            f"--{image_set}_ann",
            str(data / f"{image_set}.json"),
        ]
    subprocess.run([*command, *flags], cwd=REPO, check=True)
    return [
        json.loads(line)["test_coco_eval_bbox"][0]
        for line in (folder / "log.txt").read_text().splitlines()
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=22)
    options = parser.parse_args()
    data = options.folder.resolve() / "data"
    if not data.exists():
        write(data, {"train": 4000, "val": 200})
    quarter = options.epochs // 4
    tuned = train(
        options.folder.resolve() / "finetuned",
        data,
        quarter,
        "--lr_drop",
        str(quarter - 1),
        "--finetune",
        str(options.weights.resolve()),
    )
    scratch = train(options.folder.resolve() / "from_scratch", data, options.epochs)
    for name, values in (("from scratch", scratch), ("fine-tuned", tuned)):
        print(f"{name}: AP after each epoch {' '.join(f'{value:.3f}' for value in values)}")
        plt.plot(range(1, len(values) + 1), values, marker=".", label=name)
    plt.xlabel("epochs of 250 steps")
    plt.ylabel("AP on the validation images")
    plt.grid(alpha=0.3)
    plt.legend()
    plt.savefig(options.folder / "curve.png", dpi=100)


if __name__ == "__main__":
    main()
