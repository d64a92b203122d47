"""Panoptic images and their quality, from the same outputs and end to end."""

import json
import shutil

import numpy as np
import pytest
import recipe
from PIL import Image

import main
from datasets.coco_panoptic import rgb2id
from datasets.panoptic_eval import PanopticEvaluator
from models.segmentation import PostProcessPanoptic
from util.backend import jt

pytest.importorskip("panopticapi")
PARTS = ("All", "Things", "Stuff")
FIGURES = ("pq", "sq", "rq", "n")


def compare(folder, quality, theirs, measured, configuration, pixels):
    """Compare an evaluator's PNGs and segments, and quality [3, 4], with the original's."""
    different = []
    for prediction in json.loads((folder / "predictions.json").read_text())["annotations"]:
        expected = json.loads(str(theirs[f"segments/{prediction['image_id']}"]))
        assert len(expected) > 5 and len({segment["isthing"] for segment in expected}) == 2
        mine, expected = (
            [[segment[key] for key in ("id", "isthing", "category_id")] for segment in segments]
            for segments in (prediction["segments_info"], expected)
        )
        assert mine == expected
        ids = rgb2id(np.asarray(Image.open(folder / prediction["file_name"])))
        different.append((ids != theirs[f"png/{prediction['image_id']}"]).mean())
    part = "panoptic: fraction of pixels in another segment"
    measured(part, configuration, max(different), pixels)
    measured("panoptic: PQ, SQ, RQ", configuration, np.abs(quality - theirs["quality"]).max(), 5e-5)
    assert 0.2 < quality[0, 0] < 0.9, "only hits or only misses compare nothing"


def test_the_same_outputs(original, tmp_path, measured):
    theirs = original("run_panoptic.py", tmp_path)
    outputs, sizes, target_sizes = recipe.make_panoptic_outputs()
    outputs = {name: jt.array(array) for name, array in outputs.items()}
    process = PostProcessPanoptic({i: i <= 90 for i in range(250)})
    results = process(outputs, sizes, target_sizes)
    ground_truth = json.loads((tmp_path / "gt.json").read_text())
    evaluator = PanopticEvaluator(lambda: ground_truth, tmp_path / "gt", tmp_path / "ours")
    evaluator.update(
        [{**result, "image_id": i, "file_name": f"{i:012}.png"} for i, result in enumerate(results)]
    )
    stats = evaluator.summarize()
    quality = np.array([[stats[part][key] for key in FIGURES] for part in PARTS])
    compare(tmp_path / "ours", quality, theirs, measured, "the same outputs for 4 images", 1e-4)


@pytest.mark.coco
def test_the_same_weights_and_real_images(original, coco_path, tmp_path, measured, evaluations):
    root = tmp_path / "panoptic"
    shutil.copytree(coco_path.parent / "coco_panoptic_sample", root)
    annotations = root / "annotations"
    detection_format = annotations / "panoptic_coco_detection_format.json"
    shutil.copy(detection_format, annotations / "instances_val2017.json")
    weights = tmp_path / "weights.pth"
    theirs = original("run_panoptic.py", "--images", root, "--save", weights, tmp_path)
    # The ground truth is one that the original's predictions match in part.
    path = annotations / "panoptic_val2017.json"
    data = json.loads(path.read_text()) | json.loads((tmp_path / "gt.json").read_text())
    path.write_text(json.dumps(data))
    shutil.copytree(tmp_path / "gt", root / "panoptic_val2017", dirs_exist_ok=True)
    flags = "--dataset_file coco_panoptic --masks --enc_layers 1 --dec_layers 1 --num_queries 30"
    files = ["--coco_path", root, "--coco_panoptic_path", root, "--resume", weights]
    files += ["--output_dir", tmp_path / "out"]
    command = [*flags.split(), "--eval", "--batch_size", "2", *map(str, files)]
    main.main(main.parse_args(command))
    [stats] = evaluations
    parts = [stats[f"PQ_{part}"] for part in ("all", "th", "st")]
    quality = np.array([[part[key] for key in FIGURES] for part in parts])
    folder = tmp_path / "out" / "panoptic_eval"
    compare(folder, quality, theirs, measured, "end to end, 2 COCO images", 1e-3)
