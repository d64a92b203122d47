"""Panoptic images and their quality: from the same logits and masks, and end to end."""

import json
import shutil

import numpy as np
import pytest
import recipe
from PIL import Image

import engine
import main
from datasets.coco_panoptic import rgb2id
from datasets.panoptic_eval import PanopticEvaluator
from models.segmentation import PostProcessPanoptic
from util.backend import jt

pytest.importorskip("panopticapi")
PARTS = ("All", "Things", "Stuff")
FIGURES = ("pq", "sq", "rq", "n")


def compare(evaluator, quality, theirs, measured, configuration, pixels):
    """The PNGs and segments that the evaluator holds, and figures [3, 4], with the original's."""
    different = []
    for prediction in evaluator.predictions:
        expected = json.loads(str(theirs[f"segments/{prediction['image_id']}"]))
        assert len(expected) > 5 and len({segment["isthing"] for segment in expected}) == 2
        key = ("id", "isthing", "category_id")
        assert [[s[k] for k in key] for s in prediction["segments_info"]] == [
            [s[k] for k in key] for s in expected
        ]
        ids = rgb2id(np.asarray(Image.open(evaluator.output_dir / prediction["file_name"])))
        different.append((ids != theirs[f"png/{prediction['image_id']}"]).mean())
    measured("panoptic: share of pixels in another segment", configuration, max(different), pixels)
    measured("panoptic: PQ, SQ, RQ", configuration, np.abs(quality - theirs["quality"]).max(), 5e-5)
    assert 0.2 < quality[0, 0] < 0.9, "all right or all wrong compares nothing"


def test_the_same_outputs(original, tmp_path, measured):
    theirs = original("run_panoptic.py", tmp_path)
    outputs, sizes, target_sizes = recipe.make_panoptic_outputs()
    process = PostProcessPanoptic({i: i <= 90 for i in range(250)})
    results = process(
        {name: jt.array(array) for name, array in outputs.items()}, sizes, target_sizes
    )
    ground_truth = json.loads((tmp_path / "gt.json").read_text())
    evaluator = PanopticEvaluator(lambda: ground_truth, tmp_path / "gt", tmp_path / "ours")
    evaluator.update(
        [{**result, "image_id": i, "file_name": f"{i:012}.png"} for i, result in enumerate(results)]
    )
    quality = evaluator.summarize()
    figures = np.array([[quality[part][key] for key in FIGURES] for part in PARTS])
    compare(evaluator, figures, theirs, measured, "the same outputs for 4 images", 1e-4)


@pytest.mark.coco
def test_the_same_weights_and_real_images(original, coco_path, tmp_path, measured, monkeypatch):
    root = tmp_path / "panoptic"
    shutil.copytree(coco_path.parent / "coco_panoptic_sample", root)
    annotations = root / "annotations"
    shutil.copy(
        annotations / "panoptic_coco_detection_format.json", annotations / "instances_val2017.json"
    )
    theirs = original(
        "run_panoptic.py", "--images", root, "--save", tmp_path / "weights.pth", tmp_path
    )
    # The ground truth to score against is what the original's predictions meet in part.
    path = annotations / "panoptic_val2017.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | json.loads((tmp_path / "gt.json").read_text()))
    )
    shutil.copytree(tmp_path / "gt", root / "panoptic_val2017", dirs_exist_ok=True)
    calls = []
    evaluate = engine.evaluate

    def spy(*args, **options):
        calls.append((options["panoptic_evaluator"], evaluate(*args, **options)))
        return calls[-1][1]

    monkeypatch.setattr(engine, "evaluate", spy)
    main.main(
        main.parse_args(
            [
                *"""
                --dataset_file coco_panoptic --masks --enc_layers 1 --dec_layers 1 --num_queries
                30 --eval --batch_size 2 --coco_path
            """.split(),
                str(root),
                "--coco_panoptic_path",
                str(root),
                "--resume",
                str(tmp_path / "weights.pth"),
                "--output_dir",
                str(tmp_path / "out"),
            ]
        )
    )
    evaluator, (stats, _) = calls[0]
    figures = np.array(
        [[stats[f"PQ_{part}"][key] for key in FIGURES] for part in ("all", "th", "st")]
    )
    compare(evaluator, figures, theirs, measured, "end to end, 2 COCO images", 1e-3)
