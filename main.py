"""Trains DETR, evaluates it and predicts with it. `python main.py --help` lists the flags; the README explains them."""
import math
import signal
import time
from datetime import timedelta
from typing import NamedTuple, Optional

from arguments import adopt_flags, check_args, how_to_go_on, parse_args
from datasets import build_dataset, check_names, get_classes, get_coco_api_from_dataset, get_num_classes, num_classes_from_ids
from datasets.names import published_names
from datasets.summary import print_summary
from models import build_model
from models.weights.checkpoint import class_names, load_checkpoint, num_classes_of
from models.weights.imagenet import load_backbone
from models.weights.model import load_model_state, model_state, weights_digest
from models.weights.training import check_training_state, load_optimizer_state, optimizer_state
from predict import predict_pictures
from util import dist, runtime
from util.errors import InputError
from util.signals import StopRequest


def main(args):
    # ---- what the flags and the checkpoint alone decide
    check_args(args)
    runtime.prepare_device(args.device)
    source = args.resume or args.finetune
    with dist.main_process_first():
        checkpoint = load_checkpoint(source) if source else None
    changed = adopt_flags(args, checkpoint, source) if checkpoint else []

    # ---- from here on Jittor is imported, which may compile for minutes
    from util.backend import jt, select_device
    start_time = time.time()
    device = select_device(args.device)

    # ---- predict
    if args.predict:
        model, _, _ = build_model(args, get_num_classes(args))
        load_model_state(model, checkpoint["model"], args.resume)
        predict_pictures(model, args, names_of(checkpoint, args.resume))
        return

    # ---- data
    data = Data(args)
    if args.resume:
        check_names(data.classes, "the annotations", class_names(checkpoint, args.resume), args.resume)

    # ---- model
    jt.set_global_seed(args.seed, different_seed_for_mpi=False)
    model, criterion, postprocessors = build_model(args, data.num_classes)
    load_weights(model, args, checkpoint, data.classes)
    dist.check_same(weights_digest(model), "the initial weights")
    n_parameters = sum(p.numel() for p in model.parameters() if not p.is_stop_grad())
    processes = f" of each of {dist.get_world_size()} processes" if dist.get_world_size() > 1 else ""
    print(f"device{processes}: {device}, trainable parameters: {n_parameters:,}, validation images: {len(data.val)}, "
          f"ready after {time.time() - start_time:.0f} s")

    # ---- evaluate, or train
    evaluator = Evaluator(args, model, criterion, postprocessors, data=data)
    if args.eval:
        evaluator.run(["eval.pkl"])
        return
    trainer = Trainer(args, model, criterion, data=data, evaluator=evaluator, n_parameters=n_parameters)
    if args.resume:
        trainer.resume(checkpoint, changed)
    trainer.run()


class Data:
    """The data sets and their loaders, and the classes that they have.

    train, train_loader: None with --eval. classes: dictionary category id -> name. num_classes: highest category id + 1.
    """

    def __init__(self, args):
        from datasets.loader import DataLoader
        loading = dict(num_workers=args.num_workers, seed=args.seed, rank=dist.get_rank(), world_size=dist.get_world_size())
        with dist.main_process_first():
            self.val = build_dataset("val", args)
        self.val_loader = DataLoader(self.val, args.batch_size, shuffle=False, drop_last=False, **loading)
        self.coco_gt = get_coco_api_from_dataset(self.val)
        self.train = self.train_loader = None
        if not args.eval:
            self.train = build_dataset("train", args)
            self.train_loader = DataLoader(self.train, args.batch_size, shuffle=True, drop_last=True, accum_steps=args.accum_steps,
                                           **loading)
            print_summary("training data", self.train, args.num_queries)
        print_summary("validation data", self.val, args.num_queries)
        self.classes = get_classes(self.val) if args.eval else get_classes(self.train, self.val)
        self.num_classes = get_num_classes(args)
        if self.num_classes is None:
            self.num_classes = num_classes_from_ids(self.classes, args.val_ann if args.eval else args.train_ann)


def names_of(checkpoint, source):
    """The names of the classes of a checkpoint: its own, or COCO's for weights that are like the published ones."""
    return class_names(checkpoint, source) or published_names(num_classes_of(checkpoint))


