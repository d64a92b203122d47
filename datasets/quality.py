"""How good detections are: precision, recall and F1 by threshold, confused classes, mistakes."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from datasets.annotations import category_names
from datasets.matching import IOU, match, pair_up
from datasets.mistakes import KINDS, mistakes_in
from util.best import COCO_FIGURES

RECALLS = np.linspace(0, 1, 101)  # where COCO's AP looks at the precision
THRESHOLDS = np.float32(np.linspace(0, 1, 101))
SCORE_BINS = 20
# Smallest and largest area of COCO's sizes, in pixels.
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
WORST_IMAGES = 20


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

    def precision_at_recalls(self):
        """The best precision at each of RECALLS or beyond it; 0 where the recall is not reached.

        Their mean is COCO's AP at this IoU.
        """
        precision = np.maximum.accumulate(self.precision[::-1])[::-1]
        places = np.searchsorted(self.recall, RECALLS, side="left")
        return np.append(precision, 0)[places]

    def f1_at_thresholds(self):
        """F1 at each of THRESHOLDS."""
        count = np.searchsorted(-self.thresholds, -THRESHOLDS, side="right")
        return np.append(0, self.f1)[count]


def curve(matches, label=None):
    """The Curve of a class, or of all classes together."""
    of_class = np.ones(len(matches.scores), bool) if label is None else matches.labels == label
    objects = sum(matches.objects.values()) if label is None else matches.objects[label]
    order = np.argsort(-matches.scores[of_class], kind="mergesort")
    hits = matches.hits[of_class][order].cumsum()
    precision = hits / np.arange(1, len(hits) + 1)
    return Curve(matches.scores[of_class][order], precision, hits / max(objects, 1))


def add_confusion(matrix, class_ids, pairs):
    """Adds an image to the matrix of confused classes, int64 [classes + 1, classes + 1].

    Rows are what was detected, columns what is there. The last row counts the objects that were
    missed, the last column the detections where nothing is, or what was found already.

    class_ids: sorted; pairs: the image's Pairs.
    """
    detected = np.searchsorted(class_ids, pairs.labels)
    there = np.searchsorted(class_ids, pairs.objects.labels)
    matrix[-1] += np.bincount(there[pairs.missed], minlength=len(matrix))
    matrix[:, -1] += np.bincount(detected[pairs.owners < 0], minlength=len(matrix))
    found = pairs.owners >= 0
    found[found] = ~pairs.objects.crowds[pairs.owners[found]]
    np.add.at(matrix, (detected[found], there[pairs.owners[found]]), 1)


def make_report(evaluator):
    """All figures of an evaluation as a dictionary of plain values.

    Confusion and mistakes are those at the threshold where F1 over all classes is highest.

    evaluator: a CocoEvaluator, after `summarize`.
    """
    coco_gt, predictions = evaluator.coco_gt, evaluator.predictions
    ids = sorted(coco_gt.cats)
    matches = match(coco_gt, predictions)
    overall = curve(matches)
    best = describe(overall)
    confusion = np.zeros((len(ids) + 1, len(ids) + 1), np.int64)
    kinds, worst = Counter(), []
    for image_id, prediction in predictions.items():
        pairs = pair_up(coco_gt, image_id, prediction, best["threshold"])
        add_confusion(confusion, ids, pairs)
        mistakes = mistakes_in(pairs)
        kinds.update(mistake.kind for mistake in mistakes)
        if mistakes:
            worst.append((image_id, mistakes))
            worst = sorted(worst, key=lambda image: -len(image[1]))[:WORST_IMAGES]
    return {
        "iou": IOU,
        "images": len(predictions),
        "AP": {name: named_figures(each.stats) for name, each in evaluator.coco_eval.items()},
        "objects": count_sizes(coco_gt, predictions),
        "all_classes": {**best, **points(overall)},
        "recalls": RECALLS.round(2).tolist(),
        "thresholds": np.linspace(0, 1, len(THRESHOLDS)).round(2).tolist(),
        "classes": describe_classes(evaluator, matches),
        "scores": count_scores(matches),
        "confusion": confusion.tolist(),
        "mistakes": {
            kind: {"meaning": meaning, "count": kinds[kind]} for kind, meaning in KINDS.items()
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


def named_figures(stats):
    """COCO's 12 figures by their names, None where there is no object."""
    return {name: None if value == -1 else float(value) for name, value in zip(COCO_FIGURES, stats)}


def count_sizes(coco_gt, image_ids):
    """The objects in these images, without crowds: all, and those of each of SIZES."""
    areas = np.array(
        [
            ann["area"]
            for image_id in image_ids
            for ann in coco_gt.imgToAnns[image_id]
            if not ann["iscrowd"]
        ]
    )
    sizes = {  # COCO counts the borders on both sides
        name: int(((areas >= low) & (areas <= high)).sum()) for name, (low, high) in SIZES.items()
    }
    return {"all": len(areas), **sizes}


def count_scores(matches):
    """How many hits and misses have which scores, in SCORE_BINS equal parts of 0..1."""
    return {
        name: np.histogram(matches.scores[which], SCORE_BINS, (0, 1))[0].tolist()
        for name, which in (("hits", matches.hits), ("misses", ~matches.hits))
    }


def describe_classes(evaluator, matches):
    """A dictionary for each class, in the order of the ids."""
    names = category_names(evaluator.coco_gt.cats.values())
    of_coco = {row["id"]: row for row in evaluator.per_class("bbox")}
    classes = []
    for class_id, objects in matches.objects.items():
        of_class = curve(matches, class_id)
        classes.append(
            {
                "id": class_id,
                "name": names[class_id],
                "objects": objects,
                "detections": len(of_class.thresholds),
                "AP": of_coco[class_id]["AP"],
                "AP50": of_coco[class_id]["AP50"],
                **describe(of_class),
                **points(of_class),
            }
        )
    return classes


def describe(of_classes):
    """The threshold where a Curve's F1 is highest, and what it gives there.

    Without any detection, nothing is found at threshold 1.
    """
    names = ("threshold", "precision", "recall", "F1")
    return dict(zip(names, of_classes.best() or (1.0, 0.0, 0.0, 0.0)))


def points(of_classes):
    """A Curve at RECALLS and at THRESHOLDS, to draw it."""
    return {
        "precision_at_recalls": of_classes.precision_at_recalls().round(4).tolist(),
        "F1_at_thresholds": of_classes.f1_at_thresholds().round(4).tolist(),
    }


def best_thresholds(report):
    """A dictionary category id -> the threshold where its F1 is highest.

    Where none of a class was found, that of all classes together.
    """
    overall = report["all_classes"]["threshold"]
    return {row["id"]: row["threshold"] if row["F1"] > 0 else overall for row in report["classes"]}
