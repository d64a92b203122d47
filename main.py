"""Trains and evaluates DETR on COCO. `python main.py --help` lists the flags; the README explains them."""
import argparse
import math
import shlex
import time
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, Optional

from util import dist, runtime
from util.checkpoint import (check_training_state, load_backbone, load_checkpoint, load_model_state, load_optimizer_state,
                             weights_digest)
from util.errors import InputError
from util.files import claim, training_files
from util.signals import StopRequest
from datasets.panoptic_eval import require_panopticapi


def get_args_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)

    group = parser.add_argument_group("training")
    group.add_argument("--lr", default=1e-4, type=float)
    group.add_argument("--lr_backbone", default=1e-5, type=float, help="0 freezes the backbone")
    group.add_argument("--batch_size", default=2, type=int, help="images per process")
    group.add_argument("--weight_decay", default=1e-4, type=float)
    group.add_argument("--epochs", default=300, type=int)
    group.add_argument("--lr_drop", default=200, type=int, help="epochs after which both learning rates fall to a tenth")
    group.add_argument("--clip_max_norm", default=0.1, type=float, help="global norm of the gradients; 0: no clipping")

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
    """The flags of the command line (or of a list of strings), and with --demo those of the demo where none is given."""
    parser = get_args_parser()
    args = parser.parse_args(arguments)
    if args.demo:
        parser.set_defaults(**DEMO)
        args = parser.parse_args(arguments)
        print(f"--demo stands for: {full_command(args)}")
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
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return shlex.join(["python", "main.py", *words])


def main(args):
    check_args(args)
    runtime.announce_compilation()
    with dist.main_process_first():
        resumed = load_checkpoint(args.resume) if args.resume else None
    start_time = time.time()
    device = runtime.select_device(args.device)

    # Jittor may compile for minutes when it is imported: --help, wrong flags and a wrong --resume answer before that.
    import jittor as jt
    from datasets import build_dataset, get_coco_api_from_dataset
    from datasets.loader import DataLoader
    from engine import evaluate, train_one_epoch
    from models import build_model
    from util.optim import StepLR
    from util.output import OutputFolder

    loading = dict(num_workers=args.num_workers, seed=args.seed, rank=dist.get_rank(), world_size=dist.get_world_size())
    with dist.main_process_first():
        dataset_val = build_dataset("val", args)
    loader_val = DataLoader(dataset_val, args.batch_size, shuffle=False, drop_last=False, **loading)
    coco_gt = get_coco_api_from_dataset(dataset_val)
    if not args.eval:
        dataset_train = build_dataset("train", args)
        loader_train = DataLoader(dataset_train, args.batch_size, shuffle=True, drop_last=True, **loading)

    jt.set_global_seed(args.seed, different_seed_for_mpi=False)
    model, criterion, postprocessors = build_model(args)
    if resumed:
        load_model_state(model, resumed["model"], args.resume)
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
        _, evaluator = evaluate(model, criterion, postprocessors, loader_val, coco_gt, panoptic_evaluator())
        output.save_evaluation(evaluator, dataset_val, ["eval.pkl"])
        return

    optimizer = build_optimizer(model, args)
    lr_scheduler = StepLR(optimizer, args.lr_drop)
    start = load_training(resumed, optimizer, lr_scheduler, len(dataset_train), args) if resumed else Start(args.start_epoch)

    def save_step(step, logger):
        """After each step: saves where it is time to, and ends the run where a signal asked for that."""
        stopping = stop.agree()
        if stopping or (args.checkpoint_interval and step % args.checkpoint_interval == 0):
            output.save_training(model, optimizer, lr_scheduler, args, epoch - 1, step, images=len(dataset_train),
                                 meters=logger.state_dict())
        if stopping:
            stop.exit(how_to_go_on(args))

    def stop_here():
        if stop.agree():
            stop.exit(how_to_go_on(args))

    def evaluate_epoch(epoch, train_stats):
        test_stats, evaluator = evaluate(model, criterion, postprocessors, loader_val, coco_gt, panoptic_evaluator(), stop_here)
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
                                          done, meters, save_step)
            lr_scheduler.step()
            output.save_training(model, optimizer, lr_scheduler, args, epoch, train_stats=train_stats)
            evaluate_epoch(epoch, train_stats)
            stop_here()
    print(f"Training time {timedelta(seconds=int(time.time() - start_time))}")


