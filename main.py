"""Trains DETR, evaluates it and predicts with it.

`python main.py --help` lists the flags; the README explains them.
"""

import signal
import time
from datetime import timedelta
from typing import NamedTuple, Optional

from arguments import adopt_flags, check_args, how_to_go_on, parse_args
from datasets import build_dataset, get_coco_api_from_dataset
from datasets.classes import check_names, get_classes, get_num_classes, num_classes_from_ids
from datasets.summary import print_summary
from models.detr import build_model
from models.weights.checkpoint import class_names, load_checkpoint
from models.weights.imagenet import load_backbone
from models.weights.model import load_model_state, model_state, weights_digest
from models.weights.names import names_of
from models.weights.training import (
    check_training_state,
    load_optimizer_state,
    optimizer_state,
    steps_done,
)
from predict import predict_pictures
from util import dist, launch
from util.errors import InputError, warn
from util.signals import StopRequest
from util.startup.prepare import prepare_device


def main(args):
    # ---- what the flags and the checkpoint alone decide
    check_args(args)
    prepare_device(args.device)
    source = args.resume or args.finetune or args.frozen_weights
    with dist.main_process_first():
        checkpoint = load_checkpoint(source) if source else None
    changed = adopt_flags(args, checkpoint, source) if checkpoint else []
    if args.eval and not source and launch.is_main_process():
        warn("--eval without --resume evaluates random weights")

    # ---- from here on Jittor is imported, which may compile for minutes
    from util.backend import jt, select_device, set_seed
    from util.startup import compilation

    start_time = time.time()
    device = select_device(args.device)
    if launch.is_main_process() and not jt.flags.use_parallel_op_compiler:
        compilation.report_progress(jt.flags)  # in several threads, Jittor reports it itself

    # ---- predict
    if args.predict:
        model, _, _ = build_model(args, get_num_classes(args))
        load_model_state(model, checkpoint["model"], args.resume)
        predict_pictures(model, args, names_of(checkpoint, args.resume))
        return

    # ---- data
    data = Data(args)
    if args.resume or args.frozen_weights:
        names = class_names(checkpoint, source)
        check_names(data.classes, (data.train or data.val).ann_file, names, source)

    # ---- model
    set_seed(args.seed)
    model, criterion, postprocessors = build_model(args, data.num_classes)
    load_weights(model, args, checkpoint, data.classes)
    dist.check_same(weights_digest(model), "the initial weights")
    world_size = launch.get_world_size()
    processes = f" of each of {world_size} processes" if world_size > 1 else ""
    print(
        f"device{processes}: {device}, trainable parameters: {count_parameters(model):,}, "
        f"validation images: {len(data.val)}, ready after {time.time() - start_time:.0f} s"
    )

    # ---- evaluate, or train
    evaluator = Evaluator(args, model, criterion, postprocessors, data=data)
    if args.eval:
        evaluator.run(["eval.pkl"])
        return
    trainer = Trainer(args, model, criterion, data=data, evaluator=evaluator)
    if args.resume:
        trainer.resume(checkpoint, changed)
    del checkpoint  # model and optimizer have their own copies
    trainer.run()


class Data:
    """The data sets, their loaders and their classes.

    val, train: the data sets; val_loader, train_loader: their loaders. Those of training are None
    with --eval. coco_gt: pycocotools' COCO with the ground truth. classes: dictionary category id
    -> name. num_classes: highest category id + 1.
    """

    def __init__(self, args):
        from datasets.loader import DataLoader

        loading = dict(
            num_workers=args.num_workers,
            seed=args.seed,
            rank=launch.get_rank(),
            world_size=launch.get_world_size(),
        )
        with dist.main_process_first():
            self.val = build_dataset("val", args)
        self.val_loader = DataLoader(self.val, args.batch_size, **loading)
        self.coco_gt = get_coco_api_from_dataset(self.val)
        self.train = self.train_loader = None
        if not args.eval:
            loading.update(shuffle=True, drop_last=True, accum_steps=args.accum_steps)
            with dist.main_process_first():  # keeps the annotations for the others
                self.train = build_dataset("train", args)
            self.train_loader = DataLoader(self.train, args.batch_size, **loading)
            print_summary("training data", self.train, args.num_queries)
        print_summary("validation data", self.val, args.num_queries)

        self.classes = get_classes(self.val) if args.eval else get_classes(self.train, self.val)
        self.num_classes = get_num_classes(args)
        if self.num_classes is None:
            ann_file = args.val_ann if args.eval else args.train_ann
            self.num_classes = num_classes_from_ids(self.classes, ann_file)


