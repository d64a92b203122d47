"""`python -m datasets.convert {yolo,voc,split} …`: data sets in other formats as COCO's."""

import argparse
import shlex
import sys
from pathlib import Path

from util.errors import InputError

from .split import split_coco
from .voc import convert_voc
from .yolo import convert_yolo


def main():
    parser = argparse.ArgumentParser(
        prog="python -m datasets.convert",
        description="Write COCO annotation files for data sets in other formats.",
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, what in (
        ("yolo", "data.yaml, or a folder of Ultralytics, Roboflow or LabelImg"),
        ("voc", "a folder with Pascal VOC's XML files"),
    ):
        sub = kinds.add_parser(kind, help=what)
        sub.add_argument("source", type=Path, help=what)
        sub.add_argument("out", type=Path, help="the folder for the annotation files")
    sub = kinds.add_parser("split", help="a COCO annotation file in two, to train and to validate")
    sub.add_argument("source", type=Path, help="a COCO annotation file")
    sub.add_argument("--val", type=float, default=0.2, help="share of the images, default 0.2")
    sub.add_argument("--seed", type=int, default=0, help="which images; default 0")
    options = parser.parse_args()
    try:
        if options.kind == "split":
            split_coco(options.source, options.val, options.seed)
        else:
            convert = {"yolo": convert_yolo, "voc": convert_voc}[options.kind]
            print_flags(convert(options.source, options.out))
    except InputError as error:
        sys.exit(f"error: {error}")


def print_flags(written):
    """Prints the flags that main.py takes for what was written.

    written: dictionary set -> (folder of the images, annotation file).
    """
    if "train" in written and "val" not in written:
        images, file = written["train"]
        print(
            "no images for validation: split them with "
            + shlex.join(["python", "-m", "datasets.convert", "split", str(file)])
        )
        parts = {name: file.with_name(f"{file.stem}_{name}.json") for name in ("train", "val")}
        written = {name: (images, part) for name, part in parts.items()}
    words = ["python", "main.py"]
    for name in ("train", "val"):
        if name in written:
            images, file = written[name]
            words += [f"--{name}_images", str(images), f"--{name}_ann", str(file)]
    if "train" in written:
        print(f"train with: {shlex.join(words)}")


if __name__ == "__main__":
    main()
