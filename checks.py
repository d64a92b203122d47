"""Validation of the flags. The checks raise InputError for the first invalid flag.

`check_args` runs before anything is loaded: a mistake is reported at once, not after Jittor has
compiled for minutes.
"""

import glob
import importlib.util
import math
import os
from pathlib import Path

from datasets.classes import NUM_CLASSES
from datasets.images import IMAGE_SUFFIXES, MAX_ASPECT_RATIO
from models.architecture import BASIC_BLOCK_BACKBONES, get_max_learned_side
from util import launch
from util.errors import InputError, warn
from util.files import find_files, find_training_files, lock_output_folder
from util.stuck import ORIGINAL_STEP

# Flags, minimum, maximum. The maximum is far above any sensible value: it keeps a typo from taking
# the machine down.
RANGES = [
    ("overfit", 0, 10**4),  # first, because the batch size and others follow from it
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
    ("dropout threshold", 0, 1),
]
OWN_DATA = ["train_images", "train_ann", "val_images", "val_ann"]
CONTENT = {
    "coco_path": "train2017, val2017 and annotations",
    "coco_panoptic_path": "panoptic_train2017, panoptic_val2017 and annotations",
}


def check_args(args):
    """Check all that can be checked before loading, and lock the output folder."""
    check_flags(args)
    if not args.resume:
        check_mask_flags(args)
    if args.predict:
        find_images(args.predict, args.output_dir)
    if args.output_dir and launch.is_main_process():
        folder = Path(args.output_dir)
        lock_output_folder(folder)
        check_output_dir(args, folder)
    check_paths(args)


def check_flags(args):
    """Check the flags without touching the file system."""
    check_ranges(args)
    check_model(args)
    check_weights(args)
    check_tensorboard(args)
    if args.overfit and (args.eval or args.predict):
        raise InputError("--overfit trains a model: leave it out with --eval and --predict")
    if args.predict:
        check_predict(args)
    else:
        check_data(args)


def check_ranges(args):
    for names, low, high in RANGES:
        for name in names.split():
            value = getattr(args, name)
            for number in value if isinstance(value, list) else [value]:
                if number is not None and not low <= number <= high:  # also rejects NaN
                    raise InputError(f"--{name} is {number}: give a number from {low} to {high}")
    if args.img_scales == []:
        raise InputError("--img_scales is empty: give at least one number")
    if args.dropout == 1:
        raise InputError("--dropout is 1.0: give a number below 1")
    if args.set_cost_class == args.set_cost_bbox == args.set_cost_giou == 0:
        raise InputError(
            "--set_cost_class, --set_cost_bbox and --set_cost_giou are all 0: give one above 0"
        )


def check_model(args):
    if args.dilation and args.backbone in BASIC_BLOCK_BACKBONES:
        raise InputError(
            f"--dilation does not go with --backbone {args.backbone}: use resnet50, 101 or 152"
        )
    if args.hidden_dim % 4 or args.hidden_dim % args.nheads:
        raise InputError(
            f"--hidden_dim is {args.hidden_dim}: give a multiple of 4 and of --nheads "
            f"({args.nheads})"
        )
    if args.masks and (args.hidden_dim % 128 or args.nheads % 8):
        raise InputError(
            f"--masks needs a --hidden_dim ({args.hidden_dim}) that is a multiple of 128, and "
            f"--nheads ({args.nheads}) that is a multiple of 8"
        )
    if args.position_embedding == "learned":
        limit = get_max_learned_side(args.backbone, args.dilation)
        if args.dataset_file == "shapes":
            flag, highest = "shapes_size", limit
        else:
            # At extreme aspect ratios, rounding makes the longer side longer than --max_size.
            flag, highest = "max_size", limit - MAX_ASPECT_RATIO // 2
        if getattr(args, flag) > highest:
            raise InputError(
                f"--position_embedding learned supports images of up to {limit} pixels here: give "
                f"--{flag} {highest}, or --position_embedding sine"
            )