def load_weights(model, args, checkpoint, classes):
    """Loads the weights that training or evaluation starts with.

    checkpoint: that of --resume, --finetune or --frozen_weights, or None; classes: those of the
    data.
    """
    if args.resume:
        load_model_state(model, checkpoint["model"], args.resume)
    elif args.finetune:
        from models.weights.finetune import load_what_fits

        old_classes = names_of(checkpoint, args.finetune)
        load_what_fits(model, checkpoint["model"], old_classes, classes, source=args.finetune)
    elif args.frozen_weights:
        load_model_state(model.detr, checkpoint["model"], args.frozen_weights)
    else:
        detr = model.detr if args.masks else model
        try:
            with dist.main_process_first():
                load_backbone(detr.backbone[0].body, args.backbone_weights, args.backbone)
        except InputError as error:
            if args.backbone_weights != "imagenet":
                raise
            remedy = "or use --backbone_weights none or --backbone_weights PATH"
            raise InputError(f"{error}, {remedy}") from error


class Evaluator:
    """Evaluates the model on the validation data, and saves the results.

    output: the OutputFolder of --output_dir; thresholds: the lowest score to show of each class,
    from the last evaluation, where results are saved.
    """

    def __init__(self, args, model, criterion, postprocessors, *, data):
        from util.output import OutputFolder

        self.model, self.criterion, self.postprocessors = model, criterion, postprocessors
        self.data = data
        self.per_class = args.per_class
        self.thresholds = {}
        if "panoptic" in postprocessors:
            # Those of the model are COCO's; of own data, things may have ids above 90.
            postprocessors["panoptic"].is_thing_map = data.val.is_thing_map()
        self.output = OutputFolder(args.output_dir, args.overwrite, args.tensorboard)

    def run(self, names, after_step=None):
        """Returns the figures.

        names: of the files for pycocotools' arrays; after_step: called after each batch.
        """
        from datasets.panoptic_eval import PanopticEvaluator
        from datasets.quality import best_thresholds, make_report
        from engine import evaluate

        panoptic_evaluator = None
        if "panoptic" in self.postprocessors:
            panoptic_evaluator = PanopticEvaluator(
                self.data.val.ground_truth, self.data.val.ann_folder, self.output.panoptic_folder()
            )
        stats, coco_evaluator = evaluate(
            self.model,
            self.criterion,
            self.postprocessors,
            self.data.val_loader,
            coco_gt=self.data.coco_gt,
            panoptic_evaluator=panoptic_evaluator,
            after_step=after_step,
            per_class=self.per_class,
        )
        self.output.save_evaluation(coco_evaluator, self.data.val, names)
        if self.output.active:
            report = make_report(coco_evaluator)
            self.thresholds = best_thresholds(report)
            self.output.save_report(report, self.data.val, self.data.coco_gt)
        return stats


