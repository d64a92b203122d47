"""The original's panoptic images of recipe.make_panoptic_outputs, and their quality. Its own interpreter runs this file:

    ORACLE_PYTHON tests/oracle/run_panoptic.py FOLDER OUT.npz

Writes into FOLDER ground truth that the predictions meet in part (gt.json and gt/): segments merged, split, shifted and
left out. OUT.npz holds `quality` [3, 4], pq, sq, rq and n of all, things and stuff, and for every image `png/I`, its
segment ids, and `segments/I` as JSON.
"""
import contextlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import recipe
import torch
from detr.datasets.panoptic_eval import PanopticEvaluator
from detr.models.segmentation import PostProcessPanoptic
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image


def spoil(ids, segments):
    """Ground truth that differs from a prediction: ids [h, w], where 0 is nothing, and segments_info."""
    ids, kept = np.roll(ids + 1, 2, axis=1), [dict(segment, id=segment["id"] + 1, iscrowd=0) for segment in segments]
    ids[ids == kept[1]["id"]] = kept[0]["id"]  # merged
    ids[ids == kept[2]["id"]] = 0  # left out
    middle = int(np.argwhere(ids == kept[3]["id"])[:, 1].mean())
    ids[(ids == kept[3]["id"]) & (np.arange(ids.shape[1]) < middle)] = 1000  # split
    kept.append(dict(kept[3], id=1000))
    kept[4]["iscrowd"] = 1
    kept = [segment for segment in kept if (ids == segment["id"]).any()]
    for segment in kept:
        segment["area"] = int((ids == segment["id"]).sum())
    return ids, kept


def main(folder, path):
    outputs, sizes, target_sizes = recipe.make_panoptic_outputs()
    process = PostProcessPanoptic({i: i <= 90 for i in range(250)})
    results = process({name: torch.from_numpy(array) for name, array in outputs.items()},
                      [tuple(size) for size in sizes.tolist()], [tuple(size) for size in target_sizes.tolist()])
    (folder / "gt").mkdir()
    out, predictions, annotations = {}, [], []
    for i, result in enumerate(results):
        ids = rgb2id(np.asarray(Image.open(io.BytesIO(result["png_string"])), np.uint32)).astype(np.int64)
        out[f"png/{i}"], out[f"segments/{i}"] = ids, np.array(json.dumps(result["segments_info"]))
        names = {"image_id": i, "file_name": f"{i}.png"}
        predictions.append({**result, **names})
        ids, segments = spoil(ids, result["segments_info"])
        Image.fromarray(id2rgb(ids)).save(folder / "gt" / f"{i}.png")
        annotations.append({**names, "segments_info": segments})
    categories = [{"id": i, "isthing": int(i <= 90)} for i in range(250)]
    (folder / "gt.json").write_text(json.dumps({"annotations": annotations, "categories": categories}))
    evaluator = PanopticEvaluator(str(folder / "gt.json"), str(folder / "gt"), str(folder / "original"))
    evaluator.update(predictions)
    with contextlib.redirect_stdout(io.StringIO()):
        quality = evaluator.summarize()
    out["quality"] = np.array([[quality[part][key] for key in ("pq", "sq", "rq", "n")]
                               for part in ("All", "Things", "Stuff")])
    np.savez(path, **out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
