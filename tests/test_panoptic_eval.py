"""Panoptic quality: against itself, computed by hand, and without bad samples."""

import io
import json
import shutil
import sys
from collections import defaultdict

import numpy as np
import pytest
from panoptic_files import make_panoptic, panoptic_args
from PIL import Image

from datasets import build_dataset
from datasets.coco_panoptic import rgb2id
from main import main
from models.segmentation import id2rgb
from util.errors import InputError


@pytest.fixture
def root(tmp_path):
    return make_panoptic(tmp_path / "panoptic")


def test_panopticapi_missing(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "panopticapi", None)
    with pytest.raises(InputError, match="the package panopticapi: pip install panopticapi-lite"):
        main(panoptic_args(root))


def evaluator_of(root, folder):
    pytest.importorskip("panopticapi")
    from datasets.panoptic_eval import PanopticEvaluator

    ground_truth = json.loads((root / "annotations" / "panoptic_val2017.json").read_text())
    return PanopticEvaluator(lambda: ground_truth, root / "panoptic_val2017", folder)


def truth(root):
    """The ground truth in the form of predictions."""
    for annotation in json.loads((root / "annotations" / "panoptic_val2017.json").read_text())[
        "annotations"
    ]:
        png = (root / "panoptic_val2017" / annotation["file_name"]).read_bytes()
        yield {
            **{key: annotation[key] for key in ("image_id", "file_name", "segments_info")},
            "png_string": png,
        }


def test_a_png_that_cannot_be_written_is_named(root, tmp_path):
    evaluator = evaluator_of(root, tmp_path / "out")
    predictions = list(truth(root))
    (tmp_path / "out" / predictions[0]["file_name"]).mkdir()
    with pytest.raises(InputError, match="out/.*png: cannot be written"):
        evaluator.update(predictions)


def test_ground_truth_against_itself_is_perfect(root, tmp_path):
    evaluator = evaluator_of(root, tmp_path / "out")
    evaluator.update(list(truth(root)))
    figures = evaluator.summarize()
    for part in ("All", "Things", "Stuff"):
        assert figures[part]["pq"] == figures[part]["sq"] == figures[part]["rq"] == 1


@pytest.mark.coco
def test_real_ground_truth_against_itself_is_perfect(coco_path, tmp_path):
    root = coco_path.parent / "coco_panoptic_sample"
    evaluator = evaluator_of(root, tmp_path / "out")
    evaluator.update(list(truth(root)))
    figures = evaluator.summarize()
    assert {part: figures[part]["pq"] for part in ("All", "Things", "Stuff")} == {
        "All": 1,
        "Things": 1,
        "Stuff": 1,
    }


def test_a_segment_given_to_another_class_and_a_shifted_one_cost_what_they_should(root, tmp_path):
    evaluator = evaluator_of(root, tmp_path / "out")
    predictions = list(truth(root))
    predictions[0]["segments_info"][0]["category_id"] = 199  # the car of one image is called wall
    evaluator.update(predictions)
    figures = evaluator.summarize()
    count = len(predictions)
    # One false negative.
    assert figures["Things"]["pq"] == pytest.approx((count - 1) / (count - 1 + 0.5))
    assert figures["Stuff"]["pq"] == pytest.approx(count / (count + 0.5))  # one false positive
    assert figures["All"]["sq"] == 1


def spoil(prediction):
    """A prediction with its first two segments merged, the third split, the fourth missing and all
    of them shifted.
    """
    ids = rgb2id(np.asarray(Image.open(io.BytesIO(prediction["png_string"]))))
    segments = [dict(segment) for segment in prediction["segments_info"]]
    ids[ids == segments[1]["id"]] = segments[0]["id"]
    columns = np.arange(ids.shape[1])
    middle = np.median(np.argwhere(ids == segments[2]["id"])[:, 1])
    ids[(ids == segments[2]["id"]) & (columns < middle)] = 1
    ids[ids == segments[3]["id"]] = 0
    ids = np.roll(ids, 7, axis=1)
    segments = [segments[0], dict(segments[2], id=1), segments[2], *segments[4:]]
    with io.BytesIO() as file:
        Image.fromarray(id2rgb(ids)).save(file, format="PNG")
        return {**prediction, "segments_info": segments, "png_string": file.getvalue()}


