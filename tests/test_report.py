"""The report of an evaluation, compared with plain loops and with pycocotools."""

import json
from collections import Counter

import numpy as np
import pytest
from pycocotools.coco import COCO

from datasets.annotations import load_coco
from datasets.coco_eval import CocoEvaluator
from datasets.matching import MISTAKES, find_mistakes, match_detections, match_image
from datasets.report import compute_curve, make_report, update_confusion


@pytest.fixture(scope="module")
def truth(coco_path):
    """The ground truth and the ids of 12 real images, some with crowds."""
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
    """Draw predictions of all kinds: true positives, and every kind of mistake."""
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
    """Return a CocoEvaluator with its metrics."""
    evaluator = CocoEvaluator(coco, ["bbox"])
    evaluator.update(predictions)
    evaluator.synchronize_between_processes()
    evaluator.accumulate()
    evaluator.summarize()
    return evaluator


def match_all(coco, predictions, threshold):
    return [match_image(coco, *item, threshold) for item in predictions.items()]


def make_confusion(class_ids, matches):
    matrix = np.zeros((len(class_ids) + 1, len(class_ids) + 1), np.int64)
    for image_matches in matches:
        update_confusion(matrix, class_ids, image_matches)
    return matrix


def compute_iou(a, b, is_crowd=False):
    """Compute the IoU of two boxes x0, y0, x1, y1."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1])
    other = (b[2] - b[0]) * (b[3] - b[1])
    union = area if is_crowd else area + other - width * height
    return width * height / union if union > 0 else 0.0


def get_corners(ann):
    x, y, w, h = ann["bbox"]
    return [x, y, x + w, y + h]


def find_best(box, anns, taken):
    """Return the annotation with the highest IoU of at least 0.5, the last of equal ones; or None.

    taken: ids of annotations to leave out, as are crowds.
    """
    best, found = 0.5, None
    for ann in anns:
        if not ann["iscrowd"] and ann["id"] not in taken:
            if compute_iou(box, get_corners(ann)) >= best:
                best, found = compute_iou(box, get_corners(ann)), ann
    return found


def is_on_crowd(box, anns):
    crowds = [get_corners(ann) for ann in anns if ann["iscrowd"]]
    return any(compute_iou(box, crowd, True) >= 0.5 for crowd in crowds)


def match_by_hand(coco, predictions):
    """Return (class, score, is true positive) of each detection, and each class's object count."""
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
                if found := find_best(box, anns, taken):
                    taken.add(found["id"])
                    rows.append((class_id, -score, True))
                elif not is_on_crowd(box, anns):
                    rows.append((class_id, -score, False))
    return rows, objects


@pytest.mark.coco
@pytest.mark.parametrize("seed", range(5))
def test_true_positives_and_best_thresholds_match_plain_loops(truth, seed):
    coco, images = truth
    predictions = draw(coco, images, seed)
    matches = match_detections(coco, predictions)
    rows, num_objects = match_by_hand(coco, predictions)
    found = zip(matches.labels.tolist(), matches.scores.tolist(), matches.is_true_positive.tolist())
    assert sorted(found) == sorted((c, float(s), h) for c, s, h in rows)
    assert matches.num_objects == num_objects
    for label in [None, *sorted({c for c, _, _ in rows})]:
        of_class = [(s, h) for c, s, h in rows if label in (None, c)]
        total = sum(num_objects.values()) if label is None else num_objects[label]
        best = None
        scores = [*sorted({float(s) for s, _ in of_class}, reverse=True), 0.0]
        for threshold, lower in zip(scores, scores[1:]):
            above = [h for s, h in of_class if s >= threshold]
            precision, recall = sum(above) / len(above), sum(above) / max(total, 1)
            f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
            if best is None or f1 > best[3]:
                best = (threshold + lower) / 2, precision, recall, f1
        assert compute_curve(matches, label).find_best() == pytest.approx(best, abs=1e-12), label


@pytest.mark.coco
@pytest.mark.parametrize("seed", range(5))
def test_the_area_below_a_curve_is_the_ap50_of_pycocotools(truth, seed, capsys):
    coco, images = truth
    predictions = draw(coco, images, seed)
    evaluator = evaluate(coco, predictions)
    coco_eval = evaluator.coco_eval["bbox"]
    matches = match_detections(coco, predictions)
    rows = {row["name"]: row["AP50"] for row in evaluator.per_class("bbox")}
    values = []
    for class_id, count in matches.num_objects.items():
        expected = rows[coco.cats[class_id]["name"]]
        if count == 0:
            assert expected is None
            continue
        precision = compute_curve(matches, class_id).interpolate_precision()
        index = coco_eval.params.catIds.index(class_id)
        of_coco = coco_eval.eval["precision"][0, :, index, 0, -1]
        np.testing.assert_allclose(precision, of_coco, atol=1e-9)
        values.append(precision.mean())
        assert values[-1] == pytest.approx(expected, abs=1e-9)
    stats = coco_eval.stats
    assert np.mean(values) == pytest.approx(stats[1], abs=1e-9) and len(values) > 10