def load_weights(model, args, checkpoint, classes):
    """Loads the weights that training or evaluation begins with. checkpoint: that of --resume or --finetune, where one is given."""
    if args.resume:
        load_model_state(model, checkpoint["model"], args.resume)
    elif args.finetune:
        from models.weights.finetune import load_what_fits
        load_what_fits(model, checkpoint["model"], names_of(checkpoint, args.finetune), classes, source=args.finetune)
    elif args.frozen_weights:
        load_model_state(model.detr, load_checkpoint(args.frozen_weights)["model"], args.frozen_weights)
    else:
        detr = model.detr if args.masks else model
        with dist.main_process_first():
            load_backbone(detr.backbone[0].body, args.backbone_weights, args.backbone)


class Evaluator:
    """Evaluates the model on the validation data, and saves what comes out.

    output: the OutputFolder of --output_dir.
    """

    def __init__(self, args, model, criterion, postprocessors, *, data):
        from util.output import OutputFolder
        self.args, self.model, self.criterion, self.postprocessors, self.data = args, model, criterion, postprocessors, data
        self.output = OutputFolder(args.output_dir, args.overwrite)

    def run(self, names, after_step=None):
        """Returns the figures. names: of the files for pycocotools' arrays; after_step: called after each batch."""
        from datasets.panoptic_eval import PanopticEvaluator
        from engine import evaluate
        panoptic_evaluator = None
        if "panoptic" in self.postprocessors:
            panoptic_evaluator = PanopticEvaluator(self.data.val.ann_file, self.data.val.ann_folder, self.output.panoptic_folder())
        stats, evaluator = evaluate(self.model, self.criterion, self.postprocessors, self.data.val_loader,
                                    coco_gt=self.data.coco_gt, panoptic_evaluator=panoptic_evaluator, after_step=after_step,
                                    per_class=self.args.per_class)
        self.output.save_evaluation(evaluator, self.data.val, names)
        return stats


class Trainer:
    """A training: what it changes, where it is, and what it saves."""

    def __init__(self, args, model, criterion, *, data, evaluator, n_parameters):
        from util.optim import StepLR
        self.args, self.model, self.criterion, self.data, self.evaluator = args, model, criterion, data, evaluator
        self.output, self.n_parameters = evaluator.output, n_parameters
        self.optimizer = build_optimizer(model, args)
        self.lr_scheduler = StepLR(self.optimizer, args.lr_drop)
        self.position = Position(args.start_epoch)
        self.stop = StopRequest()

    def resume(self, checkpoint, changed):
        """Goes on where a checkpoint was saved. changed: names of flags that are given and differ from the checkpoint's."""
        self.position = load_training(checkpoint, self.optimizer, self.lr_scheduler, len(self.data.train), args=self.args, changed=changed)

    def run(self):
        start = self.position
        print(f"training on {len(self.data.train)} images, epochs {start.epoch} to {self.args.epochs - 1}"
              + (f", from step {start.step}" if start.step > 0 else ""))
        start_time = time.time()
        with self.stop:
            if start.train_stats and self.output.lacks(start.epoch - 1):
                self.evaluate_epoch(start.epoch - 1, start.train_stats)
            for epoch in range(start.epoch, self.args.epochs):
                train_stats = self.train_epoch(epoch)
                self.evaluate_epoch(epoch, train_stats)
                self.exit_if_asked_to()
        print(f"Training time {timedelta(seconds=int(time.time() - start_time))}")

    def train_epoch(self, epoch):
        """Trains for one epoch, saves, and returns the averages of the losses."""
        from engine import train_one_epoch
        is_resumed = epoch == self.position.epoch
        train_stats = train_one_epoch(
            self.model, self.criterion, self.data.train_loader, self.optimizer, epoch=epoch, seed=self.args.seed,
            max_norm=self.args.clip_max_norm, start_step=self.position.step if is_resumed else 0,
            meters=self.position.meters if is_resumed else None, accum_steps=self.args.accum_steps,
            after_step=lambda step, logger: self.after_step(epoch, step, logger))
        self.lr_scheduler.step()
        self.save(epoch, train_stats=train_stats)
        return train_stats

    def evaluate_epoch(self, epoch, train_stats):
        names = ["eval/latest.pkl"] + ([f"eval/{epoch:03}.pkl"] if epoch % 50 == 0 else [])
        test_stats = self.evaluator.run(names, after_step=self.exit_if_asked_to)
        self.output.log_epoch(train_stats, test_stats, epoch, self.n_parameters)

    def after_step(self, epoch, step, logger):
        """Saves where it is time to, and ends the run where a signal asked for that. step: those of the epoch that are done."""
        stopping = self.stop.agree()
        interval = self.args.checkpoint_interval
        if stopping or (interval and step % interval == 0):
            self.save(epoch - 1, step, meters=logger.state_dict())
        if stopping:
            self.stop.exit(how_to_go_on(self.args))

    def exit_if_asked_to(self):
        if self.stop.agree():
            self.stop.exit(how_to_go_on(self.args))

    def save(self, epoch, step=0, **more):
        """epoch: the last one that was trained to its end; step: batches of the next one that were trained since."""
        self.output.save_training(lambda: {
            "model": model_state(self.model), "optimizer": optimizer_state(self.optimizer),
            "lr_scheduler": self.lr_scheduler.state_dict(), "epoch": epoch, "step": step, "processes": dist.get_world_size(),
            "args": {**vars(self.args), "num_classes": self.data.num_classes}, "classes": self.data.classes,
            **({"images": len(self.data.train)} if step else {}), **more}, self.args.lr_drop)


