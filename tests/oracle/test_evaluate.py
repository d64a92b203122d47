"""End to end against the original: files of weights and images in, detections and COCO figures out.

DETR_ORACLE_CASE (resnet18 or resnet50) and DETR_ORACLE_IMAGES choose another extent.
"""
import json
import os

import numpy as np
import ours
import pytest
import recipe
from test_coco import make_coco, write_annotations

import main
from util.checkpoint import main as convert
from util.checkpoint import load_model_state, model_state, save_checkpoint

CASE = os.environ.get("DETR_ORACLE_CASE", "resnet18")
IMAGES = int(os.environ.get("DETR_ORACLE_IMAGES", 12))


@pytest.fixture
def folder(coco_path, tmp_path):
    """Validation images: the first of real COCO where there is some, else synthetic ones of all kinds."""
    root = tmp_path / "coco"
    root.mkdir()
    if not coco_path.is_dir():
        make_coco(root)
        return root
    data = json.loads((coco_path / "annotations" / "instances_val2017.json").read_text())
    write_annotations(root, {"images": data["images"][:IMAGES], "annotations": [], "categories": []})
    (root / "val2017").symlink_to((coco_path / "val2017").resolve())
    return root


def evaluate(weights, folder, output_dir):
    """What `python main.py --eval` writes, in the form of run_evaluate.py."""
    flags = {"resnet18": ["--backbone", "resnet18"], "resnet50": []}[CASE]
    main.main(main.get_args_parser().parse_args(
        ["--eval", "--no_aux_loss", "--batch_size", "2", "--coco_path", str(folder), "--resume", str(weights),
         "--output_dir", str(output_dir), *flags]))
    detections = json.loads((output_dir / "detections_bbox.json").read_text())
    xywh = np.array([d["bbox"] for d in detections])
    return {"ids": np.array([d["image_id"] for d in detections]), "scores": np.array([d["score"] for d in detections]),
            "labels": np.array([d["category_id"] for d in detections]),
            "boxes": np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)}


@pytest.fixture
def compare(measured):
    def compare(configuration, mine, theirs, stats):
        assert np.array_equal(mine["ids"], np.repeat(theirs["ids"], theirs["scores"].shape[1]))
        assert np.array_equal(mine["labels"], theirs["labels"].ravel())
        configuration = f"{CASE}, {len(theirs['ids'])} images, {configuration}"
        measured("end to end: scores", configuration, np.abs(mine["scores"] - theirs["scores"].ravel()).max(), 1e-4)
        measured("end to end: boxes, pixels", configuration,
                 np.abs(mine["boxes"] - theirs["boxes"].reshape(-1, 4)).max(), 0.05)
        measured("end to end: 12 COCO figures", configuration, np.abs(stats - theirs["stats"]).max(), 5e-5)
        assert theirs["stats"][0] > 0.1, "without hits the figures compare nothing"
    return compare


@pytest.fixture
def stats(monkeypatch):
    """The 12 figures of the last evaluation that main ran."""
    import engine
    seen = []
    evaluate_once = engine.evaluate

    def spy(*args):
        result = evaluate_once(*args)
        seen.append(np.array(result[0]["coco_eval_bbox"]))
        return result
    monkeypatch.setattr(engine, "evaluate", spy)
    return seen


def test_weights_of_the_original_detect_the_same_here(original, folder, tmp_path, compare, stats):
    theirs = original("run_evaluate.py", "--save", tmp_path, CASE, folder)
    for name in ("zip.pth", "legacy.pth"):
        compare(name, evaluate(tmp_path / name, folder, tmp_path / "out"), theirs, stats[-1])


def test_weights_saved_here_detect_the_same_in_the_original(original, folder, tmp_path, compare, stats, monkeypatch):
    _, model, _, _ = ours.build(CASE)
    weights = recipe.make_detector({name: tuple(p.shape) for name, p in model.state_dict().items()})
    load_model_state(model, weights, "the recipe")
    save_checkpoint({"model": model_state(model)}, tmp_path / "ours.pkl")
    monkeypatch.setattr("sys.argv", ["checkpoint", str(tmp_path / "ours.pkl"), str(tmp_path / "ours.pth")])
    convert()
    theirs = original("run_evaluate.py", "--load", tmp_path / "ours.pth", CASE, folder)
    compare("weights saved here", evaluate(tmp_path / "ours.pkl", folder, tmp_path / "out"), theirs, stats[-1])
