"""Build the evaluation report: precision, recall and F1 by threshold, confusion and mistakes."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from datasets.matching import IOU, MISTAKES, find_mistakes, is_crowd, match_detections, match_image
from util.best import COCO_METRICS

RECALLS = np.linspace(0, 1, 101)  # recall thresholds of COCO's AP
THRESHOLDS = np.float32(np.linspace(0, 1, 101))
SCORE_BINS = 20
# COCO's area ranges in pixels, inclusive.
AREAS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
NUM_WORST_IMAGES = 20


class Curve(NamedTuple):
    """The precision-recall curve of one class, or of all classes combined.

    thresholds: float32 [n], descending; precision, recall: float64 [n], of the detections with at
    least that score.
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray

    @property
    def f1(self):
        """Return F1 at each threshold."""
        product, total = self.precision * self.recall, self.precision + self.recall
        return np.divide(2 * product, total, out=np.zeros_like(total), where=total > 0)

    def find_best(self):
        """Return (threshold, precision, recall, F1) with the highest F1; 1, 0, 0, 0 if empty.

        The threshold is midway between two scores, because scores vary slightly with the other
        images in the batch.
        """
        if not len(self.thresholds):
            return 1.0, 0.0, 0.0, 0.0
        # Only the last of equal scores is a valid cut, because a threshold keeps all of them.
        lower = np.append(self.thresholds[1:], 0)
        is_last = self.thresholds > lower
        if not is_last.any():  # all scores are 0
            is_last[-1] = True
        index = np.flatnonzero(is_last)[self.f1[is_last].argmax()]
        threshold = (float(self.thresholds[index]) + float(lower[index])) / 2
        return threshold, *(float(v[index]) for v in (self.precision, self.recall, self.f1))

    def interpolate_precision(self):
        """Return the interpolated precision at each of RECALLS, 0 at recalls that are not reached.

        The mean is COCO's AP at this IoU.
        """
        precision = np.maximum.accumulate(self.precision[::-1])[::-1]
        return np.append(precision, 0)[np.searchsorted(self.recall, RECALLS, side="left")]

    def sample_f1(self):
        """Return F1 at each of THRESHOLDS."""
        count = np.searchsorted(-self.thresholds, -THRESHOLDS, side="right")
        return np.append(0, self.f1)[count]

    def describe(self):
        """Return the curve's best threshold with its metrics, and samples to plot the curve."""
        return {
            **dict(zip(("threshold", "precision", "recall", "F1"), self.find_best())),
            "precision_at_recalls": self.interpolate_precision().round(4).tolist(),
            "F1_at_thresholds": self.sample_f1().round(4).tolist(),
        }


def compute_curve(matches, label=None):
    """Compute the Curve of a class, or of all classes together. matches: matching.Matches."""
    is_class = np.ones(len(matches.scores), bool) if label is None else matches.labels == label
    objects = matches.num_objects
    num_objects = sum(objects.values()) if label is None else objects[label]
    order = np.argsort(-matches.scores[is_class], kind="mergesort")
    true_positives = matches.is_true_positive[is_class][order].cumsum()
    precision = true_positives / np.arange(1, len(true_positives) + 1)
    recall = true_positives / max(num_objects, 1)
    return Curve(matches.scores[is_class][order], precision, recall)


def update_confusion(matrix, class_ids, matches):
    """Add an image to the confusion matrix, int64 [classes + 1, classes + 1].

    Rows are predicted classes, columns ground-truth classes. The last row counts missed objects;
    the last column background and duplicate detections, and localization errors.

    class_ids: sorted; matches: ImageMatches.
    """
    detected = np.searchsorted(class_ids, matches.labels)
    true = np.searchsorted(class_ids, matches.objects.labels)
    matrix[-1] += np.bincount(true[matches.is_missed], minlength=len(matrix))
    matrix[:, -1] += np.bincount(detected[matches.matched < 0], minlength=len(matrix))
    is_counted = (matches.matched >= 0) & ~is_crowd(matches.matched, matches.objects)
    np.add.at(matrix, (detected[is_counted], true[matches.matched[is_counted]]), 1)


