"""Train for one epoch, and evaluate (the original's `engine.py`).

`train_one_epoch` shows a training step from top to bottom: forward, criterion, backward, check that
the loss is finite, clip, step. With several processes both functions are collective: every process
calls them with its own part of the data and takes the same number of steps.
"""

import functools
import math
import random
from collections import defaultdict

import numpy as np

from datasets.coco_eval import CocoEvaluator
from datasets.panoptic_eval import PanopticEvaluator
from models.detr import average_boxes
from util import dist, launch
from util.backend import jt
from util.errors import DataError, InputError
from util.logger import MetricLogger, SmoothedValue
from util.ops import stack
from util.step_memory import StepMemory
from util.stuck import PredictionSpread

PRINT_FREQ = 10  # print every 10 steps


def train_one_epoch(
    model,
    criterion,
    data_loader,
    optimizer,
    epoch: int,
    seed: int,
    max_norm: float = 0,
    start_step: int = 0,
    meters: dict | None = None,
    after_step=None,
) -> dict[str, float]:
    """Train for one pass over `data_loader` and return the averages of the losses.

    Each step takes one list of `accum_steps` batches from the loader. Gradients are averaged over
    the batches, which is equivalent to running `accum_steps` times as many processes.

    Args:
        data_loader: yields for each step a list of (samples, targets), see `datasets.loader`.
        epoch, seed: they seed dropout (as they do shuffling and augmentation in the loader), so
            that a resumed run is exact.
        max_norm: maximum global norm of the gradients; 0 disables clipping.
        start_step, meters: to resume within the epoch, the number of steps already taken and the
            meters' state at that point.
        after_step: called after each step with the number of steps taken and the MetricLogger.

    Raises:
        DataError: a step's data cannot be loaded in some process; raised in all of them.
        InputError: the loss is not finite.
        In both cases the weights are those after the previous step.
    """
    model.train()
    metric_logger = MetricLogger()
    metric_logger.add_meter("lr", SmoothedValue(window_size=1, fmt="{value:.6f}"))
    metric_logger.add_meter("class_error", SmoothedValue(window_size=1, fmt="{value:.2f}"))
    metric_logger.load_state_dict(meters or {})
    memory = StepMemory()
    data_loader.set_epoch(epoch, start_step)
    steps = metric_logger.log_every(data_loader, PRINT_FREQ, f"Epoch: [{epoch}]", start_step)

    for step, (batches, error) in enumerate(catch_input_error(steps), start_step):
        num_boxes, is_complete = average_boxes([targets for _, targets in batches])
        if error or not is_complete:
            # The failing process has sent the others an empty batch.
            if errors := list(filter(None, dist.all_gather(error))):
                raise DataError(errors[0])
            continue  # --skip_bad_samples left a process without images, so all skip the step

        sums = defaultdict(float)
        for index, (samples, targets) in enumerate(batches):
            jt.set_seed(get_dropout_seed(seed, epoch, step, index, len(batches)))
            outputs = model(samples.to_jittor())
            losses = criterion(outputs, targets, num_boxes)
            loss, scalars = weighted_sum(losses, criterion.weight_dict)
            # Under MPI this also queues the all-reduce of the gradients.
            optimizer.backward(loss if len(batches) == 1 else loss / len(batches))
            if len(batches) > 1:
                jt.sync_all()  # frees the activations before the next batch allocates its own
            for name, value in scalars.items():
                sums[name] += value
        scalars = dist.reduce_dict({name: value / len(batches) for name, value in sums.items()})

        if not math.isfinite(scalars["loss"]):
            raise InputError(
                f"the loss is {scalars['loss']} in epoch {epoch}, training stops: check the "
                "annotations, or use a smaller --lr"
            )
        if max_norm > 0:
            optimizer.clip_grad_norm(max_norm)
        optimizer.step()
        # Jittor is lazy: run the step now. All processes have to reach its all-reduce before one of
        # them alone reads weights to save them.
        jt.sync_all()
        memory.tidy()
        metric_logger.update(**scalars, lr=optimizer.param_groups[0]["lr"])
        if after_step:
            after_step(step + 1, metric_logger)
    print("Averaged stats:", metric_logger)
    return metric_logger.averages()


def catch_input_error(steps):
    """Yield (batches, None) for each step; if loading fails, ([empty batch], message) at last."""
    try:
        for batches in steps:
            yield batches, None
    except InputError as error:
        yield [(None, [])], str(error)