def quality_by_hand(pairs, isthing):
    """PQ, averaged over the classes, of pairs of ground truth and prediction: section 4 of the
    paper (arXiv 1801.00868).
    """
    overlaps, errors = defaultdict(list), defaultdict(float)
    for truth, prediction in pairs:
        true, found = (
            rgb2id(np.asarray(Image.open(io.BytesIO(p["png_string"])))) for p in (truth, prediction)
        )
        unused = {segment["id"]: segment["category_id"] for segment in prediction["segments_info"]}
        ignored = defaultdict(lambda: true == 0)  # no segment's pixels, and by class a crowd's
        for segment in truth["segments_info"]:
            mask, category = true == segment["id"], segment["category_id"]
            if segment["iscrowd"]:
                ignored[category] = ignored[category] | mask
                continue
            scores = {
                i: (mask & (found == i)).sum() / (mask | (found == i) & (true > 0)).sum()
                for i, c in unused.items()
                if c == category
            }
            best = max(scores, key=scores.get, default=None)
            if best is not None and scores[best] > 0.5:
                overlaps[category].append(scores[best])
                del unused[best]
            else:
                errors[category] += 0.5
        for i, category in unused.items():
            if ignored[category][found == i].mean() <= 0.5:
                errors[category] += 0.5
    present = {c for c in {*overlaps, *errors} if isthing[c]}
    return sum(sum(overlaps[c]) / (len(overlaps[c]) + errors[c]) for c in present) / len(present)


@pytest.mark.coco
def test_quality_of_known_errors_is_what_a_calculation_by_hand_gives(coco_path, tmp_path):
    root = coco_path.parent / "coco_panoptic_sample"
    evaluator = evaluator_of(root, tmp_path / "out")
    pairs = [(segments, spoil(segments)) for segments in truth(root)]
    evaluator.update([prediction for _, prediction in pairs])
    figures = evaluator.summarize()
    categories = json.loads((root / "annotations" / "panoptic_val2017.json").read_text())[
        "categories"
    ]
    things = {c["id"]: c["isthing"] for c in categories}
    for part, chosen in (
        ("All", dict.fromkeys(things, 1)),
        ("Things", things),
        ("Stuff", {c: 1 - t for c, t in things.items()}),
    ):
        assert figures[part]["pq"] == pytest.approx(quality_by_hand(pairs, chosen), abs=1e-12)
        assert 0.1 < figures[part]["pq"] < 0.95, "all right or all wrong would test nothing"


def edit_annotations(root, change):
    """change: called with each annotation of the validation data, and its number."""
    path = root / "annotations" / "panoptic_val2017.json"
    data = json.loads(path.read_text())
    for number, annotation in enumerate(data["annotations"]):
        change(annotation, number)
    path.write_text(json.dumps(data))


@pytest.mark.coco
def test_the_ground_truth_of_the_data_set_is_the_file_s(coco_path, tmp_path):
    """Also where the file lacks areas: the pixels of the PNG are counted."""
    root = tmp_path / "panoptic"
    shutil.copytree(coco_path.parent / "coco_panoptic_sample", root)
    annotations = root / "annotations"
    shutil.copy(
        annotations / "panoptic_coco_detection_format.json", annotations / "instances_val2017.json"
    )
    pairs = [spoil(segments) for segments in truth(root)]
    figures = []
    for change in (
        lambda annotation, number: None,
        lambda annotation, number: annotation["segments_info"][number].pop("area"),
    ):
        edit_annotations(root, change)
        ground_truth = build_dataset("val", panoptic_args(root)).get_ground_truth
        for each in (evaluator_of(root, tmp_path / "file"), evaluator_of(root, tmp_path / "ours")):
            if each.output_dir.name == "ours":
                each.ground_truth = ground_truth
            each.update(pairs)
            figures.append(each.summarize())
    assert figures[0] == figures[1] == figures[2] == figures[3]


def test_bad_samples_that_were_skipped_are_not_scored(root, tmp_path):
    """One is left out by the dataset, and one by the loader; area and iscrowd are missing."""
    pytest.importorskip("panopticapi")

    def change(annotation, number):
        if annotation["image_id"] == 1:
            annotation.pop("segments_info")
        if annotation["image_id"] == 2:
            for key in ("area", "iscrowd"):
                annotation["segments_info"][0].pop(key)

    edit_annotations(root, change)
    (root / "panoptic_val2017" / "000000000002.png").write_bytes(b"damaged")
    flags = "--skip_bad_samples --epochs 1 --num_workers 0 --seed 47 --batch_size 1"
    main(panoptic_args(root, flags, "--output_dir", tmp_path / "out"))
    [line] = map(json.loads, (tmp_path / "out" / "log.txt").read_text().splitlines())
    assert line["test_PQ_all"]["n"] == 2
    predictions = json.loads((tmp_path / "out" / "panoptic_eval" / "predictions.json").read_text())
    assert [p["image_id"] for p in predictions["annotations"]] == [2, 4]
