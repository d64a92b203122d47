"""Find datasets that are wrong as a whole, in one systematic way, from their annotations alone.

Each entry of such a file is valid, so that training would run, to an AP near 0.
"""

import numpy as np

from datasets.annotation_arrays import get_image_indices
from util.errors import InputError

NORMAL = 0.95  # fraction of boxes that have to show a pattern
SOME = 0.05  # fraction of boxes beyond their image that is more than carelessness
MIN_BOXES = 5  # fewer show no pattern


def check_plausibility(annotations, images, ann_file):
    """Check the boxes of an annotation file together.

    annotations, images: annotation_arrays.Annotations and Images. Returns a list of warnings.
    Raises InputError if the boxes are in another format than x, y, width, height in pixels.
    """
    boxes, sizes = annotations.boxes, images.sizes[get_image_indices(annotations.ends)]
    count, ends = len(boxes), boxes[:, :2] + boxes[:, 2:]
    in_the_corner = (ends <= 1.5).all(1)
    if count and in_the_corner.mean() >= NORMAL and (boxes % 1).any():
        raise InputError(
            f"{ann_file}: {in_the_corner.sum()} of {count} boxes lie within 1.5 pixels of the top "
            "left corner, as fractions of an image (0..1) do; give x, y, width, height in pixels, "
            "or convert YOLO's labels with python -m datasets.convert yolo"
        )
    is_known = sizes.all(1)
    boxes, ends, limits = boxes[is_known], ends[is_known], sizes[is_known, ::-1]
    # Tools round, and some let boxes reach a little beyond the image.
    is_beyond = (ends > limits + np.maximum(2, 0.02 * limits)).any(1)
    if len(boxes) < MIN_BOXES or is_beyond.mean() <= SOME:
        return []
    said = f"{ann_file}: {is_beyond.sum()} of {count} boxes reach beyond their image"
    starts, corners = boxes[:, :2], boxes[:, 2:]
    if (starts < corners).all() and (corners <= limits + 2).all():
        raise InputError(
            f"{said}, and all look like x0, y0, x1, y1; COCO's format is x, y, width, height"
        )
    return [f"warning: {said}; check the boxes, and width and height of the images"]


def check_crowds(crowds, in_target, ann_file):
    """Return a list with a note about the crowds of training data.

    crowds, in_target: bool [n], the annotations with iscrowd 1, and those in a target. Raises
    InputError if crowds leave nothing to train on.
    """
    if not crowds.any():
        return []
    said = f"{ann_file}: {crowds.sum()} of {len(crowds)} annotations are crowds (iscrowd 1)"
    if not in_target.any():
        raise InputError(
            f"{said}, and no other is left to train on; set iscrowd to 0 if each is one object"
        )
    return [f"{said} and are not trained on"]
