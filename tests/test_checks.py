"""The validation of flags before anything is loaded, and what is printed about them."""

import re
import subprocess
import sys

import numpy as np
import pytest
import tiny
from processes import REPO

from arguments import get_args_parser, parse_args
from checks import check_args, check_flags, get_step_size, print_step_size
from util.errors import InputError
from util.jittor_file import write_jittor_file


@pytest.mark.parametrize(
    "flag, value, message",
    [
        ("--batch_size", 0, "--batch_size is 0"),
        ("--batch_size", 4, "--batch_size 4: the dataset has only 3 images"),
        ("--epochs", 0, "--epochs is 0"),
        ("--lr_drop", 0, "--lr_drop is 0"),
        ("--num_workers", -1, "--num_workers is -1"),
        ("--dec_layers", 0, "--dec_layers is 0"),
        ("--num_queries", 0, "--num_queries is 0"),
        ("--nheads", 3, r"--hidden_dim is 32: give a multiple of 4 and of --nheads \(3\)"),
        ("--hidden_dim", 30, "--hidden_dim is 30"),
        ("--dropout", 1, "--dropout is 1.0"),
        ("--coco_path", "", "--coco_path is missing"),
        ("--output_dir", __file__, f"--output_dir {__file__} cannot be written"),
        ("--output_dir", f"{__file__}/below", "--output_dir .*/below cannot be written"),
        ("--dilation", None, "--dilation .*resnet18"),
        ("--backbone", "tiny", "--backbone tiny .*: use --backbone_norm batch"),
        ("--shapes_size", 31, "--shapes_size is 31"),
        ("--accum_steps", 0, "--accum_steps is 0"),
        (
            "--accum_steps",
            4,
            "--batch_size 2: .* only 3 images, less than one batch for each of --accum_steps 4",
        ),
        ("--num_classes", 0, "--num_classes is 0"),
        ("--num_classes", 90, r"category_id 90 is not in 0\.\.89; .*train with a larger --num_c"),
        ("--img_scales", 31, "--img_scales is 31"),
        ("--eval_size", 0, "--eval_size is 0"),
        ("--max_size", 10, "--max_size is 10"),
        ("--threshold", 1.5, "--threshold is 1.5"),
        ("--backbone_weights", "/nowhere/a.pth", "--backbone_weights /nowhere/a.pth: no such file"),
        ("--freeze", "backbone", "--freeze would freeze random weights"),
        ("--finetune", "/nowhere/w.pkl", r"/nowhere/w\.pkl: cannot be read \(No such file"),
        (
            "--train_images",
            "images",
            "--train_images needs --train_ann and --val_images and --val_ann too",
        ),
    ],
)
def test_wrong_flags_are_named(flag, value, message, coco):
    with pytest.raises(InputError, match=message):
        tiny.train("--coco_path", coco, *[flag] if value is None else [flag, value])


def numeric_flags():
    actions = get_args_parser()._option_string_actions
    return sorted(name for name, action in actions.items() if action.type in (int, float))


@pytest.mark.parametrize("flag", numeric_flags())
def test_every_number_is_checked_before_anything_is_read(flag):
    """Whole numbers from argparse's own check, or a least and a most; also nan and infinities."""
    for value in ("-1", "nan", "inf", "-inf", "1e9", "1" + 31 * "0"):
        try:
            check_flags(parse_args(["--coco_path", "/nowhere", f"{flag}={value}"]))
        except SystemExit as error:
            assert error.code == 2, "argparse: invalid int value"
        except InputError as error:
            assert str(error).startswith(f"{flag} is "), error
        else:
            raise AssertionError(f"{flag} {value} is accepted")


def test_costs_that_are_all_zero_are_refused():
    with pytest.raises(
        InputError, match="--set_cost_class, --set_cost_bbox and --set_cost_giou are all 0"
    ):
        check_flags(
            parse_args(
                "--coco_path /nowhere --set_cost_class 0 --set_cost_bbox 0 --set_cost_giou "
                "0".split()
            )
        )


