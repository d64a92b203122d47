"""COCO figures of predictions that are known to be right, wrong or missing."""

import copy

import numpy as np
import pytest
from pycocotools.coco import COCO

from datasets.coco_eval import CocoEvaluator


@pytest.fixture
def coco_gt():
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": i} for i in (3, 1, 2)],
        "categories": [{"id": 1}, {"id": 5}],
        "annotations": [
            {
                "id": k + 1,
                "image_id": k % 3 + 1,
                "category_id": (1, 5)[k % 2],
                "iscrowd": 0,
                "bbox": [10.0 * k, 5.0, 40.0 + k, 30.0],
                "area": (40.0 + k) * 30,
            }
            for k in range(6)
        ],
    }
    coco.createIndex()
    return coco


def perfect(coco, image_id):
    annotations = coco.imgToAnns[image_id]
    boxes = np.float32([ann["bbox"] for ann in annotations])
    boxes[:, 2:] += boxes[:, :2]
    return {
        "scores": np.full(len(boxes), 0.9, np.float32),
        "boxes": boxes,
        "labels": np.array([ann["category_id"] for ann in annotations]),
    }


def nothing():
    return {
        "scores": np.zeros(0, np.float32),
        "boxes": np.zeros((0, 4), np.float32),
        "labels": np.zeros(0, np.int64),
    }


def figures(evaluator):
    evaluator.accumulate()
    evaluator.summarize()
    return evaluator.coco_eval["bbox"].stats


def test_perfect_predictions_in_several_batches(coco_gt, capsys):
    before = copy.deepcopy(coco_gt.dataset["images"])
    evaluator = CocoEvaluator(coco_gt, ["bbox"])
    evaluator.update({2: perfect(coco_gt, 2), 1: perfect(coco_gt, 1)})
    evaluator.update({3: perfect(coco_gt, 3)})
    stats = figures(evaluator)
    assert len(stats) == 12 and stats[:3] == pytest.approx([1, 1, 1])
    assert "precision" in evaluator.coco_eval["bbox"].eval
    printed = capsys.readouterr().out
    table = " Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 1.000"
    assert f"IoU metric: bbox\n{table}\n" in printed
    assert "Running per image" not in printed
    assert coco_gt.dataset["images"] == before


def test_results_are_in_cocos_format(coco_gt):
    evaluator = CocoEvaluator(coco_gt, ["bbox"])
    evaluator.update(
        {
            2: {
                "scores": np.float32([0.5]),
                "labels": np.array([5]),
                "boxes": np.float32([[1, 2, 4.5, 8]]),
            }
        }
    )
    evaluator.accumulate()
    assert evaluator.results == {
        "bbox": [{"image_id": 2, "category_id": 5, "bbox": [1, 2, 3.5, 6], "score": 0.5}]
    }


def test_only_images_seen_count_and_each_once(coco_gt):
    evaluator = CocoEvaluator(coco_gt, ["bbox"])
    evaluator.update({1: perfect(coco_gt, 1)})
    evaluator.update({1: dict(perfect(coco_gt, 1), labels=np.array([5, 1]))})
    assert figures(evaluator)[0] == pytest.approx(1)
    evaluator.update({2: nothing()})
    assert figures(evaluator)[0] < 1


def test_no_detection_at_all(coco_gt):
    evaluator = CocoEvaluator(coco_gt, ["bbox"])
    evaluator.update({1: nothing(), 2: nothing(), 3: nothing()})
    stats = figures(evaluator)
    assert evaluator.results["bbox"] == [] and set(stats) <= {0, -1} and stats[0] == 0


def test_labels_without_a_category_change_nothing(coco_gt):
    evaluator = CocoEvaluator(coco_gt, ["bbox"])
    prediction = perfect(coco_gt, 1)
    evaluator.update(
        {
            1: {key: np.concatenate([value, value]) for key, value in prediction.items()}
            | {"labels": np.append(prediction["labels"], [0, 90])}
        }
    )
    assert figures(evaluator)[0] == pytest.approx(1)
