"""The flags: their parser, the demo's, what is wrong with them, and what a checkpoint says about them."""
import argparse
import shlex
from pathlib import Path

from datasets import EVAL_SIZE, MAX_RATIO, MAX_SIZE, NUM_CLASSES, SCALES, get_num_classes
from datasets.panoptic_eval import require_panopticapi
from models import BASIC_BLOCKS, LEARNED_CELLS
from models.weights.checkpoint import num_classes_of
from predict import find_pictures
from util import dist
from util.errors import InputError
from util.files import claim, training_files

# ---- the command line

def get_args_parser():
    parser = argparse.ArgumentParser(description="Trains DETR, evaluates it and predicts with it. The README explains the flags.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)

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


def how_to_go_on(args):
    if not args.output_dir:
        return "nothing is saved without --output_dir"
    saved = Path(args.output_dir) / "checkpoint.pkl"
    # Stopped in the evaluation that a resumed training makes up for, it has saved nothing of its own yet.
    again = argparse.Namespace(**{**vars(args), "resume": str(saved) if saved.exists() else args.resume, "finetune": "",
                                  "overwrite": False})
    return f"go on with {dist.launcher()}{full_command(again)}"


# ---- what a checkpoint says about them

# The model itself: weights fit no other, or worse, fit and mean nothing.
ARCHITECTURE = ("backbone", "backbone_norm", "dilation", "position_embedding", "enc_layers", "dec_layers", "dim_feedforward",
                "hidden_dim", "nheads", "num_queries", "pre_norm", "masks")
SIZES = ("img_scales", "eval_size", "max_size")
# What else decides about the bits of a training.
TRAINING = ("lr", "lr_backbone", "lr_drop", "weight_decay", "clip_max_norm", "epochs", "batch_size", "accum_steps", "dropout", "freeze",
            "aux_loss", "set_cost_class", "set_cost_bbox", "set_cost_giou", "mask_loss_coef", "dice_loss_coef", "bbox_loss_coef",
            "giou_loss_coef", "eos_coef", "seed", "skip_bad_samples", "checkpoint_interval")
OWN_DATA = ("train_images", "train_ann", "val_images", "val_ann")


def adopt_flags(args, checkpoint, source):
    """Takes flags that are not given from the checkpoint of this program that --resume or --finetune names.

    With --finetune and --resume those of the model; with --resume the sizes of images too, to predict those of the shapes, and to
    train all that the training depends on. One that is given wins, and a line says so.
    Returns the names of the training's flags that are given and differ from the checkpoint's.
    Raises InputError where --resume cannot go with a flag that is given.
    """
    saved = checkpoint.get("args")
    saved = saved if isinstance(saved, dict) else {}  # weights alone, or a checkpoint of the original
    trains = not (args.eval or args.predict)
    names = ARCHITECTURE + SIZES if args.resume else tuple(name for name in ARCHITECTURE if name != "masks")
    names += TRAINING if args.resume and trains and "optimizer" in checkpoint else ()
    names += ("dataset_file", "shapes_size") if args.predict else ()
    changed = []
    for name in names:
        now = getattr(args, name)
        if name not in saved or saved[name] == now:
            continue
        if not is_like(saved[name], now):
            raise InputError(f"{source}: its --{name} is {saved[name]!r:.80}; the file is damaged, take another checkpoint")
        if name not in args.given:
            setattr(args, name, saved[name])
        elif args.resume and name in ARCHITECTURE:
            raise InputError(f"--{name} is {now}, but {source} was trained with {saved[name]}: leave the flag out, or take over what "
                             "fits with --finetune")
        elif name in TRAINING:
            print(f"--{name} is {now} from now on; {source} was trained with {saved[name]}")
            changed.append(name)
    found = num_classes_of(checkpoint)
    if args.resume and found and found != get_num_classes(args):
        if args.num_classes is not None:
            raise InputError(f"--num_classes is {args.num_classes}, but {source} has {found} classes: leave the flag out, or take "
                             "over what fits with --finetune")
        args.num_classes = found
    check_flags(args)
    return changed


def is_like(value, other):
    """Whether a flag's value from a file is of the type of the one that it has now."""
    if isinstance(other, list):
        return isinstance(value, list) and len({type(item) for item in [*value, *other]}) <= 1
    return type(value) is type(other) or {type(value), type(other)} == {int, float}


def check_args(args):
    """Finds what is wrong with the flags alone, pictures that are not there, and an output folder that cannot be written.

    Raises InputError.
    """
    check_flags(args)
    if args.predict:
        find_pictures(args.predict, args.output_dir)
    if args.output_dir and dist.is_main_process():
        check_output_dir(args)


def check_flags(args):
    """Raises InputError for what is wrong with the flags alone."""
    check_numbers(args)
    check_model(args)
    check_weights(args)
    if not args.predict and (unused := [name for name in ("attention", "threshold") if name in args.given]):
        raise InputError(f"--{unused[0]} is for --predict: give pictures with it")
    if args.predict:
        check_predict(args)
    else:
        check_data(args)


# name -> the least and the most. The most is beyond all use, and keeps a slip of the finger from taking the machine down.
WHOLE_NUMBERS = {
    "batch_size": (1, 10**6), "accum_steps": (1, 10**6), "epochs": (1, 10**6), "lr_drop": (1, 10**9), "start_epoch": (0, 10**6),
    "checkpoint_interval": (0, 10**9), "num_workers": (0, 1024), "seed": (0, 2**31 - 1), "num_classes": (1, 10**6),
    "enc_layers": (0, 1000), "dec_layers": (1, 1000), "dim_feedforward": (1, 10**6), "hidden_dim": (4, 10**5), "nheads": (1, 10**5),
    "num_queries": (1, 10**5), "img_scales": (32, 10**5), "eval_size": (32, 10**5), "max_size": (32, 10**5),
    "shapes_train": (1, 10**7), "shapes_val": (1, 10**7), "shapes_size": (32, 4096)}
# name -> the most; the least is 0
NUMBERS = {"lr": 1e3, "lr_backbone": 1e3, "weight_decay": 1e3, "clip_max_norm": 1e6, "set_cost_class": 1e6, "set_cost_bbox": 1e6,
           "set_cost_giou": 1e6, "mask_loss_coef": 1e6, "dice_loss_coef": 1e6, "bbox_loss_coef": 1e6, "giou_loss_coef": 1e6,
           "eos_coef": 1e6, "threshold": 1}


def check_numbers(args):
    """Raises InputError for a number that is out of range."""
    for name, (least, most) in WHOLE_NUMBERS.items():
        value = getattr(args, name)
        if value == []:
            raise InputError(f"--{name} is empty: give at least one number")
        for number in value if isinstance(value, list) else [value]:
            if number is not None and not least <= number <= most:
                raise InputError(f"--{name} is {number}: give a number from {least} to {most}")
    for name, most in NUMBERS.items():
        if not 0 <= getattr(args, name) <= most:  # nan is not
            raise InputError(f"--{name} is {getattr(args, name)}: give a number from 0 to {most:g}")
    if not 0 <= args.dropout < 1:
        raise InputError(f"--dropout is {args.dropout}: give a probability in [0, 1)")
    if args.set_cost_class == args.set_cost_bbox == args.set_cost_giou == 0:
        raise InputError("--set_cost_class, --set_cost_bbox and --set_cost_giou are all 0: give at least one of them above 0, or no "
                         "prediction suits an object better than another")


def check_model(args):
    """Raises InputError for a model that cannot be built."""
    if args.dilation and args.backbone in BASIC_BLOCKS:
        raise InputError(f"--dilation does not go with --backbone {args.backbone}, whose blocks have no dilation: use resnet50, "
                         "resnet101 or resnet152")
    if args.hidden_dim < 4 or args.hidden_dim % 4 or args.hidden_dim % args.nheads:
        raise InputError(f"--hidden_dim is {args.hidden_dim}: give a multiple of 4 and of --nheads ({args.nheads})")
    if args.position_embedding == "learned":
        stride = 16 if args.dilation or args.backbone == "tiny" else 32
        # Rounding the shorter side of the flattest image makes the longer one that much longer than --max_size.
        longest = args.shapes_size if args.dataset_file == "shapes" else args.max_size + MAX_RATIO // 2
        if longest > LEARNED_CELLS * stride:
            raise InputError(f"--position_embedding learned has {LEARNED_CELLS} rows and columns, for images of up to {LEARNED_CELLS * stride} pixels: give "
                             f"--max_size {LEARNED_CELLS * stride - MAX_RATIO // 2}, or --position_embedding sine")
    if args.masks and (args.hidden_dim % 128 or args.nheads % 8):
        raise InputError(f"--masks normalises channels in groups of eight: give a --hidden_dim (here {args.hidden_dim}) "
                         f"that is a multiple of 128 and a multiple of 8 as --nheads (here {args.nheads})")


def check_weights(args):
    """Raises InputError for flags about weights that do not go together."""
    loaded = args.resume or args.finetune
    if args.resume and args.finetune:
        raise InputError("--finetune begins a training from other weights, and --resume goes on with one: give one of the two")
    if args.finetune and (args.eval or args.predict or args.frozen_weights):
        raise InputError("--finetune begins a training: to evaluate, to predict, or for a mask head on a trained model, use --resume "
                         "or --frozen_weights")
    if args.freeze and not loaded:
        raise InputError("--freeze would keep random weights: give trained ones with --finetune")
    if not loaded and args.backbone == "tiny" and args.backbone_norm == "frozen":
        raise InputError("--backbone tiny learns from nothing, which frozen BatchNorm cannot: use --backbone_norm batch")
    if args.backbone_norm != "frozen" and args.lr_backbone == 0:
        raise InputError(f"--backbone_norm {args.backbone_norm} trains the backbone: give --lr_backbone above 0")
    if args.backbone_weights == "imagenet" and not loaded and (args.backbone == "tiny" or args.backbone_norm == "group"):
        raise InputError(f"there are no ImageNet weights for --backbone {args.backbone} with --backbone_norm "
                         f"{args.backbone_norm}: use --backbone_weights none")
    if args.frozen_weights and not args.masks:
        raise InputError("--frozen_weights trains the mask head only: give --masks too")


def check_data(args):
    """Raises InputError for flags that name no data, or too much of it."""
    own = [name for name in OWN_DATA if getattr(args, name)]
    if own:
        needed = OWN_DATA[2:] if args.eval else OWN_DATA
        if missing := [name for name in needed if name not in own]:
            raise InputError(f"--{own[0]} needs --{' and --'.join(missing)} too: the images and annotations to "
                             f"{'evaluate' if args.eval else 'train and to evaluate'} on")
        if args.dataset_file != "coco" or args.coco_path:
            other = f"--dataset_file {args.dataset_file}" if args.dataset_file != "coco" else "--coco_path"
            raise InputError(f"--{own[0]} names your own data, and {other} another data set: give one of the two")
        return
    if args.dataset_file == "coco_panoptic":
        if not args.coco_panoptic_path:
            raise InputError("--coco_panoptic_path is missing: give the folder with panoptic_train2017, "
                             "panoptic_val2017 and annotations")
        if args.masks:
            require_panopticapi()
    if args.dataset_file == "shapes":
        if sizes := [name for name in SIZES if name in args.given]:
            raise InputError(f"--{sizes[0]} does not change the shapes, which are drawn in their size: use --shapes_size")
        if args.num_classes is not None and args.num_classes < NUM_CLASSES["shapes"]:
            raise InputError(f"--num_classes is {args.num_classes}: the shapes need {NUM_CLASSES['shapes']}")
    elif not args.coco_path:
        raise InputError("--coco_path is missing: give the folder with train2017, val2017 and annotations; or --train_images, "
                         "--train_ann, --val_images and --val_ann for any other layout")


def check_predict(args):
    """Raises InputError for --predict without weights or a folder for its pictures."""
    if dist.get_world_size() > 1:
        raise InputError("--predict runs in one process: start it without mpirun")
    if args.eval:
        raise InputError("--predict and --eval are two different things to do: give one of them")
    if not args.resume:
        raise InputError("--predict needs trained weights: give them with --resume")
    if not args.output_dir:
        raise InputError("--predict needs a folder for its pictures: give --output_dir")


def check_output_dir(args):
    """Takes the output folder for this run. Raises InputError where it cannot be used, or holds another training."""
    folder = Path(args.output_dir)
    claim(folder)
    own = args.resume and Path(args.resume).resolve().parent == folder.resolve()
    old = training_files(folder)
    for name in ("resume", "finetune", "frozen_weights", "backbone_weights"):
        path = Path(getattr(args, name))
        if args.overwrite and path.is_file() and any(path.samefile(file) for file in old):
            raise InputError(f"--overwrite would remove {path}, which --{name} needs: give another --output_dir")
    if args.predict and old:
        raise InputError(f"--output_dir {folder} holds a training ({old[0].name}), whose detections would be replaced: give another "
                         "folder")
    if old and not (args.eval or args.overwrite or own):
        raise InputError(f"--output_dir {folder} holds a training already ({old[0].name}): go on from it with --resume "
                         f"{folder}/checkpoint.pkl, give another folder, or --overwrite to remove it")
