"""COCO figures of a model's predictions.

Source: `datasets/coco_eval.py` of the original. It evaluates every batch by itself and merges; this
one collects the detections and runs pycocotools once over the images seen, which gives the same
figures.
"""

import contextlib
import io
from collections import Counter

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from util import dist


class CocoEvaluator:
    """Collects predictions, then computes and prints the COCO figures.

    Args:
        coco_gt: `pycocotools.coco.COCO` with the ground truth.
        iou_types: list of what to evaluate: 'bbox', 'segm'.

    Attributes:
        results: for each IoU type, the detections in COCO's result format.
        coco_eval: for each IoU type, the `COCOeval`. `accumulate` fills its `eval`, `summarize` its
            `stats` (12 figures).
        img_ids: ids of the images seen.
    """

    def __init__(self, coco_gt, iou_types):
        self.coco_gt = coco_gt
        self.coco_eval = {iou_type: COCOeval(coco_gt, iouType=iou_type) for iou_type in iou_types}
        self.results = {iou_type: [] for iou_type in iou_types}
        self.img_ids = set()

    def update(self, predictions):
        """Adds predictions, a dictionary image id -> prediction of that image.

        A prediction has scores float32 [n], labels int [n], boxes float32 [n, 4], and for 'segm'
        masks, a list of n RLE dictionaries.

        Boxes are x0, y0, x1, y1 in pixels of the original image. An image seen before is left out:
        it counts once.
        """
        new = {
            image_id: prediction
            for image_id, prediction in predictions.items()
            if image_id not in self.img_ids
        }
        self.img_ids.update(new)
        for iou_type, results in self.results.items():
            for image_id, prediction in new.items():
                results.extend(PREPARE[iou_type](image_id, prediction))

    def synchronize_between_processes(self):
        """The main process takes the predictions of all processes, sorted by image id."""
        gathered = dist.gather((self.img_ids, self.results))
        if gathered is None:
            return
        self.img_ids = set().union(*(img_ids for img_ids, _ in gathered))
        self.results = {
            iou_type: sorted(
                (result for _, results in gathered for result in results[iou_type]),
                key=lambda result: result["image_id"],
            )
            for iou_type in self.results
        }

    def accumulate(self):
        """Computes precision and recall of all detections in the images seen."""
        for iou_type, coco_eval in self.coco_eval.items():
            with contextlib.redirect_stdout(io.StringIO()):
                coco_eval.cocoDt = self.load_results(iou_type)
                coco_eval.params.imgIds = sorted(self.img_ids)
                coco_eval.evaluate()
            coco_eval.accumulate()

    def summarize(self):
        """Prints the figures as pycocotools does; `coco_eval[iou_type].stats` holds them."""
        for iou_type, coco_eval in self.coco_eval.items():
            print(f"IoU metric: {iou_type}")
            coco_eval.summarize()

    def print_per_class(self):
        """Prints the figures of each class, the best first; after `accumulate`."""
        for iou_type, coco_eval in self.coco_eval.items():
            rows = self.per_class(iou_type)
            width = max([len(row["name"]) for row in rows] + [5])
            print(
                f"IoU metric of each class: {iou_type}\n"
                f"{'class':<{width}}  boxes     AP   AP50   AP75"
            )
            for row in rows:
                figures = "  ".join(
                    "    -" if row[key] is None else f"{row[key]:.3f}"
                    for key in ("AP", "AP50", "AP75")
                )
                print(f"{row['name']:<{width}}  {row['boxes']:>5}  {figures}")

    def per_class(self, iou_type):
        """A dictionary for each class, the best AP first: name, boxes, AP, AP50 and AP75.

        boxes: their number in the images seen, without crowds. The figures are those at 100
        detections per image, and None where there is no box.
        """
        params = self.coco_eval[iou_type].params
        precision = self.coco_eval[iou_type].eval["precision"]
        boxes = Counter(
            ann["category_id"]
            for ann in self.coco_gt.dataset["annotations"]
            if ann["image_id"] in self.img_ids and not ann["iscrowd"]
        )
        rows = []
        for index, class_id in enumerate(params.catIds):
            name = str(self.coco_gt.cats[class_id].get("name", f"class {class_id}"))
            # [IoU thresholds, recalls]; -1 where there is no box.
            of_class = precision[:, :, index, 0, -1]
            rows.append(
                {
                    "name": name,
                    "boxes": boxes[class_id],
                    "AP": mean_precision(of_class),
                    "AP50": mean_precision(of_class[params.iouThrs == 0.5]),
                    "AP75": mean_precision(of_class[params.iouThrs == 0.75]),
                }
            )
        return sorted(rows, key=lambda row: (row["AP"] is None, -(row["AP"] or 0), -row["boxes"]))

    def load_results(self, iou_type):
        # loadRes cannot take an empty list, and adds keys to the dictionaries it is given.
        if not self.results[iou_type]:
            return COCO()
        return self.coco_gt.loadRes([dict(result) for result in self.results[iou_type]])


def mean_precision(precision):
    """The mean of COCOeval's precisions, or None where there are none or no box (-1)."""
    return precision.mean() if precision.size and precision.min() > -1 else None


def prepare_for_coco_detection(image_id, prediction):
    """One image's detections in COCO's result format: bbox is x, y, width, height in pixels."""
    boxes = convert_to_xywh(prediction["boxes"]).tolist()
    scores, labels = prediction["scores"].tolist(), prediction["labels"].tolist()
    return [
        {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
        for box, score, label in zip(boxes, scores, labels)
    ]


def prepare_for_coco_segmentation(image_id, prediction):
    """The masks of one image in COCO's result format: compressed RLE with its counts as text."""
    scores, labels = prediction["scores"].tolist(), prediction["labels"].tolist()
    return [
        {
            "image_id": image_id,
            "category_id": label,
            "score": score,
            "segmentation": {"size": mask["size"], "counts": mask["counts"].decode()},
        }
        for mask, score, label in zip(prediction["masks"], scores, labels)
    ]


def convert_to_xywh(boxes):
    """x0, y0, x1, y1 -> x, y, width, height, [n, 4], in the boxes' precision."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


PREPARE = {"bbox": prepare_for_coco_detection, "segm": prepare_for_coco_segmentation}
