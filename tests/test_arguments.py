"""The flags: the demo's, the help, those restored from a checkpoint, and the command to resume."""

import os
import shlex
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny
from processes import REPO

from arguments import apply_checkpoint_args, get_args_parser, parse_args, resume_command
from checks import check_args, check_flags
from datasets.transforms import SCALES
from models.weights.model import model_state
from util.errors import InputError


def test_demo_sets_flags_that_others_win_over(capsys):
    args = parse_args(["--demo", "--epochs", "3", "--no_aux_loss", "--output_dir", "out put"])
    assert (args.dataset_file, args.backbone, args.lr, args.epochs) == ("shapes", "tiny", 5e-4, 3)
    printed = capsys.readouterr().out
    assert "--epochs 3" in printed and "--pre_norm" in printed
    command = printed.split("--demo stands for: ")[1]
    again = parse_args(shlex.split(command)[2:])
    assert set(args.given) == {"epochs", "aux_loss", "output_dir", "demo"}
    assert {**vars(again), "demo": True, "given": args.given} == vars(args)
    assert vars(parse_args([])) == {
        **vars(get_args_parser().parse_args([])),
        "given": [],
        "initial_weights": "",
    }, "nothing is left of the demo"


def test_help_answers_at_once_and_without_jittor(tmp_path):
    environment = {**os.environ, "HOME": str(tmp_path), "JITTOR_HOME": str(tmp_path)}
    start = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "main.py", "--help"],
        cwd=REPO,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert time.monotonic() - start < 3
    assert process.returncode == 0 and "--num_queries" in process.stdout
    imported = [
        line.split("|")[-1].strip()
        for line in process.stderr.splitlines()
        if line.startswith("import time:")
    ]
    assert len(imported) > 20 and not [name for name in imported if name.startswith("jittor")]
    assert not list(tmp_path.rglob("jittor_core*")), "nothing is compiled"


