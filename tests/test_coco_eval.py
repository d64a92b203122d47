"""COCO figures of predictions that are known to be right, wrong or missing."""

import copy

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny import rectangle

from datasets.annotations import load_coco, make_index
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
    assert list(evaluator.results("bbox")) == [
        [{"image_id": 2, "category_id": 5, "bbox": [1, 2, 3.5, 6], "score": 0.5}]
    ]


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
    assert not any(evaluator.results("bbox")) and set(stats) <= {0, -1} and stats[0] == 0


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


def moved(rng, value, share):
    return value + rng.normal(scale=share, size=value.shape) * 20


def guess(rng, annotations, size, classes, first_class):
    """A prediction for an image: some of its objects, moved, and others that are not there."""
    height, width = size
    boxes = np.array([ann["bbox"] for ann in annotations], np.float64).reshape(-1, 4)
    boxes = np.concatenate([boxes, rng.uniform(0, 0.5, (rng.integers(0, 20), 4)) * min(size)])
    boxes = moved(rng, boxes, rng.choice([0, 0.1, 0.5]))
    boxes[:, 2:] = boxes[:, :2] + np.abs(boxes[:, 2:])
    boxes = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
    labels = [ann["category_id"] for ann in annotations]
    labels += (first_class + rng.integers(0, classes, len(boxes) - len(labels))).tolist()
    masks = np.zeros((height, width, len(boxes)), np.uint8, order="F")
    for number, (x0, y0, x1, y1) in enumerate(boxes.astype(int)):
        masks[y0 : y1 + 1, x0 : x1 + 1, number] = 1
    return {
        "scores": rng.integers(0, 50, len(boxes)).astype(np.float32) / 50,  # some are equal
        "boxes": boxes,
        "labels": np.array(labels, np.int64),
        "masks": coco_mask.encode(masks),
    }


def assert_pycocotools_agrees(coco_gt, predictions):
    """Figures and arrays of CocoEvaluator are those of pycocotools for the same predictions."""
    evaluator = CocoEvaluator(coco_gt, ["bbox", "segm"])
    evaluator.update(predictions)
    evaluator.accumulate()
    evaluator.summarize()
    for iou_type, found in evaluator.coco_eval.items():
        results = [each for of_image in evaluator.results(iou_type) for each in of_image]
        expected = COCOeval(coco_gt, coco_gt.loadRes(results), iou_type)
        expected.params.imgIds = sorted(predictions)
        expected.evaluate()
        expected.accumulate()
        expected.summarize()
        np.testing.assert_allclose(found.stats, expected.stats, rtol=0, atol=1e-15)
        assert found.eval.keys() == expected.eval.keys()
        assert found.eval["counts"] == expected.eval["counts"]
        for name in ("precision", "recall", "scores"):
            np.testing.assert_allclose(found.eval[name], expected.eval[name], rtol=0, atol=1e-12)
        parameters = vars(found.eval["params"]), vars(expected.eval["params"])
        assert parameters[0].keys() == parameters[1].keys()
        assert found.stats[0] > 0 and len(found.stats) == 12


@pytest.mark.parametrize(
    "classes, first_class, first_id", [(3, 0, 1), (80, 1, 2**63 - 400), (250, 7, -200), (1, 1, 5)]
)
def test_the_figures_are_those_of_pycocotools(classes, first_class, first_id):
    """With crowds, areas of all sizes, images without an object, and others without a detection."""
    rng, size = np.random.default_rng([classes, 3]), (240, 320)
    images = [{"id": first_id + 9 * i, "height": 240, "width": 320} for i in range(40)]
    annotations = []
    for image in images[:-3]:
        for _ in range(rng.integers(0, 9)):
            x, y = rng.uniform(0, 200, 2)
            width, height = np.exp(rng.uniform(1, 5, 2))
            width, height = min(width, 320 - x), min(height, 240 - y)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": int(first_class + rng.integers(classes)),
                    "iscrowd": int(rng.random() < 0.1),
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "segmentation": [rectangle(x, y, width, height)],
                }
            )
    coco_gt = make_index(
        {
            "info": {},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": first_class + i} for i in range(classes)],
        }
    )
    predictions = {
        image["id"]: guess(rng, coco_gt.imgToAnns[image["id"]], size, classes, first_class)
        for image in images
    }
    predictions[images[1]["id"]] = {**nothing(), "masks": []}
    del predictions[images[2]["id"]]
    assert_pycocotools_agrees(coco_gt, predictions)


@pytest.mark.coco
def test_the_figures_are_those_of_pycocotools_on_real_annotations(coco_path):
    annotations = coco_path / "annotations" / "instances_val2017.json"
    coco_gt = load_coco(coco_path / "val2017", annotations, True, 91)
    rng = np.random.default_rng(0)
    predictions = {
        image_id: guess(rng, coco_gt.imgToAnns[image_id], (image["height"], image["width"]), 90, 1)
        for image_id, image in coco_gt.imgs.items()
    }
    assert_pycocotools_agrees(coco_gt, predictions)
