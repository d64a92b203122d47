"""The flags: their parser, the demo's, what is wrong with them, and what a checkpoint decides."""

import argparse
import importlib.util
import os
import shlex
from pathlib import Path

from datasets.classes import NUM_CLASSES, get_num_classes
from datasets.coco import MAX_RATIO
from datasets.panoptic_eval import require_panopticapi
from datasets.transforms import EVAL_SIZE, MAX_SIZE, SCALES
from models.architecture import BASIC_BLOCKS, DEPTHS, architecture_of, largest_learned_side
from models.weights.checkpoint import class_thresholds, num_classes_of
from predict import faults_of_predict, find_pictures
from util import launch
from util.best import FIGURES
from util.errors import InputError
from util.files import claim, training_files

# ---- the command line


def get_args_parser():
    parser = argparse.ArgumentParser(
        description="Train DETR, evaluate it, predict with it. The README explains the flags.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )

    add = parser.add_argument_group("training").add_argument
    add("--lr", default=1e-4, type=float, help="learning rate of all but the backbone")
    add("--lr_backbone", default=1e-5, type=float, help="0 freezes the backbone")
    add("--batch_size", default=2, type=int, help="images per process")
    add("--accum_steps", default=1, type=int, help="batches of a process in each optimizer step")
    add("--weight_decay", default=1e-4, type=float, help="of AdamW")
    add("--epochs", default=300, type=int, help="of the whole training")
    add("--lr_drop", default=200, type=int, help="epochs between drops of both rates to a tenth")
    add("--clip_max_norm", default=0.1, type=float, help="of all gradients; 0: no clipping")
    add("--finetune", default="", metavar="PATH", help="start from the weights there that fit")
    parts = ["backbone", "transformer"]
    add("--freeze", default=[], nargs="+", choices=parts, help="parts that do not train")

    add = parser.add_argument_group("backbone").add_argument
    add("--backbone", default="resnet50", choices=list(DEPTHS), help="tiny: for small images")
    sources = "imagenet (torchvision's, downloaded once), none (random), or a torchvision .pth"
    add("--backbone_weights", default="imagenet", metavar="SOURCE", help=sources)
    norms = ["frozen", "batch", "group"]
    add("--backbone_norm", default="frozen", choices=norms, help="not frozen: all of it trains")
    add("--dilation", action="store_true", help="DC5: no stride in the last stage")
    kinds = ["sine", "learned"]
    add("--position_embedding", default="sine", choices=kinds, help="of the image's positions")

    add = parser.add_argument_group("transformer").add_argument
    add("--enc_layers", default=6, type=int, help="layers of the encoder")
    add("--dec_layers", default=6, type=int, help="layers of the decoder")
    add("--dim_feedforward", default=2048, type=int, help="width inside of the layers' MLPs")
    add("--hidden_dim", default=256, type=int, help="width of the transformer")
    add("--dropout", default=0.1, type=float, help="share of numbers that are set to 0")
    add("--nheads", default=8, type=int, help="heads of each attention")
    add("--num_queries", default=100, type=int, help="the most objects of an image")
    add("--pre_norm", action="store_true", help="LayerNorm before attention and MLP, not after")

    add = parser.add_argument_group("segmentation").add_argument
    add("--masks", action="store_true", help="train and evaluate a mask head, too")
    add("--frozen_weights", default="", help="a trained box model; only the mask head trains")

    add = parser.add_argument_group("loss").add_argument
    parser.set_defaults(aux_loss=True)
    only_last, unset = "losses of the last decoder layer only", argparse.SUPPRESS
    add("--no_aux_loss", dest="aux_loss", action="store_false", default=unset, help=only_last)
    add("--set_cost_class", default=1, type=float, help="weight of the class in the matching")
    add("--set_cost_bbox", default=5, type=float, help="weight of the L1 distance in the matching")
    add("--set_cost_giou", default=2, type=float, help="weight of the GIoU in the matching")
    add("--mask_loss_coef", default=1, type=float, help="weight of the masks' focal loss")
    add("--dice_loss_coef", default=1, type=float, help="weight of the masks' Dice loss")
    add("--bbox_loss_coef", default=5, type=float, help="weight of the L1 loss")
    add("--giou_loss_coef", default=2, type=float, help="weight of the GIoU loss")
    add("--eos_coef", default=0.1, type=float, help="weight of the class 'no object'")

    add = parser.add_argument_group("data").add_argument
    add("--dataset_file", default="coco", choices=list(NUM_CLASSES), help="shapes: drawn images")
    add("--coco_path", help="folder with train2017, val2017 and annotations, or for the shapes")
    add("--coco_panoptic_path", help="folder with panoptic_{train,val}2017 and annotations")
    add("--train_images", metavar="FOLDER", help="your own training images, in any layout")
    add("--train_ann", metavar="FILE", help="their annotations, a JSON in COCO's format")
    add("--val_images", metavar="FOLDER", help="your own validation images")
    add("--val_ann", metavar="FILE", help="their annotations")
    add("--num_classes", type=int, help="highest category id + 1, if not that of the data set")
    add("--img_scales", default=list(SCALES), nargs="+", type=int, help="shorter sides in training")
    add("--eval_size", default=EVAL_SIZE, type=int, help="shorter side in evaluation, pixels")
    add("--max_size", default=MAX_SIZE, type=int, help="limit of the longer side, pixels")
    add("--remove_difficult", action="store_true", help="without effect, as in the original")
    add("--skip_bad_samples", action="store_true", help="leave them out instead of stopping")
    add("--num_workers", default=2, type=int, help="processes that load images")
    add("--shapes_train", default=4000, type=int, help="training images of the shapes")
    add("--shapes_val", default=200, type=int, help="validation images of the shapes")
    add("--shapes_size", default=96, type=int, help="side of the shapes' images, pixels")

    add = parser.add_argument_group("run").add_argument
    add("--output_dir", default="", help="for checkpoints and logs; empty: nothing is saved")
    devices = ["auto", "cuda", "cpu"]
    add("--device", default="auto", choices=devices, help="auto: CUDA where it works")
    add("--seed", default=42, type=int, help="decides all that is random")
    add("--resume", default="", help="checkpoint or weights: a path, https://… or hf://…")
    add("--start_epoch", default=0, type=int, help="first epoch, with weights alone to --resume")
    add("--checkpoint_interval", default=0, type=int, help="steps between saves in an epoch")
    add("--eval_interval", default=1, type=int, help="epochs between evaluations")
    add("--best", default="AP", choices=list(FIGURES), help="what checkpoint_best.pkl is best at")
    add("--patience", default=0, type=int, help="stop after N evaluations without a better one")
    add("--tensorboard", action="store_true", help="log for TensorBoard, in OUTPUT_DIR/tensorboard")
    add("--overwrite", action="store_true", help="remove the training that is in --output_dir")
    add("--eval", action="store_true", help="only evaluate")
    add("--per_class", action="store_true", help="print the figures of each class, too")
    add("--predict", default=[], nargs="+", metavar="PATH", help="pictures, folders or globs")
    text = "lowest score that --predict shows; auto: each class's best one"
    add("--threshold", default=0.7, type=number_or_auto, metavar="SCORE", help=text)
    add("--attention", action="store_true", help="with --predict: draw where the model looks")
    add("--demo", action="store_true", help="train a small DETR on the shapes, within minutes")
    return parser


def number_or_auto(text):
    try:
        return text if text == "auto" else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: give a number from 0 to 1, or auto") from error


# Learns the shapes from random weights within minutes on two CPU cores. Loading takes a tenth of a
# step; data workers would take more than that from the cores that train.
DEMO = dict(
    dataset_file="shapes", backbone="tiny", backbone_norm="batch", backbone_weights="none",
    enc_layers=2, dec_layers=2, hidden_dim=128, nheads=8, dim_feedforward=256, num_queries=15,
    dropout=0.0, pre_norm=True, lr=5e-4, lr_backbone=5e-4, batch_size=16, epochs=22, lr_drop=18,
    num_workers=0,
)  # fmt: skip


def parse_args(arguments=None):
    """The flags of the command line, or of a list of strings; with --demo, the demo's defaults.

    `args.given` is the list of the names of the flags that the command line has.
    """
    parser = get_args_parser()
    args = parser.parse_args(arguments)
    unset = object()
    given = parser.parse_args(arguments, argparse.Namespace(**dict.fromkeys(vars(args), unset)))
    if args.demo:
        parser.set_defaults(**DEMO)
        args = parser.parse_args(arguments)
        print(f"--demo stands for: {full_command(args)}")
    args.given = [name for name, value in vars(given).items() if value is not unset]
    return args


def full_command(args, given=()):
    """The command line, without --demo, of args.

    It has every flag that differs from its default, and those in given, which may not differ.
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


def how_to_go_on(args):
    """The end of the line that a stopped training prints."""
    if not args.output_dir:
        return "nothing is saved without --output_dir"
    saved = Path(args.output_dir) / "checkpoint.pkl"
    # A resumed training that is stopped in its first evaluation has not saved anything yet.
    resume = str(saved) if saved.exists() else args.resume
    changes = {"resume": resume, "finetune": "", "overwrite": False}
    # A flag that is given decides over the checkpoint's, also where it is the default.
    given = [name for name in args.given if name not in changes]
    command = full_command(argparse.Namespace(**{**vars(args), **changes}), given)
    return f"go on with {launch.launcher()}{command}"


# ---- what a checkpoint decides

# The model: its weights fit no other, or worse, fit and mean nothing.
ARCHITECTURE = """
    backbone backbone_norm dilation position_embedding enc_layers dec_layers dim_feedforward
    hidden_dim nheads num_queries pre_norm masks
""".split()
SIZES = ["img_scales", "eval_size", "max_size"]
# What else a training depends on, to the last bit.
TRAINING = """
    lr lr_backbone lr_drop weight_decay clip_max_norm epochs batch_size accum_steps dropout freeze
    frozen_weights aux_loss set_cost_class set_cost_bbox set_cost_giou mask_loss_coef dice_loss_coef
    bbox_loss_coef giou_loss_coef eos_coef seed skip_bad_samples checkpoint_interval
    eval_interval best patience
""".split()


def adopt_flags(args, checkpoint, source):
    """Sets the flags that are not given to those of the checkpoint of --resume, --finetune or
    --frozen_weights.

    With --resume: the model's and the sizes of images; the shapes' to predict; all that a training
    depends on to train. Else the model's, but for masks. `--threshold auto` becomes the
    checkpoint's thresholds, a dictionary category id -> score. Prints where a flag of a training
    that goes on is given and differs. Returns the names of those flags.
    Raises InputError where a given flag does not fit the weights; --finetune takes what fits.
    """
    saved = checkpoint.get("args")
    if not isinstance(saved, dict):  # weights alone
        saved = {} if args.finetune else flags_of_weights(checkpoint, source)
    if args.resume:
        names = ARCHITECTURE + SIZES
    else:
        names = [name for name in ARCHITECTURE if name != "masks"]
    goes_on = args.resume and not (args.eval or args.predict) and "optimizer" in checkpoint
    if args.predict:
        names = names + ["dataset_file", "shapes_size"]
    elif goes_on:
        names = names + TRAINING
    remedy = "leave the flag out"
    if args.resume and not (args.eval or args.predict):
        remedy += ", or load the weights that fit with --finetune"
    changed = []
    for name in names:
        value = getattr(args, name)
        if name not in saved or saved[name] == value:
            continue
        if not is_like(saved[name], value):
            raise InputError(
                f"{source}: its --{name} is {saved[name]!r:.80}; the file is damaged, take another"
            )
        if name not in args.given:
            setattr(args, name, saved[name])
        elif (name in ARCHITECTURE and not args.finetune) or name == "freeze":
            # Of what is frozen, the optimizer of a training that goes on has no state.
            raise InputError(
                f"--{name} is {value}, but {source} was trained with {saved[name]}: {remedy}"
            )
        elif goes_on:
            print(f"--{name} is {value} from now on; {source} was trained with {saved[name]}")
            changed.append(name)
    num_classes = num_classes_of(checkpoint)
    if args.resume and num_classes and num_classes != get_num_classes(args):
        if args.num_classes is not None:
            raise InputError(
                f"--num_classes is {args.num_classes}, but {source} has {num_classes} classes: "
                f"{remedy}"
            )
        args.num_classes = num_classes
    check_flags(args)
    raise_first(faults_of_masks(args))
    if args.threshold == "auto":
        args.threshold = class_thresholds(checkpoint, source)
    return changed


def flags_of_weights(checkpoint, source):
    """What weights tell of the flags that they were trained with. Raises InputError."""
    flags = architecture_of(checkpoint, source)._asdict()
    for name in ("dilation", "nheads", "num_classes"):  # the defaults, and see num_classes_of
        del flags[name]
    if flags["backbone_norm"] == "frozen":  # or batch, which has the same weights
        del flags["backbone_norm"]
    return flags


def is_like(value, other):
    """Whether a flag's value from a file has the type of the one that it has now."""
    if isinstance(other, list):
        return isinstance(value, list) and len({type(item) for item in [*value, *other]}) <= 1
    return type(value) is type(other) or {type(value), type(other)} == {int, float}


# ---- what is wrong with the flags: each function yields one line for each fault


def check_args(args):
    """Finds all that can be known before anything is loaded, and claims the output folder.

    Raises InputError for the first fault.
    """
    check_flags(args)
    if not args.resume:
        raise_first(faults_of_masks(args))
    if args.predict:
        find_pictures(args.predict, args.output_dir)
    if args.output_dir and launch.is_main_process():
        folder = Path(args.output_dir)
        claim(folder)
        raise_first(faults_of_output_dir(args, folder))
    raise_first(faults_of_files(args))


def check_flags(args):
    """Raises InputError for the first fault of the flags alone."""
    faults_of_paths = faults_of_predict if args.predict else faults_of_data
    for faults_of in (
        faults_of_numbers,
        faults_of_model,
        faults_of_weights,
        faults_of_logs,
        faults_of_paths,
    ):
        raise_first(faults_of(args))
    if args.dataset_file == "coco_panoptic" and args.masks and not args.predict:
        require_panopticapi()


def raise_first(faults):
    for fault in faults:
        raise InputError(fault)


# Names, lowest and highest value. The highest is beyond all use: it stops typing errors from
# taking the machine down.
RANGES = [
    ("batch_size accum_steps epochs num_classes dim_feedforward eval_interval", 1, 10**6),
    ("lr_drop", 1, 10**9),
    ("start_epoch patience", 0, 10**6),
    ("checkpoint_interval", 0, 10**9),
    ("num_workers", 0, 1024),
    ("seed", 0, 2**31 - 1),
    ("enc_layers", 0, 1000),
    ("dec_layers", 1, 1000),
    ("hidden_dim", 4, 10**5),
    ("nheads num_queries", 1, 10**5),
    ("img_scales eval_size max_size", 32, 10**5),
    ("shapes_train shapes_val", 1, 10**7),
    ("shapes_size", 32, 4096),
    ("lr lr_backbone weight_decay", 0, 1000),
    ("clip_max_norm set_cost_class set_cost_bbox set_cost_giou mask_loss_coef", 0, 10**6),
    ("dice_loss_coef bbox_loss_coef giou_loss_coef eos_coef", 0, 10**6),
    ("dropout", 0, 1),
]


def faults_of_numbers(args):
    for names, lowest, highest in RANGES:
        for name in names.split():
            value = getattr(args, name)
            for number in value if isinstance(value, list) else [value]:
                if number is not None and not lowest <= number <= highest:  # nan is not, either
                    yield f"--{name} is {number}: give a number from {lowest} to {highest}"
    if args.img_scales == []:
        yield "--img_scales is empty: give at least one number"
    if args.threshold != "auto" and not 0 <= args.threshold <= 1:
        yield f"--threshold is {args.threshold}: give a number from 0 to 1, or auto"
    if args.dropout == 1:
        yield "--dropout is 1.0: give a number below 1"
    if args.set_cost_class == args.set_cost_bbox == args.set_cost_giou == 0:
        yield "--set_cost_class, --set_cost_bbox and --set_cost_giou are all 0: give one above 0"


def faults_of_model(args):
    if args.dilation and args.backbone in BASIC_BLOCKS:
        yield f"--dilation does not go with --backbone {args.backbone}: use resnet50, 101 or 152"
    if args.hidden_dim % 4 or args.hidden_dim % args.nheads:
        heads = f"--nheads ({args.nheads})"
        yield f"--hidden_dim is {args.hidden_dim}: give a multiple of 4 and of {heads}"
    if args.masks and (args.hidden_dim % 128 or args.nheads % 8):
        sizes = f"--hidden_dim ({args.hidden_dim}) and --nheads ({args.nheads})"
        yield f"--masks needs multiples of 128 and of 8 as {sizes}"
    if args.position_embedding == "learned":
        limit = largest_learned_side(args.backbone, args.dilation)
        if args.dataset_file == "shapes":
            flag, most = "shapes_size", limit
        else:
            # Of the flattest images, rounding makes the longer side longer than --max_size.
            flag, most = "max_size", limit - MAX_RATIO // 2
        if getattr(args, flag) > most:
            yield (
                f"--position_embedding learned is for images of up to {limit} pixels here: give "
                f"--{flag} {most}, or --position_embedding sine"
            )


def faults_of_weights(args):
    start = args.resume or args.finetune or args.frozen_weights
    if args.resume and args.finetune:
        yield "--finetune starts a training, and --resume continues one: give one of the two"
    if args.finetune and (args.eval or args.predict or args.frozen_weights):
        yield (
            "--finetune starts a training: use --resume to evaluate and predict, and "
            "--frozen_weights for a mask head on a trained model"
        )
    if args.freeze and not start:
        yield "--freeze would keep random weights: give trained ones with --finetune"
    if not start and args.backbone == "tiny" and args.backbone_norm == "frozen":
        yield "--backbone tiny has no trained weights to freeze: use --backbone_norm batch"
    if args.backbone_norm != "frozen" and args.lr_backbone == 0:
        yield f"--backbone_norm {args.backbone_norm} trains the backbone: use --lr_backbone above 0"
    if args.backbone_weights == "imagenet" and not start:
        if args.backbone == "tiny" or args.backbone_norm == "group":
            model = f"--backbone {args.backbone} with --backbone_norm {args.backbone_norm}"
            yield f"there are no ImageNet weights for {model}: use --backbone_weights none"


def faults_of_masks(args):
    """What needs a mask head. With --resume, the checkpoint decides whether there is one."""
    if args.frozen_weights and not args.masks:
        yield "--frozen_weights trains the mask head only: give --masks, too"
    if args.best == "segm_AP" and not args.masks:
        yield "--best segm_AP: give --masks, too"
    if args.best == "PQ" and not (args.masks and args.dataset_file == "coco_panoptic"):
        yield "--best PQ: give --masks and --dataset_file coco_panoptic, too"


def faults_of_logs(args):
    if not args.tensorboard:
        return
    if args.eval or args.predict:
        yield "--tensorboard is for a training: leave it out"
    if not args.output_dir:
        yield "--tensorboard needs a folder for its files: give --output_dir"
    if importlib.util.find_spec("tensorboard") is None:
        yield "--tensorboard needs the package tensorboard: pip install tensorboard"


OWN_DATA = ["train_images", "train_ann", "val_images", "val_ann"]
CONTENT = {
    "coco_path": "train2017, val2017 and annotations",
    "coco_panoptic_path": "panoptic_train2017, panoptic_val2017 and annotations",
}


def faults_of_data(args):
    for name in ("attention", "threshold"):
        if name in args.given:
            yield f"--{name} is for --predict: give pictures with it"
    given = [name for name in OWN_DATA if getattr(args, name)]
    if given:
        needed = OWN_DATA[2:] if args.eval else OWN_DATA
        if missing := [name for name in needed if name not in given]:
            purpose = "evaluate" if args.eval else "train and to evaluate"
            yield (
                f"--{given[0]} needs --{' and --'.join(missing)} too: the images and annotations "
                f"to {purpose} on"
            )
        if args.dataset_file != "coco" or args.coco_path:
            is_coco = args.dataset_file == "coco"
            other = "--coco_path" if is_coco else f"--dataset_file {args.dataset_file}"
            yield f"--{given[0]} names your own data, and {other} other data: give one of the two"
    elif args.dataset_file == "shapes":
        if sizes := [name for name in SIZES if name in args.given]:
            yield f"--{sizes[0]} does not change the shapes: use --shapes_size"
        if args.num_classes is not None and args.num_classes < NUM_CLASSES["shapes"]:
            yield f"--num_classes is {args.num_classes}: the shapes need {NUM_CLASSES['shapes']}"
    elif not args.coco_path:
        yield (
            "--coco_path is missing: give the folder with train2017, val2017 and annotations; or "
            "--train_images, --train_ann, --val_images and --val_ann for any other layout"
        )
    if args.dataset_file == "coco_panoptic" and not args.coco_panoptic_path:
        yield "--coco_panoptic_path is missing: give the folder with panoptic_val2017 and so on"


def faults_of_files(args):
    """What is not there, found before Jittor is imported, which may compile for minutes."""
    names = ["coco_path", "coco_panoptic_path", *(OWN_DATA[2:] if args.eval else OWN_DATA)]
    for name in [] if args.predict else names:
        path = getattr(args, name)
        if not path:
            continue
        if name.endswith("_ann"):
            if not os.path.isfile(path):
                what = "is a folder" if os.path.isdir(path) else "no such file"
                yield f"--{name} {path}: {what}; give the JSON file with the annotations"
        elif not os.path.isdir(path) and args.dataset_file != "shapes":  # the shapes are drawn
            content = CONTENT.get(name, "the images")
            yield f"--{name} {path}: no such folder; it should hold {content}"
    has_weights = args.resume or args.finetune or args.frozen_weights
    source = args.backbone_weights
    is_path = source not in ("imagenet", "none") and "://" not in source
    if is_path and not has_weights and not os.path.exists(source):
        yield (
            f"--backbone_weights {source}: no such file; give imagenet, none, or a torchvision .pth"
        )


def faults_of_output_dir(args, folder):
    training = training_files(folder)
    if not training:
        return
    if args.overwrite:
        for name in ("resume", "finetune", "frozen_weights", "backbone_weights"):
            path = Path(getattr(args, name))
            if path.is_file() and any(path.samefile(file) for file in training):
                yield f"--overwrite would remove {path}, which --{name} needs: change --output_dir"
    holds = f"--output_dir {folder} holds a training already ({training[0].name})"
    if args.predict:
        yield f"{holds}, whose detections would be replaced: give another folder"
    resumes = args.resume and Path(args.resume).resolve().parent == folder.resolve()
    if not (args.eval or args.overwrite or resumes):
        yield (
            f"{holds}: go on from it with --resume {folder}/checkpoint.pkl, give another folder, "
            "or --overwrite to remove it"
        )