def test_the_help_says_every_default(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "the last decoder layer only --set_cost_class" in text, (
        "no default of a flag that unsets"
    )
    for words in ("(default: 300)", "(default: 0.0001)", "(default: auto)", "(default: 42)"):
        assert words in text


def test_frozen_weights_bring_the_flags_of_their_model():
    """With other flags they would load, and compute something else."""
    words = ["--coco_path", "/x", "--masks", "--frozen_weights", "box.pkl"]
    saved = {"dilation": True, "nheads": 16, "masks": False, "lr": 0.5, "eval_size": 333}
    saved["backbone_norm"] = "group"  # which has no ImageNet weights, and needs none here
    checkpoint = {"args": saved, "model": {}, "optimizer": {"groups": []}}
    args = parse_args(words)
    assert apply_checkpoint_args(args, checkpoint, "box.pkl") == []
    assert (args.dilation, args.nheads, args.masks, args.lr) == (True, 16, True, 1e-4)
    assert args.eval_size == 800, "only what the weights depend on"
    args = parse_args([*words, "--nheads", "8"])
    message = "--nheads is 8, but box.pkl was trained with 16: leave the flag out$"
    with pytest.raises(InputError, match=message):
        apply_checkpoint_args(args, checkpoint, "box.pkl")


@pytest.mark.parametrize(
    "words, sizes",
    [
        ("--coco_path /x --eval --resume a.pkl", ([64], 64, 64)),
        ("--predict /x --output_dir /y --resume a.pkl", ([64], 64, 64)),
        ("--coco_path /x --eval --resume a.pkl --eval_size 128 --max_size 99", ([64], 128, 99)),
        ("--dataset_file shapes --eval --resume a.pkl", (list(SCALES), 800, 1333)),
        ("--coco_path /x --finetune a.pkl --eval_size 96", (list(SCALES), 96, 1333)),
    ],
)
def test_images_get_the_size_of_the_shapes_that_the_weights_were_trained_on(words, sizes, capsys):
    saved = {"dataset_file": "shapes", "shapes_size": 64, "eval_size": 800, "max_size": 1333}
    checkpoint = {"args": saved, "model": {"class_embed.bias": np.zeros(5)}}
    args = parse_args(words.split())
    apply_checkpoint_args(args, checkpoint, "a.pkl")
    assert (args.img_scales, args.eval_size, args.max_size) == sizes
    hint = "a.pkl was trained with --img_scales 64 --max_size 64: "
    assert (hint in capsys.readouterr().out) == bool(args.finetune)


def test_a_training_that_goes_on_says_which_settings_change(capsys):
    saved = {"lr": 5e-4, "eval_size": 800, "nheads": 8}
    checkpoint = {"args": saved, "model": {}, "optimizer": {"groups": []}}
    words = "--coco_path /x --resume a.pkl --lr 1e-4 --eval_size 640".split()
    assert apply_checkpoint_args(parse_args(words), checkpoint, "a.pkl") == ["eval_size", "lr"]
    printed = capsys.readouterr().out
    assert "--lr is 0.0001 from now on; a.pkl was trained with 0.0005" in printed
    assert "--eval_size is 640 from now on; a.pkl was trained with 800" in printed
    assert apply_checkpoint_args(parse_args([*words, "--eval"]), checkpoint, "a.pkl") == []
    assert capsys.readouterr().out == ""


def test_a_training_of_a_mask_head_goes_on_without_the_weights_that_it_started_from():
    saved = {"masks": True, "frozen_weights": "box.pkl", "best": "segm_AP"}
    checkpoint = {"args": saved, "model": {}, "optimizer": {"groups": []}}
    args = parse_args("--coco_path . --resume a.pkl".split())
    check_args(args)
    assert apply_checkpoint_args(args, checkpoint, "a.pkl") == []
    assert args.masks and args.frozen_weights == "box.pkl"
    for words in ("--frozen_weights box.pkl", "--best segm_AP"):
        args = parse_args(f"--coco_path . --resume a.pkl {words}".split())
        check_args(args)  # whether there is a mask head, the checkpoint says
        apply_checkpoint_args(args, checkpoint, "a.pkl")
        with pytest.raises(InputError, match="give --masks as well"):
            apply_checkpoint_args(
                parse_args(f"--coco_path . --resume a.pkl {words}".split()),
                {"args": {"masks": False}, "model": {}, "optimizer": {"groups": []}},
                "a.pkl",
            )


def test_what_trains_does_not_change_on_the_way():
    checkpoint = {"args": {"freeze": []}, "model": {}, "optimizer": {"groups": []}}
    args = parse_args("--coco_path . --resume a.pkl --freeze backbone".split())
    message = r"--freeze is \['backbone'\], but a.pkl was trained with \[\]: leave the flag out, or"
    with pytest.raises(InputError, match=message):
        apply_checkpoint_args(args, checkpoint, "a.pkl")
    args = parse_args("--coco_path . --eval --resume a.pkl --nheads 4".split())
    checkpoint["args"] = {"nheads": 8}
    with pytest.raises(InputError, match="leave the flag out$"):
        apply_checkpoint_args(args, checkpoint, "a.pkl")


def test_weights_without_flags_tell_what_their_model_is_like():
    """Not dilation and heads, which have the same weights."""
    trained = tiny.arguments("--num_classes 5 --pre_norm --position_embedding learned")
    checkpoint = {"model": model_state(tiny.build(trained)[0])}
    args = parse_args("--coco_path . --eval --resume a.pth --max_size 640".split())
    assert apply_checkpoint_args(args, checkpoint, "a.pth") == []
    for name in "backbone enc_layers dec_layers hidden_dim num_queries pre_norm".split():
        assert getattr(args, name) == getattr(trained, name), name
    assert (args.position_embedding, args.num_classes, args.dilation) == ("learned", 5, False)
    args = parse_args("--coco_path . --eval --resume a.pth --backbone resnet101".split())
    message = "--backbone is resnet101, but a.pth was trained with resnet18: leave the flag out$"
    with pytest.raises(InputError, match=message):
        apply_checkpoint_args(args, checkpoint, "a.pth")


def test_the_command_to_go_on_keeps_flags_that_are_given_at_their_default(tmp_path):
    """The checkpoint's would come back otherwise."""
    flags = "--coco_path /x --resume a.pkl --lr 1e-4 --overwrite --output_dir"
    args = parse_args([*flags.split(), str(tmp_path)])
    expected = (
        f"resume with python main.py --lr 0.0001 --coco_path /x --output_dir {tmp_path} "
        "--resume a.pkl"
    )
    assert resume_command(args) == expected


def test_the_command_to_resume_on_several_machines_and_under_slurm(tmp_path, monkeypatch):
    args = parse_args(["--coco_path", "/x", "--resume", "a.pkl", "--output_dir", str(tmp_path)])
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2")
    expected = "resume with mpirun (its options as before) python main.py --coco_path /x "
    assert resume_command(args).startswith(expected)
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    assert resume_command(args) == "submit the script again"
    (tmp_path / "checkpoint.pkl").touch()
    assert resume_command(args) == "submit the script again, with --resume auto"


def test_resume_auto_takes_the_checkpoint_of_the_output_folder_if_there_is_one(tmp_path):
    flags = "--coco_path /x --resume auto --finetune a.pkl --output_dir".split()
    args = parse_args([*flags, str(tmp_path)])
    assert (args.resume, args.finetune) == ("", "a.pkl")
    (tmp_path / "checkpoint.pkl").touch()
    args = parse_args([*flags, str(tmp_path)])
    assert (args.resume, args.finetune) == (f"{tmp_path}/checkpoint.pkl", "")
    check_flags(args)
    with pytest.raises(InputError, match="^--resume auto .*: give --output_dir$"):
        parse_args(["--resume", "auto"])
