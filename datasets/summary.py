"""What a data set holds, in a few lines that show mistakes before a training does."""

import math

import numpy as np

LISTED = 10  # the most and the least frequent classes
# Of the classes of sizes, pixels; COCO calls below 32 small and from 96 large.
SIZE_EDGES = (16, 32, 64, 128, 256, 512)


def print_summary(name, dataset, num_queries):
    """Prints the numbers of images, boxes and classes, boxes per image, and how large they are.

    name: what the data set is for; dataset: CocoDetection, without its crowds, which are not
    trained on, or CocoPanoptic.
    """
    owners, labels, areas = dataset.list_boxes()
    counts = np.bincount(owners, minlength=len(dataset))
    print(
        f"{name}: {len(counts):,} images, {len(labels):,} boxes of {len(dataset.classes)} classes, "
        f"{(counts == 0).sum():,} images without a box"
    )
    print_classes(dataset.classes, labels)
    print(
        f"  boxes per image: median {np.median(counts):.0f}, 95% of the images have at most "
        f"{np.percentile(counts, 95):.0f}, most {counts.max()}; --num_queries {num_queries}"
    )
    print_sizes(np.sqrt(areas[~np.isnan(areas)]))
    if many := (counts > num_queries).sum():
        print(
            f"  warning: {many:,} images have more boxes than --num_queries {num_queries}, and "
            "only that many can be found in an image: give a larger one"
        )
    if len(labels) == 0:
        print("  warning: there is not a single box to learn from or to find")


def print_classes(classes, labels):
    """The number of boxes of each class, or with many classes of the most and the least frequent.

    classes: a dictionary category id -> name; labels: the category ids of all boxes.
    """
    found, counts = np.unique(labels, return_counts=True)
    per_class = dict(zip(found.tolist(), counts.tolist()))
    rows = sorted(
        ((class_name, per_class.get(class_id, 0)) for class_id, class_name in classes.items()),
        key=lambda row: -row[1],
    )
    present = [row for row in rows if row[1]]
    if len(present) <= 2 * LISTED:
        listed = ", ".join(f"{class_name} {count:,}" for class_name, count in present)
        print(f"  boxes of each class: {listed or 'none'}")
    else:
        print_table(f"boxes of the {LISTED} most frequent classes", present[:LISTED])
        between = present[LISTED:-LISTED]
        print(f"  {sum(count for _, count in between):,} boxes of {len(between)} classes between")
        print_table(f"boxes of the {LISTED} rarest classes", present[-LISTED:])
    if missing := [class_name for class_name, count in rows if not count]:
        more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
        print(f"  classes without a box: {', '.join(missing[:LISTED])}{more}")


def print_table(title, rows):
    """rows: of names and numbers."""
    print(f"  {title}:")
    for class_name, count in rows:
        print(f"    {class_name:<20} {count:>11,}")


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
