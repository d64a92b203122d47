"""Trains DETR, evaluates it and predicts with it. `python main.py --help` lists the flags; the README explains them."""
import argparse
import math
import shlex
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, Optional

from util import dist, runtime
from util.arguments import adopt_flags, check_args
from util.checkpoint import (check_training_state, class_names, load_backbone, load_checkpoint, load_model_state,
                             load_optimizer_state, published_names, weights_digest)
from util.errors import InputError
from util.predict import predict_pictures
from util.signals import StopRequest
from datasets import EVAL_SIZE, MAX_SIZE, SCALES, check_names, count_classes, get_classes, get_num_classes
from datasets.summary import print_summary


def get_args_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)

    group = parser.add_argument_group("training")
    group.add_argument("--lr", default=1e-4, type=float)
    group.add_argument("--lr_backbone", default=1e-5, type=float, help="0 freezes the backbone")
    group.add_argument("--batch_size", default=2, type=int, help="images per process")
    group.add_argument("--accum_steps", default=1, type=int,
                       help="batches of a process that make one step, as if as many processes had one each")
    group.add_argument("--weight_decay", default=1e-4, type=float)
    group.add_argument("--epochs", default=300, type=int)
    group.add_argument("--lr_drop", default=200, type=int, help="epochs after which both learning rates fall to a tenth")
    group.add_argument("--clip_max_norm", default=0.1, type=float, help="global norm of the gradients; 0: no clipping")
    group.add_argument("--finetune", default="", metavar="PATH",
                       help="weights to begin from, of a model with other classes or queries: what fits is taken over")
    group.add_argument("--freeze", default=[], nargs="+", choices=["backbone", "transformer"], help="parts that do not train")

    group = parser.add_argument_group("backbone")
    group.add_argument("--backbone", default="resnet50",
                       choices=["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "tiny"],
                       help="tiny: a narrow ResNet for small images")
    group.add_argument("--backbone_weights", default="imagenet", metavar="{imagenet,none,PATH}",
                       help="torchvision's ImageNet weights (downloaded once), random ones, or a torchvision .pth")
    group.add_argument("--backbone_norm", default="frozen", choices=["frozen", "batch", "group"],
                       help="frozen BatchNorm as in the original; with batch or group the whole backbone trains, for "
                            "training without ImageNet weights")
    group.add_argument("--dilation", action="store_true", help="dilation instead of stride in the last stage (DC5)")
    group.add_argument("--position_embedding", default="sine", choices=["sine", "learned"])

    group = parser.add_argument_group("transformer")
    group.add_argument("--enc_layers", default=6, type=int)
    group.add_argument("--dec_layers", default=6, type=int)
    group.add_argument("--dim_feedforward", default=2048, type=int)
    group.add_argument("--hidden_dim", default=256, type=int)
    group.add_argument("--dropout", default=0.1, type=float)
    group.add_argument("--nheads", default=8, type=int)
    group.add_argument("--num_queries", default=100, type=int)
    group.add_argument("--pre_norm", action="store_true")

    group = parser.add_argument_group("segmentation")
    group.add_argument("--masks", action="store_true", help="train and evaluate a mask head too")
    group.add_argument("--frozen_weights", default="", help="a trained box model, to train nothing but the mask head on")

    group = parser.add_argument_group("loss")
    group.add_argument("--no_aux_loss", dest="aux_loss", action="store_false",
                       help="no losses on the earlier decoder layers")
    group.add_argument("--set_cost_class", default=1, type=float, help="weight of the class in the matching cost")
    group.add_argument("--set_cost_bbox", default=5, type=float, help="weight of the L1 distance in the matching cost")
    group.add_argument("--set_cost_giou", default=2, type=float, help="weight of the GIoU in the matching cost")
    group.add_argument("--mask_loss_coef", default=1, type=float)
    group.add_argument("--dice_loss_coef", default=1, type=float)
    group.add_argument("--bbox_loss_coef", default=5, type=float)
    group.add_argument("--giou_loss_coef", default=2, type=float)
    group.add_argument("--eos_coef", default=0.1, type=float, help="weight of the class 'no object'")

    group = parser.add_argument_group("data")
    group.add_argument("--dataset_file", default="coco", choices=["coco", "coco_panoptic", "shapes"],
                       help="shapes: small images that the program draws for itself")
    group.add_argument("--coco_path", type=str, help="folder with train2017, val2017 and annotations; shapes are "
                                                     "written there, or into the user's cache")
    group.add_argument("--coco_panoptic_path", type=str, help="folder with panoptic_train2017, panoptic_val2017 and "
                                                              "annotations, for --dataset_file coco_panoptic")
    group.add_argument("--train_images", metavar="FOLDER", help="your own training images, in any layout")
    group.add_argument("--train_ann", metavar="FILE", help="their annotations, a JSON in COCO's format")
    group.add_argument("--val_images", metavar="FOLDER", help="your own validation images")
    group.add_argument("--val_ann", metavar="FILE", help="their annotations")
    group.add_argument("--num_classes", type=int,
                       help="highest category id + 1; by default that of the data set or of your annotations")
    group.add_argument("--img_scales", default=list(SCALES), nargs="+", type=int, metavar="PIXELS",
                       help="shorter sides that training images are resized to, one of them at random")
    group.add_argument("--eval_size", default=EVAL_SIZE, type=int, help="shorter side in evaluation and prediction, pixels")
    group.add_argument("--max_size", default=MAX_SIZE, type=int, help="the longer side becomes no longer than about this, pixels")
    group.add_argument("--remove_difficult", action="store_true", help="without effect, as in the original")
    group.add_argument("--skip_bad_samples", action="store_true",
                       help="leave out images and annotations that cannot be used, instead of stopping at the first")
    group.add_argument("--num_workers", default=2, type=int, help="processes that load images")

    group.add_argument("--shapes_train", default=4000, type=int, help="training images of the shapes")
    group.add_argument("--shapes_val", default=200, type=int, help="validation images of the shapes")
    group.add_argument("--shapes_size", default=96, type=int, help="side of the shapes' images, pixels")

    group = parser.add_argument_group("run")
    group.add_argument("--output_dir", default="", help="where checkpoints and logs go; empty: nothing is saved")
    group.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"])
    group.add_argument("--seed", default=42, type=int)
    group.add_argument("--resume", default="", help="checkpoint to go on from: .pkl, PyTorch .pth, or https://…")
    group.add_argument("--start_epoch", default=0, type=int)
    group.add_argument("--checkpoint_interval", default=0, type=int,
                       help="steps between saves of checkpoint.pkl; 0: at the end of each epoch only")
    group.add_argument("--overwrite", action="store_true", help="remove the training that is in --output_dir")
    group.add_argument("--eval", action="store_true", help="only evaluate")
    group.add_argument("--per_class", action="store_true", help="print the figures of each class after an evaluation")
    group.add_argument("--predict", default=[], nargs="+", metavar="PATH",
                       help="draw what the model of --resume detects in pictures: files, folders, globs")
    group.add_argument("--threshold", default=0.7, type=float, help="least score of the detections of --predict")
    group.add_argument("--attention", action="store_true", help="with --predict: draw where the model looks, too")
    group.add_argument("--demo", action="store_true",
                       help="set the flags of the demo, a small DETR trained on shapes; other flags given win over them")
    return parser


# A DETR that learns the shapes from nothing within minutes on two CPU cores. Loading takes a tenth of a step; data workers
# would take more than that from the cores that train.
DEMO = dict(dataset_file="shapes", backbone="tiny", backbone_norm="batch", backbone_weights="none",
            enc_layers=2, dec_layers=2, hidden_dim=128, nheads=8, dim_feedforward=256, num_queries=15, dropout=0.0,
            pre_norm=True, lr=5e-4, lr_backbone=5e-4, batch_size=16, epochs=22, lr_drop=18,
            num_workers=0)


def parse_args(arguments=None):
    """The flags of the command line (or of a list of strings), and with --demo those of the demo where none is given.

    `given` are the names of those that the command line has.
    """
    parser = get_args_parser()
    args = parser.parse_args(arguments)
    unset = object()
    only_given = parser.parse_args(arguments, argparse.Namespace(**dict.fromkeys(vars(args), unset)))
    if args.demo:
        parser.set_defaults(**DEMO)
        args = parser.parse_args(arguments)
        print(f"--demo stands for: {full_command(args)}")
    args.given = [name for name, value in vars(only_given).items() if value is not unset]
    return args


def full_command(args):
    """The command line, without --demo, that gives args: every flag that differs from its default."""
    words = []
    for name, default in vars(get_args_parser().parse_args([])).items():
        value = getattr(args, name)
        if value == default or name == "demo":
            continue
        if name == "aux_loss":
            words.append("--no_aux_loss")
        else:
            values = [] if value is True else value if isinstance(value, list) else [value]
            words += [f"--{name}", *map(str, values)]
    return shlex.join(["python", "main.py", *words])


def main(args):
    check_args(args)
    runtime.prepare_device(args.device)
    source = args.resume or args.finetune
    with dist.main_process_first():
        loaded = load_checkpoint(source) if source else None
    changed = adopt_flags(args, loaded, source) if loaded else []
    start_time = time.time()
    device = runtime.select_device(args.device)

    # Jittor may compile for minutes when it is imported: --help, wrong flags and a wrong --resume answer before that.
    import jittor as jt
    from datasets import build_dataset, get_coco_api_from_dataset
    from datasets.loader import DataLoader
    from engine import evaluate, train_one_epoch
    from models import build_model
    from util.finetune import load_what_fits
    from util.optim import StepLR
    from util.output import OutputFolder

    if args.predict:
        model, _, _ = build_model(args)
        load_model_state(model, loaded["model"], args.resume)
        predict_pictures(model, args, class_names(loaded, args.resume) or published_names(loaded))
        return

    loading = dict(num_workers=args.num_workers, seed=args.seed, rank=dist.get_rank(), world_size=dist.get_world_size())
    with dist.main_process_first():
        dataset_val = build_dataset("val", args)
    loader_val = DataLoader(dataset_val, args.batch_size, shuffle=False, drop_last=False, **loading)
    coco_gt = get_coco_api_from_dataset(dataset_val)
    if not args.eval:
        dataset_train = build_dataset("train", args)
        loader_train = DataLoader(dataset_train, args.batch_size, shuffle=True, drop_last=True, accum_steps=args.accum_steps,
                                  **loading)
        print_summary("training data", dataset_train, args.num_queries)
    print_summary("validation data", dataset_val, args.num_queries)
    classes = get_classes(dataset_val) if args.eval else get_classes(dataset_train, dataset_val)
    if args.resume:
        check_names(classes, "the annotations", class_names(loaded, args.resume), args.resume)
    if get_num_classes(args) is None:
        args.num_classes = count_classes(classes, args.val_ann if args.eval else args.train_ann)

    jt.set_global_seed(args.seed, different_seed_for_mpi=False)
    model, criterion, postprocessors = build_model(args)
    if args.resume:
        load_model_state(model, loaded["model"], args.resume)
    elif args.finetune:
        load_what_fits(model, loaded["model"], class_names(loaded, args.finetune) or published_names(loaded), classes,
                       args.finetune)
    elif args.frozen_weights:
        load_model_state(model.detr, load_checkpoint(args.frozen_weights)["model"], args.frozen_weights)
    else:
        detr = model.detr if args.masks else model
        with dist.main_process_first():
            load_backbone(detr.backbone[0].body, args.backbone_weights, args.backbone)
    dist.check_same(weights_digest(model), "the initial weights")
    n_parameters = sum(p.numel() for p in model.parameters() if not p.is_stop_grad())
    processes = f" of each of {dist.get_world_size()} processes" * (dist.get_world_size() > 1)
    print(f"device{processes}: {device}, trainable parameters: {n_parameters:,}, validation images: {len(dataset_val)}, "
          f"ready after {time.time() - start_time:.0f} s")

    output = OutputFolder(args.output_dir, args.overwrite)

    def panoptic_evaluator():
        """A fresh one for each evaluation, where the model makes panoptic images."""
        return output.panoptic_evaluator(dataset_val) if "panoptic" in postprocessors else None

    if args.eval:
        _, evaluator = evaluate(model, criterion, postprocessors, loader_val, coco_gt, panoptic_evaluator(),
                                per_class=args.per_class)
        output.save_evaluation(evaluator, dataset_val, ["eval.pkl"])
        return

    optimizer = build_optimizer(model, args)
    lr_scheduler = StepLR(optimizer, args.lr_drop)
    start = Start(args.start_epoch)
    if args.resume:
        start = load_training(loaded, optimizer, lr_scheduler, len(dataset_train), args, changed)

    def save_step(step, logger):
        """After each step: saves where it is time to, and ends the run where a signal asked for that."""
        stopping = stop.agree()
        if stopping or (args.checkpoint_interval and step % args.checkpoint_interval == 0):
            output.save_training(model, optimizer, lr_scheduler, args, epoch - 1, step, classes=classes,
                                 images=len(dataset_train), meters=logger.state_dict())
        if stopping:
            stop.exit(how_to_go_on(args))

    def stop_here():
        if stop.agree():
            stop.exit(how_to_go_on(args))

    def evaluate_epoch(epoch, train_stats):
        test_stats, evaluator = evaluate(model, criterion, postprocessors, loader_val, coco_gt, panoptic_evaluator(), stop_here,
                                         args.per_class)
        output.save_evaluation(evaluator, dataset_val,
                               ["eval/latest.pkl"] + ([f"eval/{epoch:03}.pkl"] if epoch % 50 == 0 else []))
        output.log_epoch(train_stats, test_stats, epoch, n_parameters)

    print(f"training on {len(dataset_train)} images, epochs {start.epoch} to {args.epochs - 1}"
          + f", from step {start.step}" * (start.step > 0))
    start_time = time.time()
    with StopRequest() as stop:
        if start.train_stats and output.lacks(start.epoch - 1):
            evaluate_epoch(start.epoch - 1, start.train_stats)
        for epoch in range(start.epoch, args.epochs):
            done, meters = (start.step, start.meters) if epoch == start.epoch else (0, None)
            train_stats = train_one_epoch(model, criterion, loader_train, optimizer, epoch, args.seed, args.clip_max_norm,
                                          done, meters, save_step, args.accum_steps)
            lr_scheduler.step()
            output.save_training(model, optimizer, lr_scheduler, args, epoch, classes=classes, train_stats=train_stats)
            evaluate_epoch(epoch, train_stats)
            stop_here()
    print(f"Training time {timedelta(seconds=int(time.time() - start_time))}")


def build_optimizer(model, args):
    """AdamW in two groups, the backbone with its own learning rate; the groups know their parameters' names."""
    from util.optim import AdamW
    trainable = [(name, p) for name, p in model.named_parameters() if not p.is_stop_grad()]
    groups = [([n for n in trainable if "backbone" not in n[0]], args.lr),
              ([n for n in trainable if "backbone" in n[0]], args.lr_backbone)]
    return AdamW([{"names": [name for name, _ in group], "params": [p for _, p in group], "lr": lr}
                  for group, lr in groups], lr=args.lr, weight_decay=args.weight_decay)


class Start(NamedTuple):
    """Where training goes on."""
    epoch: int
    step: int = 0  # batches of this epoch that were trained before
    meters: Optional[dict] = None  # their losses, as MetricLogger keeps them
    train_stats: Optional[dict] = None  # averages of the epoch before, where it was trained to its end


def load_training(resumed, optimizer, lr_scheduler, images, args, changed=()):
    """Takes optimizer, schedule and position from a checkpoint. Returns a Start.

    images: how many there are to train on. changed: names of flags that are given and differ from the checkpoint's.
    """
    optimizer_state = resumed.get("optimizer")
    if not isinstance(optimizer_state, dict) or "groups" not in optimizer_state:  # weights alone, or a checkpoint of the original
        print(f"{args.resume}: only the weights are taken; training starts at epoch {args.start_epoch}")
        return Start(args.start_epoch)
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
    return Start(resumed["epoch"] + 1, step, resumed.get("meters"), resumed.get("train_stats"))


def how_to_go_on(args):
    if not args.output_dir:
        return "nothing is saved without --output_dir"
    saved = Path(args.output_dir) / "checkpoint.pkl"
    # Stopped in the evaluation that a resumed training makes up for, it has saved nothing of its own yet.
    again = argparse.Namespace(**{**vars(args), "resume": str(saved) if saved.exists() else args.resume, "finetune": "",
                                  "overwrite": False})
    return f"go on with {dist.launcher()}{full_command(again)}"


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # at once, also while Jittor compiles; a training stops in good order
    with dist.job():
        main(parse_args())
