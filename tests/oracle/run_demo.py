"""Trains the original on the shapes with the flags of `python main.py --demo`. Its own interpreter runs this file:

    ORACLE_PYTHON tests/oracle/run_demo.py [--epochs N] [--seed N] SHAPES_FOLDER

SHAPES_FOLDER is what the demo drew (~/.cache/detr-jittor/shapes-96px-4000-200). Model, loss, transforms, evaluation are
the original's; the backbone is ours in PyTorch. Prints the AP, AP50 and the training time after every epoch.
"""
import argparse
import ast
import contextlib
import io
import time
from pathlib import Path

import recipe
import run_model
import torch
from backbones import build_backbone
from detr.datasets import transforms as T
from detr.datasets.coco import CocoDetection
from detr.datasets.coco_eval import CocoEvaluator
from detr.models import detr
from detr.util.misc import collate_fn
from torch.utils.data import DataLoader

NUM_CLASSES = 4


def demo_flags():
    """The dictionary DEMO of main.py, read without running it."""
    tree = ast.parse((Path(__file__).resolve().parents[2] / "main.py").read_text())
    [call] = [node.value for node in tree.body
              if isinstance(node, ast.Assign) and node.targets[0].id == "DEMO"]
    return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}


def build_dataset(folder, part):
    normalize = T.Compose([T.ToTensor(), T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    transforms = T.Compose([T.RandomHorizontalFlip(), normalize]) if part == "train" else normalize
    return CocoDetection(folder / f"{part}2017", folder / "annotations" / f"instances_{part}2017.json", transforms, False)


def build_model(args):
    detr.build_backbone = build_backbone
    model, criterion, postprocessors = detr.build(args)
    model.class_embed = torch.nn.Linear(args.hidden_dim, NUM_CLASSES + 1)
    criterion = detr.SetCriterion(NUM_CLASSES, criterion.matcher, criterion.weight_dict, args.eos_coef, criterion.losses)
    return model, criterion, postprocessors


@torch.no_grad()
def evaluate(model, postprocessors, loader):
    model.eval()
    evaluator = CocoEvaluator(loader.dataset.coco, ["bbox"])
    with contextlib.redirect_stdout(io.StringIO()):
        for samples, targets in loader:
            results = postprocessors["bbox"](model(samples), torch.stack([t["orig_size"] for t in targets]))
            evaluator.update({t["image_id"].item(): result for t, result in zip(targets, results)})
        evaluator.synchronize_between_processes()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.coco_eval["bbox"].stats


def main(options):
    args = argparse.Namespace(**{**recipe.flags("resnet18"), **demo_flags(), "dataset_file": "coco"})
    torch.manual_seed(options.seed)
    model, criterion, postprocessors = build_model(args)
    backbone, rest = [], []
    for name, parameter in model.named_parameters():
        (backbone if "backbone" in name else rest).append(parameter)
    optimizer = torch.optim.AdamW([{"params": rest}, {"params": backbone, "lr": args.lr_backbone}], lr=args.lr,
                                  weight_decay=args.weight_decay)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, args.lr_drop)
    train = DataLoader(build_dataset(options.folder, "train"), args.batch_size, shuffle=True, drop_last=True,
                       collate_fn=collate_fn, num_workers=options.num_workers)
    val = DataLoader(build_dataset(options.folder, "val"), args.batch_size, collate_fn=collate_fn)
    seconds = 0
    for epoch in range(options.epochs or args.epochs):
        start = time.time()
        model.train()
        for samples, targets in train:
            loss = run_model.weighted_loss(criterion, criterion(model(samples), targets))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip_max_norm)
            optimizer.step()
        scheduler.step()
        seconds += time.time() - start
        stats = evaluate(model, postprocessors, val)
        print(f"epoch {epoch}: AP {stats[0]:.3f}, AP50 {stats[1]:.3f}, training so far {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--num_workers", type=int, default=0)
    main(parser.parse_args())
