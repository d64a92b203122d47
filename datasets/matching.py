"""Match detections to ground truth in each image, and find a detector's mistakes.

COCO's matching at a single IoU threshold: in order of descending score, each detection takes the
unmatched object with the highest IoU; detections on crowds are ignored.
"""

from typing import NamedTuple

import numpy as np

IOU = 0.5  # threshold of a match
BACKGROUND_IOU = 0.1  # TIDE's threshold: below it a detection counts as background
PREDICTED = ("scores", "labels", "boxes")
MAX_DETECTIONS = 100  # per class and image, as in COCO's evaluation
# The kinds of mistakes, by TIDE (https://arxiv.org/abs/2008.08115), and what they say.
MISTAKES = {
    "missed": "an object that is not detected, not even with a localization error",
    "class": f"a detection with IoU {IOU} or more with an object of another class",
    "localization": f"a detection with IoU {BACKGROUND_IOU} to {IOU} with an object of its class",
    "duplicate": f"a detection with IoU {IOU} or more with an object that has another detection",
    "background": "any other detection",
}


class Matches(NamedTuple):
    """The detections of all images, sorted by image id, excluding those matched to crowds.

    scores: float32 [n]; labels: int64 [n], category ids; is_true_positive: bool [n]; num_objects:
    dictionary category id -> number of non-crowd objects.
    """

    scores: np.ndarray
    labels: np.ndarray
    is_true_positive: np.ndarray
    num_objects: dict


def match_detections(coco_gt, predictions):
    """Match detections to ground-truth objects of the same class. Returns Matches.

    coco_gt: pycocotools' COCO; predictions: dictionary image id -> scores, labels, boxes x0, y0,
    x1, y1.
    """
    num_objects = dict.fromkeys(sorted(coco_gt.cats), 0)
    parts = [(np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(0, bool))]
    for image_id, prediction in sorted(predictions.items()):
        objects = get_ground_truth(coco_gt, image_id)
        for label in objects.labels[~objects.crowds].tolist():
            num_objects[label] += 1
        top = select_top_detections(prediction["scores"], prediction["labels"])
        scores, labels, boxes = (np.asarray(prediction[key])[top] for key in PREDICTED)
        ious = compute_ious(boxes, objects)
        matched = assign(np.where(labels[:, None] == objects.labels, ious, 0), objects.crowds)
        keep = np.isin(labels, list(num_objects)) & ~is_crowd(matched, objects)
        parts.append((scores[keep], labels[keep].astype(np.int64), (matched >= 0)[keep]))
    return Matches(*map(np.concatenate, zip(*parts)), num_objects)


class GroundTruth(NamedTuple):
    """The objects of an image, crowds last.

    boxes: float64 [m, 4], x0, y0, x1, y1; labels: int64 [m]; crowds: bool [m].
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowds: np.ndarray


def get_ground_truth(coco_gt, image_id):
    anns = sorted(coco_gt.imgToAnns[image_id], key=lambda ann: ann["iscrowd"])
    boxes = np.array([ann["bbox"] for ann in anns], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return GroundTruth(
        boxes,
        np.array([ann["category_id"] for ann in anns], np.int64),
        np.array([ann["iscrowd"] for ann in anns], bool),
    )


def select_top_detections(scores, labels):
    """Return the indices of an image's best MAX_DETECTIONS of each class, by descending score."""
    order = np.argsort(-np.asarray(scores), kind="stable")
    if len(order) <= MAX_DETECTIONS:
        return order
    counts, top = {}, []
    for index in order:
        counts[labels[index]] = counts.get(labels[index], 0) + 1
        if counts[labels[index]] <= MAX_DETECTIONS:
            top.append(index)
    return np.array(top, np.int64)


def compute_ious(boxes, objects):
    """Compute the IoU [n, m] of boxes and GroundTruth; for crowds the box's part inside them."""
    boxes = np.asarray(boxes, float)
    low = np.maximum(boxes[:, None, :2], objects.boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], objects.boxes[None, :, 2:])
    inter = np.prod(np.clip(high - low, 0, None), axis=2)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)[:, None]
    object_area = np.prod(objects.boxes[:, 2:] - objects.boxes[:, :2], axis=1)[None]
    union = np.where(objects.crowds, area, area + object_area - inter)
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def assign(ious, crowds):
    """Assign an object to each detection: int64 [n], -1 for none.

    ious: [n, m], detections by descending score; crowds: bool [m], crowds last; a crowd can match
    several detections.
    """
    matched = np.full(len(ious), -1)
    is_free = np.ones(len(crowds), bool)
    for index in np.flatnonzero((ious >= IOU).any(1)):
        for group in (~crowds, crowds):
            candidates = np.where(group & is_free, ious[index], 0)
            # Break ties in favour of the last object, like COCOeval.
            best = len(candidates) - 1 - candidates[::-1].argmax()
            if candidates[best] >= IOU:
                matched[index] = best
                is_free[best] = crowds[best]
                break
    return matched


