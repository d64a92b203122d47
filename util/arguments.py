"""What is wrong with the flags, and what a checkpoint says about them."""
from pathlib import Path

from datasets import NUM_CLASSES, get_num_classes
from datasets.panoptic_eval import require_panopticapi
from util import dist
from util.checkpoint import count_classes
from util.errors import InputError
from util.files import claim, training_files
from util.predict import find_pictures

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
    found = count_classes(checkpoint)
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
    if args.dilation and args.backbone in ("resnet18", "resnet34", "tiny"):
        raise InputError(f"--dilation does not go with --backbone {args.backbone}, whose blocks have no dilation: use resnet50, "
                         "resnet101 or resnet152")
    if args.hidden_dim < 4 or args.hidden_dim % 4 or args.hidden_dim % args.nheads:
        raise InputError(f"--hidden_dim is {args.hidden_dim}: give a multiple of 4 and of --nheads ({args.nheads})")
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