def build_optimizer(model, args):
    """AdamW in two groups, the backbone with its own learning rate; the groups know their parameters' names."""
    from util.optim import AdamW
    trainable = [(name, p) for name, p in model.named_parameters() if not p.is_stop_grad()]
    groups = [([n for n in trainable if "backbone" not in n[0]], args.lr),
              ([n for n in trainable if "backbone" in n[0]], args.lr_backbone)]
    return AdamW([{"names": [name for name, _ in group], "params": [p for _, p in group], "lr": lr}
                  for group, lr in groups], lr=args.lr, weight_decay=args.weight_decay)


class Position(NamedTuple):
    """Where training goes on."""
    epoch: int
    step: int = 0  # batches of this epoch that were trained before
    meters: Optional[dict] = None  # their losses, as MetricLogger keeps them
    train_stats: Optional[dict] = None  # averages of the epoch before, where it was trained to its end


def load_training(resumed, optimizer, lr_scheduler, images, args, changed=()):
    """Takes optimizer, schedule and position from a checkpoint. Returns a Position.

    images: how many there are to train on. changed: names of flags that are given and differ from the checkpoint's.
    """
    optimizer_state = resumed.get("optimizer")
    if not isinstance(optimizer_state, dict) or "groups" not in optimizer_state:  # weights alone, or a checkpoint of the original
        print(f"{args.resume}: only the weights are taken; training starts at epoch {args.start_epoch}")
        return Position(args.start_epoch)
    check_training_state(resumed, args.resume)
    processes, step = dist.get_world_size(), resumed["step"]
    if resumed["processes"] != processes:
        print(f"{args.resume}: was saved by a training of {resumed['processes']} processes and goes on with {processes}: a "
              f"step now takes {processes * args.accum_steps * args.batch_size} images")
    if step:
        now = {"training images": images, "--batch_size": args.batch_size, "--seed": args.seed}
        then = {"training images": resumed["images"], "--batch_size": resumed["args"]["batch_size"],
                "--seed": resumed["args"]["seed"]}
        if changed := [f"{name} {then[name]} (now {now[name]})" for name in now if now[name] != then[name]]:
            raise InputError(f"{args.resume}: was saved in the middle of an epoch, with {', '.join(changed)}: "
                             "resume with the same data and flags")
        # Nothing is trained twice.
        step = math.ceil(step * resumed["processes"] * resumed["args"]["accum_steps"] / (processes * args.accum_steps))
    load_optimizer_state(optimizer, resumed["optimizer"], args.resume)
    lr_scheduler.load_state_dict(resumed["lr_scheduler"])
    if {"lr", "lr_backbone", "lr_drop"} & set(changed):
        lr_scheduler.step_size = args.lr_drop
        for group, lr in zip(optimizer.param_groups, (args.lr, args.lr_backbone)):
            group["lr"] = lr * lr_scheduler.gamma ** (lr_scheduler.last_epoch // args.lr_drop)
    if "weight_decay" in changed:
        for group in optimizer.param_groups:
            group["weight_decay"] = args.weight_decay
    return Position(resumed["epoch"] + 1, step, resumed.get("meters"), resumed.get("train_stats"))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # at once, also while Jittor compiles; a training stops in good order
    with dist.job():
        main(parse_args())
