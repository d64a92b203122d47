"""Command-line flags: the parser, the demo's defaults, and the flags restored from a checkpoint."""

import argparse
import os
import shlex
from pathlib import Path

from checks import check_flags, check_mask_flags, get_weights_source
from datasets.classes import get_num_classes
from datasets.flags import add_source_flags
from datasets.transforms import EVAL_SIZE, MAX_SIZE, SCALES
from models.architecture import DEPTHS, infer_architecture
from models.weights.checkpoint import count_classes, get_shapes_sizes, has_training_state
from util import launch
from util.best import METRICS
from util.errors import InputError


def get_args_parser():
    parser = argparse.ArgumentParser(
        description="Train and evaluate DETR, or detect objects with it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )

    add = parser.add_argument_group("training").add_argument
    add("--lr", default=1e-4, type=float, help="learning rate, except for the backbone")
    text = "learning rate of the backbone; 0 freezes it"
    add("--lr_backbone", default=1e-5, type=float, help=text)
    add("--batch_size", default=2, type=int, help="images per batch and process")
    text = "accumulate gradients over N batches per step; equivalent to N times as many processes"
    add("--accum_steps", default=1, type=int, metavar="N", help=text)
    add("--weight_decay", default=1e-4, type=float, help="weight decay of AdamW")
    add("--epochs", default=300, type=int, help="number of epochs to train")
    text = "multiply both learning rates by 0.1 every LR_DROP epochs"
    add("--lr_drop", default=200, type=int, help=text)
    add("--clip_max_norm", default=0.1, type=float, help="gradient clipping norm; 0: no clipping")
    text = "start from the matching weights of another model (other classes, queries or layers)"
    add("--finetune", default="", metavar="PATH", help=text)
    parts = ["backbone", "transformer"]
    add("--freeze", default=[], nargs="+", choices=parts, help="parts of the model to freeze")

    add = parser.add_argument_group("backbone").add_argument
    text = "convolutional backbone; tiny: a narrow ResNet with stride 16 for small images"
    add("--backbone", default="resnet50", choices=list(DEPTHS), help=text)
    text = "imagenet (torchvision's, downloaded once), none (random), or a torchvision .pth"
    add("--backbone_weights", default="imagenet", metavar="SOURCE", help=text)
    norms = ["frozen", "batch", "group"]
    text = "normalization layers; batch and group train the whole backbone"
    add("--backbone_norm", default="frozen", choices=norms, help=text)
    add("--dilation", action="store_true", help="DC5: dilation instead of stride in the last stage")
    encodings = ["sine", "learned"]
    add("--position_embedding", default="sine", choices=encodings, help="positional encoding")

    add = parser.add_argument_group("transformer").add_argument
    add("--enc_layers", default=6, type=int, help="number of encoder layers")
    add("--dec_layers", default=6, type=int, help="number of decoder layers")
    add("--dim_feedforward", default=2048, type=int, help="hidden size of the feed-forward layers")
    add("--hidden_dim", default=256, type=int, help="embedding size of the transformer")
    add("--dropout", default=0.1, type=float, help="dropout rate in the transformer")
    add("--nheads", default=8, type=int, help="number of attention heads")
    text = "number of object queries: the most objects detected per image"
    add("--num_queries", default=100, type=int, help=text)
    text = "apply LayerNorm before attention and feed-forward layers, not after them"
    add("--pre_norm", action="store_true", help=text)

    add = parser.add_argument_group("segmentation").add_argument
    add("--masks", action="store_true", help="add a mask head")
    text = "trained box model; only the mask head on top of it trains"
    add("--frozen_weights", default="", metavar="PATH", help=text)

    add = parser.add_argument_group("loss").add_argument
    parser.set_defaults(aux_loss=True)
    text, unset = "supervise the last decoder layer only", argparse.SUPPRESS
    add("--no_aux_loss", dest="aux_loss", action="store_false", default=unset, help=text)
    add("--set_cost_class", default=1, type=float, help="class coefficient in the matching cost")
    add("--set_cost_bbox", default=5, type=float, help="L1 box coefficient in the matching cost")
    add("--set_cost_giou", default=2, type=float, help="GIoU coefficient in the matching cost")
    add("--mask_loss_coef", default=1, type=float, help="coefficient of the mask focal loss")
    add("--dice_loss_coef", default=1, type=float, help="coefficient of the Dice loss")
    add("--bbox_loss_coef", default=5, type=float, help="coefficient of the L1 box loss")
    add("--giou_loss_coef", default=2, type=float, help="coefficient of the GIoU loss")
    text = "relative weight of the class 'no object' in the classification loss"
    add("--eos_coef", default=0.1, type=float, help=text)

    add = add_source_flags(parser)
    text = "shorter sides of training images, in pixels"
    add("--img_scales", default=list(SCALES), nargs="+", type=int, help=text)
    add("--eval_size", default=EVAL_SIZE, type=int, help="shorter side in evaluation, in pixels")
    add("--max_size", default=MAX_SIZE, type=int, help="limit of the longer side, in pixels")
    add("--remove_difficult", action="store_true", help="no effect, as in the original")
    text = "skip unusable images and annotations, and print how many, instead of stopping"
    add("--skip_bad_samples", action="store_true", help=text)
    add("--num_workers", default=2, type=int, help="number of data loading processes")
    add("--shapes_train", default=4000, type=int, help="number of training images of shapes")
    add("--shapes_val", default=200, type=int, help="number of validation images of shapes")
    add("--shapes_size", default=96, type=int, help="side of the images of shapes, in pixels")

    add = parser.add_argument_group("run").add_argument
    add("--output_dir", default="", help="output folder; empty: save nothing")
    devices = ["auto", "cuda", "cpu"]
    text = "device; auto: CUDA if it works, else the CPU"
    add("--device", default="auto", choices=devices, help=text)
    add("--seed", default=42, type=int, help="random seed")
    text = (
        "checkpoint or weights: a path, https://… or hf://OWNER/NAME[@REVISION]; auto: "
        "OUTPUT_DIR/checkpoint.pkl if it exists, else start"
    )
    add("--resume", default="", metavar="PATH", help=text)
    add("--start_epoch", default=0, type=int, help="first epoch, if --resume has weights only")
    text = "save checkpoint.pkl every N steps as well; 0: after each epoch only"
    add("--checkpoint_interval", default=0, type=int, metavar="N", help=text)
    text = "evaluate every N epochs and after the last one"
    add("--eval_interval", default=1, type=int, metavar="N", help=text)
    text = "metric that decides which epoch is saved as checkpoint_best.pkl"
    add("--best", default="AP", choices=list(METRICS), help=text)
    text = "stop after N evaluations without improvement; 0: never"
    add("--patience", default=0, type=int, metavar="N", help=text)
    text = "write TensorBoard logs to OUTPUT_DIR/tensorboard"
    add("--tensorboard", action="store_true", help=text)
    text = "delete the run in --output_dir and start over"
    add("--overwrite", action="store_true", help=text)
    text = "test: train on N images and evaluate on the same, until AP exceeds 0.9; 0: do not"
    add("--overfit", default=0, type=int, metavar="N", help=text)
    add("--eval", action="store_true", help="evaluate only")
    add("--per_class", action="store_true", help="print the metrics of each class as well")
    text = "detect objects in images: files, folders or globs"
    add("--predict", default=[], nargs="+", metavar="PATH", help=text)
    text = "minimum score of the detections that --predict draws"
    add("--threshold", default=0.7, type=float, metavar="SCORE", help=text)
    add("--attention", action="store_true", help="with --predict: draw attention maps")
    add("--demo", action="store_true", help="train a small DETR on synthetic shapes in minutes")
    return parser


# Trains from scratch in minutes on two CPU cores. Loading takes a tenth of a step, less than what
# data workers would take from training.
DEMO = dict(
    dataset_file="shapes", backbone="tiny", backbone_norm="batch", backbone_weights="none",
    enc_layers=2, dec_layers=2, hidden_dim=128, nheads=8, dim_feedforward=256, num_queries=15,
    dropout=0.0, pre_norm=True, lr=5e-4, lr_backbone=5e-4, batch_size=16, epochs=22, lr_drop=18,
    num_workers=0,
)  # fmt: skip


# --overfit evaluates after each of its epochs, which are short, and stops at this AP. Boxes become
# exact after the drop of the learning rate: on 8 photos, AP rose from 0.59 to 0.86 in one epoch.
OVERFIT = dict(dropout=0.0, epochs=100, lr_drop=50, patience=15)
OVERFIT_AP = 0.9


def parse_args(arguments=None):
    """Parse the command line, or a list of strings; --demo and --overfit change the defaults.

    `args.given` lists the names of the flags that were given; `args.initial_weights` is the source
    of the weights that the run started from, empty if it started from scratch.
    """
    parser = get_args_parser()
    args = parser.parse_args(arguments)
    unset = object()
    given = parser.parse_args(arguments, argparse.Namespace(**dict.fromkeys(vars(args), unset)))
    if args.demo:
        parser.set_defaults(**DEMO)
        args = parser.parse_args(arguments)
        print(f"--demo stands for: {full_command(args)}")
    if args.overfit > 0:
        batch_size = min(args.batch_size, args.overfit)
        # A step on all images: with 2 of 8 per step, R18 learned none of COCO's in 1,000 steps.
        accum_steps = max(args.overfit // max(batch_size * launch.get_world_size(), 1), 1)
        parser.set_defaults(**OVERFIT, batch_size=batch_size, accum_steps=accum_steps)
        args = parser.parse_args(arguments)
    args.given = [name for name, value in vars(given).items() if value is not unset]
    if args.resume == "auto":
        resolve_auto_resume(args)
    args.initial_weights = get_weights_source(args)
    return args


def resolve_auto_resume(args):
    """Replace --resume auto by the checkpoint in --output_dir, which wins over --finetune, too.

    Without a checkpoint, the run starts as if --resume were not given.
    """
    if not args.output_dir:
        raise InputError("--resume auto looks into the output folder: give --output_dir")
    args.resume = ""
    checkpoint = Path(args.output_dir) / "checkpoint.pkl"
    if checkpoint.exists():
        args.resume, args.finetune = str(checkpoint), ""
    print(f"--resume auto: {args.resume or f'{checkpoint} does not exist yet'}")


def full_command(args, given=()):
    """Return the equivalent command line of args without --demo.

    It has every flag that differs from its default, and the flags named in `given`.
    """
    words = ["python", "main.py"]
    for name, default in vars(get_args_parser().parse_args([])).items():
        value = getattr(args, name)
        if name == "demo" or (value == default and name not in given):
            continue
        if name == "aux_loss":
            words.append("--no_aux_loss")
        elif value is True:
            words.append(f"--{name}")
        else:
            values = value if isinstance(value, list) else [value]
            words += [f"--{name}", *map(str, values)]
    return shlex.join(words)


def resume_command(args):
    """Return a message with the command that resumes this run, or why there is none."""
    if not args.output_dir:
        return "nothing is saved without --output_dir"
    saved = Path(args.output_dir) / "checkpoint.pkl"
    if "SLURM_JOB_ID" in os.environ:
        return "submit the script again" + (", with --resume auto" if saved.exists() else "")
    # A resumed run that is stopped in its first evaluation has not saved a checkpoint yet.
    resume = str(saved) if saved.exists() else args.resume
    if not resume:
        return f"there is no checkpoint in {args.output_dir}"
    changes = {"resume": resume, "finetune": "", "overwrite": False}
    # An explicit flag overrides the checkpoint even if it equals the default.
    given = [name for name in args.given if name not in changes]
    command = full_command(argparse.Namespace(**{**vars(args), **changes}), given)
    return f"resume with {launch.get_launch_prefix()}{command}"


def has_original_settings(args):
    """Return whether a run trains the original's R50 as the original does, from scratch on COCO.

    The number of images per step, of epochs and of epochs between drops of the learning rate may
    differ.
    """
    names = {*ARCHITECTURE, *SIZES, *TRAINING, "dataset_file", "backbone_weights"}
    names -= set(
        """epochs lr_drop batch_size accum_steps seed skip_bad_samples checkpoint_interval
        eval_interval best patience""".split()
    )
    defaults = get_args_parser().parse_args([])
    return not args.initial_weights and all(
        getattr(args, name) == getattr(defaults, name) for name in names
    )


def finish_overfit(args, best, num_steps):
    """Print that --overfit has succeeded. Raises InputError if it has not.

    best: Best; num_steps: number of steps per epoch.
    """
    folder = args.output_dir
    images = f"these {args.overfit} images"
    result = f"{best.figure} {best.value:.2f} after {(best.epoch + 1) * num_steps} steps"
    if best.value > OVERFIT_AP:
        look = f"; are its boxes on the objects? See {folder}/predictions.png" if folder else ""
        print(f"the model can learn {images}: {result}{look}")
        return
    if best.value > 0.5:
        report = f"look at {folder}/report/report.html" if folder else "give --output_dir"
        raise InputError(
            f"the model learns {images} in part: at best {result}. Small objects need larger "
            f"images (--eval_size, --max_size); {report} for the AP of each class"
        )
    look = f"look at {folder}/predictions.png" if folder else "give --output_dir to see them drawn"
    raise InputError(
        f"the model does not learn {images}: at best {result}. First {look}: are the ground-truth "
        "boxes on the objects? Then check the data with `python -m datasets.check`, and try "
        "another --lr, or larger images (--eval_size, --max_size)"
    )


# ---- flags restored from a checkpoint

# With other values the weights fail to load or, worse, load and compute something else.
ARCHITECTURE = """
    backbone backbone_norm dilation position_embedding enc_layers dec_layers dim_feedforward
    hidden_dim nheads num_queries pre_norm masks
""".split()
SIZES = ["img_scales", "eval_size", "max_size"]
# The other flags that have to be the same for a bit-exact resume.
TRAINING = """
    lr lr_backbone lr_drop weight_decay clip_max_norm epochs batch_size accum_steps dropout freeze
    frozen_weights aux_loss set_cost_class set_cost_bbox set_cost_giou mask_loss_coef dice_loss_coef
    bbox_loss_coef giou_loss_coef eos_coef seed skip_bad_samples checkpoint_interval
    eval_interval best patience overfit
""".split()


def apply_checkpoint_args(args, checkpoint, source):
    """Set the flags that are not given on the command line to a checkpoint's values.

    With --resume, restore the architecture and the image sizes; for training, all that a bit-exact
    resume needs. With --finetune and --frozen_weights, restore the architecture except masks, and
    print image sizes that differ.

    source: the path or address of --resume, --finetune or --frozen_weights, for messages.
    Returns the names of the training flags that are given and differ; each is printed. Raises
    InputError if a given flag does not fit the weights.
    """
    if not args.finetune:
        check_class_head(checkpoint["model"], source)
    saved = checkpoint.get("args")
    if not isinstance(saved, dict):  # weights without flags
        saved = {} if args.finetune else infer_flags(checkpoint, source)
    if args.predict or args.dataset_file != "shapes":
        saved = {**saved, **get_shapes_sizes(saved)}
    if args.resume:
        names = ARCHITECTURE + SIZES
    else:
        names = [name for name in ARCHITECTURE if name != "masks"]
    is_training = args.resume and not (args.eval or args.predict)
    is_resuming = is_training and has_training_state(checkpoint)
    if is_resuming:
        names = names + TRAINING
        # What the run started from: flags have no effect on it now.
        args.initial_weights = saved.get("initial_weights", "")
        args.backbone_weights = saved.get("backbone_weights", args.backbone_weights)
    remedy = "leave the flag out"
    if is_training:
        remedy += ", or load the weights that fit with --finetune"
    changed = []
    for name in names:
        value, old = getattr(args, name), saved.get(name)
        if name not in saved or old == value:
            continue
        if not has_same_type(old, value):
            raise InputError(
                f"{source}: its --{name} is {old!r:.80}; the file is damaged, take another"
            )
        if name not in args.given:
            setattr(args, name, old)
        elif (name in ARCHITECTURE and not args.finetune) or name == "freeze":
            # The optimizer has no state for parameters that were frozen.
            raise InputError(f"--{name} is {value}, but {source} was trained with {old}: {remedy}")
        elif is_resuming:
            print(f"--{name} is {value} from now on; {source} was trained with {old}")
            changed.append(name)
    num_classes = count_classes(checkpoint)
    if args.resume and num_classes and num_classes != get_num_classes(args):
        if args.num_classes is not None:
            raise InputError(
                f"--num_classes is {args.num_classes}, but {source} has {num_classes} classes: "
                f"{remedy}"
            )
        args.num_classes = num_classes
    if not args.resume and args.dataset_file != "shapes":
        suggest_sizes(args, saved, source)
    check_flags(args)
    check_mask_flags(args)
    return changed


def check_class_head(model, source):
    """Raise InputError for the weights of a DETR whose class head was removed."""
    names = [name.removeprefix("detr.").partition(".")[0] for name in model]
    if "bbox_embed" in names and "class_embed" not in names:
        raise InputError(
            f"{source}: has no class head (class_embed); start a training from it with --finetune"
        )


def suggest_sizes(args, saved, source):
    """Print which image sizes the weights were trained with, if others apply by default."""
    words = []
    for name in SIZES:
        value, old = getattr(args, name), saved.get(name)
        if name not in args.given and old != value and has_same_type(old, value):
            words += [f"--{name}", *map(str, old if isinstance(old, list) else [old])]
    if words:
        print(f"{source} was trained with {shlex.join(words)}: give the same for similar images")


def infer_flags(checkpoint, source):
    """Infer the architecture flags from the weights. Raises InputError."""
    flags = infer_architecture(checkpoint, source)._asdict()
    for name in ("dilation", "nheads", "num_classes"):  # weights do not tell the first two
        del flags[name]
    if flags["backbone_norm"] == "frozen":  # or batch, which has the same weights
        del flags["backbone_norm"]
    return flags


def has_same_type(value, other):
    """Return whether a flag's saved value has the type of its current one."""
    if isinstance(other, list):
        return isinstance(value, list) and len({type(item) for item in [*value, *other]}) <= 1
    return type(value) is type(other) or {type(value), type(other)} == {int, float}