def is_crowd(matched, objects):
    """Return True for detections matched to a crowd, bool [n]. matched: int64 [n], -1 for none."""
    return np.append(objects.crowds, False)[matched]


class ImageMatches(NamedTuple):
    """An image's detections matched to objects of their class, or else of any class.

    labels: int64 [n], category ids; scores: float32 [n], descending; boxes: float32 [n, 4], x0, y0,
    x1, y1; objects: GroundTruth; ious: float64 [n, m]; matched: int64 [n], the object of each
    detection, -1 for none.
    """

    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    objects: GroundTruth
    ious: np.ndarray
    matched: np.ndarray

    @property
    def is_missed(self):
        """Return a mask of the unmatched non-crowd objects, bool [m]."""
        is_missed = ~self.objects.crowds
        is_missed[self.matched[self.matched >= 0]] = False
        return is_missed


def match_image(coco_gt, image_id, prediction, threshold):
    """Match an image's detections to objects of their class first, then of any class.

    `supervision` builds its confusion matrix the same way, but sorts by IoU instead of score;
    Ultralytics takes the best object of any class first.

    prediction: scores, labels, boxes; threshold: lowest score. Detections of classes not in coco_gt
    are dropped. Crowds match only detections of their class. Returns ImageMatches.
    """
    objects = get_ground_truth(coco_gt, image_id)
    scores, labels, boxes = (np.asarray(prediction[key]) for key in PREDICTED)
    keep = select_top_detections(scores, labels)
    keep = keep[(scores[keep] >= threshold) & np.isin(labels[keep], list(coco_gt.cats))]
    scores, labels, boxes = scores[keep], labels[keep], boxes[keep]
    ious = compute_ious(boxes, objects)
    matched = assign(np.where(labels[:, None] == objects.labels, ious, 0), objects.crowds)
    is_taken = objects.crowds.copy()
    is_taken[matched[matched >= 0]] = True
    rest = np.flatnonzero(matched < 0)
    matched[rest] = assign(np.where(is_taken, 0, ious[rest]), objects.crowds)
    return ImageMatches(labels, scores, boxes, objects, ious, matched)


class Mistake(NamedTuple):
    """A mistake of a detector.

    kind: one of MISTAKES; label: category id of the detection, or of the missed object; box: x0,
    y0, x1, y1 in pixels; score: the detection's, None for a missed object; truth: the object's
    category id if kind is "class".
    """

    kind: str
    label: int
    box: list
    score: float | None = None
    truth: int | None = None


def find_mistakes(matches):
    """Return a list of the mistakes in an image, from its ImageMatches.

    An object with a localization error is not also counted as missed.
    """
    objects = matches.objects
    all_ious = np.where(objects.crowds, 0, matches.ious)
    is_missed = matches.is_missed
    mistakes = []
    for index, (label, match) in enumerate(zip(matches.labels, matches.matched)):
        truth = None
        ious = np.where(objects.labels == label, all_ious[index], 0)
        if match >= 0 and objects.labels[match] == label:
            continue
        if match >= 0:
            kind, truth = "class", int(objects.labels[match])
        elif (all_ious[index] >= IOU).any():
            kind = "duplicate"
        elif (ious >= BACKGROUND_IOU).any():
            kind = "localization"
            # It replaces one missed object; additional boxes on that object replace none.
            best = np.where(is_missed, ious, 0).argmax()
            if ious[best] >= BACKGROUND_IOU:
                is_missed[best] = False
        else:
            kind = "background"
        box, score = matches.boxes[index].tolist(), float(matches.scores[index])
        mistakes.append(Mistake(kind, int(label), box, score, truth))
    for index in np.flatnonzero(is_missed):
        label, box = int(objects.labels[index]), objects.boxes[index].tolist()
        mistakes.append(Mistake("missed", label, box))
    return mistakes
