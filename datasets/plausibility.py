"""Find datasets that are wrong as a whole, in one systematic way, from their annotations alone.

Each entry of such a file is valid, so that training would run, to an AP near 0.
"""

import numpy as np

from datasets.annotation_arrays import CocoArrays, get_image_indices
from datasets.matching import MAX_DETECTIONS

NORMAL = 0.95  # fraction of boxes that have to show a pattern
SOME = 0.05  # fraction of boxes beyond their image that is more than carelessness
MIN_BOXES = 5  # fewer show no pattern
MANY_BOXES = 50  # among so many, at least one reaches the far side of its image
FAR = 0.6  # fraction of an image's side


def pack_checked(data, notes, ann_file, with_masks, is_evaluated, faults):
    """Pack the result of `annotations.read_coco` into CocoArrays, and check it as a whole.

    Warnings are added to the arrays' notes. Repeated annotations are kept if `is_evaluated`.
    """
    arrays = CocoArrays.pack(data, notes, with_masks, keep_repeated=is_evaluated)
    note_repeated(arrays, len(data["annotations"]), ann_file, is_evaluated)
    check_arrays(arrays, ann_file, faults)
    return arrays


def note_repeated(arrays, num_listed, ann_file, is_evaluated):
    """Add a note about annotations that repeat another one.

    Training drops them. Evaluation keeps them, as pycocotools, which has to give the same metrics.
    arrays: CocoArrays; num_listed: number of annotations in the file.
    """
    annotations = arrays.annotations
    count = num_listed - len(annotations.labels)
    prefix, effect = "", "they are left out"
    if is_evaluated:
        count = np.count_nonzero(annotations.find_repeated())
        prefix, effect = "warning: ", "they count as missed; remove them"
    if count:
        arrays.notes.append(
            f"{prefix}{ann_file}: {count} of {num_listed} annotations repeat another one (same "
            f"image, class, box and area); {effect}"
        )


def check_arrays(arrays, ann_file, faults):
    """Check the boxes of an annotation file together, and add warnings to the notes.

    arrays: CocoArrays; faults: boxes in another format than x, y, width, height in pixels are a
    fault of the file. Crowds are ignored.
    """
    annotations, images = arrays.annotations, arrays.images
    sizes = images.sizes[get_image_indices(annotations.ends), ::-1][~annotations.crowds]
    boxes = annotations.boxes[~annotations.crowds]
    is_relative = (boxes[:, :2] + boxes[:, 2:] <= 1.5).all(1)
    if len(boxes) and is_relative.mean() >= NORMAL and (boxes % 1).any():
        faults.add_file(
            f"{ann_file}: {is_relative.sum()} of {len(boxes)} boxes lie within 1.5 pixels of the "
            "top left corner, as fractions of an image (0..1) do; give x, y, width, height in "
            "pixels, or convert YOLO's labels with python -m datasets.convert yolo"
        )
        return
    is_known = sizes.all(1)
    boxes, sizes = boxes[is_known], sizes[is_known]
    if len(boxes) < MIN_BOXES:
        return
    # Tools round, and some let boxes reach a little beyond the image.
    margin = np.maximum(2, 0.02 * sizes)
    firsts, lasts = boxes[:, :2], boxes[:, 2:]

    def is_beyond(starts, ends):
        return ((starts < -margin) | (ends > sizes + margin)).any(1)

    count = is_beyond(firsts, firsts + lasts).sum()
    said = f"{ann_file}: {count} of {len(boxes)} boxes reach beyond their image"
    if count > SOME * len(boxes):
        is_format = {
            "x0, y0, x1, y1": (firsts < lasts).all(1) & ~is_beyond(firsts, lasts),
            "centre x, centre y, width, height": ~is_beyond(firsts - lasts / 2, firsts + lasts / 2),
        }
        for name, fits in is_format.items():
            if fits.mean() >= NORMAL:
                faults.add_file(f"{said}, and all look like {name}; convert to x, y, width, height")
                return
        arrays.notes.append(f"warning: {said}; check the boxes, and width and height of the images")
    elif len(boxes) >= MANY_BOXES:
        reach = ((firsts + lasts) / sizes).max(0)
        if reach.max() < FAR:
            arrays.notes.append(
                f"warning: {ann_file}: none of {len(boxes)} boxes reaches beyond {reach[0]:.0%} of "
                f"its image's width and {reach[1]:.0%} of its height; check that boxes are in "
                "pixels of these images"
            )


def check_targets(annotations, in_target, ann_file, is_evaluated, faults):
    """Return notes about annotations that are not trained on, or not evaluated as expected.

    in_target: bool [n], the annotations in a target. It is a fault of the file if most boxes lie
    outside of their image, or if all are crowds.
    """
    notes, crowds = [], annotations.crowds
    if crowds.any():
        said = f"{ann_file}: {crowds.sum()} of {len(crowds)} annotations are crowds (iscrowd 1)"
        if crowds.all():
            faults.add_file(f"{said}; set iscrowd to 0 if each is one object")
        else:
            effect = ", where detections do not count" if is_evaluated else " and not trained on"
            notes.append(f"{said}{effect}")
    if outside := np.count_nonzero(~crowds & ~in_target):
        said = f"{ann_file}: {outside} of {len(crowds)} boxes have no area inside their image"
        if outside > len(crowds) / 2:
            faults.add_file(f"{said}; check the boxes, and width and height of the images")
        else:
            notes.append(f"{said}; they are left out")
    return notes + (check_counts(annotations, in_target, ann_file) if is_evaluated else [])


def check_counts(annotations, in_target, ann_file):
    """Return a list with a warning if validation images have more objects than COCO counts."""
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