def check_weights(args):
    """Check the flags that select the initial weights."""
    source = get_weights_source(args)
    if args.resume and args.finetune:
        raise InputError(
            "--finetune starts a new run and --resume continues one: give one of the two"
        )
    if args.finetune and (args.eval or args.predict or args.frozen_weights):
        raise InputError(
            "--finetune starts a training: use --resume to evaluate and predict, and "
            "--frozen_weights for a mask head on a trained model"
        )
    if args.freeze and not source:
        raise InputError("--freeze would freeze random weights: give trained ones with --finetune")
    if not source and args.backbone == "tiny" and args.backbone_norm == "frozen":
        raise InputError("--backbone tiny has no weights to freeze: use --backbone_norm batch")
    if args.backbone_norm != "frozen" and args.lr_backbone == 0:
        raise InputError(
            f"--backbone_norm {args.backbone_norm} trains the backbone: use --lr_backbone above 0"
        )
    if args.backbone_weights == "imagenet" and not source:
        if args.backbone == "tiny" or args.backbone_norm == "group":
            raise InputError(
                f"there are no ImageNet weights for --backbone {args.backbone} with "
                f"--backbone_norm {args.backbone_norm}: use --backbone_weights none"
            )


def check_mask_flags(args):
    """Check the flags that need a mask head. With --resume, the checkpoint decides about it."""
    if args.frozen_weights and not args.masks:
        raise InputError("--frozen_weights trains the mask head only: give --masks as well")
    if args.best == "segm_AP" and not args.masks:
        raise InputError("--best segm_AP: give --masks as well")
    if args.best == "PQ" and not (args.masks and args.dataset_file == "coco_panoptic"):
        raise InputError("--best PQ: give --masks and --dataset_file coco_panoptic as well")


def check_tensorboard(args):
    if not args.tensorboard:
        return
    if args.eval or args.predict:
        raise InputError("--tensorboard is for training only: leave it out")
    if not args.output_dir:
        raise InputError("--tensorboard needs a folder for its files: give --output_dir")
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError("--tensorboard needs the package tensorboard: pip install tensorboard")


def check_predict(args):
    if launch.get_world_size() > 1:
        raise InputError("--predict runs in one process: start it without mpirun")
    if args.eval:
        raise InputError("--predict and --eval are mutually exclusive: give one of them")
    if not args.resume:
        raise InputError("--predict needs trained weights: give them with --resume")
    if not args.output_dir:
        raise InputError("--predict needs a folder for its results: give --output_dir")


def check_data(args):
    """Check the flags that select the dataset."""
    for name in ("attention", "threshold"):
        if name in args.given:
            raise InputError(f"--{name} is for --predict: give images with it")
    given = [name for name in OWN_DATA if getattr(args, name)]
    if given:
        needed = OWN_DATA[2:] if args.eval else OWN_DATA[:2] if args.overfit else OWN_DATA
        if missing := [name for name in needed if name not in given]:
            purpose = "evaluate" if args.eval else "train and to evaluate"
            raise InputError(
                f"--{given[0]} needs --{' and --'.join(missing)} too: the images and annotations "
                f"to {purpose} on"
            )
        if args.dataset_file != "coco" or args.coco_path:
            is_coco = args.dataset_file == "coco"
            other = "--coco_path" if is_coco else f"--dataset_file {args.dataset_file}"
            raise InputError(
                f"--{given[0]} names your own data, and {other} other data: give one of the two"
            )
    elif args.dataset_file == "shapes":
        if sizes := [n for n in ("img_scales", "eval_size", "max_size") if n in args.given]:
            raise InputError(f"--{sizes[0]} has no effect on the shapes: use --shapes_size")
        if args.num_classes is not None and args.num_classes < NUM_CLASSES["shapes"]:
            needed = NUM_CLASSES["shapes"]
            raise InputError(f"--num_classes is {args.num_classes}: the shapes need {needed}")
    elif not args.coco_path:
        raise InputError(
            "--coco_path is missing: give the folder with train2017, val2017 and annotations; or "
            "--train_images, --train_ann, --val_images and --val_ann for any other layout"
        )
    if args.dataset_file == "coco_panoptic":
        if not args.coco_panoptic_path:
            raise InputError("--coco_panoptic_path is missing: give the folder of panoptic_val2017")
        if args.masks and importlib.util.find_spec("panopticapi") is None:
            raise InputError(
                "--dataset_file coco_panoptic with --masks needs the package panopticapi: "
                "pip install panopticapi-lite"
            )