def evaluate(
    model,
    criterion,
    postprocessors: dict,
    data_loader,
    coco_gt,
    panoptic_folder=None,
    after_batch=None,
    per_class: bool = False,
) -> tuple[dict, CocoEvaluator]:
    """Run the model over the validation set, and compute losses and COCO metrics.

    Each process evaluates its part of the batches; the main process computes the metrics.

    Args:
        postprocessors: "bbox", and with masks "segm" and "panoptic", see `models.detr`.
        coco_gt: pycocotools' COCO with the ground truth.
        panoptic_folder: where to write the predicted panoptic PNGs; None: a temporary folder.
        after_batch: called after each batch.
        per_class: also print the metrics of each class.

    Returns (stats, coco_evaluator): the losses' averages, `box_std` and `score_std` of the main
    process's part (see `util.stuck`) and, if the model has them, `coco_eval_bbox` (COCO's 12
    metrics), `coco_eval_masks` (12), `PQ_all`, `PQ_th`, `PQ_st`, the same in all processes; and the
    CocoEvaluator, which has the detections in the main process.
    """
    model.eval()
    metric_logger = MetricLogger()
    metric_logger.add_meter("class_error", SmoothedValue(window_size=1, fmt="{value:.2f}"))
    memory = StepMemory()
    iou_types = [name for name in ("bbox", "segm") if name in postprocessors]
    coco_evaluator = CocoEvaluator(coco_gt, iou_types)
    spread = PredictionSpread()
    panoptic_evaluator = None
    if "panoptic" in postprocessors:
        dataset = data_loader.dataset
        panoptic_evaluator = PanopticEvaluator(
            dataset.get_ground_truth, dataset.ann_folder, panoptic_folder
        )

    with jt.no_grad():
        for [(samples, targets)] in metric_logger.log_every(data_loader, PRINT_FREQ, "Test:"):
            num_boxes, _ = average_boxes([targets])
            if targets:  # at the end of the data, some processes may have no batch left
                outputs = model(samples.to_jittor())
                losses = criterion(outputs, targets, num_boxes)
                metric_logger.update(**weighted_sum(losses, criterion.weight_dict)[1])
                image_ids = [target["image_id"] for target in targets]
                orig_sizes = [target["orig_size"] for target in targets]
                sizes = [target["size"] for target in targets]
                results = postprocessors["bbox"](outputs, orig_sizes)
                if "segm" in postprocessors:
                    results = postprocessors["segm"](results, outputs, orig_sizes, sizes)
                coco_evaluator.update(dict(zip(image_ids, results)))
                spread.update(results, orig_sizes)
                if panoptic_evaluator is not None:
                    predictions = postprocessors["panoptic"](outputs, sizes, orig_sizes)
                    for image_id, prediction in zip(image_ids, predictions):
                        prediction.update(image_id=image_id, file_name=f"{image_id:012}.png")
                    panoptic_evaluator.update(predictions)
                memory.tidy()
            if after_batch:
                after_batch()

    metric_logger.synchronize_between_processes()
    coco_evaluator.synchronize_between_processes()
    if panoptic_evaluator is not None:
        panoptic_evaluator.synchronize_between_processes()
    stats = {}
    if launch.is_main_process():
        print("Averaged stats:", metric_logger)
        coco_evaluator.accumulate()
        coco_evaluator.summarize()
        if per_class:
            coco_evaluator.print_per_class()
        stats = metric_logger.averages()
        stats["box_std"], stats["score_std"] = spread.compute()
        stats["coco_eval_bbox"] = coco_evaluator.coco_eval["bbox"].stats.tolist()
        if "segm" in postprocessors:
            stats["coco_eval_masks"] = coco_evaluator.coco_eval["segm"].stats.tolist()
        if panoptic_evaluator is not None:
            quality = panoptic_evaluator.summarize()
            stats.update(PQ_all=quality["All"], PQ_th=quality["Things"], PQ_st=quality["Stuff"])
    return dist.broadcast(stats), coco_evaluator


def weighted_sum(losses, weight_dict):
    """Return the total loss, a Var, and the scalars to log, floats with the original's names.

    The scalars are the sum (`loss`), each weighted loss under its name, each raw loss with the
    suffix `_unscaled`, and class_error. They come from the device in one transfer.
    """
    names = [name for name in losses if name in weight_dict]
    values = stack([losses[name] for name in names]).reshape(-1)
    loss = (values * _get_weights(tuple(weight_dict[name] for name in names))).sum()
    *values, total = jt.concat([values, loss]).numpy().tolist()
    unscaled = {**losses, **dict(zip(names, values))}
    scalars = {"loss": total, "class_error": unscaled["class_error"]}
    scalars.update({name: unscaled[name] * weight_dict[name] for name in names})
    scalars.update({f"{name}_unscaled": value for name, value in unscaled.items()})
    return loss, scalars


@functools.lru_cache
def _get_weights(weights):
    """Return a tuple of floats as a Var, which is copied to the GPU only once."""
    return jt.array(np.float32(weights)).stop_grad()


def get_dropout_seed(seed, epoch, step, index, accum_steps):
    """Return the 31-bit dropout seed of batch `index` in this process's step.

    Batches are numbered across processes: one process that accumulates four batches draws what four
    processes draw.
    """
    batch = accum_steps * (step * launch.get_world_size() + launch.get_rank()) + index
    return random.Random(f"{seed}/{epoch}/{batch}").getrandbits(31)
