"""Trains the original on the batches in a folder (see training.py). Its own interpreter runs this
file:

ORACLE_PYTHON tests/oracle/train_original.py FOLDER RUN
    [--evaluate SHAPES_FOLDER] [--evaluate_from EPOCH] [--processes N]
ORACLE_PYTHON tests/oracle/train_original.py --gradients BATCHES [--double] FOLDER OUT
"""

import argparse
import copy
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import run_model
import torch
import torch.distributed
import torch.multiprocessing
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
    if args.masks and args.backbone == "tiny":
        # The original's mask head knows the widths of resnet50 only.
        dim = args.hidden_dim + args.nheads
        model.mask_head = MaskHeadSmallConv(dim, [64, 32, 16], args.hidden_dim)
    if "panoptic" in postprocessors:
        # The original knows 201 classes, and its model has 250.
        postprocessors["panoptic"].is_thing_map = {i: i <= 90 for i in range(flags["classes"])}
    if flags["classes"] != 91:
        detr = model.detr if args.masks else model
        detr.class_embed = torch.nn.Linear(args.hidden_dim, flags["classes"] + 1)
        detr.class_embed.requires_grad_(not args.frozen_weights)
        criterion = SetCriterion(
            flags["classes"],
            criterion.matcher,
            criterion.weight_dict,
            args.eos_coef,
            criterion.losses,
        )
    return args, model, criterion, postprocessors


def build_dataset(folder, masks, panoptic):
    """The validation part of the shapes, and COCO with their instances."""
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
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing), (
        missing,
        unexpected,
    )


@torch.no_grad()
def evaluate(model, criterion, postprocessors, folder):
    """What the original's function of this name returns: mean losses and COCO's 12 figures."""
    model.eval()
    criterion.eval()
    panoptic = "panoptic" in postprocessors
    dataset, coco = build_dataset(folder, "segm" in postprocessors, panoptic)
    logger, predictions = MetricLogger(), tempfile.TemporaryDirectory()
    evaluator = CocoEvaluator(coco, [key for key in ("bbox", "segm") if key in postprocessors])
    if panoptic:
        panoptic_evaluator = PanopticEvaluator(
            dataset.ann_file, dataset.ann_folder, predictions.name
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
            found = postprocessors["panoptic"](outputs, sizes, orig_sizes)
            for target, segments in zip(targets, found):
                image_id = target["image_id"].item()
                segments.update(image_id=image_id, file_name=f"{image_id:012}.png")
            panoptic_evaluator.update(found)
    evaluator.synchronize_between_processes()
    evaluator.accumulate()
    evaluator.summarize()
    names = {"bbox": "coco_eval_bbox", "segm": "coco_eval_masks"}
    figures = {names[key]: each.stats.tolist() for key, each in evaluator.coco_eval.items()}
    if panoptic:
        figures["PQ_all"] = panoptic_evaluator.summarize()["All"]
    return {**averages(logger), **figures}


def log(logger, criterion, losses):
    """Logs what the original's engine logs."""
    logger.update(
        loss=run_model.weighted_loss(criterion, losses).item(),
        **weighted(losses, criterion),
        **{f"{name}_unscaled": value.item() for name, value in losses.items()},
        class_error=losses["class_error"].item(),
    )


def averages(logger):
    return {name: meter.global_avg for name, meter in logger.meters.items()}


def weighted(losses, criterion):
    return {
        name: losses[name].item() * weight
        for name, weight in criterion.weight_dict.items()
        if name in losses
    }


def save_gradients(options):
    """Those of each of the first batches, at the first weights, in float32 or float64."""
    flags = json.loads((options.folder / "flags.json").read_text())
    _, model, criterion, _ = build(flags)
    load_weights(model, options.folder / "weights.npz")
    dtype = torch.float64 if options.double else torch.float32
    model.to(dtype).train()
    criterion.to(dtype).train()
    trainable = dict(sorted((n, p) for n, p in model.named_parameters() if p.requires_grad))
    sizes = {name: p.numel() for name, p in trainable.items()}
    gradients = training.Gradients(
        options.run, options.gradients, sizes, np.float64 if options.double else np.float32
    )
    batches = training.load_epoch(options.folder / "epochs" / "000.npz")
    for _, batch in zip(range(options.gradients), batches):
        samples, targets = run_model.to_torch(*batch, dtype)
        model.zero_grad()
        run_model.weighted_loss(criterion, criterion(model(samples), targets)).backward()
        gradients.add([p.grad.numpy() for p in trainable.values()])


def train(rank, options):
    """Under torch.distributed (gloo) where there are several processes; the first one evaluates."""
    if options.processes > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(options.port))
        torch.distributed.init_process_group("gloo", rank=rank, world_size=options.processes)
        torch.set_num_threads(1)
    flags = json.loads((options.folder / "flags.json").read_text())
    torch.manual_seed(flags["seed"] + rank)  # for dropout; as the original's main.py
    args, model, criterion, postprocessors = build(flags)
    load_weights(model, options.folder / "weights.npz")
    parallel = model
    if options.processes > 1:
        parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = run_model.build_optimizer(model, args)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, args.lr_drop)
    recorder = training.Recorder(options.run if rank == 0 else None)
    epochs = []  # (averages, weights to evaluate or None)
    for epoch, path in enumerate(sorted((options.folder / "epochs").iterdir())):
        model.train()
        if args.frozen_weights:
            model.detr.backbone.eval()  # its statistics stay; the original's backbones have none
        criterion.train()
        logger = MetricLogger()
        for batch in training.load_epoch(path, rank, options.processes):
            samples, targets = run_model.to_torch(*batch)
            losses = criterion(parallel(samples), targets)
            loss = run_model.weighted_loss(criterion, losses)
            reduced = reduce_dict(losses)
            recorder.step(
                {
                    "loss": run_model.weighted_loss(criterion, reduced).item(),
                    **weighted(reduced, criterion),
                }
            )
            log(logger, criterion, reduced)
            logger.update(lr=optimizer.param_groups[0]["lr"])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip_max_norm)
            optimizer.step()
        scheduler.step()
        is_evaluated = options.evaluate and epoch >= options.evaluate_from
        epochs.append(
            (averages(logger), copy.deepcopy(model.state_dict()) if is_evaluated else None)
        )
    if options.processes > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    if rank > 0:
        return
    recorder.save({name: value.numpy() for name, value in model.state_dict().items()})
    # Afterwards: the criterion of one process alone would wait for the others.
    for epoch, (train_stats, weights) in enumerate(epochs):
        stats = {}
        if weights:
            model.load_state_dict(weights)
            stats = evaluate(model, criterion, postprocessors, options.evaluate)
        recorder.epoch(epoch, train_stats, stats)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--evaluate", type=Path)
    parser.add_argument("--evaluate_from", type=int, default=0, help="the first epoch to evaluate")
    parser.add_argument("--gradients", type=int, metavar="BATCHES")
    parser.add_argument("--double", action="store_true", help="gradients in float64")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--port", type=int, default=29518)
    options = parser.parse_args()
    if options.gradients:
        save_gradients(options)
    elif options.processes > 1:
        torch.multiprocessing.spawn(train, (options,), nprocs=options.processes)
    else:
        train(0, options)