def check_paths(args):
    """Check that the folders and files of the flags exist."""
    names = ["coco_path", "coco_panoptic_path", *(OWN_DATA[2:] if args.eval else OWN_DATA)]
    for name in [] if args.predict else names:
        path = getattr(args, name)
        if not path:
            continue
        if name.endswith("_ann"):
            if not os.path.isfile(path):
                what = "is a folder" if os.path.isdir(path) else "no such file"
                raise InputError(
                    f"--{name} {path}: {what}; give the JSON file with the annotations"
                )
        elif not os.path.isdir(path) and args.dataset_file != "shapes":  # the shapes are drawn
            content = CONTENT.get(name, "the images")
            raise InputError(f"--{name} {path}: no such folder; it should hold {content}")
    source = args.backbone_weights
    is_path = source not in ("imagenet", "none") and "://" not in source
    if is_path and not get_weights_source(args) and not os.path.exists(source):
        raise InputError(
            f"--backbone_weights {source}: no such file; give imagenet, none, or a torchvision .pth"
        )


def check_output_dir(args, folder):
    """Check that no earlier run in the output folder (Path) would be lost."""
    training = find_training_files(folder)
    if not training:
        return
    if args.overwrite:
        for name in ("resume", "finetune", "frozen_weights", "backbone_weights"):
            path = Path(getattr(args, name))
            if path.is_file() and any(path.samefile(file) for file in training):
                raise InputError(
                    f"--overwrite would remove {path}, which --{name} needs: change --output_dir"
                )
    holds = f"--output_dir {folder} holds a training already ({training[0].name})"
    if args.predict:
        raise InputError(f"{holds}, whose detections would be replaced: give another folder")
    resumes = args.resume and Path(args.resume).resolve().parent == folder.resolve()
    if not (args.eval or args.overwrite or resumes):
        raise InputError(
            f"{holds}: resume it with --resume {folder}/checkpoint.pkl, give another folder, or "
            "--overwrite to remove it"
        )


def find_images(paths, output_dir):
    """Return the image files (Paths) matched by --predict, without duplicates.

    A path is a file, a folder (with everything below it), or a glob, also with `**`. Raises
    InputError if a path matches nothing, or names a folder that contains output_dir.
    """
    found = {}
    for path in paths:
        if Path(path).is_dir():
            if Path(output_dir).resolve().is_relative_to(Path(path).resolve()):
                raise InputError(
                    f"--output_dir {output_dir} lies in {path}, where its images would be found "
                    "the next time: give another folder"
                )
            matches = find_files(Path(path), IMAGE_SUFFIXES)
        elif Path(path).exists():
            matches = [Path(path)]
        else:
            names = sorted(glob.glob(path, recursive=True))
            matches = [Path(name) for name in names if Path(name).is_file()]
        if not matches:
            what = "no image in this folder" if Path(path).is_dir() else "no such file"
            raise InputError(f"--predict {path}: {what}; give files, folders, or quoted globs")
        found.update(dict.fromkeys(matches))
    return list(found)


def get_weights_source(args):
    """Return the path or address of the model's weights that the flags name, or ""."""
    return args.resume or args.finetune or args.frozen_weights


def get_step_size(args):
    """Return the number of images per step, of all processes."""
    return launch.get_world_size() * args.batch_size * args.accum_steps


def print_step_size(args):
    """Print the number of images per step; warn if they are few to train from scratch."""
    processes, images = launch.get_world_size(), get_step_size(args)
    original = (
        f"; the original trains with {ORIGINAL_STEP}" if args.dataset_file != "shapes" else ""
    )
    print(
        f"{images} image{'s' * (images > 1)} per step ({processes} "
        f"process{'es' * (processes > 1)} x batch size {args.batch_size} x {args.accum_steps} "
        f"accumulated){original}"
    )
    if args.resume or args.initial_weights or args.overfit or args.dataset_file == "shapes":
        return
    if images < ORIGINAL_STEP and launch.is_main_process():
        steps = math.ceil(ORIGINAL_STEP / (processes * args.batch_size))
        warn(
            f"too few images per step to train from scratch ({images}; an author of the original "
            f"calls 8 probably too small): use --accum_steps {steps}, or start from trained "
            "weights with --finetune"
        )
