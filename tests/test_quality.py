"""Precision, recall, F1 and confused classes against loops written by hand, and pycocotools."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from datasets.annotations import load_coco
from datasets.coco_eval import CocoEvaluator
from datasets.quality import best_thresholds, confusion, curve, make_report, match


@pytest.fixture(scope="module")
def truth(coco_path):
    """12 real images, with crowds."""
    coco = load_coco(
        coco_path / "val2017",
        coco_path / "annotations" / "instances_val2017.json",
        return_masks=False,
        num_classes=91,
    )
    crowded = {ann["image_id"] for ann in coco.dataset["annotations"] if ann["iscrowd"]}
    images = sorted(crowded)[:4] + sorted(set(coco.imgs) - crowded)[:8]
    return coco, sorted(images)


def draw(coco, images, seed):
    """Predictions that hit, miss, come twice, lie beside the object, and have the wrong class."""
    rng = np.random.default_rng(seed)
    classes = sorted(coco.cats)
    predictions = {}
    for image_id in images:
        boxes, labels, scores = [], [], []
        for ann in coco.imgToAnns[image_id]:
            x, y, w, h = ann["bbox"]
            for _ in range(rng.integers(0, 3)):
                moved = np.array([x, y, x + w, y + h]) + rng.normal(size=4) * [w, h, w, h] * 0.15
                boxes.append(moved)
                labels.append(ann["category_id"] if rng.random() < 0.8 else rng.choice(classes))
                scores.append(rng.choice([0.3, 0.5, 0.5, rng.random()]))
        for _ in range(3):
            low = rng.uniform(0, 300, 2)
            boxes.append([*low, *(low + rng.uniform(5, 100, 2))])
            labels.append(rng.choice(classes))
            scores.append(rng.random())
        predictions[image_id] = {
            "boxes": np.float32(boxes).reshape(-1, 4),
            "labels": np.array(labels, np.int64),
            "scores": np.array(scores, np.float32),
        }
    return predictions


def iou(a, b, of_crowd=False):
    """Of two boxes x0, y0, x1, y1, by hand."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1])
    other = (b[2] - b[0]) * (b[3] - b[1])
    union = area if of_crowd else area + other - width * height
    return width * height / union if union > 0 else 0.0


def corners(ann):
    x, y, w, h = ann["bbox"]
    return [x, y, x + w, y + h]


def by_hand(coco, predictions):
    """(class, score, hit) of each detection that counts, and the number of objects of each class"""
    rows, objects = [], dict.fromkeys(coco.cats, 0)
    for image_id, prediction in predictions.items():
        for ann in coco.imgToAnns[image_id]:
            objects[ann["category_id"]] += not ann["iscrowd"]
        for class_id in coco.cats:
            anns = [ann for ann in coco.imgToAnns[image_id] if ann["category_id"] == class_id]
            taken = set()
            of_class = [
                (-score, number, box)
                for number, (score, label, box) in enumerate(
                    zip(prediction["scores"], prediction["labels"], prediction["boxes"])
                )
                if label == class_id
            ]
            for score, _, box in sorted(of_class, key=lambda row: row[:2]):
                best, found = 0.5, None
                for ann in anns:
                    if not ann["iscrowd"] and ann["id"] not in taken:
                        if iou(box, corners(ann)) >= best:
                            best, found = iou(box, corners(ann)), ann
                if found is not None:
                    taken.add(found["id"])
                    rows.append((class_id, -score, True))
                elif not any(iou(box, corners(ann), True) >= 0.5 for ann in anns if ann["iscrowd"]):
                    rows.append((class_id, -score, False))
    return rows, objects


@pytest.mark.coco
@pytest.mark.parametrize("seed", range(5))
def test_hits_and_the_best_threshold_are_those_by_hand(truth, seed):
    coco, images = truth
    predictions = draw(coco, images, seed)
    matches = match(coco, predictions)
    rows, objects = by_hand(coco, predictions)
    found = zip(matches.labels.tolist(), matches.scores.tolist(), matches.hits.tolist())
    assert sorted(found) == sorted((c, float(s), h) for c, s, h in rows)
    assert matches.objects == objects
    for label in [None, *sorted({c for c, _, _ in rows})]:
        of_class = [(s, h) for c, s, h in rows if label in (None, c)]
        total = sum(objects.values()) if label is None else objects[label]
        best = None
        scores = [*sorted({float(s) for s, _ in of_class}, reverse=True), 0.0]
        for threshold, lower in zip(scores, scores[1:]):
            above = [h for s, h in of_class if s >= threshold]
            precision, recall = sum(above) / len(above), sum(above) / max(total, 1)
            f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
            if best is None or f1 > best[3]:
                best = (threshold + lower) / 2, precision, recall, f1
        assert curve(matches, label).best() == pytest.approx(best, abs=1e-12), label


