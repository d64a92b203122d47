"""Trains the original on the batches in a folder (see training.py). Its own interpreter runs this
file:

ORACLE_PYTHON tests/oracle/train_original.py FOLDER RUN [--evaluate SHAPES_FOLDER]
"""

import argparse
import json
from pathlib import Path

import numpy as np
import run_model
import torch
import training
from detr.datasets import transforms as T
from detr.datasets.coco import CocoDetection
from detr.datasets.coco_eval import CocoEvaluator
from detr.models.detr import SetCriterion
from detr.util.misc import MetricLogger, collate_fn


def build(flags):
    args = argparse.Namespace(**flags)
    model, criterion, postprocessors = run_model.build_with(args)
    if flags["classes"] != 91:
        model.class_embed = torch.nn.Linear(args.hidden_dim, flags["classes"] + 1)
        criterion = SetCriterion(
            flags["classes"],
            criterion.matcher,
            criterion.weight_dict,
            args.eos_coef,
            criterion.losses,
        )
    return args, model, criterion, postprocessors


def build_dataset(folder):
    """The validation part of the shapes."""
    normalize = T.Compose([T.ToTensor(), T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    return CocoDetection(
        folder / "val2017", folder / "annotations" / "instances_val2017.json", normalize, False
    )


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
    dataset, logger = build_dataset(folder), MetricLogger()
    evaluator = CocoEvaluator(dataset.coco, ["bbox"])
    for samples, targets in torch.utils.data.DataLoader(dataset, 16, collate_fn=collate_fn):
        outputs = model(samples)
        log(logger, criterion, criterion(outputs, targets))
        results = postprocessors["bbox"](outputs, torch.stack([t["orig_size"] for t in targets]))
        evaluator.update({t["image_id"].item(): result for t, result in zip(targets, results)})
    evaluator.synchronize_between_processes()
    evaluator.accumulate()
    evaluator.summarize()
    return {**averages(logger), "coco_eval_bbox": evaluator.coco_eval["bbox"].stats.tolist()}


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


def main(options):
    flags = json.loads((options.folder / "flags.json").read_text())
    args, model, criterion, postprocessors = build(flags)
    load_weights(model, options.folder / "weights.npz")
    optimizer = run_model.build_optimizer(model, args)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, args.lr_drop)
    recorder = training.Recorder(options.run)
    for epoch, path in enumerate(sorted((options.folder / "epochs").iterdir())):
        model.train()
        criterion.train()
        logger = MetricLogger()
        for samples, targets in (run_model.to_torch(*batch) for batch in training.load_epoch(path)):
            losses = criterion(model(samples), targets)
            loss = run_model.weighted_loss(criterion, losses)
            recorder.step({"loss": loss.item(), **weighted(losses, criterion)})
            log(logger, criterion, losses)
            logger.update(lr=optimizer.param_groups[0]["lr"])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip_max_norm)
            optimizer.step()
        scheduler.step()
        if options.evaluate:
            recorder.epoch(
                epoch,
                averages(logger),
                evaluate(model, criterion, postprocessors, options.evaluate),
            )
    recorder.save({name: value.numpy() for name, value in model.state_dict().items()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--evaluate", type=Path)
    main(parser.parse_args())
