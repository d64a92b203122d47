"""How good detections are beyond AP: precision, recall and F1 by threshold, and confused classes.

Matching is COCO's at one IoU threshold: in each image and class the detections, the highest score
first, take the free object with the highest IoU; what covers a crowd counts as nothing.
"""

from typing import NamedTuple

import numpy as np

from datasets.annotations import category_names

IOU = 0.5
MAX_DETECTIONS = 100  # of a class in an image, as COCO's evaluation takes
RECALLS = np.linspace(0, 1, 101)  # where COCO's AP looks at the precision


class Matches(NamedTuple):
    """The detections of all images, in the order of the image ids; those on crowds are left out.

    scores: float32 [n]; labels: int64 [n], category ids; hits: bool [n]; objects: dictionary
    category id -> number of objects without crowds.
    """

    scores: np.ndarray
    labels: np.ndarray
    hits: np.ndarray
    objects: dict


def match(coco_gt, predictions, iou=IOU):
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
        owners = assign(overlaps, truth.crowds, iou)
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


def assign(overlaps, crowds, iou):
    """The object that each detection takes, -1 for none: int64 [n].

    overlaps: [n, m], detections with the highest score first; crowds: bool [m], crowds last, which
    several detections may take.
    """
    owners = np.full(len(overlaps), -1)
    free = np.ones(len(crowds), bool)
    # As COCO's evaluation, which takes an IoU a little below 1 for 1.
    limit = min(iou, 1 - 1e-10)
    for index in np.flatnonzero((overlaps >= limit).any(1)):
        of_index = np.where(free, overlaps[index], 0)
        for part in (~crowds, crowds):
            candidates = np.where(part, of_index, 0)
            # Of equal ones the last, as COCO's evaluation.
            best = len(candidates) - 1 - candidates[::-1].argmax()
            if candidates[best] >= limit:
                owners[index] = best
                free[best] = crowds[best]
                break
    return owners


class Curve(NamedTuple):
    """Precision and recall of a class, or of all, at each threshold.

    thresholds: float32 [n], falling; precision, recall: float64 [n], of the detections that score
    at least as much.
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray

    @property
    def f1(self):
        total = self.precision + self.recall
        return np.divide(
            2 * self.precision * self.recall, total, out=np.zeros_like(total), where=total > 0
        )

    def best(self):
        """(threshold, precision, recall, F1) where F1 is highest; None without detections.

        The threshold lies in the middle of two scores, as the same detection may score a little
        less in a batch of other images.
        """
        if not len(self.thresholds):
            return None
        # Of equal scores the last one counts: a threshold takes all of them.
        lower = np.append(self.thresholds[1:], 0)
        last = self.thresholds > lower
        if not last.any():  # all score 0
            last[-1] = True
        index = np.flatnonzero(last)[self.f1[last].argmax()]
        threshold = (float(self.thresholds[index]) + float(lower[index])) / 2
        return threshold, *(float(v[index]) for v in (self.precision, self.recall, self.f1))

    def average_precision(self):
        """COCO's AP at this IoU: the mean of the precision at 101 recalls."""
        precision = np.maximum.accumulate(self.precision[::-1])[::-1]
        places = np.searchsorted(self.recall, RECALLS, side="left")
        found = places < len(precision)
        return float(precision[places[found]].sum() / len(RECALLS))


def curve(matches, label=None):
    """The Curve of a class, or of all classes together."""
    of_class = np.ones(len(matches.scores), bool) if label is None else matches.labels == label
    objects = sum(matches.objects.values()) if label is None else matches.objects[label]
    order = np.argsort(-matches.scores[of_class], kind="mergesort")
    hits = matches.hits[of_class][order].cumsum()
    precision = hits / np.arange(1, len(hits) + 1)
    return Curve(matches.scores[of_class][order], precision, hits / max(objects, 1))


def confusion(coco_gt, predictions, threshold, iou=IOU):
    """Which classes are taken for which: int64 [classes + 1, classes + 1], and the class ids.

    Rows are what was detected, columns what is there. The last row counts the objects that were
    missed, the last column the detections where nothing is. An object is found by a detection of
    any class: those of its own class first, then by IoU.
    """
    ids = sorted(coco_gt.cats)
    place = {class_id: index for index, class_id in enumerate(ids)}
    matrix = np.zeros((len(ids) + 1, len(ids) + 1), np.int64)
    for image_id, prediction in predictions.items():
        truth = objects_of(coco_gt, image_id)
        scores, labels = np.asarray(prediction["scores"]), np.asarray(prediction["labels"])
        kept = np.argsort(-scores, kind="stable")
        kept = kept[(scores[kept] >= threshold) & np.isin(labels[kept], ids)]
        labels = labels[kept]
        overlaps = overlap(np.asarray(prediction["boxes"])[kept], truth.boxes, truth.crowds)
        same = labels[:, None] == truth.labels
        owners = assign(np.where(same, overlaps, 0), truth.crowds, iou)
        taken = np.zeros(len(truth.labels), bool)
        taken[owners[owners >= 0]] = True
        rest = np.flatnonzero(owners < 0)
        others = assign(np.where(taken | truth.crowds, 0, overlaps[rest]), truth.crowds, iou)
        owners[rest] = others
        found = np.zeros(len(truth.labels), bool)
        for label, owner in zip(labels, owners):
            if owner < 0:
                matrix[place[label], -1] += 1
            elif not truth.crowds[owner]:
                matrix[place[label], place[truth.labels[owner]]] += 1
                found[owner] = True
        for label in truth.labels[~found & ~truth.crowds]:
            matrix[-1, place[label]] += 1
    return matrix, ids


def make_report(coco_gt, predictions):
    """The figures of `match`, `curve` and `confusion` as a dictionary of plain values.

    The confusion is that at the threshold where F1 over all classes is highest.
    """
    matches = match(coco_gt, predictions)
    overall = describe(curve(matches))
    matrix, ids = confusion(coco_gt, predictions, overall["threshold"])
    names = category_names(coco_gt.cats.values())
    classes = []
    for class_id in ids:
        of_class = curve(matches, class_id)
        objects = matches.objects[class_id]
        classes.append(
            {
                "id": class_id,
                "name": names[class_id],
                "objects": objects,
                "detections": len(of_class.thresholds),
                "AP50": of_class.average_precision() if objects else None,
                **describe(of_class),
            }
        )
    return {
        "iou": IOU,
        "images": len(predictions),
        "all_classes": overall,
        "classes": classes,
        "confusion": matrix.tolist(),
    }


def describe(of_classes):
    """The threshold where a Curve's F1 is highest, and what it gives there.

    Without any detection, nothing is found at threshold 1.
    """
    names = ("threshold", "precision", "recall", "F1")
    return dict(zip(names, of_classes.best() or (1.0, 0.0, 0.0, 0.0)))


def best_thresholds(report):
    """A dictionary category id -> the threshold where its F1 is highest.

    Where none of a class was found, that of all classes together.
    """
    overall = report["all_classes"]["threshold"]
    return {row["id"]: row["threshold"] if row["F1"] > 0 else overall for row in report["classes"]}
