"""What a data set holds, in a few lines that show mistakes before a training does."""

import math
from collections import Counter

import numpy as np

# Of the classes of sizes, pixels; COCO calls below 32 small and from 96 large.
SIZE_EDGES = (16, 32, 64, 128, 256, 512)


def print_summary(name, dataset, num_queries):
    """Prints the numbers of images, boxes and classes, boxes per image, and how large they are.

    name: what the data set is for; dataset: CocoDetection or CocoPanoptic. Crowds are not counted;
    they are not trained on.
    """
    boxes = dataset.list_boxes()
    per_image = Counter(image_id for image_id, _, _ in boxes)
    counts = np.array([per_image[image_id] for image_id in dataset.ids])
    print(
        f"{name}: {len(counts):,} images, {len(boxes):,} boxes of {len(dataset.classes)} classes, "
        f"{(counts == 0).sum():,} images without a box"
    )
    per_class = Counter(category for _, category, _ in boxes)
    boxes_of_each_class = ", ".join(
        f"{class_name} {per_class[class_id]:,}"
        for class_id, class_name in sorted(
            dataset.classes.items(), key=lambda item: -per_class[item[0]]
        )
        if per_class[class_id]
    )
    print(f"  boxes of each class: {boxes_of_each_class or 'none'}")
    if missing := [
        class_name for class_id, class_name in dataset.classes.items() if not per_class[class_id]
    ]:
        print(f"  classes without a box: {', '.join(missing)}")
    print(
        f"  boxes per image: median {np.median(counts):.0f}, 95% of the images have at most "
        f"{np.percentile(counts, 95):.0f}, most {counts.max()}; --num_queries {num_queries}"
    )
    print_sizes(np.sqrt([area for _, _, area in boxes]))
    if many := (counts > num_queries).sum():
        print(
            f"  warning: {many:,} images have more boxes than --num_queries {num_queries}, and "
            "only that many can be found in an image: give a larger one"
        )
    if len(boxes) == 0:
        print("  warning: there is not a single box to learn from or to find")


def print_sizes(sizes):
    """A histogram of the boxes' sides, the square roots of their areas, in pixels of the images."""
    counts = np.bincount(np.digitize(sizes, SIZE_EDGES), minlength=len(SIZE_EDGES) + 1)
    labels = [
        f"below {SIZE_EDGES[0]}",
        *(f"{low}-{high}" for low, high in zip(SIZE_EDGES, SIZE_EDGES[1:])),
        f"{SIZE_EDGES[-1]} or more",
    ]
    print("  side of the boxes, pixels (square root of the area):")
    for label, count in zip(labels, counts):
        if count:
            share = count / len(sizes)
            print(f"    {label:>11}  {math.ceil(40 * share) * '#':<40} {share:4.0%}")
