"""COCO metrics of a model's predictions.

Source: `datasets/coco_eval.py` of the original. The original evaluates each batch and merges the
results; here all detections are collected and evaluated once, which gives the same metrics.
faster-coco-eval is a C++ reimplementation of pycocotools' evaluation.
"""

from collections import Counter

import faster_coco_eval
import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from datasets.annotations import get_class_names
from util import dist
from util.memory import without_garbage_collector

# Keys in the result of pycocotools' `accumulate`, besides `params`.
ACCUMULATED = ("counts", "date", "precision", "recall", "scores")


class CocoEvaluator:
    """Collect predictions, then compute and print the COCO metrics.

    Args:
        coco_gt: `pycocotools.coco.COCO` with the ground truth.
        iou_types: list of 'bbox', 'segm'.

    Attributes:
        predictions: dictionary image id -> prediction.
        coco_eval: for each IoU type, pycocotools' `COCOeval`. `accumulate` fills its `eval`,
            `summarize` its `stats` (12 metrics).
    """

    def __init__(self, coco_gt, iou_types):
        self.coco_gt = coco_gt
        self.coco_eval = {iou_type: COCOeval(coco_gt, iouType=iou_type) for iou_type in iou_types}
        self.predictions = {}

    def update(self, predictions):
        """Add predictions, a dictionary image id -> prediction. Images added before are ignored.

        A prediction has scores float32 [n], labels int [n], boxes float32 [n, 4], and for 'segm'
        masks, a list of n RLE dictionaries.

        Boxes are x0, y0, x1, y1 in pixels of the original image.
        """
        kept = ["scores", "labels", "boxes"] + ["masks"] * ("segm" in self.coco_eval)
        for image_id, prediction in predictions.items():
            if image_id not in self.predictions:
                self.predictions[image_id] = {name: prediction[name] for name in kept}

    def synchronize_between_processes(self):
        """Gather the predictions of all processes in the main process, sorted by image id."""
        gathered = dist.gather(self.predictions)
        if gathered is None:
            return
        merged = {image_id: each for part in gathered for image_id, each in part.items()}
        self.predictions = dict(sorted(merged.items()))

    def results(self, iou_type):
        """Yield each image's list of detections in COCO's result format."""
        for image_id, prediction in self.predictions.items():
            yield PREPARE[iou_type](image_id, prediction)

    def accumulate(self):
        """Compute precision and recall over the predicted images."""
        for iou_type, coco_eval in self.coco_eval.items():
            params = coco_eval.params
            params.imgIds = sorted(self.predictions)
            evaluated = self.evaluate(iou_type, params.imgIds, params.catIds)
            coco_eval.eval = {"params": params, **{name: evaluated[name] for name in ACCUMULATED}}

    def evaluate(self, iou_type, image_ids, class_ids):
        """Run faster-coco-eval on these images and classes; return its results dictionary."""
        # It stores ids as positive floats: renumber them 1, 2, 3, …
        images = {image_id: number for number, image_id in enumerate(image_ids, 1)}
        classes = {class_id: number for number, class_id in enumerate(class_ids, 1)}

        def index(annotations):
            annotations = [ann for ann in annotations if ann["category_id"] in classes]
            for number, ann in enumerate(annotations, 1):
                ann["id"] = number
                ann["image_id"] = images[ann["image_id"]]
                ann["category_id"] = classes[ann["category_id"]]
            return faster_coco_eval.COCO(
                {
                    "images": [{**self.coco_gt.imgs[id_], "id": images[id_]} for id_ in image_ids],
                    "annotations": annotations,
                    "categories": [{"id": number} for number in classes.values()],
                }
            )

        with without_garbage_collector():
            objects = [dict(ann) for id_ in image_ids for ann in self.coco_gt.imgToAnns[id_]]
            found = [
                complete_result(result, iou_type)
                for results in self.results(iou_type)
                for result in results
            ]
            faster = faster_coco_eval.COCOeval_faster(index(objects), index(found), iou_type)
            faster.evaluate()
        faster.accumulate()
        return faster.eval

    def summarize(self):
        """Print the metrics as pycocotools does and store them in `coco_eval[iou_type].stats`."""
        for iou_type, coco_eval in self.coco_eval.items():
            print(f"IoU metric: {iou_type}")
            coco_eval.summarize()

    def print_per_class(self):
        """Print per-class metrics, best first. Call after `accumulate`."""
        for iou_type, coco_eval in self.coco_eval.items():
            rows = self.per_class(iou_type)
            width = max([len(row["name"]) for row in rows] + [5])
            print(f"IoU metric of each class: {iou_type}")
            print(f"{'class':<{width}}  boxes     AP   AP50   AP75")
            for row in rows:
                figures = "  ".join(
                    "    -" if row[key] is None else f"{row[key]:.3f}"
                    for key in ("AP", "AP50", "AP75")
                )
                print(f"{row['name']:<{width}}  {row['boxes']:>5}  {figures}")

    def per_class(self, iou_type):
        """Return a dictionary per class, by descending AP: id, name, boxes, AP, AP50, AP75.

        boxes: number of non-crowd ground-truth boxes in the evaluated images. Metrics use 100
        detections per image, and are None without ground truth.
        """
        params = self.coco_eval[iou_type].params
        precision = self.coco_eval[iou_type].eval["precision"]
        boxes = Counter(
            ann["category_id"]
            for ann in self.coco_gt.dataset["annotations"]
            if ann["image_id"] in self.predictions and not ann["iscrowd"]
        )
        names = get_class_names(self.coco_gt.cats.values())
        rows = []
        for index, class_id in enumerate(params.catIds):
            # [IoU thresholds, recalls]; -1 if there is no box
            of_class = precision[:, :, index, 0, -1]
            rows.append(
                {
                    "id": class_id,
                    "name": names[class_id],
                    "boxes": boxes[class_id],
                    "AP": mean_precision(of_class),
                    "AP50": mean_precision(of_class[params.iouThrs == 0.5]),
                    "AP75": mean_precision(of_class[params.iouThrs == 0.75]),
                }
            )
        return sorted(rows, key=lambda row: (row["AP"] is None, -(row["AP"] or 0), -row["boxes"]))


def mean_precision(precision):
    """Return the mean of COCOeval's precisions, or None if undefined (-1, no boxes)."""
    return float(precision.mean()) if precision.size and precision.min() > -1 else None


def prepare_for_coco_detection(image_id, prediction):
    """Return one image's detections in COCO's result format: bbox is x, y, width, height."""
    boxes = convert_to_xywh(prediction["boxes"]).tolist()
    scores, labels = prediction["scores"].tolist(), prediction["labels"].tolist()
    return [
        {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
        for box, score, label in zip(boxes, scores, labels)
    ]


def prepare_for_coco_segmentation(image_id, prediction):
    """Return one image's masks in COCO's result format: compressed RLE with counts as str."""
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


def complete_result(result, iou_type):
    """Add iscrowd and area to a detection, as pycocotools' `loadRes` does, and return it."""
    result["iscrowd"] = 0
    if iou_type == "bbox":
        result["area"] = result["bbox"][2] * result["bbox"][3]
    else:
        result["area"] = float(coco_mask.area(result["segmentation"]))
    return result


def convert_to_xywh(boxes):
    """Convert boxes [n, 4] from x0, y0, x1, y1 to x, y, width, height; the dtype is kept."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


PREPARE = {"bbox": prepare_for_coco_detection, "segm": prepare_for_coco_segmentation}
