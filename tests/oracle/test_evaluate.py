"""End to end: files of weights and images in, detections and COCO figures out.

DETR_ORACLE_CASE (resnet18 or resnet50) and DETR_ORACLE_IMAGES choose another model and more images.
"""

import json
import os

import numpy as np
import ours
import pytest
import recipe
from coco_files import make_coco, write_annotations
from pycocotools import mask as coco_mask

import main
from models.weights.__main__ import main as convert
from models.weights.model import load_model_state, model_state
from util.jittor_file import write_jittor_file

CASE = os.environ.get("DETR_ORACLE_CASE", "resnet18")
IMAGES = int(os.environ.get("DETR_ORACLE_IMAGES", 12))
FLAGS = {
    "resnet18": ["--backbone", "resnet18"],
    "resnet50": [],
    "masks": ["--masks", "--enc_layers", "1", "--dec_layers", "2", "--num_queries", "20"],
}


@pytest.fixture
def folder(coco_path, tmp_path):
    """Validation images: the first ones of COCO if they are there, else synthetic ones."""
    root = tmp_path / "coco"
    root.mkdir()
    if not coco_path.is_dir():
        make_coco(root)
        return root
    data = json.loads((coco_path / "annotations" / "instances_val2017.json").read_text())
    images = data["images"][:IMAGES]
    write_annotations(root, {"images": images, "annotations": [], "categories": []})
    (root / "val2017").symlink_to((coco_path / "val2017").resolve())
    return root


def evaluate(weights, folder, output_dir, case=CASE):
    """Run `python main.py --eval` and return its detections in the form of run_evaluate.py."""
    flags = "--eval --no_aux_loss --batch_size 2".split() + FLAGS[case]
    files = ["--coco_path", folder, "--resume", weights, "--output_dir", output_dir]
    main.main(main.parse_args([*flags, *map(str, files)]))
    detections = json.loads((output_dir / "detections_bbox.json").read_text())
    xywh = np.array([d["bbox"] for d in detections])
    segments = output_dir / "detections_segm.json"
    rles = [d["segmentation"] for d in json.loads(segments.read_text())] if case == "masks" else []
    return {
        "rles": rles,
        "ids": np.array([d["image_id"] for d in detections]),
        "scores": np.array([d["score"] for d in detections]),
        "labels": np.array([d["category_id"] for d in detections]),
        "boxes": np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1),
    }


@pytest.fixture
def compare(measured, evaluations):
    def compare(configuration, mine, theirs, case=CASE):
        assert np.array_equal(mine["ids"], np.repeat(theirs["ids"], theirs["scores"].shape[1]))
        assert np.array_equal(mine["labels"], theirs["labels"].ravel())
        configuration = f"{case}, {len(theirs['ids'])} images, {configuration}"
        scores = np.abs(mine["scores"] - theirs["scores"].ravel())
        measured("end to end: scores", configuration, scores.max(), 1e-4)
        boxes = np.abs(mine["boxes"] - theirs["boxes"].reshape(-1, 4))
        measured("end to end: boxes, pixels", configuration, boxes.max(), 0.05)
        stats = evaluations[-1]
        for kind, key in (("bbox", "coco_eval_bbox"), ("segm", "coco_eval_masks")):
            assert (key in stats) == (f"stats_{kind}" in theirs)
            if key in stats:
                expected = theirs[f"stats_{kind}"]
                figures = np.abs(np.array(stats[key]) - expected)
                measured(f"end to end: 12 COCO figures, {kind}", configuration, figures.max(), 5e-5)
                assert expected[0] > 0.1, "without true positives the figures compare nothing"
        if case == "masks":
            expected = [rle for image in theirs["rles"] for rle in json.loads(str(image))]
            areas = coco_mask.area(expected)
            assert (areas > 0).mean() > 0.5, "empty masks compare nothing"
            pairs = zip(mine["rles"], expected, areas, strict=True)
            ious = [coco_mask.iou([a], [b], [0]).item() for a, b, area in pairs if area]
            measured("end to end: 1 - IoU of masks", configuration, 1 - min(ious), 1e-3)
            assert (coco_mask.area(mine["rles"])[areas == 0] == 0).all()

    return compare


def test_weights_of_the_original_detect_the_same_here(original, folder, tmp_path, compare):
    theirs = original("run_evaluate.py", "--save", tmp_path, CASE, folder)
    for name in ("zip.pth", "legacy.pth"):
        compare(name, evaluate(tmp_path / name, folder, tmp_path / "out"), theirs)


def test_weights_saved_here_detect_the_same_in_the_original(
    original, folder, tmp_path, compare, monkeypatch
):
    _, model, _, _ = ours.build(CASE)
    weights = recipe.make_detector({name: tuple(p.shape) for name, p in model.state_dict().items()})
    load_model_state(model, weights, "the recipe")
    saved, converted = tmp_path / "ours.pkl", tmp_path / "ours.pth"
    write_jittor_file({"model": model_state(model)}, saved)
    monkeypatch.setattr("sys.argv", ["checkpoint", str(saved), str(converted)])
    convert()
    theirs = original("run_evaluate.py", "--load", converted, CASE, folder)
    compare("weights saved here", evaluate(saved, folder, tmp_path / "out"), theirs)


def test_masks(original, folder, tmp_path, compare):
    theirs = original("run_evaluate.py", "--save", tmp_path, "masks", folder)
    mine = evaluate(tmp_path / "zip.pth", folder, tmp_path / "out", "masks")
    compare("zip.pth", mine, theirs, "masks")
