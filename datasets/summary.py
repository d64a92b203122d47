"""Summarize a dataset: printed, to reveal annotation errors before training, and as a digest."""

import hashlib
import math

import numpy as np

MAX_LISTED = 10  # number of most frequent and of least frequent classes to list
SIZE_EDGES = (16, 32, 64, 128, 256, 512)  # pixels; in COCO small is below 32, large 96 or more


def print_summary(name, dataset, num_queries):
    """Print the number of images, boxes and classes, boxes per image, and the size of boxes.

    name: "training data" or "validation data"; dataset: CocoDetection (crowds are not counted) or
    CocoPanoptic.
    """
    image_indices, labels, areas = dataset.list_boxes()
    counts = np.bincount(image_indices, minlength=len(dataset))
    print(
        f"{name}: {len(counts):,} images, {len(labels):,} boxes of {len(dataset.classes)} classes, "
        f"{(counts == 0).sum():,} images without boxes"
    )
    print_classes(dataset.classes, labels)
    print(
        f"  boxes per image: median {np.median(counts):.0f}, 95th percentile "
        f"{np.percentile(counts, 95):.0f}, maximum {counts.max()}; --num_queries {num_queries}"
    )
    print_sizes(np.sqrt(areas[~np.isnan(areas)]))
    if num_crowded := (counts > num_queries).sum():
        print(
            f"  warning: {num_crowded:,} images have more boxes than --num_queries {num_queries}, "
            "the most that can be detected in an image: give a larger one"
        )
    if len(labels) == 0:
        print("  warning: there are no boxes; check the annotations")


def find_images_with_boxes(dataset):
    """Return the sorted indices of images with boxes, int64 [n]."""
    return np.unique(dataset.list_boxes()[0])


def hash_dataset(dataset):
    """Return a hexadecimal digest of image ids and sizes, and of the boxes' classes and areas."""
    arrays = (dataset.ids, dataset.images.sizes, *dataset.list_boxes())
    return hashlib.sha1(b"".join(array.tobytes() for array in arrays)).hexdigest()


def print_classes(classes, labels):
    """Print the number of boxes of each class, or of the most and least frequent of many.

    classes: dictionary category id -> name; labels: category ids of all boxes.
    """
    ids, counts = np.unique(labels, return_counts=True)
    count_by_id = dict(zip(ids.tolist(), counts.tolist()))
    rows = [(class_name, count_by_id.get(class_id, 0)) for class_id, class_name in classes.items()]
    rows.sort(key=lambda row: -row[1])
    present = [row for row in rows if row[1]]
    if len(present) <= 2 * MAX_LISTED:
        listed = ", ".join(f"{class_name} {count:,}" for class_name, count in present)
        print(f"  boxes per class: {listed or 'none'}")
    else:
        print_table(f"boxes of the {MAX_LISTED} most frequent classes", present[:MAX_LISTED])
        between = present[MAX_LISTED:-MAX_LISTED]
        print(f"  {sum(count for _, count in between):,} boxes of {len(between)} classes between")
        print_table(f"boxes of the {MAX_LISTED} least frequent classes", present[-MAX_LISTED:])
    if missing := [class_name for class_name, count in rows if not count]:
        more = f" and {len(missing) - MAX_LISTED} more" if len(missing) > MAX_LISTED else ""
        print(f"  classes without boxes: {', '.join(missing[:MAX_LISTED])}{more}")


def print_table(title, rows):
    print(f"  {title}:")
    for class_name, count in rows:
        print(f"    {class_name:<20} {count:>11,}")


def print_sizes(sizes):
    """Print a histogram of box sizes, the square roots of their areas in pixels."""
    counts = np.bincount(np.digitize(sizes, SIZE_EDGES), minlength=len(SIZE_EDGES) + 1)
    labels = [
        f"below {SIZE_EDGES[0]}",
        *(f"{low}-{high}" for low, high in zip(SIZE_EDGES, SIZE_EDGES[1:])),
        f"{SIZE_EDGES[-1]} or more",
    ]
    print("  box size in pixels (square root of the area):")
    for label, count in zip(labels, counts):
        if count:
            fraction = count / len(sizes)
            print(f"    {label:>11}  {math.ceil(40 * fraction) * '#':<40} {fraction:4.0%}")
