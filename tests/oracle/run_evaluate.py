"""Evaluate the original on the validation images of a COCO folder, in its own interpreter:

    ORACLE_PYTHON tests/oracle/run_evaluate.py CASE COCO_PATH [--save FOLDER | --load FILE] OUT.npz

The weights are those of recipe.make_detector; --save writes them as zip.pth and legacy.pth into
FOLDER, --load takes FILE instead. The folder's annotations are replaced by some that the original's
detections match in part: random weights find no real object, and figures of 0 would compare
nothing. OUT.npz holds `stats_bbox`, the 12 COCO figures, and `ids`, `scores`, `labels`, `boxes` of
the images in order; with masks also `stats_segm`, and `rles` as JSON.
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


def build_coco(image_set, coco_path):
    args = argparse.Namespace(dataset_file="coco", coco_path=coco_path, masks=False)
    return build_dataset(image_set, args)


def encode(mask):
    """Encode a mask [h, w] as compressed RLE, its counts as text."""
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {**rle, "counts": rle["counts"].decode()}


def cut(rle, fraction):
    """Return the left part of a mask."""
    mask = coco_mask.decode(rle)
    mask[:, int(fraction * mask.shape[1]) :] = 0
    return encode(mask)


def annotate(path, ids, detections):
    """Write ground truth made from some of the detections: boxes moved, masks cut, some crowds.

    Only from detections whose score is far from all others of their class: if rounding could swap
    a true with a false positive, equal figures would be luck.
    """
    rng = np.random.default_rng(0)
    data = json.loads(path.read_text())
    data.update(info={}, annotations=[], categories=[{"id": i, "name": str(i)} for i in range(91)])
    labels, scores = (np.stack([d[key] for d in detections]) for key in ("labels", "scores"))
    separated = find_separated(labels, scores)
    for i, (image_id, detection) in enumerate(zip(ids, detections)):
        boxes = detection["boxes"].double().numpy()
        chosen = np.flatnonzero(separated[i])
        for query in rng.choice(chosen, min(12, len(chosen)), replace=False):
            size = boxes[query][2:] - boxes[query][:2]
            x0, y0, x1, y1 = boxes[query] + rng.normal(0, 0.06, 4) * np.tile(size, 2)
            width, height = max(x1 - x0, 1), max(y1 - y0, 1)
            annotation = {
                "id": len(data["annotations"]) + 1,
                "image_id": image_id,
                "category_id": int(labels[i, query]),
                "bbox": [x0, y0, width, height],
                "area": width * height,
                "iscrowd": int(rng.random() < 0.1),
            }
            if "rles" in detection:
                rle = cut(detection["rles"][query], rng.uniform(0.5, 1))
                annotation.update(segmentation=rle, area=float(coco_mask.area(rle)))
            data["annotations"].append(annotation)
    path.write_text(json.dumps(data))


def find_separated(labels, scores, gap=5e-5):
    """Return whether each score differs by `gap` from all others of its label: bool, as scores."""
    separated = np.zeros(scores.shape, bool)
    for label in np.unique(labels):
        chosen = np.flatnonzero(labels == label)
        chosen = chosen[np.argsort(scores.flat[chosen])]
        steps = np.concatenate([[1], np.diff(scores.flat[chosen]), [1]])
        separated.flat[chosen] = np.minimum(steps[1:], steps[:-1]) >= gap
    return separated


@torch.no_grad()
def evaluate(case, options):
    model, _, postprocessors = run_model.build(case, recipe.make_detector)
    if options.load:
        model.load_state_dict(torch.load(options.load, weights_only=True)["model"])
    if options.save:
        checkpoint = {"model": model.state_dict()}
        torch.save(checkpoint, options.save / "zip.pth")
        torch.save(checkpoint, options.save / "legacy.pth", _use_new_zipfile_serialization=False)
    model.eval()
    dataset = build_coco("val", options.coco_path)
    ids, detections = [], []
    for samples, targets in torch.utils.data.DataLoader(dataset, 2, collate_fn=collate_fn):
        ids += [t["image_id"].item() for t in targets]
        sizes, orig_sizes = (torch.stack([t[k] for t in targets]) for k in ("size", "orig_size"))
        outputs = model(samples)
        results = postprocessors["bbox"](outputs, orig_sizes)
        if "segm" in postprocessors:
            results = postprocessors["segm"](results, outputs, orig_sizes, sizes)
            for result in results:
                result["rles"] = [encode(mask[0]) for mask in result["masks"]]
        detections += results
    annotate(options.coco_path / "annotations" / "instances_val2017.json", ids, detections)
    dataset = build_coco("val", options.coco_path)  # with the new annotations
    evaluator = CocoEvaluator(get_coco_api_from_dataset(dataset), list(postprocessors))
    evaluator.update(dict(zip(ids, detections)))
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.synchronize_between_processes()
        evaluator.accumulate()
        evaluator.summarize()
    out = {f"stats_{name}": e.stats for name, e in evaluator.coco_eval.items()}
    out["ids"] = np.array(ids)
    for key in ("scores", "labels", "boxes"):
        out[key] = np.stack([d[key].numpy() for d in detections])
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
