"""One epoch of training, evaluation, and prediction."""

import itertools
import math
import random
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

import datasets.transforms as T
from datasets.coco import NORMALIZE, read_picture
from datasets.coco_eval import CocoEvaluator
from datasets.transforms import EVAL_SIZE, MAX_SIZE
from models.attention import watch_attention
from models.detr import PostProcess
from models.segmentation import PostProcessSegm
from util import dist, launch
from util.backend import jt
from util.errors import InputError
from util.logger import MetricLogger, SmoothedValue
from util.step_memory import StepMemory

PRINT_FREQ = 10


def train_one_epoch(
    model,
    criterion,
    data_loader,
    optimizer,
    epoch,
    seed,
    max_norm=0,
    start_step=0,
    meters=None,
    after_step=None,
    accum_steps=1,
):
    """Trains for one pass over `data_loader` and returns the averages, a dictionary of floats.

    max_norm: clip the global norm of the gradients to it; 0 does not clip.
    start_step, meters: steps of this epoch that were trained before, and the meters' state then.
    after_step: called with the number of steps done and the MetricLogger after each step.
    accum_steps: batches in each step. Its gradient is the one that as many processes would have:
    the mean over the batches, with the mean number of boxes.
    What is logged is the mean over batches and processes. A step for which one of the processes has
    no sample is left out by all.
    Raises InputError when the loss is not finite, before the weights change.
    """
    model.train()
    logger = MetricLogger()
    logger.add_meter("lr", SmoothedValue(window_size=1, fmt="{value:.6f}"))
    logger.add_meter("class_error", SmoothedValue(window_size=1, fmt="{value:.2f}"))
    logger.load_state_dict(meters or {})
    memory = StepMemory()
    data_loader.set_epoch(epoch, start_step * accum_steps)
    steps = logger.log_every(
        Steps(data_loader, accum_steps), PRINT_FREQ, f"Epoch: [{epoch}]", start_step
    )
    for step, batches in enumerate(steps, start_step):
        num_boxes = average_boxes(batches)
        if num_boxes is None:
            continue
        first_batch = accum_steps * (step * launch.get_world_size() + launch.get_rank())
        seeds = [seed_of_batch(seed, epoch, first_batch + i) for i in range(len(batches))]
        scalars = dist.reduce_dict(backward(model, criterion, optimizer, batches, num_boxes, seeds))
        if not math.isfinite(scalars["loss"]):
            raise InputError(
                f"the loss is {scalars['loss']} in epoch {epoch}, training stops: check the "
                "annotations, or use a smaller --lr, with --resume if there is a checkpoint"
            )
        if max_norm > 0:
            optimizer.clip_grad_norm(max_norm)
        optimizer.step()
        # Starts the step's computation, which Jittor would put off until something reads the
        # weights. The mean of the gradients is part of it, and all processes have to take it at the
        # same point: what comes next differs, because only one of them saves.
        jt.sync_all()
        memory.tidy()
        logger.update(**scalars, lr=optimizer.param_groups[0]["lr"])
        if after_step:
            after_step(step + 1, logger)
    print("Averaged stats:", logger)
    return logger.averages()


def seed_of_batch(seed, epoch, batch):
    """The seed of dropout, an int of 31 bits.

    It depends on these three only: a resumed run continues as if it had never stopped.
    batch: its number in the epoch, among those of all processes.
    """
    return random.Random(f"{seed}/{epoch}/{batch}").getrandbits(31)


def average_boxes(batches):
    """The number of objects in a batch, at least 1: the mean over the processes and their batches.

    None where one of them has no sample, because all were bad and skipped.

    batches: list of (samples, targets), as many in every process.
    """
    counts = [sum(len(target["labels"]) for target in targets) for _, targets in batches]
    missing = any(not targets for _, targets in batches)
    gathered = dist.all_gather_floats([missing, *counts])
    return None if gathered[:, 0].any() else max(gathered[:, 1:].mean(), 1)