def make_report(coco_evaluator) -> dict:
    """Return the report as a JSON-serialisable dictionary; util/report/ renders it as HTML.

    Confused classes and mistakes are those at the threshold with the highest F1 over all classes.

    coco_evaluator: a CocoEvaluator after `summarize`.
    """
    coco_gt, predictions = coco_evaluator.coco_gt, coco_evaluator.predictions
    ids = sorted(coco_gt.cats)
    matches = match_detections(coco_gt, predictions)
    all_classes = compute_curve(matches).describe()
    confusion = np.zeros((len(ids) + 1, len(ids) + 1), np.int64)
    counts, worst = Counter(), []
    for image_id, prediction in predictions.items():
        image_matches = match_image(coco_gt, image_id, prediction, all_classes["threshold"])
        update_confusion(confusion, ids, image_matches)
        mistakes = find_mistakes(image_matches)
        counts.update(mistake.kind for mistake in mistakes)
        if mistakes:
            worst.append((image_id, mistakes))
            worst = sorted(worst, key=lambda image: -len(image[1]))[:NUM_WORST_IMAGES]
    return {
        "iou": IOU,
        "images": len(predictions),
        "AP": {kind: name_metrics(each.stats) for kind, each in coco_evaluator.coco_eval.items()},
        "objects": count_objects(coco_gt, predictions),
        "all_classes": all_classes,
        "recalls": RECALLS.round(2).tolist(),
        "thresholds": np.linspace(0, 1, len(THRESHOLDS)).round(2).tolist(),
        "classes": describe_classes(coco_evaluator, matches),
        "scores": count_scores(matches),
        "confusion": confusion.tolist(),
        "mistakes": {
            kind: {"meaning": meaning, "count": counts[kind]} for kind, meaning in MISTAKES.items()
        },
        "worst_images": [
            {
                "image_id": image_id,
                "file_name": coco_gt.imgs[image_id]["file_name"],
                "mistakes": [mistake._asdict() for mistake in mistakes],
            }
            for image_id, mistakes in worst
        ],
    }


def name_metrics(stats):
    """Return COCO's 12 metrics by name, with -1 (no objects) replaced by None."""
    return {name: None if value == -1 else float(value) for name, value in zip(COCO_METRICS, stats)}


def count_objects(coco_gt, image_ids):
    """Count the non-crowd objects in these images, in total and by area range."""
    annotations = [ann for image_id in image_ids for ann in coco_gt.imgToAnns[image_id]]
    areas = np.array([ann["area"] for ann in annotations if not ann["iscrowd"]])
    counts = {
        name: int(((areas >= low) & (areas <= high)).sum()) for name, (low, high) in AREAS.items()
    }
    return {"all": len(areas), **counts}


def count_scores(matches):
    """Compute score histograms of the true and false positives, SCORE_BINS bins in 0..1."""
    is_hit = matches.is_true_positive
    return {
        name: np.histogram(matches.scores[which], SCORE_BINS, (0, 1))[0].tolist()
        for name, which in (("hits", is_hit), ("misses", ~is_hit))
    }


def describe_classes(coco_evaluator, matches):
    """Return a list with one dictionary of metrics per class, sorted by id."""
    classes = []
    for row in sorted(coco_evaluator.per_class("bbox"), key=lambda row: row["id"]):
        curve = compute_curve(matches, row["id"])
        classes.append(
            {
                "id": row["id"],
                "name": row["name"],
                "objects": matches.num_objects[row["id"]],
                "detections": len(curve.thresholds),
                "AP": row["AP"],
                "AP50": row["AP50"],
                **curve.describe(),
            }
        )
    return classes
