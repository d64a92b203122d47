"""Evaluates the original on a COCO folder's validation images. Its own interpreter runs this file:

    ORACLE_PYTHON tests/oracle/run_evaluate.py CASE COCO_PATH [--save FOLDER | --load FILE] [--batch_size N] OUT.npz

The weights are the recipe's: --save writes them as zip.pth and legacy.pth into FOLDER; --load takes FILE instead.
OUT.npz holds `stats` (the 12 COCO figures; -1 without annotations) and, for every image in order, `ids`, `scores`, `labels`, `boxes`.
"""
import argparse
import contextlib
import io
from pathlib import Path

import numpy as np
import run_model
import torch
from detr.datasets import build_dataset, get_coco_api_from_dataset
from detr.datasets.coco_eval import CocoEvaluator
from detr.util.misc import collate_fn


@torch.no_grad()
def evaluate(case, options):
    model, _, postprocessors = run_model.build(case)
    if options.load:
        model.load_state_dict(torch.load(options.load, weights_only=True)["model"])
    if options.save:
        checkpoint = {"model": model.state_dict()}
        torch.save(checkpoint, options.save / "zip.pth")
        torch.save(checkpoint, options.save / "legacy.pth", _use_new_zipfile_serialization=False)
    model.eval()
    dataset = build_dataset("val", argparse.Namespace(dataset_file="coco", coco_path=options.coco_path, masks=False))
    loader = torch.utils.data.DataLoader(dataset, options.batch_size, collate_fn=collate_fn)
    evaluator = CocoEvaluator(get_coco_api_from_dataset(dataset), ["bbox"])
    ids, detections = [], []
    for samples, targets in loader:
        results = postprocessors["bbox"](model(samples), torch.stack([t["orig_size"] for t in targets]))
        ids += [t["image_id"].item() for t in targets]
        detections += results
        evaluator.update(dict(zip(ids[-len(results):], results)))
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.synchronize_between_processes()
        evaluator.accumulate()
        evaluator.summarize()
    return {"ids": np.array(ids), "stats": evaluator.coco_eval["bbox"].stats,
            **{key: np.stack([d[key].numpy() for d in detections]) for key in ("scores", "labels", "boxes")}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("case")
    parser.add_argument("coco_path")
    parser.add_argument("out")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--load", type=Path)
    parser.add_argument("--batch_size", type=int, default=2)
    options = parser.parse_args()
    np.savez(options.out, **evaluate(options.case, options))
