"""Panoptic images and their quality, from the same logits and masks."""
import io
import json

import jittor as jt
import numpy as np
import pytest
import recipe
from PIL import Image

from datasets.coco_panoptic import rgb2id
from datasets.panoptic_eval import PanopticEvaluator
from models.segmentation import PostProcessPanoptic


def test_panoptic_images_and_quality(original, tmp_path, measured):
    pytest.importorskip("panopticapi")
    theirs = original("run_panoptic.py", tmp_path)
    outputs, sizes, target_sizes = recipe.make_panoptic_outputs()
    process = PostProcessPanoptic({i: i <= 90 for i in range(250)})
    results = process({name: jt.array(array) for name, array in outputs.items()}, sizes, target_sizes)
    evaluator = PanopticEvaluator(tmp_path / "gt.json", tmp_path / "gt", tmp_path / "ours")
    different = []
    for i, result in enumerate(results):
        expected = json.loads(str(theirs[f"segments/{i}"]))
        assert len(expected) > 5 and len({segment["isthing"] for segment in expected}) == 2
        assert [(s["id"], s["isthing"], s["category_id"]) for s in result["segments_info"]] == [
            (s["id"], s["isthing"], s["category_id"]) for s in expected]
        ids = rgb2id(np.asarray(Image.open(io.BytesIO(result["png_string"]))))
        different.append((ids != theirs[f"png/{i}"]).mean())
        evaluator.update([{**result, "image_id": i, "file_name": f"{i}.png"}])
    quality = evaluator.summarize()
    found = np.array([[quality[part][key] for key in ("pq", "sq", "rq", "n")] for part in ("All", "Things", "Stuff")])
    measured("panoptic: share of pixels in another segment", f"{len(results)} images", max(different), 1e-4)
    measured("panoptic: PQ, SQ, RQ", f"{len(results)} images", np.abs(found - theirs["quality"]).max(), 5e-5)
    assert 0.2 < found[0, 0] < 0.9, "all right or all wrong compares nothing"