def backward(model, criterion, optimizer, batches, num_boxes, seeds):
    """Computes the gradient of the mean of the batches' losses.

    batches: list of (samples, targets); num_boxes: what the losses of boxes are divided by; seeds:
    of the randomness in each batch.
    Returns what to log, the means over the batches, see `weighted_sum`.
    """
    sums = defaultdict(float)
    for (samples, targets), seed in zip(batches, seeds):
        jt.set_seed(seed)
        losses = criterion(model(samples.to_jittor()), targets, num_boxes)
        loss, scalars = weighted_sum(losses, criterion.weight_dict)
        for name, value in scalars.items():
            sums[name] += value
        optimizer.backward(loss if len(batches) == 1 else loss / len(batches))
        if len(batches) > 1:
            jt.sync_all()  # frees this batch's activations before the next one's take memory
    return {name: value / len(batches) for name, value in sums.items()}


class Steps:
    """The batches of a loader, in lists of as many as make one step."""

    def __init__(self, data_loader, accum_steps):
        self.data_loader = data_loader
        self.accum_steps = accum_steps

    def __len__(self):
        return len(self.data_loader) // self.accum_steps

    def __iter__(self):
        batches = iter(self.data_loader)
        while step := list(itertools.islice(batches, self.accum_steps)):
            yield step


def evaluate(
    model,
    criterion,
    postprocessors,
    data_loader,
    coco_gt,
    panoptic_evaluator=None,
    after_step=None,
    per_class=False,
):
    """Runs the model over the validation set.

    coco_gt: COCO with the ground truth; panoptic_evaluator: a PanopticEvaluator, for a model with
    that postprocessor; after_step: called after each batch; per_class: print the figures of each
    class too.
    Each process takes its part of the batches; the main process gets all of their results, the
    others an empty dictionary of averages.
    Returns (averages, evaluator): the losses' averages, and the figures under `coco_eval_bbox` (12
    of COCO), `coco_eval_masks` (12), `PQ_all`, `PQ_th`, `PQ_st`, as far as the model has them; and
    the CocoEvaluator with the detections.
    """
    model.eval()
    logger = MetricLogger()
    logger.add_meter("class_error", SmoothedValue(window_size=1, fmt="{value:.2f}"))
    memory = StepMemory()
    iou_types = [name for name in ("bbox", "segm") if name in postprocessors]
    evaluator = CocoEvaluator(coco_gt, iou_types)
    with jt.no_grad():
        for samples, targets in logger.log_every(data_loader, PRINT_FREQ, "Test:"):
            if not targets:
                # The other processes, which have a batch, do it in the criterion.
                criterion.average_boxes(targets)
                if after_step:
                    after_step()
                continue
            outputs = model(samples.to_jittor())
            _, scalars = weighted_sum(criterion(outputs, targets), criterion.weight_dict)
            logger.update(**scalars)
            orig_sizes = [target["orig_size"] for target in targets]
            sizes = [target["size"] for target in targets]
            image_ids = [target["image_id"] for target in targets]
            results = postprocessors["bbox"](outputs, orig_sizes)
            if "segm" in postprocessors:
                results = postprocessors["segm"](results, outputs, orig_sizes, sizes)
            evaluator.update(dict(zip(image_ids, results)))
            if panoptic_evaluator is not None:
                panoptic = postprocessors["panoptic"](outputs, sizes, orig_sizes)
                for image_id, segments in zip(image_ids, panoptic):
                    segments.update(image_id=image_id, file_name=f"{image_id:012}.png")
                panoptic_evaluator.update(panoptic)
            memory.tidy()
            if after_step:
                after_step()
    logger.synchronize_between_processes()
    evaluator.synchronize_between_processes()
    if panoptic_evaluator is not None:
        panoptic_evaluator.synchronize_between_processes()
    if not launch.is_main_process():
        return {}, evaluator
    print("Averaged stats:", logger)
    evaluator.accumulate()
    evaluator.summarize()
    if per_class:
        evaluator.print_per_class()
    stats = logger.averages()
    stats["coco_eval_bbox"] = evaluator.coco_eval["bbox"].stats.tolist()
    if "segm" in postprocessors:
        stats["coco_eval_masks"] = evaluator.coco_eval["segm"].stats.tolist()
    if panoptic_evaluator is not None:
        quality = panoptic_evaluator.summarize()
        stats.update(PQ_all=quality["All"], PQ_th=quality["Things"], PQ_st=quality["Stuff"])
    return stats, evaluator


