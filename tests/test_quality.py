"""Precision, recall, F1 and confused classes against loops written by hand, and pycocotools."""

import json
from collections import Counter

import numpy as np
import pytest
from pycocotools.coco import COCO

from datasets.annotations import load_coco
from datasets.coco_eval import CocoEvaluator
from datasets.matching import match, pair_up
from datasets.mistakes import KINDS, mistakes_in
from datasets.quality import add_confusion, best_thresholds, curve, make_report


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


def evaluate(coco, predictions):
    """A CocoEvaluator with its figures."""
    evaluator = CocoEvaluator(coco, ["bbox"])
    evaluator.update(predictions)
    evaluator.synchronize_between_processes()
    evaluator.accumulate()
    evaluator.summarize()
    return evaluator


def pair_all(coco, predictions, threshold):
    return [
        pair_up(coco, image_id, prediction, threshold)
        for image_id, prediction in predictions.items()
    ]


def confusion(class_ids, pairs):
    matrix = np.zeros((len(class_ids) + 1, len(class_ids) + 1), np.int64)
    for of_image in pairs:
        add_confusion(matrix, class_ids, of_image)
    return matrix


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
    evaluator = evaluate(coco, predictions)
    matches = match(coco, predictions)
    rows = {row["name"]: row["AP50"] for row in evaluator.per_class("bbox")}
    values = []
    for class_id, count in matches.objects.items():
        expected = rows[coco.cats[class_id]["name"]]
        if count == 0:
            assert expected is None
            continue
        values.append(curve(matches, class_id).precision_at_recalls().mean())
        params, precision = evaluator.coco_eval["bbox"].params, evaluator.coco_eval["bbox"].eval
        of_class = precision["precision"][0, :, params.catIds.index(class_id), 0, -1]
        np.testing.assert_allclose(
            curve(matches, class_id).precision_at_recalls(), of_class, atol=1e-9
        )
        assert values[-1] == pytest.approx(expected, abs=1e-9)
    stats = evaluator.coco_eval["bbox"].stats
    assert np.mean(values) == pytest.approx(stats[1], abs=1e-9) and len(values) > 10


@pytest.mark.coco
@pytest.mark.parametrize("threshold", [0, 0.4, 2])
def test_the_confusion_is_that_by_hand(truth, threshold):
    coco, images = truth
    predictions = draw(coco, images, 7)
    ids = sorted(coco.cats)
    pairs = pair_all(coco, predictions, threshold)
    matrix = confusion(ids, pairs)
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
    off_diagonal = matrix[:-1, :-1] - np.diag(np.diag(matrix[:-1, :-1]))
    if threshold == 0:
        assert off_diagonal.any() and matrix[:-1, -1].any() and matrix[-1].any()

    # ---- the same mistakes, one by one
    kinds = Counter(mistake.kind for of_image in pairs for mistake in mistakes_in(of_image))
    assert kinds["wrong class"] == off_diagonal.sum()
    beside = kinds["wrong place"] + kinds["twice"] + kinds["nothing there"]
    assert beside == matrix[:-1, -1].sum()
    assert kinds["missed"] <= matrix[-1].sum() <= kinds["missed"] + kinds["wrong place"]
    assert threshold or set(kinds) == set(KINDS)