class Trainer:
    """A training: what it changes, where it is, and what it saves."""

    def __init__(self, args, model, criterion, *, data, evaluator):
        from util.best import Best
        from util.optim import StepLR

        self.args, self.model, self.criterion, self.data = args, model, criterion, data
        self.evaluator, self.output = evaluator, evaluator.output
        self.optimizer = build_optimizer(model, args)
        self.lr_scheduler = StepLR(self.optimizer, args.lr_drop)
        self.position = Position(args.start_epoch)
        self.best = Best(args.best)
        self.n_parameters = count_parameters(model)
        self.stop = StopRequest()

    def resume(self, checkpoint, changed):
        """Continues where a checkpoint was saved.

        changed: names of the training's flags that are given and differ from the checkpoint's.
        """
        args = self.args
        optimizer = checkpoint.get("optimizer")
        if not isinstance(optimizer, dict) or "groups" not in optimizer:
            # Weights alone, or a checkpoint of the original.
            print(f"{args.resume}: only weights; training starts at epoch {args.start_epoch}")
            return
        check_training_state(checkpoint, args.resume)
        if "start_epoch" in args.given:
            print(f"{args.resume} says where the training goes on: --start_epoch has no effect")
        load_optimizer_state(self.optimizer, optimizer, args.resume)
        self.lr_scheduler.load_state_dict(checkpoint["lr_scheduler"])
        if {"lr", "lr_backbone", "lr_drop"} & set(changed):
            self.lr_scheduler.set_rates([args.lr, args.lr_backbone], args.lr_drop)
        if "weight_decay" in changed:
            for group in self.optimizer.param_groups:
                group["weight_decay"] = args.weight_decay
        self.position = Position(
            checkpoint["epoch"] + 1,
            steps_done(
                checkpoint,
                args.resume,
                images=len(self.data.train),
                batch_size=args.batch_size,
                accum_steps=args.accum_steps,
                seed=args.seed,
            ),
            checkpoint.get("meters"),
            checkpoint.get("train_stats"),
        )
        if "best" in checkpoint:
            self.best.load_state_dict(checkpoint["best"])

    def run(self):
        args, first = self.args, self.position
        from_step = f", from step {first.step}" if first.step > 0 else ""
        if first.epoch < args.epochs:
            print(
                f"training on {len(self.data.train)} images, epochs {first.epoch} to "
                f"{args.epochs - 1}{from_step}"
            )
        else:
            print(f"all {args.epochs} epochs are trained; --epochs trains more")
        start_time = time.time()
        with self.stop:
            if first.train_stats:  # the checkpoint is from before the evaluation of its epoch
                test_stats = self.output.logged_figures(first.epoch - 1, first.train_stats)
                if test_stats is None:
                    self.evaluate_epoch(first.epoch - 1, first.train_stats)
                elif test_stats:
                    self.best.update(first.epoch - 1, self.best.find(test_stats))
            for epoch in range(first.epoch, args.epochs):
                if args.patience and self.best.waited >= args.patience:
                    print(
                        f"{self.best.figure} has not improved for {self.best.waited} evaluations: "
                        f"training stops. Best: {self.best.value:.4f} after epoch {self.best.epoch}"
                    )
                    break
                train_stats = self.train_epoch(epoch)
                self.evaluate_epoch(epoch, train_stats)
                self.exit_if_asked_to()
        print(f"Training time {timedelta(seconds=int(time.time() - start_time))}")

    def train_epoch(self, epoch):
        """Trains for one epoch, saves, and returns the averages of the losses."""
        from engine import train_one_epoch

        is_resumed = epoch == self.position.epoch
        train_stats = train_one_epoch(
            self.model,
            self.criterion,
            self.data.train_loader,
            self.optimizer,
            epoch=epoch,
            seed=self.args.seed,
            max_norm=self.args.clip_max_norm,
            start_step=self.position.step if is_resumed else 0,
            meters=self.position.meters if is_resumed else None,
            accum_steps=self.args.accum_steps,
            after_step=lambda step, logger: self.after_step(epoch, step, logger),
        )
        self.lr_scheduler.step()
        self.save(epoch, train_stats=train_stats)
        return train_stats

    def evaluate_epoch(self, epoch, train_stats):
        """Evaluates, if it is time to, saves the model if it is the best so far, and logs."""
        test_stats = {}
        if (epoch + 1) % self.args.eval_interval == 0 or epoch == self.args.epochs - 1:
            names = ["eval/latest.pkl"]
            if epoch % 50 == 0:
                names.append(f"eval/{epoch:03}.pkl")
            test_stats = self.evaluator.run(names, after_step=self.exit_if_asked_to)
            value = self.best.find(test_stats) if launch.is_main_process() else None
            if self.best.update(epoch, dist.broadcast(value)):
                more = dict(train_stats=train_stats, thresholds=self.evaluator.thresholds)
                self.output.save_best(self.make_state(epoch, **more))
            test_stats["best_epoch"] = self.best.epoch
        self.output.log_epoch(train_stats, test_stats, epoch, self.n_parameters)

    def after_step(self, epoch, step, logger):
        """Saves where it is time to, and ends the run where a signal asked for that.

        step: those of the epoch that are done.
        """
        stopping = self.stop.agree()
        interval = self.args.checkpoint_interval
        if stopping or (interval and step % interval == 0):
            self.save(epoch - 1, step, meters=logger.state_dict(), images=len(self.data.train))
        if stopping:
            self.stop.exit(how_to_go_on(self.args))

    def exit_if_asked_to(self):
        if self.stop.agree():
            self.stop.exit(how_to_go_on(self.args))

    def save(self, epoch, step=0, **more):
        """Saves checkpoint.pkl, see `make_state`."""
        self.output.save_training(self.make_state(epoch, step, **more), self.args.lr_drop)

    def make_state(self, epoch, step=0, **more):
        """A function that returns the content of a checkpoint.

        epoch: the last one that is complete; step: steps of the next one that were trained since.
        """
        return lambda: {
            "model": model_state(self.model),
            "optimizer": optimizer_state(self.optimizer),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "epoch": epoch,
            "step": step,
            "processes": launch.get_world_size(),
            "args": {**vars(self.args), "num_classes": self.data.num_classes},
            "classes": self.data.classes,
            "best": self.best.state_dict(),
            **more,
        }


class Position(NamedTuple):
    """Where training goes on."""

    epoch: int
    step: int = 0  # of this epoch that were trained before
    meters: Optional[dict] = None  # their losses, as MetricLogger keeps them
    train_stats: Optional[dict] = None  # averages of the epoch before, if the checkpoint ends it


def count_parameters(model):
    """The number of trainable ones, in training mode: Jittor's `eval()` stops all gradients."""
    return sum(p.numel() for p in model.parameters() if not p.is_stop_grad())


def build_optimizer(model, args):
    """AdamW in two groups, the backbone with its own learning rate; each knows its names."""
    from util.optim import AdamW

    groups = [
        {"names": [], "params": [], "lr": args.lr},
        {"names": [], "params": [], "lr": args.lr_backbone},
    ]
    for name, parameter in model.named_parameters():
        if not parameter.is_stop_grad():
            group = groups["backbone" in name]
            group["names"].append(name)
            group["params"].append(parameter)
    return AdamW(groups, lr=args.lr, weight_decay=args.weight_decay)


if __name__ == "__main__":
    # Ctrl-C ends the program at once, also while Jittor compiles; a training stops in good order.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with launch.job():
        main(parse_args())
