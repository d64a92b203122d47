"""Data sets: building them by name, and what the rest of the program needs to know about them."""

from util.errors import InputError

# Highest category id + 1 of each data set: the class ids are the data set's own, never remapped.
NUM_CLASSES = {"coco": 91, "coco_panoptic": 250, "shapes": 4}
# The original's sizes in pixels: of the shorter side in training and in evaluation, and the longer
# one's that resizing aims at.
SCALES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
EVAL_SIZE = 800
MAX_SIZE = 1333
# Of an image's sides: the training transforms would enlarge a flatter one to gigabytes.
MAX_RATIO = 100
# The most classes of the user's own data, where the highest category id decides their number.
MAX_CLASSES = 10_000
# What Pillow may take a file for. It knows many more formats, one of which (EPS) runs a program on
# the file.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
# How names of images end, in small letters.
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jp2"}


def get_num_classes(args):
    """The number of classes that the flags decide: highest category id + 1.

    None for the user's own data, whose annotations decide it.
    """
    if args.num_classes is not None:
        return args.num_classes
    return None if args.train_ann or args.val_ann else NUM_CLASSES[args.dataset_file]


def get_classes(*datasets):
    """The classes of data sets that belong together, a dictionary category id -> name.

    Raises:
        InputError: they call the same id by different names.
    """
    classes = {}
    for dataset in datasets:
        check_names(dataset.classes, dataset.ann_file, classes, datasets[0].ann_file)
        classes.update(dataset.classes)
    return dict(sorted(classes.items()))


def check_names(classes, source, others, other_source):
    """Raises InputError where two dictionaries id -> name call an id by different names.

    source, other_source: where each is from.
    """
    for class_id in classes.keys() & others.keys():
        if classes[class_id] != others[class_id]:
            raise InputError(
                f"{source}: class {class_id} is '{classes[class_id]}' there and "
                f"'{others[class_id]}' in {other_source}; give the same classes the same ids"
            )


def num_classes_from_ids(classes, source):
    """Highest id + 1 of a dictionary category id -> name.

    Raises InputError, which names source, where that is no possible number.
    """
    highest = max(classes, default=-1)
    if not 0 <= highest < MAX_CLASSES:
        raise InputError(
            f"{source}: its highest category id is {highest}, where the number of classes, which "
            f"is that id + 1, should be 1 to {MAX_CLASSES}; renumber the categories"
        )
    return highest + 1


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
    raise InputError(
        f"--dataset_file {args.dataset_file}: no such data set; use one of {', '.join(NUM_CLASSES)}"
    )


def get_coco_api_from_dataset(dataset):
    """The `pycocotools.coco.COCO` object that holds the ground truth of `dataset`."""
    return dataset.coco