def test_wrong_flags_end_before_jittor_is_imported(tmp_path):
    """Also those that a checkpoint brings: panopticapi is missed before a training, not after its
    first epoch.
    """
    flags = tiny.arguments(
        "--masks --hidden_dim 128 --nheads 8 --dataset_file coco_panoptic",
        "--coco_path",
        tmp_path,
        "--coco_panoptic_path",
        tmp_path,
    )
    write_jittor_file(
        {"model": {"class_embed.bias": np.zeros(251, np.float32)}, "args": vars(flags)},
        tmp_path / "w.pkl",
    )
    panoptic = [
        "--dataset_file",
        "coco_panoptic",
        "--coco_path",
        str(tmp_path),
        "--coco_panoptic_path",
        str(tmp_path),
    ]
    for wrong, message in (
        (
            ["--dilation", "--backbone", "resnet18"],
            "error: --dilation does not go with --backbone resnet18",
        ),
        (["--lr", "-1"], "error: --lr is -1.0"),
        ([*panoptic, "--resume", str(tmp_path / "w.pkl")], "error: .*panopticapi-lite"),
    ):
        source = (
            "import sys; sys.modules['panopticapi'] = None\n"
            "from main import *\n"
            "with launch.job():\n"
            "    try:\n"
            f"        main(parse_args({['--coco_path', '/nowhere', *wrong]}))\n"
            "    finally:\n"
            "        print('jittor' in sys.modules)"
        )
        process = subprocess.run(
            [sys.executable, "-c", source], cwd=REPO, capture_output=True, text=True
        )
        assert process.returncode == 1 and process.stdout.splitlines()[-1] == "False", (
            process.stdout + process.stderr
        )
        assert re.match(message, process.stderr), process.stderr


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            ["--backbone_norm", "batch", "--lr_backbone", 0],
            "--backbone_norm batch trains the backbone",
        ),
        (
            ["--backbone_norm", "group", "--backbone_weights", "imagenet"],
            "no ImageNet weights .*--backbone_weights none",
        ),
        (
            ["--backbone_norm", "batch", "--backbone", "tiny", "--backbone_weights", "imagenet"],
            "no ImageNet weights .*tiny",
        ),
        (
            ["--resume", "a.pkl", "--finetune", "b.pkl"],
            "--finetune .*--resume .*: give one of the two",
        ),
        (
            ["--finetune", "b.pkl", "--eval"],
            "--finetune starts a training: use --resume to evaluate",
        ),
        (
            [
                "--finetune",
                "b.pkl",
                "--masks",
                "--hidden_dim",
                128,
                "--nheads",
                8,
                "--frozen_weights",
                "c.pkl",
            ],
            "--finetune starts",
        ),
        (
            ["--eval", "--val_images", "a"],
            "--val_images needs --val_ann too: the images and annotations to evaluate on",
        ),
        (
            ["--eval", "--val_images", "a", "--val_ann", "b"],
            "--val_images names your own data, and --coco_path other data",
        ),
        (
            ["--eval", "--val_images", "a", "--val_ann", "b", "--dataset_file", "shapes"],
            "--dataset_file shapes other data",
        ),
        (["--dataset_file", "shapes", "--max_size", 100], "--max_size has no effect on the shapes"),
        (["--dataset_file", "shapes", "--num_classes", 3], "--num_classes is 3: the shapes need 4"),
        (["--predict", "a.jpg"], "--predict needs trained weights"),
        (["--predict", "a.jpg", "--resume", "w.pkl"], "--predict needs a folder"),
        (["--predict", "a.jpg", "--resume", "w.pkl", "--eval"], "--predict and --eval"),
    ],
)
def test_flags_that_do_not_go_together_are_named(flags, message, coco):
    with pytest.raises(InputError, match=message):
        tiny.train("--coco_path", coco, *flags)


@pytest.mark.parametrize(
    "flags, longest",
    [
        ("--max_size 1551", 1600),
        ("--backbone resnet50 --dilation --max_size 751", 800),
        ("--backbone tiny --backbone_norm batch --backbone_weights none --max_size 751", 800),
        ("--backbone resnet50 --dilation --max_size 750", None),
        ("", None),
    ],
)
def test_images_too_large_for_learned_encodings_are_found_at_the_start(flags, longest):
    args = parse_args(["--coco_path", "/x", "--position_embedding", "learned", *flags.split()])
    if longest is None:
        check_flags(args)
    else:
        message = f"--position_embedding learned supports images of up to {longest} pixels"
        with pytest.raises(InputError, match=message):
            check_flags(args)


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--coco_path /nowhere", "--coco_path /nowhere: no such folder; it should hold train2017"),
        (
            "--dataset_file coco_panoptic --coco_path . --coco_panoptic_path /nowhere",
            "--coco_panoptic_path /nowhere: no such folder; it should hold panoptic_train2017",
        ),
        (
            "--train_images /nowhere --train_ann a --val_images . --val_ann b",
            "--train_images /nowhere: no such folder; it should hold the images",
        ),
        (
            "--train_images . --train_ann . --val_images . --val_ann b",
            "--train_ann .: is a folder; give the JSON file with the annotations",
        ),
        (
            "--eval --resume a.pkl --val_images . --val_ann /nowhere.json",
            "--val_ann /nowhere.json: no such file; give the JSON file with the annotations",
        ),
    ],
)
def test_what_is_not_there_is_said_before_jittor_is_imported(flags, message):
    """It may compile for minutes."""
    code = "import sys; sys.modules['jittor'] = None; import main; main.main(main.parse_args())"
    done = subprocess.run(
        [sys.executable, "-c", code, *flags.split()], cwd=REPO, capture_output=True, text=True
    )
    assert done.returncode == 1 and message in done.stderr.splitlines()[-1]


def test_the_shapes_are_drawn_where_there_is_no_folder(tmp_path):
    check_args(parse_args(["--demo", "--coco_path", str(tmp_path / "new")]))


@pytest.mark.parametrize(
    "flags, processes, size, words",
    [
        ("", 1, 2, "2 images per step (1 process x batch size 2 x 1 accumulated)"),
        ("--batch_size 1", 1, 1, "1 image per step (1 process x batch size 1 x 1 accumulated)"),
        (
            "--batch_size 4 --accum_steps 3",
            2,
            24,
            "24 images per step (2 processes x batch size 4 x 3 accumulated)",
        ),
    ],
)
def test_images_per_step(flags, processes, size, words, monkeypatch, capsys):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", str(processes))
    args = parse_args(flags.split())
    assert get_step_size(args) == size
    print_step_size(args)
    assert capsys.readouterr().out == f"{words}; the original trains with 16\n"


@pytest.mark.parametrize(
    "flags, remedy",
    [
        ("", "--accum_steps 8"),
        ("--batch_size 3", "--accum_steps 6"),
        ("--accum_steps 8", None),
        ("--finetune weights.pth", None),
        ("--resume checkpoint.pkl", None),
        ("--overfit 8", None),
        ("--dataset_file shapes", None),
    ],
)
def test_few_images_per_step_from_scratch_are_a_warning(flags, remedy, capsys):
    print_step_size(parse_args(flags.split()))
    err = capsys.readouterr().err
    assert ("too few images per step to train from scratch" in err) == (remedy is not None)
    assert remedy is None or f"use {remedy}, or start from trained weights" in err
