"""Find all faults of a dataset at once, before a training:

    python -m datasets.check --train_images … --train_ann … --val_images … --val_ann …

Takes main.py's data flags. Checks every annotation and the header of every image, prints what is
wrong and what a training would leave out, and exits with 1 if a training would stop.
"""

import argparse
import multiprocessing
import os
import sys

from tqdm import tqdm

from datasets import build_dataset
from datasets.classes import find_num_classes, get_num_classes, merge_classes
from datasets.coco import get_coco_paths
from datasets.faults import Faults, print_groups
from datasets.flags import add_data_flags
from datasets.summary import print_summary
from util.errors import InputError
from util.launch import job

NAMES = {"train": "training data", "val": "validation data"}
NUM_EXAMPLES = 3


def main():
    parser = argparse.ArgumentParser(
        prog="python -m datasets.check", description=__doc__.split("\n")[0]
    )
    add_data_flags(parser)
    parser.add_argument("--masks", action="store_true", help="check segmentations as well")
    parser.add_argument("--num_queries", default=100, type=int, help="as in the training")
    parser.set_defaults(seed=0)
    args = parser.parse_args()
    image_sets = find_image_sets(args)
    if not image_sets:
        flags = "--train_images with --train_ann, or --val_images with --val_ann"
        parser.error(f"give --coco_path, {flags}")
    with job():
        faults = Faults(find_all=True)
        datasets = {image_set: check_dataset(image_set, args, faults) for image_set in image_sets}
        check_together([each for each in datasets.values() if each], args, faults)
        if count := len(faults.samples) + len(faults.files):
            print(f"\n{count:,} {'fault' if count == 1 else 'faults'}; training would stop:")
            print_groups(faults.files + faults.samples, NUM_EXAMPLES)
            if not faults.files:
                print("with --skip_bad_samples it leaves these images and annotations out")
            sys.exit(1)
        print("\nno faults: training can start")


def find_image_sets(args):
    """Return the image sets that the flags name: train, val, or both."""
    if args.coco_path:
        paths = {name: get_coco_paths(args.coco_path, name) for name in NAMES}
        return [name for name in NAMES if any(path.exists() for path in paths[name])]
    values = vars(args)
    return [name for name in NAMES if values[f"{name}_images"] and values[f"{name}_ann"]]


def check_dataset(image_set, args, faults):
    """Check one image set. Returns the dataset, or None if it cannot be built."""
    print(flush=True)
    try:
        dataset = build_dataset(image_set, args, faults)
        check_images(dataset, faults)
    except InputError as error:
        faults.files.append(str(error))
        return None
    print_summary(NAMES[image_set], dataset, args.num_queries)
    return dataset


def check_images(dataset, faults):
    """Check the headers of all images, in a process per core."""
    fork = multiprocessing.get_context("fork")
    with fork.Pool(initializer=set_dataset, initargs=[dataset]) as pool:
        messages = pool.imap(find_image_error, range(len(dataset)), chunksize=64)
        progress = tqdm(messages, "image headers", len(dataset), unit="image", disable=None)
        for message in filter(None, progress):
            faults.add(message)


def set_dataset(dataset):
    """Set the dataset of a worker process: inherited, not pickled."""
    global _dataset
    _dataset = dataset


def find_image_error(index):
    """Return an error message for an image of the worker's dataset, or None."""
    try:
        _dataset.check_image(index)
    except InputError as error:
        return str(error)


def check_together(datasets, args, faults):
    """Check what training and validation data have in common."""
    if not datasets:
        return
    try:
        classes = merge_classes(*datasets)
        get_num_classes(args) or find_num_classes(classes, datasets[0].ann_file)
    except InputError as error:
        faults.files.append(str(error))
    paths = [{os.path.abspath(each.get_path(i)) for i in range(len(each))} for each in datasets]
    if both := len(paths) == 2 and sorted(paths[0] & paths[1]):
        print(
            f"\nwarning: {len(both)} images are training data and validation data, such as "
            f"{both[0]}; AP would be too high"
        )


if __name__ == "__main__":
    main()
