"""Train DETR, evaluate it, or detect objects with it.

`python main.py --help` lists the flags; the README has the commands. The script runs from top to
bottom: flags and checkpoint, then the import of Jittor, then data, model, optimizer, resume, and
the loop over epochs. One training step is in `engine.train_one_epoch`.
"""

import math
import signal
import time
from contextlib import contextmanager
from datetime import timedelta

import numpy as np

from arguments import (
    OVERFIT_AP,
    apply_checkpoint_args,
    finish_overfit,
    has_original_settings,
    parse_args,
    resume_command,
)
from checks import check_args, get_step_size, get_weights_source, print_step_size
from models.weights.checkpoint import load_checkpoint, read_class_names
from models.weights.names import get_class_names
from util import launch
from util.errors import DataError, InputError, warn
from util.forecast import Forecast
from util.reference import describe_ap, is_coco
from util.startup.prepare import prepare_device
from util.stuck import StuckDetector
from util.version import get_commit


def main(args):
    """Run the program. args: what `parse_args` returns.

    Every process runs it. Collectives (util/dist.py) exist only after Jittor is imported; from then
    on all processes have to reach each of them, also within loops. Raises InputError for any error
    that the user can fix.
    """
    # ------------------------------ flags and checkpoint: no Jittor, no collective
    check_args(args)
    prepare_device(args.device)
    source = get_weights_source(args)
    checkpoint = load_checkpoint(source) if source else None
    changed = apply_checkpoint_args(args, checkpoint, source) if checkpoint else []
    if args.eval and not source and launch.is_main_process():
        warn("--eval without --resume evaluates random weights")
    if not args.predict:
        commit = get_commit()
        print(f"commit: {commit}\n{args}")
    if not (args.predict or args.eval):
        print_step_size(args)

    # ------------------------------ from here on, with Jittor
    # The import may compile for minutes: everything that can fail early comes before it. It happens
    # in util/backend.py, which the modules below import.
    from datasets import build_dataset, get_coco_api_from_dataset
    from datasets.classes import check_class_names, find_num_classes, get_num_classes, merge_classes
    from datasets.loader import DataLoader
    from datasets.report import make_report
    from datasets.summary import find_images_with_boxes, hash_dataset, print_summary
    from engine import evaluate, train_one_epoch
    from models.detr import build_model
    from models.weights.finetune import load_matching_weights
    from models.weights.imagenet import load_backbone
    from models.weights.model import hash_weights, load_model_state
    from models.weights.training import TrainingState
    from predict import predict_files
    from util import dist
    from util.backend import select_device, set_seed
    from util.best import Best
    from util.optim import StepLR, build_optimizer
    from util.output import OutputFolder
    from util.signals import StopRequest

    start_time = time.time()
    device = select_device(args.device)

    # ------------------------------ predict
    if args.predict:
        model, _, _ = build_model(args, get_num_classes(args))
        load_model_state(model, checkpoint["model"], args.resume)
        predict_files(model, args, get_class_names(checkpoint, args.resume))
        return

    # ------------------------------ data
    loading = dict(
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        seed=args.seed,
        rank=launch.get_rank(),
        world_size=launch.get_world_size(),
    )
    with dist.main_process_first():  # it draws shapes and parses annotations once for all
        dataset_val = build_dataset("overfit" if args.overfit else "val", args)
    name = f"the validation data ({dataset_val.ann_file})"
    dist.check_same(lambda: hash_dataset(dataset_val), name)
    base_ds = get_coco_api_from_dataset(dataset_val)
    dataset_train = data_loader_train = None
    images_train = images_val = None  # all
    if args.overfit:
        dataset_train = dataset_val
        images_val = find_images_with_boxes(dataset_val)[: args.overfit]
        if len(images_val) < args.overfit:
            raise InputError(f"--overfit {args.overfit}: only {len(images_val)} images have boxes")
        # An epoch of some 50 steps, so that evaluating and saving do not take longer.
        passes = math.ceil(50 * get_step_size(args) / len(images_val))
        images_train = np.tile(images_val, passes)
    elif not args.eval:
        with dist.main_process_first():
            dataset_train = build_dataset("train", args)
        name = f"the training data ({dataset_train.ann_file})"
        dist.check_same(lambda: hash_dataset(dataset_train), name)
    if dataset_train:
        print_summary("training data", dataset_train, args.num_queries)
    if dataset_val is not dataset_train:
        print_summary("validation data", dataset_val, args.num_queries)
    data_loader_val = DataLoader(dataset_val, indices=images_val, **loading)
    if not args.eval:
        loading.update(shuffle=True, drop_last=True, accum_steps=args.accum_steps)
        data_loader_train = DataLoader(dataset_train, indices=images_train, **loading)
    datasets = [dataset for dataset in (dataset_train, dataset_val) if dataset]
    classes = merge_classes(*datasets)
    num_classes = get_num_classes(args) or find_num_classes(*datasets)
    if args.resume or args.frozen_weights:
        ann_file = datasets[0].ann_file
        remedy = "rename it in the annotations, else start a new run with --finetune"
        old_classes = read_class_names(checkpoint, source)
        check_class_names(classes, ann_file, old_classes, source, remedy)

    # ------------------------------ model
    set_seed(args.seed)
    model, criterion, postprocessors = build_model(args, num_classes)
    if "panoptic" in postprocessors:  # build_model only knows which of COCO's categories are things
        postprocessors["panoptic"].is_thing_map = dataset_val.get_is_thing_map()
    if args.resume:
        load_model_state(model, checkpoint["model"], args.resume)
    elif args.finetune:
        old_classes = get_class_names(checkpoint, args.finetune)
        load_matching_weights(model, checkpoint["model"], old_classes, classes, args.finetune)
    elif args.frozen_weights:
        load_model_state(model.detr, checkpoint["model"], args.frozen_weights)
    else:
        detr = model.detr if args.masks else model
        load_backbone(detr.backbone[0].body, args.backbone_weights, args.backbone)
    dist.check_same(lambda: hash_weights(model), "the initial weights")
    # Jittor's `eval()` stops all gradients: count in training mode.
    n_parameters = sum(p.numel() for p in model.parameters() if not p.is_stop_grad())
    world_size = launch.get_world_size()
    processes = f" of each of {world_size} processes" if world_size > 1 else ""
    num_val_images = len(data_loader_val.indices)
    print(
        f"device{processes}: {device}, trainable parameters: {n_parameters:,}, "
        f"validation images: {num_val_images}, ready after {time.time() - start_time:.0f} s"
    )
    # Whether the original's log shows what to expect.
    is_original = not args.eval and has_original_settings(args)
    is_comparable = is_original and is_coco(len(dataset_train), classes)
    output = OutputFolder(args.output_dir, args.overwrite, args.tensorboard, is_comparable)

    # ------------------------------ evaluate
    def evaluate_and_save(names, after_batch=None):
        """Return the validation metrics. names: files for the precision and recall arrays."""
        test_stats, coco_evaluator = evaluate(
            model,
            criterion,
            postprocessors,
            data_loader_val,
            base_ds,
            output.get_panoptic_folder(),
            after_batch,
            args.per_class,
        )
        output.save_evaluation(coco_evaluator, dataset_val, make_report, names)
        return test_stats

    if args.eval:
        evaluate_and_save(["eval.pkl"])
        return

    # ------------------------------ optimizer, and the state to save and resume
    optimizer = build_optimizer(model, args)
    lr_scheduler = StepLR(optimizer, args.lr_drop)
    best = Best(args.best)
    data = dict(classes=classes, num_classes=num_classes, num_images=len(dataset_train))
    state = TrainingState(args, model, optimizer, lr_scheduler, best, **data)
    if args.resume:
        state.resume(checkpoint, changed)
    del checkpoint  # model and optimizer have their own copies

    # ------------------------------ train
    output.save_args(args, commit)
    stop = StopRequest()
    step_size = get_step_size(args)
    steps = len(data_loader_train), num_val_images / step_size
    forecast = Forecast(*steps, args.epochs, args.eval_interval, args.patience > 0)
    stuck = StuckDetector(args, step_size, len(find_images_with_boxes(dataset_train)))

    def stop_if_requested():
        """Exit if Ctrl-C, SIGTERM or SIGUSR1 has arrived in any process."""
        if stop.agree():
            stop.exit(resume_command(args))

    def after_step(step, metric_logger):
        """Save if due; stop if requested. step: number of steps taken in this epoch."""
        state.step, state.meters = step, metric_logger.state_dict()
        is_stopping = stop.agree()
        if is_stopping or (args.checkpoint_interval and step % args.checkpoint_interval == 0):
            output.save_checkpoint(state, args.lr_drop)
        if is_stopping:
            stop.exit(resume_command(args))
        forecast.finish_step(state.epoch, step)

    @contextmanager
    def keep_work():
        """If data cannot be loaded, save the epoch's steps; add the command to resume to errors."""
        try:
            yield
        except InputError as error:
            # Before an epoch's first step, nothing has been trained since the last save.
            if isinstance(error, DataError) and state.step > 0:
                output.save_checkpoint(state, args.lr_drop)
            raise InputError(f"{error}; {resume_command(args)}") from error

    first = state.epoch + 1 if state.is_trained else state.epoch
    if first < args.epochs:
        from_step = f", from step {state.step}" if state.step > 0 else ""
        epochs = f"epochs {first} to {args.epochs - 1}{from_step}"
        print(f"training on {args.overfit or len(dataset_train)} images, {epochs}")
    else:
        print(f"all {args.epochs} epochs are trained; --epochs trains more")
    training_start = time.time()
    with stop, keep_work():
        if state.is_trained:
            logged = output.find_logged_stats(state.epoch, state.train_stats)
            if logged is not None:  # the run was stopped after the evaluation of this epoch
                if logged:
                    best.update(state.epoch, best.find(logged))
                state.start_epoch(state.epoch + 1)

        for epoch in range(state.epoch, args.epochs):
            if not state.is_trained:  # otherwise the resumed run only has to evaluate it
                if args.patience and best.waited >= args.patience:
                    print(
                        f"{best.figure} has not improved for {best.waited} evaluations: training "
                        f"stops. Best: {best.value:.4f} after epoch {best.epoch}"
                    )
                    break
                train_stats = train_one_epoch(
                    model,
                    criterion,
                    data_loader_train,
                    optimizer,
                    epoch,
                    args.seed,
                    args.clip_max_norm,
                    start_step=state.step,
                    meters=state.meters,
                    after_step=after_step,
                )
                lr_scheduler.step()
                state.finish_epoch(train_stats)
                output.save_checkpoint(state, args.lr_drop)

            test_stats = {}
            if (epoch + 1) % args.eval_interval == 0 or epoch == args.epochs - 1:
                names = ["eval/latest.pkl"]
                if epoch % 50 == 0:
                    names.append(f"eval/{epoch:03}.pkl")
                test_stats = evaluate_and_save(names, after_batch=stop_if_requested)
                if best.update(epoch, best.find(test_stats)):
                    output.save_best(state)
                test_stats["best_epoch"] = best.epoch
            output.log_epoch(state.train_stats, test_stats, epoch, n_parameters)
            if test_stats:
                ap = test_stats["coco_eval_bbox"][0]
                print(f"epoch {epoch}: {describe_ap(epoch, ap, args.lr_drop, is_comparable)}")
            if text := forecast.finish_epoch(epoch):
                print(f"forecast: {text}")
            stuck.check(epoch, state.train_stats, test_stats)
            stop_if_requested()
            state.start_epoch(epoch + 1)
            if args.overfit and best.value is not None and best.value > OVERFIT_AP:
                break
    print(f"Training time {timedelta(seconds=int(time.time() - training_start))}")
    if args.overfit:
        finish_overfit(args, best, len(data_loader_train))


if __name__ == "__main__":
    # Ctrl-C ends the program at once, also while Jittor compiles; training replaces this handler.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with launch.job():
        main(parse_args())
