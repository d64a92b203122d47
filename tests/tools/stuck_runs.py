"""Which runs does the program call stuck (util/stuck.py)? Broken and healthy ones on the shapes:

    python -m tests.tools.stuck_runs FOLDER [--jobs 2] [--only NAME …]

Each run sees 12,000 images of 96x96 pixels, 500 per epoch, in 2 to 4 minutes on one core. Prints a
table: the runs, their last AP, and the warning with the number of images after which it came.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from arguments import DEMO

REPO = Path(__file__).resolve().parents[2]
COUNTS = {"train": 500, "val": 100}
MODEL = {**DEMO, "lr_drop": 1000, "epochs": 24}
WARNING = re.compile(
    r"after ([\d,]+) images with objects, and (.*)\. The most likely causes:\n(.*)"
)


def make_flags(folder, train="shapes", val="shapes", **changes):
    """Return the flags of main.py for two datasets in the folder, and changes to MODEL."""
    settings = {**MODEL, "dataset_file": "coco", "img_scales": 96, "eval_size": 96, "max_size": 96}
    settings.update(changes)
    words = []
    for name, value in settings.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not False:
            words += [f"--{name}", *str(value).split()]
    for image_set, name in (("train", train), ("val", val)):
        data = folder / name
        words += [f"--{image_set}_images", str(data / f"{image_set}2017")]
        words += [f"--{image_set}_ann", str(data / f"{image_set}.json")]
    return words


def draw_shapes(folder):
    """Draw the shapes into folder/shapes; return their annotations by image set."""
    from datasets.shapes import write_shapes

    write_shapes(folder / "shapes", COUNTS, 96)
    annotations = {}
    for image_set in COUNTS:
        path = folder / "shapes" / "annotations" / f"instances_{image_set}2017.json"
        annotations[image_set] = json.loads(path.read_text())
    write(folder, "shapes", annotations)
    return annotations


def write(folder, name, annotations):
    """Write a dataset: its annotations, and links to the shapes' images unless it has its own."""
    data = folder / name
    data.mkdir(exist_ok=True)
    for image_set, content in annotations.items():
        (data / f"{image_set}.json").write_text(json.dumps(content))
        images = data / f"{image_set}2017"
        if not images.exists():
            images.symlink_to(folder / "shapes" / f"{image_set}2017")


def change(annotations, edit):
    """Return a copy without segmentations, each annotation of which `edit` has changed."""
    copy = json.loads(json.dumps(annotations))
    for content in copy.values():
        for annotation in content["annotations"]:
            del annotation["segmentation"]
            edit(annotation)
    return copy


def shift_label(annotation):
    annotation["category_id"] = annotation["category_id"] % 3 + 1


def halve_box(annotation):
    x, y, width, height = annotation["bbox"]
    annotation.update(bbox=[x, y, width / 2, height / 2], area=annotation["area"] / 4)


def turn_box(annotation):
    x, y, width, height = annotation["bbox"]
    annotation["bbox"] = [96 - x - width, 96 - y - height, width, height]


def merge_labels(annotation):
    annotation["category_id"] = 1


def empty_images(folder, name, annotations, every):
    """Write a dataset in which only every `every`-th image keeps its shapes."""
    rng = np.random.default_rng(0)
    copy = json.loads(json.dumps(annotations))
    for image_set, content in copy.items():
        images = folder / name / f"{image_set}2017"
        images.mkdir(parents=True, exist_ok=True)
        full = {image["id"] for image in content["images"][::every]}
        for image in content["images"]:
            file = image["file_name"]
            if image["id"] in full:
                (images / file).write_bytes(
                    (folder / "shapes" / f"{image_set}2017" / file).read_bytes()
                )
            else:
                grey = rng.integers(40, 215) + rng.normal(0, 4, (96, 96, 1)).repeat(3, axis=2)
                Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(images / file)
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in full]
    write(folder, name, copy)


