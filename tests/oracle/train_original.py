"""Train the original on prepared batches (see training.py), in its own interpreter:

ORACLE_PYTHON tests/oracle/train_original.py FOLDER RUN
    [--evaluate SHAPES_FOLDER] [--evaluate_from EPOCH] [--processes N]
"""

import argparse
import copy
import json
import tempfile
from pathlib import Path

import numpy as np
import run_model
import torch
import training
from detr.datasets import transforms as T
from detr.datasets.coco import CocoDetection
from detr.datasets.coco_eval import CocoEvaluator
from detr.datasets.coco_panoptic import CocoPanoptic
from detr.datasets.panoptic_eval import PanopticEvaluator
from detr.models.detr import SetCriterion
from detr.models.segmentation import MaskHeadSmallConv
from detr.util.misc import MetricLogger, collate_fn, reduce_dict
from pycocotools.coco import COCO


def build(flags):
    args = argparse.Namespace(**flags)
    model, criterion, postprocessors = run_model.build_with(args)
    if args.masks and args.backbone == "tiny":  # the original's mask head fits resnet50 only
        dim = args.hidden_dim + args.nheads
        model.mask_head = MaskHeadSmallConv(dim, [64, 32, 16], args.hidden_dim)
    if "panoptic" in postprocessors:  # the original's map has 201 classes, its model 250
        postprocessors["panoptic"].is_thing_map = {i: i <= 90 for i in range(flags["classes"])}
    if flags["classes"] != 91:
        detr = model.detr if args.masks else model
        detr.class_embed = torch.nn.Linear(args.hidden_dim, flags["classes"] + 1)
        detr.class_embed.requires_grad_(not args.frozen_weights)
        arguments = criterion.matcher, criterion.weight_dict, args.eos_coef, criterion.losses
        criterion = SetCriterion(flags["classes"], *arguments)
    return args, model, criterion, postprocessors


def build_dataset(folder, masks, panoptic):
    """Return the validation set of the shapes, and its instances as a COCO object."""
    normalize = T.Compose([T.ToTensor(), T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    images, annotations = folder / "val2017", folder / "annotations"
    if panoptic:
        segments = folder / "panoptic_val2017", annotations / "panoptic_val2017.json"
        dataset = CocoPanoptic(images, *segments, normalize, masks)
        return dataset, COCO(annotations / "instances_val2017.json")
    dataset = CocoDetection(images, annotations / "instances_val2017.json", normalize, masks)
    return dataset, dataset.coco


def load_weights(model, path):
    with np.load(path) as arrays:
        state = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    assert not missing and not unexpected, (missing, unexpected)


@torch.no_grad()
def evaluate(model, criterion, postprocessors, folder):
    """Return what the original's `evaluate` returns: mean losses and the 12 COCO figures."""
    model.eval()
    criterion.eval()
    panoptic = "panoptic" in postprocessors
    dataset, coco = build_dataset(folder, "segm" in postprocessors, panoptic)
    logger, png_folder = MetricLogger(), tempfile.TemporaryDirectory()
    evaluator = CocoEvaluator(coco, [key for key in ("bbox", "segm") if key in postprocessors])
    if panoptic:
        panoptic_evaluator = PanopticEvaluator(
            dataset.ann_file, dataset.ann_folder, png_folder.name
        )
    for samples, targets in torch.utils.data.DataLoader(dataset, 16, collate_fn=collate_fn):
        outputs = model(samples)
        log(logger, criterion, criterion(outputs, targets))
        sizes, orig_sizes = (
            torch.stack([target[key] for target in targets]) for key in ("size", "orig_size")
        )
        results = postprocessors["bbox"](outputs, orig_sizes)
        if "segm" in postprocessors:
            results = postprocessors["segm"](results, outputs, orig_sizes, sizes)
        evaluator.update({t["image_id"].item(): result for t, result in zip(targets, results)})
        if panoptic:
            predictions = postprocessors["panoptic"](outputs, sizes, orig_sizes)
            for target, prediction in zip(targets, predictions):
                image_id = target["image_id"].item()
                prediction.update(image_id=image_id, file_name=f"{image_id:012}.png")
            panoptic_evaluator.update(predictions)
    evaluator.synchronize_between_processes()
    evaluator.accumulate()
    evaluator.summarize()
    names = {"bbox": "coco_eval_bbox", "segm": "coco_eval_masks"}
    figures = {names[key]: each.stats.tolist() for key, each in evaluator.coco_eval.items()}
    if panoptic:
        figures["PQ_all"] = panoptic_evaluator.summarize()["All"]
    return {**averages(logger), **figures}


def log(logger, criterion, losses):
    """Update the logger as the original's engine does."""
    logger.update(
        loss=run_model.weighted_loss(criterion, losses).item(),
        **{n: losses[n].item() * w for n, w in criterion.weight_dict.items() if n in losses},
        **{f"{name}_unscaled": value.item() for name, value in losses.items()},
        class_error=losses["class_error"].item(),
    )


def averages(logger):
    return {name: meter.global_avg for name, meter in logger.meters.items()}


def train(rank, options):
    """Train, under torch.distributed (gloo) if there are several processes; rank 0 evaluates."""
    if options.processes > 1:
        run_model.join_processes(rank, options)
    flags = json.loads((options.folder / "flags.json").read_text())
    torch.manual_seed(flags["seed"] + rank)  # for dropout; as the original's main.py
    args, model, criterion, postprocessors = build(flags)
    load_weights(model, options.folder / "weights.npz")
    parallel = model
    if options.processes > 1:
        parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = run_model.build_optimizer(model, args)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, args.lr_drop)
    epochs = []  # (train_stats, weights to evaluate or None)
    for epoch, path in enumerate(sorted((options.folder / "epochs").iterdir())):
        model.train()
        if args.frozen_weights:
            model.detr.backbone.eval()  # its BatchNorm is frozen, as the original's always is
        criterion.train()
        logger = MetricLogger()
        for batch in training.load_epoch(path, rank, options.processes):
            losses = run_model.train_step(parallel, criterion, optimizer, batch, args.clip_max_norm)
            log(logger, criterion, reduce_dict(losses))
            logger.update(lr=optimizer.param_groups[0]["lr"])
        scheduler.step()
        is_evaluated = options.evaluate and epoch >= options.evaluate_from
        weights = copy.deepcopy(model.state_dict()) if is_evaluated else None
        epochs.append((averages(logger), weights))
    if options.processes > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    if rank > 0:
        return
    options.run.mkdir(parents=True)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    np.savez(options.run / "weights.npz", **weights)
    # Only now, because the criterion of one process would wait for the others.
    for epoch, (train_stats, weights) in enumerate(epochs):
        stats = {}
        if weights:
            model.load_state_dict(weights)
            stats = evaluate(model, criterion, postprocessors, options.evaluate)
        training.log_epoch(options.run, epoch, train_stats, stats)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--evaluate", type=Path, help="folder of shapes to evaluate on")
    parser.add_argument("--evaluate_from", type=int, default=0, help="first epoch to evaluate")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--port", type=int, default=29518)
    options = parser.parse_args()
    if options.processes > 1:
        torch.multiprocessing.spawn(train, (options,), nprocs=options.processes)
    else:
        train(0, options)