@pytest.mark.coco
@pytest.mark.parametrize("seed", range(5))
def test_the_curves_area_is_pycocotools_ap50(truth, seed, capsys):
    coco, images = truth
    predictions = draw(coco, images, seed)
    evaluator = CocoEvaluator(coco, ["bbox"])
    evaluator.update(predictions)
    evaluator.synchronize_between_processes()
    evaluator.accumulate()
    evaluator.summarize()
    matches = match(coco, predictions)
    rows = {row["name"]: row["AP50"] for row in evaluator.per_class("bbox")}
    values = []
    for class_id, count in matches.objects.items():
        expected = rows[coco.cats[class_id]["name"]]
        if count == 0:
            assert expected is None
            continue
        values.append(curve(matches, class_id).average_precision())
        assert values[-1] == pytest.approx(expected, abs=1e-9)
    stats = evaluator.coco_eval["bbox"].stats
    assert np.mean(values) == pytest.approx(stats[1], abs=1e-9) and len(values) > 10


@pytest.mark.coco
@pytest.mark.parametrize("threshold", [0, 0.4, 2])
def test_the_confusion_is_that_by_hand(truth, threshold):
    coco, images = truth
    predictions = draw(coco, images, 7)
    matrix, ids = confusion(coco, predictions, threshold)
    expected = np.zeros_like(matrix)
    place = {class_id: index for index, class_id in enumerate(ids)}
    for image_id, prediction in predictions.items():
        anns = coco.imgToAnns[image_id]
        rows = [
            (-float(score), number)
            for number, score in enumerate(prediction["scores"])
            if score >= threshold
        ]
        rest, owner, taken = [], {}, set()
        for same_class in (True, False):
            for _, number in sorted(rows):
                if number in owner:
                    continue
                box, label = prediction["boxes"][number], prediction["labels"][number]
                best, found = 0.5, None
                for ann in sorted(anns, key=lambda ann: ann["iscrowd"]):
                    if ann["iscrowd"] or ann["id"] in taken:
                        continue
                    if same_class and ann["category_id"] != label:
                        continue
                    if iou(box, corners(ann)) >= best:
                        best, found = iou(box, corners(ann)), ann
                crowd = same_class and any(
                    ann["iscrowd"]
                    and ann["category_id"] == label
                    and iou(box, corners(ann), True) >= 0.5
                    for ann in anns
                )
                if found is not None:
                    owner[number] = found
                    taken.add(found["id"])
                elif crowd:
                    owner[number] = None
        for _, number in rows:
            label = place[prediction["labels"][number]]
            if number not in owner:
                rest.append(number)
                expected[label, -1] += 1
            elif owner[number] is not None:
                expected[label, place[owner[number]["category_id"]]] += 1
        for ann in anns:
            if not ann["iscrowd"] and ann["id"] not in taken:
                expected[-1, place[ann["category_id"]]] += 1
    np.testing.assert_array_equal(matrix, expected)
    objects = sum(not a["iscrowd"] for i in images for a in coco.imgToAnns[i])
    assert matrix[:, :-1].sum() == objects, "each object is found or missed once"
    if threshold == 0:
        off_diagonal = matrix[:-1, :-1] - np.diag(np.diag(matrix[:-1, :-1]))
        assert off_diagonal.any() and matrix[:-1, -1].any() and matrix[-1].any()


@pytest.mark.coco
def test_the_report_has_what_the_parts_say(truth):
    coco, images = truth
    predictions = draw(coco, images, 3)
    report = make_report(coco, predictions)
    assert report == json.loads(json.dumps(report)), "plain values"
    matches = match(coco, predictions)
    best = curve(matches).best()
    names = ["threshold", "precision", "recall", "F1"]
    assert [report["all_classes"][name] for name in names] == list(best)
    assert report["confusion"] == confusion(coco, predictions, best[0])[0].tolist()
    assert report["images"] == 12 and len(report["classes"]) == 80
    person = report["classes"][0]
    assert person["name"] == "person" and person["objects"] == matches.objects[1]
    assert person["AP50"] == curve(matches, 1).average_precision()
    assert person["detections"] == (matches.labels == 1).sum()
    assert any(row["AP50"] is None and row["threshold"] == 1 for row in report["classes"])
    thresholds = best_thresholds(report)
    assert list(thresholds) == sorted(coco.cats)
    for row in report["classes"]:
        expected = row["threshold"] if row["F1"] else best[0]
        assert thresholds[row["id"]] == expected


def test_nothing_found_and_nothing_there():
    coco = COCO()
    coco.dataset = {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": 3, "name": "a"}],
        "annotations": [],
    }
    coco.createIndex()
    nothing = {"scores": np.zeros(0), "labels": np.zeros(0, int), "boxes": np.zeros((0, 4))}
    for predictions in ({}, {1: nothing, 2: nothing}):
        matches = match(coco, predictions)
        assert matches.objects == {3: 0} and curve(matches).best() is None
        assert confusion(coco, predictions, 0.5)[0].tolist() == [[0, 0], [0, 0]]
