"""Evaluates the original on a COCO folder's validation images. Its own interpreter runs this file:

    ORACLE_PYTHON tests/oracle/run_evaluate.py CASE COCO_PATH [--save FOLDER | --load FILE] OUT.npz

The weights are those of recipe.make_detector: --save writes them as zip.pth and legacy.pth into
FOLDER; --load takes FILE instead. The original detects first; then annotations that its detections
meet in part are written over the folder's own (random weights find no real object, and figures of 0
would compare nothing). OUT.npz holds `stats_bbox`, the 12 COCO figures, and for every image in
order `ids`, `scores`, `labels`, `boxes`; with masks also `stats_segm`, and `rles` as JSON.
"""

import argparse
import contextlib
import io
import json
from pathlib import Path

import numpy as np
import recipe
import run_model
import torch
from detr.datasets import build_dataset, get_coco_api_from_dataset
from detr.datasets.coco_eval import CocoEvaluator
from detr.util.misc import collate_fn
from pycocotools import mask as coco_mask


def build(coco_path):
    return build_dataset(
        "val", argparse.Namespace(dataset_file="coco", coco_path=coco_path, masks=False)
    )


def encode(mask):
    """A mask [1, h, w] of the original's results as compressed RLE, its counts as text."""
    rle = coco_mask.encode(np.asfortranarray(mask[0].numpy().astype(np.uint8)))
    return {**rle, "counts": rle["counts"].decode()}


def cut(rle, share):
    """The left part of a mask."""
    mask = coco_mask.decode(rle)
    mask[:, int(share * mask.shape[1]) :] = 0
    rle = coco_mask.encode(mask)
    return {**rle, "counts": rle["counts"].decode()}


def annotate(path, ids, detections):
    """Ground truth from some of the detections, with noise; some of it as a crowd.

    Boxes are moved, masks cut.

    Only from detections whose score no other of their class comes near: where rounding could swap a
    right one with a wrong one, equal figures would be luck.
    """
    rng = np.random.default_rng(0)
    data = json.loads(path.read_text())
    data.update(info={}, annotations=[], categories=[{"id": i, "name": str(i)} for i in range(91)])
    apart = well_apart(
        np.stack([d["labels"] for d in detections]), np.stack([d["scores"] for d in detections])
    )
    for image_id, detection, queries in zip(ids, detections, apart):
        labels, boxes = detection["labels"].tolist(), detection["boxes"].double().numpy()
        chosen = np.flatnonzero(queries)
        for query in rng.choice(chosen, min(12, len(chosen)), replace=False):
            x0, y0, x1, y1 = boxes[query] + rng.normal(0, 0.06, 4) * np.tile(
                boxes[query][2:] - boxes[query][:2], 2
            )
            width, height = max(x1 - x0, 1), max(y1 - y0, 1)
            data["annotations"].append(
                {
                    "id": len(data["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": labels[query],
                    "bbox": [x0, y0, width, height],
                    "area": width * height,
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
            if "rles" in detection:
                segmentation = cut(detection["rles"][query], rng.uniform(0.5, 1))
                data["annotations"][-1].update(
                    segmentation=segmentation, area=float(coco_mask.area(segmentation))
                )
    path.write_text(json.dumps(data))


def well_apart(labels, scores, gap=5e-5):
    """For [images, queries]: whether the next score of the same label, in any image, is at least
    gap away.
    """
    apart = np.zeros(scores.shape, bool)
    for label in np.unique(labels):
        chosen = np.flatnonzero(labels == label)
        chosen = chosen[np.argsort(scores.flat[chosen])]
        steps = np.concatenate([[1], np.diff(scores.flat[chosen]), [1]])
        apart.flat[chosen] = np.minimum(steps[1:], steps[:-1]) >= gap
    return apart


@torch.no_grad()
def evaluate(case, options):
    model, _, postprocessors = run_model.build(case)
    if options.load:
        model.load_state_dict(torch.load(options.load, weights_only=True)["model"])
    else:
        weights = recipe.make_detector({name: p.shape for name, p in model.state_dict().items()})
        model.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
    if options.save:
        checkpoint = {"model": model.state_dict()}
        torch.save(checkpoint, options.save / "zip.pth")
        torch.save(checkpoint, options.save / "legacy.pth", _use_new_zipfile_serialization=False)
    model.eval()
    dataset = build(options.coco_path)
    ids, detections = [], []
    for samples, targets in torch.utils.data.DataLoader(dataset, 2, collate_fn=collate_fn):
        ids += [t["image_id"].item() for t in targets]
        outputs, sizes = model(samples), torch.stack([t["orig_size"] for t in targets])
        results = postprocessors["bbox"](outputs, sizes)
        if "segm" in postprocessors:
            results = postprocessors["segm"](
                results, outputs, sizes, torch.stack([t["size"] for t in targets])
            )
            for result in results:
                result["rles"] = [encode(mask) for mask in result["masks"]]
        detections += results
    annotate(options.coco_path / "annotations" / "instances_val2017.json", ids, detections)
    dataset = build(options.coco_path)
    evaluator = CocoEvaluator(get_coco_api_from_dataset(dataset), list(postprocessors))
    evaluator.update(dict(zip(ids, detections)))
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.synchronize_between_processes()
        evaluator.accumulate()
        evaluator.summarize()
    out = {
        "ids": np.array(ids),
        **{f"stats_{name}": e.stats for name, e in evaluator.coco_eval.items()},
    }
    out.update(
        {
            key: np.stack([d[key].numpy() for d in detections])
            for key in ("scores", "labels", "boxes")
        }
    )
    if "segm" in postprocessors:
        out["rles"] = np.array([json.dumps(d["rles"]) for d in detections])
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("case")
    parser.add_argument("coco_path", type=Path)
    parser.add_argument("out")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--load", type=Path)
    options = parser.parse_args()
    np.savez(options.out, **evaluate(options.case, options))