@pytest.mark.coco
@pytest.mark.parametrize("threshold", [0, 0.4, 2])
def test_the_confusion_matrix_matches_plain_loops(truth, threshold):
    coco, images = truth
    predictions = draw(coco, images, 7)
    ids = sorted(coco.cats)
    matches = match_all(coco, predictions, threshold)
    matrix = make_confusion(ids, matches)
    expected = np.zeros_like(matrix)
    position = {class_id: index for index, class_id in enumerate(ids)}
    for image_id, prediction in predictions.items():
        anns = coco.imgToAnns[image_id]
        rows = [
            (-float(score), number)
            for number, score in enumerate(prediction["scores"])
            if score >= threshold
        ]
        matched, taken = {}, set()  # number of the detection -> annotation, None for a crowd
        for same_class in (True, False):
            for _, number in sorted(rows):
                if number in matched:
                    continue
                box, label = prediction["boxes"][number], prediction["labels"][number]
                of_class = [ann for ann in anns if ann["category_id"] == label]
                if found := find_best(box, of_class if same_class else anns, taken):
                    matched[number] = found
                    taken.add(found["id"])
                elif same_class and is_on_crowd(box, of_class):
                    matched[number] = None
        for _, number in rows:
            label = position[prediction["labels"][number]]
            if number not in matched:
                expected[label, -1] += 1
            elif matched[number] is not None:
                expected[label, position[matched[number]["category_id"]]] += 1
        for ann in anns:
            if not ann["iscrowd"] and ann["id"] not in taken:
                expected[-1, position[ann["category_id"]]] += 1
    np.testing.assert_array_equal(matrix, expected)
    objects = sum(not a["iscrowd"] for i in images for a in coco.imgToAnns[i])
    assert matrix[:, :-1].sum() == objects, "each object is detected or missed once"
    off_diagonal = matrix[:-1, :-1] - np.diag(np.diag(matrix[:-1, :-1]))
    if threshold == 0:
        assert off_diagonal.any() and matrix[:-1, -1].any() and matrix[-1].any()

    # ---- the same mistakes, one by one
    kinds = Counter(mistake.kind for each in matches for mistake in find_mistakes(each))
    assert kinds["class"] == off_diagonal.sum()
    unmatched = kinds["localization"] + kinds["duplicate"] + kinds["background"]
    assert unmatched == matrix[:-1, -1].sum()
    assert kinds["missed"] <= matrix[-1].sum() <= kinds["missed"] + kinds["localization"]
    assert threshold or set(kinds) == set(MISTAKES)


def make_truth(*annotations, names=("cat", "dog")):
    """Make a COCO with image 1 of 100x100 pixels. annotations: (category id, x0, y0, x1, y1)."""
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


def make_prediction(*rows):
    """Make a prediction. rows: (score, category id, x0, y0, x1, y1)."""
    rows = np.array(rows, np.float64).reshape(-1, 6)
    return {
        "scores": np.float32(rows[:, 0]),
        "labels": rows[:, 1].astype(np.int64),
        "boxes": np.float32(rows[:, 2:]),
    }


CAT, DOG = 1, 2