def make_cases(folder):
    """Write the datasets; return the broken and the healthy runs, name -> flags."""
    annotations = draw_shapes(folder)
    write(folder, "labels", change(annotations, shift_label))
    write(folder, "half", change(annotations, halve_box))
    write(folder, "turned", change(annotations, turn_box))
    one_class = change(annotations, merge_labels)
    for content in one_class.values():
        content["categories"] = [{"id": 1, "name": "shape"}]
    write(folder, "one", one_class)
    empty_images(folder, "fifth", annotations, every=5)
    empty_images(folder, "rare", annotations, every=20)

    def flags(**changes):
        return make_flags(folder, **changes)

    random = str(folder / "runs" / "random" / "checkpoint.pkl")
    trained = str(folder / "runs" / "default" / "checkpoint.pkl")
    dropout_post_norm = dict(dropout=0.1, pre_norm=False)  # main.py's defaults
    frozen = dict(finetune=random, backbone_weights=False, freeze="backbone transformer")
    broken = {
        "learning rate x 100": flags(lr=5e-2, lr_backbone=5e-2),
        "learning rate x 10": flags(lr=5e-3, lr_backbone=5e-3),
        "batch size 1": flags(batch_size=1),
        "random ResNet-18, frozen norms": flags(backbone="resnet18", backbone_norm="frozen"),
        "random weights, --freeze backbone transformer": flags(**frozen),
        "decoder without gradient": ["no-decoder", *flags()],
        "training labels one off": flags(train="labels"),
        "training boxes of half the size": flags(train="half"),
        "training boxes turned by 180°": flags(train="turned"),
        "half the size, dropout 0.1": flags(train="half", dropout=0.1),
        "half the size, dropout 0.1, post-norm": flags(train="half", **dropout_post_norm),
        "labels one off, dropout 0.1, post-norm": flags(train="labels", **dropout_post_norm),
    }
    slow = dict(lr=2.5e-5, lr_backbone=2.5e-6, batch_size=4)
    finetuned = dict(finetune=trained, backbone_weights=False, lr=1e-4, lr_backbone=1e-5)
    healthy = {
        "default": flags(),
        "seed 1": flags(seed=1),
        "seed 2": flags(seed=2),
        "batch size 4": flags(batch_size=4),
        "post-norm": flags(pre_norm=False),
        "dropout 0.1": flags(dropout=0.1),
        "dropout 0.1, post-norm": flags(**dropout_post_norm),
        "learning rate / 20, batch size 4": flags(**slow),
        "one class": flags(train="one", val="one"),
        "objects in 1 of 5 images": flags(train="fifth", val="fifth"),
        "objects in 1 of 20 images": flags(train="rare", val="rare"),
        "fine-tuned": flags(**finetuned),
    }
    first = {"random": flags(lr=0, lr_backbone=1e-12, epochs=1)}
    return first, broken, healthy


def run(folder, name, flags):
    """Run main.py; return the last AP, and images, symptom and first cause of a warning."""
    words = [sys.executable, "-m", "tests.tools.stuck_runs", "--run", *flags]
    out = folder / "runs" / name.replace("/", "per")
    words += ["--output_dir", str(out), "--overwrite", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=REPO, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name}: {done.stderr[-2000:]}")
    lines = (out / "log.txt").read_text().splitlines()
    found = WARNING.search(done.stderr)
    return json.loads(lines[-1])["test_coco_eval_bbox"][0], found and found.groups()


def run_main(words):
    """Run main.py's main; "no-decoder" as the first word stops the decoder's gradients."""
    from main import main, parse_args, prepare_device

    without_decoder = words[0] == "no-decoder"
    args = parse_args(words[without_decoder:])
    if without_decoder:
        prepare_device(args.device)
        from models import detr

        build_model = detr.build_model

        def build_without_gradient(*arguments):
            model, *rest = build_model(*arguments)
            for parameter in model.transformer.decoder.parameters():
                parameter.stop_grad()
            return model, *rest

        detr.build_model = build_without_gradient
    main(args)


def main():
    if sys.argv[1:2] == ["--run"]:
        return run_main(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="for data and runs")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of runs")
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    first, broken, healthy = make_cases(folder)
    for name, flags in {**first, "default": healthy["default"]}.items():
        run(folder, name, flags)  # others start from their weights
    cases = {**broken, **healthy}
    cases = {name: cases[name] for name in args.only or cases}
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda case: run(folder, *case), cases.items()))
    print("| run | AP | warned after | symptom | first cause |\n| --- | --- | --- | --- | --- |")
    for name, (ap, found) in zip(cases, results):
        images, symptom, cause = found or ("-", "-", "-")
        cause = cause.strip().removeprefix("1. ")
        print(f"| {name} | {ap:.3f} | {images} | {symptom} | {cause} |")
    false = sum(found is not None for name, (_, found) in zip(cases, results) if name in healthy)
    print(f"\nfalse alarms: {false} of {sum(name in healthy for name in cases)}")


if __name__ == "__main__":
    main()
