"""Run the original's data pipeline and COCO evaluation, in its own interpreter:

    ORACLE_PYTHON tests/oracle/run_data.py items --images DIR --annotations FILE
        --image_set train|val [--masks] --indices 0 3 … --epochs 0 1 … --seed N OUT.npz
    ORACLE_PYTHON tests/oracle/run_data.py figures --annotations FILE
        --detections DETECTIONS.npz OUT.npz

`items` writes `EPOCH/INDEX/image` and `EPOCH/INDEX/KEY` for every key of the target. `figures`
reads `ID/scores`, `ID/labels`, `ID/boxes` of every image id and writes `stats` and `precision`.
"""

import argparse
import random

import numpy as np
import torch
from detr.datasets.coco import CocoDetection, make_coco_transforms
from detr.datasets.coco_eval import CocoEvaluator
from pycocotools.coco import COCO


def items(args):
    # torchvision draws where to crop from PyTorch's generator; here all draws come from `random`
    torch.randint = lambda low, high, size: torch.tensor([random.randint(low, high - 1)])
    dataset = CocoDetection(
        args.images, args.annotations, make_coco_transforms(args.image_set), args.masks
    )
    out = {}
    for epoch in args.epochs:
        for index in args.indices:
            random.seed(f"{args.seed}/{epoch}/{index}")
            image, target = dataset[index]
            for key, value in {"image": image, **target}.items():
                out[f"{epoch}/{index}/{key}"] = value.numpy()
    return out


def figures(args):
    detections = {}
    for name, array in np.load(args.detections).items():
        image_id, key = name.split("/")
        detections.setdefault(int(image_id), {})[key] = torch.from_numpy(array)
    evaluator = CocoEvaluator(COCO(args.annotations), ["bbox"])
    image_ids = sorted(detections)
    for start in range(0, len(image_ids), 3):
        evaluator.update({i: detections[i] for i in image_ids[start : start + 3]})
    evaluator.synchronize_between_processes()
    evaluator.accumulate()
    evaluator.summarize()
    coco_eval = evaluator.coco_eval["bbox"]
    return {"stats": coco_eval.stats, "precision": coco_eval.eval["precision"]}


parser = argparse.ArgumentParser()
parser.add_argument("what", choices=["items", "figures"])
parser.add_argument("--images")
parser.add_argument("--annotations")
parser.add_argument("--image_set")
parser.add_argument("--masks", action="store_true")
parser.add_argument("--indices", type=int, nargs="+")
parser.add_argument("--epochs", type=int, nargs="+")
parser.add_argument("--seed", type=int)
parser.add_argument("--detections")
parser.add_argument("out")
args = parser.parse_args()
np.savez(args.out, **{"items": items, "figures": figures}[args.what](args))
