"""`python -m datasets.convert {yolo,voc,split,renumber} …`: make and change COCO files."""

import argparse
import shlex
from pathlib import Path

from util.launch import job

from .renumber import renumber_coco
from .split import split_coco
from .voc import convert_voc
from .yolo import convert_yolo


def main():
    parser = argparse.ArgumentParser(
        prog="python -m datasets.convert",
        description="Convert datasets to COCO annotation files; split or renumber such files.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("yolo", "data.yaml, or a dataset folder of Ultralytics, Roboflow, LabelImg or CVAT"),
        ("voc", "folder with Pascal VOC XML files"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("source", type=Path, help=text)
        command.add_argument("out", type=Path, help="folder for the annotation files")
    command = commands.add_parser("split", help="split a COCO file into training and validation")
    command.add_argument("source", type=Path, help="COCO annotation file")
    text = "fraction of images for validation, default 0.2"
    command.add_argument("--val", type=float, default=0.2, help=text)
    command.add_argument("--seed", type=int, default=0, help="random seed of the split, default 0")
    text = "folder for the two files, default the source's"
    command.add_argument("--out", type=Path, help=text)
    command = commands.add_parser("renumber", help="give images, annotations and classes new ids")
    text = "COCO annotation files, which get the same category ids"
    command.add_argument("source", type=Path, nargs="+", help=text)
    text = "folder for the files, whose names stay"
    command.add_argument("--out", type=Path, required=True, help=text)
    args = parser.parse_args()
    with job():
        if args.command == "renumber":
            renumber_coco(args.source, args.out)
        elif args.command == "split":
            splits = split_coco(args.source, args.val, args.seed, args.out)
            if all(folder for folder, _ in splits.values()):
                print_training_command(splits)
        else:
            convert = {"yolo": convert_yolo, "voc": convert_voc}[args.command]
            print_training_command(convert(args.source, args.out))


def print_training_command(splits):
    """Print the command to train on the converted files.

    splits: dictionary split -> (image folder, annotation file).
    """
    if "train" in splits and "val" not in splits:
        images, file = splits["train"]
        print(
            "no images for validation: split them with "
            + shlex.join(["python", "-m", "datasets.convert", "split", str(file)])
        )
        parts = {name: file.with_name(f"{file.stem}_{name}.json") for name in ("train", "val")}
        splits = {name: (images, part) for name, part in parts.items()}
    words = ["python", "main.py"]
    for name in ("train", "val"):
        if name in splits:
            images, file = splits[name]
            words += [f"--{name}_images", str(images), f"--{name}_ann", str(file)]
    if "train" in splits:
        print(f"train with: {shlex.join(words)}")


if __name__ == "__main__":
    main()
