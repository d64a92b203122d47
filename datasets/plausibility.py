"""Find datasets that are wrong as a whole, in one systematic way, from their annotations alone.

Each entry of such a file is valid, so that training would run, to an AP near 0.
"""

import numpy as np

from datasets.annotation_arrays import get_image_indices
from datasets.matching import MAX_DETECTIONS

NORMAL = 0.95  # fraction of boxes that have to show a pattern
SOME = 0.05  # fraction of boxes beyond their image that is more than carelessness
MIN_BOXES = 5  # fewer show no pattern


def find_repeated(annotations):
    """Return the ids of annotations that repeat an earlier one: same image, class, box and area."""

    def get_content(ann):
        return ann["image_id"], ann["category_id"], ann["iscrowd"], ann["area"], *ann["bbox"]

    repeated, first = set(), {}
    for ann in annotations:
        other = first.setdefault(hash(get_content(ann)), ann)  # tuples would take too much memory
        if other is not ann and get_content(other) == get_content(ann):
            repeated.add(ann["id"])
    return repeated


def drop_repeated(data, notes, ann_file):
    """Drop annotations that repeat another one from training data, and note how many."""
    annotations = data["annotations"]
    if repeated := find_repeated(annotations):
        data["annotations"] = [ann for ann in annotations if ann["id"] not in repeated]
        notes.append(
            f"{ann_file}: {len(repeated)} of {len(annotations)} annotations repeat another one "
            "(same image, class, box and area); they are left out"
        )


def note_repeated(data, notes, ann_file):
    """Note how many annotations of validation data repeat another one.

    They stay, as in pycocotools, which has to give the same figures.
    """
    if repeated := find_repeated(data["annotations"]):
        notes.append(
            f"warning: {ann_file}: {len(repeated)} of {len(data['annotations'])} annotations "
            "repeat another one (same image, class, box and area) and count as missed; remove them"
        )


def check_arrays(arrays, ann_file, faults):
    """Check the boxes of an annotation file together, and add warnings to the notes.

    arrays: CocoArrays. Boxes in another format than x, y, width, height in pixels are a fault of
    the file.
    """
    annotations, images = arrays.annotations, arrays.images
    boxes, sizes = annotations.boxes, images.sizes[get_image_indices(annotations.ends)]
    count, ends = len(boxes), boxes[:, :2] + boxes[:, 2:]
    in_the_corner = (ends <= 1.5).all(1)
    if count and in_the_corner.mean() >= NORMAL and (boxes % 1).any():
        faults.add_file(
            f"{ann_file}: {in_the_corner.sum()} of {count} boxes lie within 1.5 pixels of the top "
            "left corner, as fractions of an image (0..1) do; give x, y, width, height in pixels, "
            "or convert YOLO's labels with python -m datasets.convert yolo"
        )
    is_known = sizes.all(1)
    boxes, ends, limits = boxes[is_known], ends[is_known], sizes[is_known, ::-1]
    # Tools round, and some let boxes reach a little beyond the image.
    is_beyond = (ends > limits + np.maximum(2, 0.02 * limits)).any(1)
    if len(boxes) < MIN_BOXES or is_beyond.mean() <= SOME:
        return
    said = f"{ann_file}: {is_beyond.sum()} of {count} boxes reach beyond their image"
    starts, corners = boxes[:, :2], boxes[:, 2:]
    if (starts < corners).all() and (corners <= limits + 2).all():
        faults.add_file(
            f"{said}, and all look like x0, y0, x1, y1; COCO's format is x, y, width, height"
        )
    else:
        arrays.notes.append(f"warning: {said}; check the boxes, and width and height of the images")


def check_crowds(crowds, in_target, ann_file, faults):
    """Return a list with a note about the crowds of training data.

    crowds, in_target: bool [n], the annotations with iscrowd 1, and those in a target. If crowds
    leave nothing to train on, it is a fault of the file.
    """
    if not crowds.any():
        return []
    said = f"{ann_file}: {crowds.sum()} of {len(crowds)} annotations are crowds (iscrowd 1)"
    if not in_target.any():
        faults.add_file(
            f"{said}, and no other is left to train on; set iscrowd to 0 if each is one object"
        )
    return [f"{said} and are not trained on"]


def check_counts(annotations, in_target, ann_file):
    """Return a list with a warning if validation images have more objects than COCO counts.

    annotations: Annotations; in_target: bool [n], the annotations in a target.
    """
    objects = np.stack([get_image_indices(annotations.ends), annotations.labels], 1)[in_target]
    pairs, counts = np.unique(objects, axis=0, return_counts=True)
    num_images = len(np.unique(pairs[counts > MAX_DETECTIONS, 0]))
    if not num_images:
        return []
    return [
        f"warning: {ann_file}: {num_images} images have more than {MAX_DETECTIONS} objects of one "
        f"class, up to {counts.max()}; COCO counts the best {MAX_DETECTIONS} detections, so AP and "
        "recall stay below 1"
    ]