def predict(model, images, threshold=0.7, size=EVAL_SIZE, max_size=MAX_SIZE, attention=False):
    """What a DETR, with or without masks, detects in pictures of any sizes, one after the other.

    model: set to evaluation mode.
    images: paths, PIL images, or arrays uint8 [H, W, 3]; files and PIL images are turned as their
    EXIF orientation says.
    threshold: lowest score, or a dictionary category id -> lowest score of that class; a class that
    is not in it is left out. size, max_size: shorter and longer side that the model gets, pixels.
    attention: also return where the model looks, see `watch_attention`.

    Returns for each image a dictionary of NumPy arrays, the n detections with the highest score
    first:
        scores: float32 [n]
        labels: int64 [n], category ids
        boxes: float32 [n, 4], x0, y0, x1, y1 in pixels of the image
        masks: bool [n, H, W], where the model has them
        decoder_attention: float32 [n, h, w], with `attention`
        encoder_attention: float32 [h, w, h, w], from each position to all, where the model has an
        encoder
    Raises InputError for a file that cannot be read, and ValueError where images is a single path.
    """
    if isinstance(images, (str, Path)):
        raise ValueError(f"images is {str(images)!r}: give a list of images")
    model.eval()
    detr = getattr(model, "detr", model)
    transform = T.Compose([T.RandomResize([size], max_size), NORMALIZE])
    results = []
    for image in images:
        image = read_picture(image)
        no_target = {"boxes": np.zeros((0, 4), np.float32), "area": np.zeros(0, np.float32)}
        array, _ = transform(image, no_target, random.Random(0))
        watching = watch_attention(detr.transformer) if attention else nullcontext({})
        with jt.no_grad(), watching as seen:
            outputs = model([array])
            [result] = PostProcess()(outputs, [(image.height, image.width)])
        best = np.argsort(-result["scores"], kind="stable")
        lowest = threshold
        if isinstance(threshold, dict):
            lowest = np.array([threshold.get(label, np.inf) for label in result["labels"][best]])
        best = best[result["scores"][best] >= lowest]
        result = {name: array[best] for name, array in result.items()}
        result["labels"] = result["labels"].astype(np.int64)
        if "pred_masks" in outputs:
            masks, size_in_batch = outputs["pred_masks"].numpy()[0][best], array.shape[1:]
            size_in_pixels = (image.height, image.width)
            rles = PostProcessSegm().encode(masks, size_in_batch, size_in_batch, size_in_pixels)
            result["masks"] = np.zeros((0, *size_in_pixels), bool)
            if rles:
                result["masks"] = coco_mask.decode(rles).transpose(2, 0, 1).astype(bool)
        if attention:
            h, w = shape_of_map(seen["decoder"].shape[2], *array.shape[1:])
            result["decoder_attention"] = seen["decoder"][0][best].reshape(-1, h, w)
            if "encoder" in seen:
                result["encoder_attention"] = seen["encoder"][0].reshape(h, w, h, w)
        results.append(result)
    return results


def shape_of_map(length, height, width):
    """(h, w) of a feature map with `length` positions, of an image of height x width pixels.

    The backbone's stride is 32 or 16.
    """
    for stride in (32, 16):
        h, w = math.ceil(height / stride), math.ceil(width / stride)
        if h * w == length:
            return h, w
    raise ValueError(f"no feature map of an image of {height} x {width} has {length} positions")


def weighted_sum(losses, weight_dict):
    """The loss to train, a Var, and everything to log, floats under the original's names.

    Logged are the sum as `loss`, each weighted loss under its name, each loss as it is with the
    suffix `_unscaled`, and class_error. They come from the device in one transfer.
    """
    names = [name for name in losses if name in weight_dict]
    loss = sum(losses[name] * weight_dict[name] for name in names)
    *values, total = jt.concat([losses[name] for name in names] + [loss]).numpy().tolist()
    unscaled = {**losses, **dict(zip(names, values))}
    scalars = {"loss": total, "class_error": unscaled["class_error"]}
    scalars.update({name: unscaled[name] * weight_dict[name] for name in names})
    scalars.update({f"{name}_unscaled": value for name, value in unscaled.items()})
    return loss, scalars
