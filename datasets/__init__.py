"""Data sets: building them by name, and what the rest of the program needs to know about them."""
import util  # noqa: F401  prepares the process before the first import of jittor
from util.errors import InputError

# Highest category id + 1 of each data set: the class ids are the data set's own, never remapped.
NUM_CLASSES = {"coco": 91, "coco_panoptic": 250, "shapes": 4}


def build_dataset(image_set, args):
    """Builds the data set that `args.dataset_file` names.

    Args:
        image_set: 'train' or 'val'.
        args: the parsed flags (`dataset_file`, and what the data set's own `build` reads).

    Raises:
        InputError: an unknown data set, or files that cannot be used.

    Source: `datasets/__init__.py` of the original.
    """
    if args.dataset_file == "coco":
        from .coco import build
        return build(image_set, args)
    if args.dataset_file == "coco_panoptic":
        from .coco_panoptic import build
        return build(image_set, args)
    if args.dataset_file == "shapes":
        from .shapes import build
        return build(image_set, args)
    raise InputError(f"--dataset_file {args.dataset_file}: no such data set; use one of {', '.join(NUM_CLASSES)}")


def get_coco_api_from_dataset(dataset):
    """The `pycocotools.coco.COCO` object that holds the ground truth of `dataset`."""
    return dataset.coco
