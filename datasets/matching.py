"""Which detections find which objects, in each image: COCO's matching at one IoU.

The detections, the highest score first, take the free object with the highest IoU; what covers a
crowd counts as nothing.
"""

from typing import NamedTuple

import numpy as np

IOU = 0.5
MAX_DETECTIONS = 100  # of a class in an image, as COCO's evaluation takes


class Matches(NamedTuple):
    """The detections of all images, in the order of the image ids; those on crowds are left out.

    scores: float32 [n]; labels: int64 [n], category ids; hits: bool [n]; objects: dictionary
    category id -> number of objects without crowds.
    """

    scores: np.ndarray
    labels: np.ndarray
    hits: np.ndarray
    objects: dict


def match(coco_gt, predictions):
    """Matches predictions (image id -> scores, labels, boxes x0, y0, x1, y1) with coco_gt."""
    scores, labels, hits = [], [], []
    objects = dict.fromkeys(sorted(coco_gt.cats), 0)
    for image_id, prediction in sorted(predictions.items()):
        truth = objects_of(coco_gt, image_id)
        for label in truth.labels[~truth.crowds].tolist():
            objects[label] += 1
        kept = strongest(prediction["scores"], prediction["labels"])
        of_image = {
            name: np.asarray(prediction[name])[kept] for name in ("scores", "labels", "boxes")
        }
        overlaps = overlap(of_image["boxes"], truth.boxes, truth.crowds)
        overlaps[of_image["labels"][:, None] != truth.labels] = 0
        owners = assign(overlaps, truth.crowds)
        on_crowd = np.array([owner >= 0 and truth.crowds[owner] for owner in owners], bool)
        known = np.isin(of_image["labels"], list(objects))
        counted = known & ~on_crowd
        scores.append(of_image["scores"][counted])
        labels.append(of_image["labels"][counted].astype(np.int64))
        hits.append((owners >= 0)[counted])
    if not scores:
        return Matches(np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(0, bool), objects)
    return Matches(np.concatenate(scores), np.concatenate(labels), np.concatenate(hits), objects)


class Objects(NamedTuple):
    """boxes: float64 [n, 4], x0, y0, x1, y1; labels: int64 [n]; crowds: bool [n]."""

    boxes: np.ndarray
    labels: np.ndarray
    crowds: np.ndarray


def objects_of(coco_gt, image_id):
    """The annotated objects of an image, crowds last."""
    anns = sorted(coco_gt.imgToAnns[image_id], key=lambda ann: ann["iscrowd"])
    boxes = np.array([ann["bbox"] for ann in anns], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Objects(
        boxes,
        np.array([ann["category_id"] for ann in anns], np.int64),
        np.array([ann["iscrowd"] for ann in anns], bool),
    )


def strongest(scores, labels):
    """The indices of an image's detections, best first, without those beyond MAX_DETECTIONS."""
    order = np.argsort(-np.asarray(scores), kind="stable")
    if len(order) <= MAX_DETECTIONS:
        return order
    rank = {}
    kept = []
    for index in order:
        rank[labels[index]] = rank.get(labels[index], 0) + 1
        if rank[labels[index]] <= MAX_DETECTIONS:
            kept.append(index)
    return np.array(kept)


def overlap(boxes, objects, crowds):
    """IoU [n, m] of boxes and objects, x0, y0, x1, y1; with a crowd: the box's part inside it."""
    boxes = np.asarray(boxes, float)
    low = np.maximum(boxes[:, None, :2], objects[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], objects[None, :, 2:])
    inter = np.prod(np.clip(high - low, 0, None), axis=2)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)[:, None]
    other = np.prod(objects[:, 2:] - objects[:, :2], axis=1)[None]
    union = np.where(crowds, area, area + other - inter)
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def assign(overlaps, crowds):
    """The object that each detection takes, -1 for none: int64 [n].

    overlaps: [n, m], detections with the highest score first; crowds: bool [m], crowds last, which
    several detections may take.
    """
    owners = np.full(len(overlaps), -1)
    free = np.ones(len(crowds), bool)
    for index in np.flatnonzero((overlaps >= IOU).any(1)):
        of_index = np.where(free, overlaps[index], 0)
        for part in (~crowds, crowds):
            candidates = np.where(part, of_index, 0)
            # Of equal ones the last, as COCO's evaluation.
            best = len(candidates) - 1 - candidates[::-1].argmax()
            if candidates[best] >= IOU:
                owners[index] = best
                free[best] = crowds[best]
                break
    return owners


class Pairs(NamedTuple):
    """An image's detections and its objects, and which belong together, whatever their classes.

    labels: int64 [n], category ids; scores: float32 [n], falling; boxes: float32 [n, 4]; objects:
    the Objects; overlaps: float64 [n, m], their IoU; owners: int64 [n], the object that each
    detection is counted for, -1 for none.
    """

    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    objects: Objects
    overlaps: np.ndarray
    owners: np.ndarray

    @property
    def missed(self):
        """The objects that nothing is counted for, without crowds: bool [m]."""
        missed = ~self.objects.crowds
        missed[self.owners[self.owners >= 0]] = False
        return missed


def pair_up(coco_gt, image_id, prediction, threshold):
    """The Pairs of an image: a detection takes an object of its own class first, then any.

    The package supervision does the same for its confusion matrix, but in the order of IoU instead
    of scores; Ultralytics takes the best object of any class first.

    prediction: scores, labels, boxes; threshold: detections that score less, or whose class coco_gt
    does not have, are left out. A crowd takes detections of its own class only.
    """
    objects = objects_of(coco_gt, image_id)
    scores, labels, boxes = (np.asarray(prediction[key]) for key in ("scores", "labels", "boxes"))
    kept = np.argsort(-scores, kind="stable")
    kept = kept[(scores[kept] >= threshold) & np.isin(labels[kept], list(coco_gt.cats))]
    scores, labels, boxes = scores[kept], labels[kept], boxes[kept]
    overlaps = overlap(boxes, objects.boxes, objects.crowds)
    same_class = labels[:, None] == objects.labels
    owners = assign(np.where(same_class, overlaps, 0), objects.crowds)
    taken = objects.crowds.copy()
    taken[owners[owners >= 0]] = True
    rest = np.flatnonzero(owners < 0)
    owners[rest] = assign(np.where(taken, 0, overlaps[rest]), objects.crowds)
    return Pairs(labels, scores, boxes, objects, overlaps, owners)