def check_args(args):
    """Finds what is wrong with the flags alone, and an output folder that cannot be written.

    Raises InputError.
    """
    for name, least in (("batch_size", 1), ("epochs", 1), ("lr_drop", 1), ("num_workers", 0), ("enc_layers", 0),
                        ("dec_layers", 1), ("num_queries", 1), ("nheads", 1), ("start_epoch", 0), ("checkpoint_interval", 0),
                        ("shapes_train", 1), ("shapes_val", 1), ("shapes_size", 32)):
        if getattr(args, name) < least:
            raise InputError(f"--{name} is {getattr(args, name)}: give {least} or more")
    if args.hidden_dim < 4 or args.hidden_dim % 4 or args.hidden_dim % args.nheads:
        raise InputError(f"--hidden_dim is {args.hidden_dim}: give a multiple of 4 and of --nheads ({args.nheads})")
    if args.masks and (args.hidden_dim % 128 or args.nheads % 8):
        raise InputError(f"--masks normalises channels in groups of eight: give a --hidden_dim (here {args.hidden_dim}) "
                         f"that is a multiple of 128 and a multiple of 8 as --nheads (here {args.nheads})")
    if not 0 <= args.dropout < 1:
        raise InputError(f"--dropout is {args.dropout}: give a probability in [0, 1)")
    if args.backbone == "tiny" and args.backbone_norm == "frozen":
        raise InputError("--backbone tiny learns from nothing, which frozen BatchNorm cannot: use --backbone_norm batch")
    if args.backbone_norm != "frozen" and args.lr_backbone == 0:
        raise InputError(f"--backbone_norm {args.backbone_norm} trains the backbone: give --lr_backbone above 0")
    if args.backbone_weights == "imagenet" and not args.resume and (
            args.backbone == "tiny" or args.backbone_norm == "group"):
        raise InputError(f"there are no ImageNet weights for --backbone {args.backbone} with --backbone_norm "
                         f"{args.backbone_norm}: use --backbone_weights none")
    if args.frozen_weights and not args.masks:
        raise InputError("--frozen_weights trains the mask head only: give --masks too")
    if args.dataset_file == "coco_panoptic":
        if not args.coco_panoptic_path:
            raise InputError("--coco_panoptic_path is missing: give the folder with panoptic_train2017, "
                             "panoptic_val2017 and annotations")
        if args.masks:
            require_panopticapi()
    if args.dataset_file != "shapes" and not args.coco_path:
        raise InputError("--coco_path is missing: give the folder with train2017, val2017 and annotations")
    if args.output_dir and dist.is_main_process():
        check_output_dir(args)


def check_output_dir(args):
    """Takes the output folder for this run. Raises InputError where it cannot be used, or holds another training."""
    folder = Path(args.output_dir)
    claim(folder)
    own = args.resume and Path(args.resume).resolve().parent == folder.resolve()
    if args.overwrite and own:
        raise InputError(f"--overwrite would remove {args.resume}, which --resume goes on from: give one of the two")
    if not (args.eval or args.overwrite or own) and (old := training_files(folder)):
        raise InputError(f"--output_dir {folder} holds a training already ({old[0].name}): go on from it with --resume "
                         f"{folder}/checkpoint.pkl, give another folder, or --overwrite to remove it")


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


def load_training(resumed, optimizer, lr_scheduler, images, args):
    """Takes optimizer, schedule and position from a checkpoint. images: how many there are to train on. Returns a Start."""
    optimizer_state = resumed.get("optimizer")
    if not isinstance(optimizer_state, dict) or "groups" not in optimizer_state:  # weights alone, or a checkpoint of the original
        print(f"{args.resume}: only the weights are taken; training starts at epoch {args.start_epoch}")
        return Start(args.start_epoch)
    check_training_state(resumed, args.resume)
    processes, step = dist.get_world_size(), resumed["step"]
    if resumed["processes"] != processes:
        print(f"{args.resume}: was saved by a training of {resumed['processes']} processes and goes on with {processes}: a "
              f"step now takes {processes * args.batch_size} images")
        step = math.ceil(step * resumed["processes"] / processes)  # nothing is trained twice
    if step:
        now = {"training images": images, "--batch_size": args.batch_size, "--seed": args.seed}
        then = {"training images": resumed["images"], "--batch_size": resumed["args"]["batch_size"],
                "--seed": resumed["args"]["seed"]}
        if changed := [f"{name} {then[name]} (now {now[name]})" for name in now if now[name] != then[name]]:
            raise InputError(f"{args.resume}: was saved in the middle of an epoch, with {', '.join(changed)}: "
                             "resume with the same data and flags")
    load_optimizer_state(optimizer, resumed["optimizer"], args.resume)
    lr_scheduler.load_state_dict(resumed["lr_scheduler"])
    return Start(resumed["epoch"] + 1, step, resumed.get("meters"), resumed.get("train_stats"))


def how_to_go_on(args):
    if not args.output_dir:
        return "nothing is saved without --output_dir"
    again = argparse.Namespace(**{**vars(args), "resume": str(Path(args.output_dir) / "checkpoint.pkl"), "overwrite": False})
    return "go on with " + f"mpirun -np {dist.get_world_size()} " * (dist.get_world_size() > 1) + full_command(again)


if __name__ == "__main__":
    with dist.job():
        main(parse_args())
