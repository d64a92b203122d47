"""The flags that select a dataset, for main.py and `python -m datasets.check`."""

from datasets.classes import NUM_CLASSES
from datasets.transforms import EVAL_SIZE, MAX_SIZE, SCALES


def add_data_flags(parser):
    """Add the flags to an argparse parser."""
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
    text = "shorter sides of training images, in pixels"
    add("--img_scales", default=list(SCALES), nargs="+", type=int, help=text)
    add("--eval_size", default=EVAL_SIZE, type=int, help="shorter side in evaluation, in pixels")
    add("--max_size", default=MAX_SIZE, type=int, help="limit of the longer side, in pixels")
    add("--remove_difficult", action="store_true", help="no effect, as in the original")
    text = "skip unusable images and annotations, and print how many, instead of stopping"
    add("--skip_bad_samples", action="store_true", help=text)
    add("--num_workers", default=2, type=int, help="number of data loading processes")
    add("--shapes_train", default=4000, type=int, help="number of training images of shapes")
    add("--shapes_val", default=200, type=int, help="number of validation images of shapes")
    add("--shapes_size", default=96, type=int, help="side of the images of shapes, in pixels")