def small_truth(*annotations, names=("cat", "dog")):
    """COCO with one image, 1, of 100 x 100 pixels. annotations: (category id, x0, y0, x1, y1)."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": 1, "file_name": "one.png", "width": 100, "height": 100}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
        "annotations": [
            {
                "id": number,
                "image_id": 1,
                "category_id": label,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0,
            }
            for number, (label, x0, y0, x1, y1) in enumerate(annotations, 1)
        ],
    }
    coco.createIndex()
    return coco


def predicted(*rows):
    """A prediction. rows: (score, category id, x0, y0, x1, y1)."""
    rows = np.array(rows, np.float64).reshape(-1, 6)
    return {
        "scores": np.float32(rows[:, 0]),
        "labels": rows[:, 1].astype(np.int64),
        "boxes": np.float32(rows[:, 2:]),
    }


FOUND = (1, 0, 0, 10, 10)
CAT, DOG = 1, 2


@pytest.mark.parametrize(
    "detections, expected",
    [
        ([(0.9, CAT, 0, 0, 10, 10)], []),
        ([], [("missed", CAT, None, None)]),
        ([(0.2, CAT, 0, 0, 10, 10)], [("missed", CAT, None, None)]),
        ([(0.9, DOG, 0, 0, 10, 10)], [("wrong class", DOG, 0.9, CAT)]),
        ([(0.9, CAT, 0, 0, 10, 4)], [("wrong place", CAT, 0.9, None)]),
        (
            [(0.9, CAT, 0, 0, 10, 4), (0.8, CAT, 0, 6, 10, 10)],
            [("wrong place", CAT, 0.9, None), ("wrong place", CAT, 0.8, None)],
        ),
        ([(0.9, CAT, 0, 0, 10, 10), (0.8, CAT, 0, 0, 10, 9)], [("twice", CAT, 0.8, None)]),
        ([(0.9, CAT, 0, 0, 10, 10), (0.8, DOG, 0, 0, 10, 10)], [("twice", DOG, 0.8, None)]),
        (
            [(0.9, DOG, 0, 0, 10, 4), (0.8, CAT, 50, 50, 60, 60)],
            [
                ("nothing there", DOG, 0.9, None),
                ("nothing there", CAT, 0.8, None),
                ("missed", CAT, None, None),
            ],
        ),
        # the cat's own detection wins over a dog's with a higher score
        ([(0.9, DOG, 0, 0, 10, 10), (0.6, CAT, 0, 0, 10, 9)], [("twice", DOG, 0.9, None)]),
    ],
)
def test_each_kind_of_mistake(detections, expected):
    coco = small_truth(FOUND)
    found = mistakes_in(pair_up(coco, 1, predicted(*detections), 0.5))
    rounded = [
        (kind, label, score and round(score, 4), truth) for kind, label, _, score, truth in found
    ]
    assert rounded == expected
    for mistake in found:
        if mistake.kind == "missed":
            assert mistake.box == [0, 0, 10, 10]
        else:
            assert [mistake.score, mistake.label, *mistake.box] == pytest.approx(
                next(row for row in detections if row[0] == round(mistake.score, 4))
            )


@pytest.mark.coco
def test_the_report_has_what_the_parts_say(truth):
    coco, images = truth
    predictions = draw(coco, images, 3)
    report = make_report(evaluate(coco, predictions))
    assert report == json.loads(json.dumps(report)), "plain values"
    matches = match(coco, predictions)
    best = curve(matches).best()
    names = ["threshold", "precision", "recall", "F1"]
    assert [report["all_classes"][name] for name in names] == list(best)
    pairs = pair_all(coco, predictions, best[0])
    assert report["confusion"] == confusion(sorted(coco.cats), pairs).tolist()
    assert report["images"] == 12 and len(report["classes"]) == 80
    person = report["classes"][0]
    assert person["name"] == "person" and person["objects"] == matches.objects[1]
    assert person["AP50"] == pytest.approx(np.mean(person["precision_at_recalls"]), abs=1e-4)
    assert person["detections"] == (matches.labels == 1).sum()
    assert any(row["AP50"] is None and row["threshold"] == 1 for row in report["classes"])
    thresholds = best_thresholds(report)
    assert list(thresholds) == sorted(coco.cats)
    for row in report["classes"]:
        expected = row["threshold"] if row["F1"] else best[0]
        assert thresholds[row["id"]] == expected

    # ---- what is drawn
    scores = report["scores"]
    assert sum(scores["hits"]) == matches.hits.sum()
    assert sum(scores["misses"]) == (~matches.hits).sum()
    assert (
        scores["hits"][6]
        == (matches.hits & (0.3 <= matches.scores) & (matches.scores < 0.35)).sum()
    )
    for threshold, f1 in list(zip(report["thresholds"], person["F1_at_thresholds"]))[::7]:
        kept = (matches.labels == 1) & (matches.scores >= np.float32(threshold))
        hits = matches.hits[kept].sum()
        assert f1 == pytest.approx(2 * hits / (kept.sum() + matches.objects[1]), abs=1e-4)
    areas = [a["area"] for i in images for a in coco.imgToAnns[i] if not a["iscrowd"]]
    medium = sum(32**2 <= area <= 96**2 for area in areas)
    assert report["objects"]["all"] == len(areas) and report["objects"]["medium"] == medium > 0

    # ---- mistakes
    of_image = {i: mistakes_in(each) for i, each in zip(predictions, pairs)}
    kinds = Counter(mistake.kind for mistakes in of_image.values() for mistake in mistakes)
    assert {kind: each["count"] for kind, each in report["mistakes"].items()} == kinds
    counts = [len(image["mistakes"]) for image in report["worst_images"]]
    assert counts == sorted(map(len, of_image.values()), reverse=True)
    worst = report["worst_images"][0]
    assert worst["file_name"] == coco.imgs[worst["image_id"]]["file_name"]
    assert worst["mistakes"] == [m._asdict() for m in of_image[worst["image_id"]]]


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
        assert confusion([3], pair_all(coco, predictions, 0.5)).tolist() == [[0, 0], [0, 0]]


def test_an_object_on_the_border_of_two_sizes_counts_in_both_as_in_coco():
    coco = small_truth((CAT, 0, 0, 32, 32), (CAT, 40, 40, 72, 72))
    found = [(0.9, CAT, 0, 0, 32, 32), (0.8, CAT, 40, 40, 72, 72)]
    report = make_report(evaluate(coco, {1: predicted(*found)}))
    assert report["objects"] == {"all": 2, "small": 2, "medium": 2, "large": 0}
    figures = report["AP"]["bbox"]
    assert figures["AP_small"] == figures["AP_medium"] == pytest.approx(1)
    assert figures["AP_large"] is None
