"""Find all faults of a dataset at once: `python -m datasets.check --train_images … --train_ann …`.

Takes the flags of main.py that select the data. Checks every annotation and the header of every
image, prints what is wrong and what a training would leave out, and exits with 1 if a training
would stop. With --pixels, also decodes every image, which finds truncated files.
"""

import argparse
import multiprocessing
import os
import sys

from tqdm import tqdm

from datasets import build_dataset
from datasets.classes import find_num_classes, get_num_classes, merge_classes
from datasets.coco import get_coco_paths
from datasets.faults import Faults
from datasets.flags import add_source_flags
from datasets.summary import print_summary
from datasets.transforms import EVAL_SIZE, MAX_SIZE, SCALES
from util.errors import InputError, print_escaped
from util.launch import job

NAMES = {"train": "training data", "val": "validation data"}
NUM_EXAMPLES = 3


def main():
    parser = argparse.ArgumentParser(
        prog="python -m datasets.check", description="Find all faults of a dataset at once."
    )
    add_source_flags(parser)
    parser.add_argument("--masks", action="store_true", help="check segmentations as well")
    parser.add_argument("--num_queries", default=100, type=int, help="as for the training")
    text = "decode every image as well, which takes longer and finds truncated files"
    parser.add_argument("--pixels", action="store_true", help=text)
    sizes = dict(img_scales=SCALES, eval_size=EVAL_SIZE, max_size=MAX_SIZE)
    parser.set_defaults(seed=0, **sizes)
    args = parser.parse_args()
    image_sets = find_image_sets(args, parser)
    with job():
        num_faults, datasets = 0, []
        for image_set in image_sets:
            faults = Faults(find_all=True)
            datasets += check_dataset(image_set, args, faults)
            num_faults += print_faults(faults)
            print()
        faults = Faults(find_all=True)
        check_together(datasets, args, faults)
        num_faults += print_faults(faults)
        if num_faults:
            sys.exit(1)
        print("no faults found")


def find_image_sets(args, parser):
    """Return the image sets that the flags name, train, val, or both; exit if they name none."""
    values = vars(args)
    own = {name: [values[f"{name}_images"], values[f"{name}_ann"]] for name in NAMES}
    given = [name for name, paths in own.items() if any(paths)]
    if args.dataset_file == "shapes":
        parser.error("--dataset_file shapes: the shapes have no faults")
    if incomplete := [name for name in given if not all(own[name])]:
        parser.error(f"give both --{incomplete[0]}_images and --{incomplete[0]}_ann")
    if bool(given) == bool(args.coco_path):
        parser.error("give --coco_path, or --train_images, --train_ann, --val_images and --val_ann")
    if args.dataset_file == "coco_panoptic" and not (args.coco_path and args.coco_panoptic_path):
        parser.error("--dataset_file coco_panoptic: give --coco_path and --coco_panoptic_path")
    if given:
        return given
    paths = {name: get_coco_paths(args.coco_path, name) for name in NAMES}
    found = [name for name in NAMES if any(path.exists() for path in paths[name])]
    return found or parser.error(f"--coco_path {args.coco_path}: has no train2017 and no val2017")


def check_dataset(image_set, args, faults):
    """Check one image set. Returns a list of the dataset, empty if it cannot be built."""
    try:
        dataset = build_dataset(image_set, args, faults)
    except InputError as error:
        faults.files.append(f"{error}; then run this check again")
        return []
    check_images(dataset, args.pixels, faults)
    print_summary(NAMES[image_set], dataset, args.num_queries)
    return [dataset]


def print_faults(faults):
    """Print the faults, grouped by kind. Returns their number."""
    if count := len(faults.samples) + len(faults.files):
        print(f"training would stop; {count:,} {'fault' if count == 1 else 'faults'}:")
        for message in faults.files:
            print_escaped(f"  {message}")
        faults.print_samples(NUM_EXAMPLES)
        if not faults.files:
            print("  --skip_bad_samples would leave these images and annotations out")
    return count


def check_images(dataset, with_pixels, faults):
    """Check the headers of all images, or decode them, in a process per core."""
    fork = multiprocessing.get_context("fork")
    with fork.Pool(initializer=set_dataset, initargs=[dataset, with_pixels]) as pool:
        messages = pool.imap(find_image_error, range(len(dataset)), chunksize=64)
        progress = tqdm(messages, "images", len(dataset), unit="image", disable=None)
        for index, message in enumerate(progress):
            if message is not None:
                path = str(dataset.get_path(index))
                faults.add(path, message.removeprefix(f"{path}: "))


def set_dataset(dataset, with_pixels):
    """Set what the workers check: inherited, not pickled."""
    global _dataset, _with_pixels
    _dataset, _with_pixels = dataset, with_pixels


def find_image_error(index):
    """Return an error message for an image of the workers' dataset, or None."""
    try:
        if _with_pixels:
            _dataset.load_target(index, _dataset.read_image(index))
        else:
            _dataset.check_image(index)
    except InputError as error:
        return str(error)


def check_together(datasets, args, faults):
    """Check what training and validation data have in common."""
    if not datasets:
        return
    try:
        merge_classes(*datasets)
        get_num_classes(args) or find_num_classes(*datasets)
    except InputError as error:
        faults.files.append(str(error))
    paths = [{os.path.abspath(each.get_path(i)) for i in range(len(each))} for each in datasets]
    if both := len(paths) == 2 and sorted(paths[0] & paths[1]):
        print(
            f"warning: {len(both)} images are training and validation data, such as {both[0]}; AP "
            "would be too high"
        )


if __name__ == "__main__":
    main()