@pytest.mark.parametrize(
    "detections, expected",
    [
        ([(0.9, CAT, 0, 0, 10, 10)], []),
        ([], [("missed", CAT, None, None)]),
        ([(0.2, CAT, 0, 0, 10, 10)], [("missed", CAT, None, None)]),
        ([(0.9, DOG, 0, 0, 10, 10)], [("class", DOG, 0.9, CAT)]),
        ([(0.9, CAT, 0, 0, 10, 4)], [("localization", CAT, 0.9, None)]),
        (
            [(0.9, CAT, 0, 0, 10, 4), (0.8, CAT, 0, 6, 10, 10)],
            [("localization", CAT, 0.9, None), ("localization", CAT, 0.8, None)],
        ),
        ([(0.9, CAT, 0, 0, 10, 10), (0.8, CAT, 0, 0, 10, 9)], [("duplicate", CAT, 0.8, None)]),
        ([(0.9, CAT, 0, 0, 10, 10), (0.8, DOG, 0, 0, 10, 10)], [("duplicate", DOG, 0.8, None)]),
        (
            [(0.9, DOG, 0, 0, 10, 4), (0.8, CAT, 50, 50, 60, 60)],
            [
                ("background", DOG, 0.9, None),
                ("background", CAT, 0.8, None),
                ("missed", CAT, None, None),
            ],
        ),
        # the cat's own detection wins over a dog's with a higher score
        ([(0.9, DOG, 0, 0, 10, 10), (0.6, CAT, 0, 0, 10, 9)], [("duplicate", DOG, 0.9, None)]),
    ],
)
def test_each_kind_of_mistake(detections, expected):
    coco = make_truth((CAT, 0, 0, 10, 10))
    found = find_mistakes(match_image(coco, 1, make_prediction(*detections), 0.5))
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
def test_the_report_agrees_with_its_parts(truth):
    coco, images = truth
    predictions = draw(coco, images, 3)
    report = make_report(evaluate(coco, predictions))
    assert report == json.loads(json.dumps(report)), "plain values"
    matches = match_detections(coco, predictions)
    best = compute_curve(matches).find_best()
    names = ["threshold", "precision", "recall", "F1"]
    assert [report["all_classes"][name] for name in names] == list(best)
    image_matches = match_all(coco, predictions, best[0])
    assert report["confusion"] == make_confusion(sorted(coco.cats), image_matches).tolist()
    assert report["images"] == 12 and len(report["classes"]) == 80
    person = report["classes"][0]
    assert person["name"] == "person" and person["objects"] == matches.num_objects[1]
    assert person["AP50"] == pytest.approx(np.mean(person["precision_at_recalls"]), abs=1e-4)
    assert person["detections"] == (matches.labels == 1).sum()
    assert any(row["AP50"] is None and row["threshold"] == 1 for row in report["classes"])
    assert [row["id"] for row in report["classes"]] == sorted(coco.cats)

    # ---- the charts
    hits, scores = matches.is_true_positive, report["scores"]
    assert sum(scores["hits"]) == hits.sum() and sum(scores["misses"]) == (~hits).sum()
    assert scores["hits"][6] == (hits & (0.3 <= matches.scores) & (matches.scores < 0.35)).sum()
    for threshold, f1 in list(zip(report["thresholds"], person["F1_at_thresholds"]))[::7]:
        kept = (matches.labels == 1) & (matches.scores >= np.float32(threshold))
        expected = 2 * hits[kept].sum() / (kept.sum() + matches.num_objects[1])
        assert f1 == pytest.approx(expected, abs=1e-4)
    areas = [a["area"] for i in images for a in coco.imgToAnns[i] if not a["iscrowd"]]
    medium = sum(32**2 <= area <= 96**2 for area in areas)
    assert report["objects"]["all"] == len(areas) and report["objects"]["medium"] == medium > 0

    # ---- mistakes
    mistakes = {i: find_mistakes(each) for i, each in zip(predictions, image_matches)}
    kinds = Counter(mistake.kind for each in mistakes.values() for mistake in each)
    assert {kind: each["count"] for kind, each in report["mistakes"].items()} == kinds
    counts = [len(image["mistakes"]) for image in report["worst_images"]]
    assert counts == sorted(map(len, mistakes.values()), reverse=True)
    worst = report["worst_images"][0]
    assert worst["file_name"] == coco.imgs[worst["image_id"]]["file_name"]
    assert worst["mistakes"] == [m._asdict() for m in mistakes[worst["image_id"]]]


def test_without_objects_and_detections():
    coco = COCO()
    coco.dataset = {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": 3, "name": "a"}],
        "annotations": [],
    }
    coco.createIndex()
    nothing = {"scores": np.zeros(0), "labels": np.zeros(0, int), "boxes": np.zeros((0, 4))}
    for predictions in ({}, {1: nothing, 2: nothing}):
        matches = match_detections(coco, predictions)
        assert matches.num_objects == {3: 0}
        assert compute_curve(matches).find_best() == (1, 0, 0, 0)
        assert not make_confusion([3], match_all(coco, predictions, 0.5)).any()


def test_both_halves_count_a_hundred_detections():
    boxes = [(CAT, 10 * x, 4 * y, 10 * x + 8, 4 * y + 3) for x in range(6) for y in range(20)]
    detections = [(1 - i / 1000, *box) for i, box in enumerate(boxes)]
    report = make_report(evaluate(make_truth(*boxes), {1: make_prediction(*detections)}))
    assert report["all_classes"]["recall"] == pytest.approx(100 / 120)
    assert report["mistakes"]["missed"]["count"] == 20


def test_an_object_between_two_area_ranges_counts_in_both_as_in_coco():
    coco = make_truth((CAT, 0, 0, 32, 32), (CAT, 40, 40, 72, 72))
    detections = [(0.9, CAT, 0, 0, 32, 32), (0.8, CAT, 40, 40, 72, 72)]
    report = make_report(evaluate(coco, {1: make_prediction(*detections)}))
    assert report["objects"] == {"all": 2, "small": 2, "medium": 2, "large": 0}
    figures = report["AP"]["bbox"]
    assert figures["AP_small"] == figures["AP_medium"] == pytest.approx(1)
    assert figures["AP_large"] is None
