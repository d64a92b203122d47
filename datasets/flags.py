"""The flags that select a dataset, for main.py and `python -m datasets.check`."""

from datasets.classes import NUM_CLASSES


def add_source_flags(parser):
    """Add the flags to an argparse parser; return the function that adds more to their group."""
    add = parser.add_argument_group("data").add_argument
    text = "dataset; shapes: synthetic images"
    add("--dataset_file", default="coco", choices=list(NUM_CLASSES), help=text)
    text = "folder with train2017, val2017 and annotations; for shapes, where to draw them"
    add("--coco_path", help=text)
    add("--coco_panoptic_path", help="folder with panoptic_{train,val}2017 and annotations")
    add("--train_images", metavar="FOLDER", help="your own training images, in any layout")
    add("--train_ann", metavar="FILE", help="annotations of --train_images, in COCO's JSON format")
    add("--val_images", metavar="FOLDER", help="your own validation images")
    add("--val_ann", metavar="FILE", help="annotations of --val_images")
    text = "number of classes, highest category id + 1, if not the dataset's"
    add("--num_classes", type=int, help=text)
    return add
