"""The program as its user meets it: training, resuming, evaluating, and what it says about wrong
input.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
import tiny
from processes import REPO
from same import assert_same

from arguments import parse_args
from main import main
from models.weights.checkpoint import load_checkpoint
from util.backend import jt
from util.errors import InputError
from util.jittor_file import write_jittor_file


@pytest.fixture(scope="module")
def trained(coco, tmp_path_factory):
    """The output folder of two epochs at once, with data workers."""
    folder = tmp_path_factory.mktemp("trained")
    tiny.train("--coco_path", coco, "--output_dir", folder, "--epochs", 2, "--num_workers", 2)
    return folder


@pytest.fixture(scope="module")
def resumed(coco, tmp_path_factory):
    """The output folder of one epoch and a second one resumed from it, without data workers."""
    folder = tmp_path_factory.mktemp("resumed")
    flags = ("--coco_path", coco, "--output_dir", folder, "--num_workers", 0)
    tiny.train(*flags, "--epochs", 1)
    tiny.train(*flags, "--epochs", 2, "--resume", folder / "checkpoint.pkl")
    return folder


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


def test_files_of_a_training(trained):
    files = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    assert files == {
        "checkpoint.pkl",
        "checkpoint0000.pkl",
        "checkpoint0001.pkl",
        "checkpoint_best.pkl",
        "report/report.html",
        "report/report.json",
        "eval/latest.pkl",
        "eval/000.pkl",
        ".lock",
        "args.json",
        "log.txt",
        "detections_bbox.json",
        "curves.png",
        "predictions.png",
    }
    checkpoint = load_checkpoint(trained / "checkpoint.pkl")
    assert set(checkpoint) == {
        "model",
        "optimizer",
        "lr_scheduler",
        "epoch",
        "step",
        "processes",
        "classes",
        "train_stats",
        "args",
        "best",
    }
    assert (
        checkpoint["epoch"] == 1 and load_checkpoint(trained / "checkpoint0000.pkl")["epoch"] == 0
    )
    assert checkpoint["args"]["num_queries"] == 10
    precision = jt.load(str(trained / "eval" / "latest.pkl"))["precision"]
    assert precision.shape == (10, 101, 2, 4, 3), (
        "IoU thresholds, recalls, categories, areas, numbers of detections"
    )


def test_log_has_the_originals_keys(trained):
    losses = ["loss_ce", "loss_bbox", "loss_giou", "loss_ce_0", "loss_bbox_0", "loss_giou_0"]
    meters = {
        "loss",
        "class_error",
        *losses,
        *(
            f"{name}_unscaled"
            for name in [*losses, "class_error", "cardinality_error", "cardinality_error_0"]
        ),
    }
    lines = log_of(trained)
    for epoch, line in enumerate(lines):
        assert set(line) == {
            "train_lr",
            "test_coco_eval_bbox",
            "test_best_epoch",
            "test_box_std",
            "test_score_std",
            "epoch",
            "n_parameters",
            *(f"{part}_{name}" for part in ("train", "test") for name in meters),
        }
        assert line["epoch"] == epoch and len(line["test_coco_eval_bbox"]) == 12
    moments = load_checkpoint(trained / "checkpoint.pkl")["optimizer"]["state"].values()
    trainable = sum(moment["exp_avg"].size for moment in moments)
    assert [line["n_parameters"] for line in lines] == [trainable, trainable]
    assert [line["train_lr"] for line in lines] == [1e-4, pytest.approx(1e-5)], "--lr_drop 1"


def test_resuming_continues_to_the_last_bit(trained, resumed):
    """Whatever the number of data workers, too."""
    assert log_of(resumed) == log_of(trained)
    whole, parts = (load_checkpoint(folder / "checkpoint.pkl") for folder in (trained, resumed))
    for key in ("model", "optimizer", "lr_scheduler", "epoch"):
        assert_same(parts[key], whole[key])
    first = load_checkpoint(trained / "checkpoint0000.pkl")["model"]
    assert any((first[name] != array).any() for name, array in whole["model"].items()), (
        "the second epoch trains"
    )


def test_evaluating_the_checkpoint_gives_the_trainings_figures(coco, trained, tmp_path):
    tiny.train(
        "--coco_path",
        coco,
        "--output_dir",
        tmp_path,
        "--eval",
        "--resume",
        trained / "checkpoint.pkl",
    )
    assert {path.name for path in tmp_path.iterdir()} == {
        ".lock",
        "eval.pkl",
        "detections_bbox.json",
        "predictions.png",
        "report",
    }
    found, expected = (
        load_figures(path) for path in (tmp_path / "eval.pkl", trained / "eval" / "latest.pkl")
    )
    assert_same(found, expected)
    detections = json.loads((tmp_path / "detections_bbox.json").read_text())
    assert detections == json.loads((trained / "detections_bbox.json").read_text())
    assert len(detections) == len(tiny.SIZES) * 10, "images x queries"
    assert set(detections[0]) == {"image_id", "category_id", "bbox", "score"}


def load_figures(path):
    content = jt.load(str(path))
    return {name: content[name] for name in ("precision", "recall", "scores")}


def test_evaluating_prints_the_12_figures(coco, trained, capsys):
    tiny.train("--coco_path", coco, "--eval", "--resume", trained / "checkpoint.pkl")
    output = capsys.readouterr().out
    figures = [
        float(line.rsplit("=", 1)[1])
        for line in output.splitlines()
        if line.startswith(" Average ")
    ]
    assert len(figures) == 12
    np.testing.assert_allclose(figures, log_of(trained)[-1]["test_coco_eval_bbox"], atol=5e-4)


def test_evaluating_without_a_checkpoint_warns(coco, capsys):
    tiny.train("--coco_path", coco, "--eval")
    assert "warning: --eval without --resume evaluates random weights" in capsys.readouterr().err


def test_weights_alone_start_a_new_training(coco, trained, tmp_path, capsys):
    write_jittor_file(
        {"model": load_checkpoint(trained / "checkpoint.pkl")["model"]}, tmp_path / "weights.pkl"
    )
    tiny.train(
        "--coco_path",
        coco,
        "--epochs 1 --lr 1e-9 --lr_backbone 1e-9",
        "--resume",
        tmp_path / "weights.pkl",
        "--output_dir",
        tmp_path / "out",
    )
    assert "only weights; training starts at epoch 0" in capsys.readouterr().out
    [line] = log_of(tmp_path / "out")
    assert line["epoch"] == 0
    assert line["test_loss"] == pytest.approx(log_of(trained)[-1]["test_loss"], rel=1e-4)


def edit_annotations(coco, change, image_set="train"):
    path = coco / "annotations" / f"instances_{image_set}2017.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def set_box(box):
    return lambda coco: edit_annotations(coco, lambda data: data["annotations"][3].update(bbox=box))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def add_category_91(coco):
    def change(data):
        data["categories"].append({"id": 91, "name": "too high"})
        data["annotations"][3]["category_id"] = 91

    edit_annotations(coco, change)


BAD_DATA = {  # name -> (what is done to the folder, what the message says)
    "no folder": (
        lambda coco: coco.rename(coco.with_name("gone")),
        r"--coco_path .*coco: no such folder",
    ),
    "no images": (
        lambda coco: (coco / "train2017").rename(coco / "elsewhere"),
        r"coco/train2017: no such folder",
    ),
    "no JSON": (
        lambda coco: (coco / "annotations" / "instances_val2017.json").unlink(),
        r"instances_val2017\.json: no such file",
    ),
    "bad JSON": (
        lambda coco: truncate(coco / "annotations" / "instances_train2017.json"),
        r"instances_train2017\.json: invalid JSON",
    ),
    "missing image": (
        lambda coco: (coco / "val2017" / "000000000002.jpg").unlink(),
        r"val2017/000000000002\.jpg: no such image",
    ),
    "category 91": (add_category_91, r"instances_train2017\.json: annotation 4 .*category_id 91"),
    "NaN box": (
        set_box([1, 2, float("nan"), 4]),
        r"instances_train2017\.json: annotation 4 .*bbox",
    ),
    "negative box": (set_box([1, 2, -3, 4]), r"instances_train2017\.json: annotation 4 .*bbox"),
    "truncated image": (
        lambda coco: truncate(coco / "train2017" / "000000000002.jpg"),
        r"train2017/000000000002\.jpg: cannot be read as an image .*; there is no checkpoint in ",
    ),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_is_named_before_the_first_step(name, tmp_path, capsys):
    damage, message = BAD_DATA[name]
    coco, output = tiny.make_coco(tmp_path / "coco"), tmp_path / "output"
    damage(coco)
    # one batch: whatever the order, the truncated image is in it
    with pytest.raises(InputError, match=message):
        tiny.train("--coco_path", coco, "--output_dir", output, "--batch_size 3 --num_workers 2")
    assert "[0/1]" not in capsys.readouterr().out
    assert {path.name for path in output.iterdir()} <= {".lock", "args.json"}, "nothing is saved"


def shorten(source, target):
    target.write_bytes(source.read_bytes()[:-1000])
    return target


HEAD = ("class_embed.weight", "class_embed.bias")


def without(source, target, *names):
    checkpoint = load_checkpoint(source)
    for name in names:
        del checkpoint["model"][name]
    write_jittor_file(checkpoint, target)
    return target


def without_flags(source, target):
    write_jittor_file({"model": load_checkpoint(source)["model"]}, target)
    return target


# name -> (flags from the checkpoint's path and a path to write, what the message says)
BAD_CHECKPOINTS = {
    "missing": (lambda good, path: ["--resume", path], r"bad\.pkl: cannot be read \(No such file"),
    "truncated": (lambda good, path: ["--resume", shorten(good, path)], r"bad\.pkl: .*truncated"),
    "incomplete": (
        lambda good, path: ["--resume", without(good, path, "class_embed.bias")],
        r"bad\.pkl: does not fit the model: 1 missing \(class_embed\.bias\)",
    ),
    "no class head": (
        lambda good, path: ["--resume", without(good, path, *HEAD)],
        r"bad\.pkl: has no class head .*--finetune",
    ),
    "weights without a class head": (
        lambda good, path: ["--resume", without_flags(without(good, path, *HEAD), path)],
        r"bad\.pkl: has no class head .*--finetune",
    ),
    "more layers": (
        lambda good, path: ["--resume", good, "--dec_layers", 3],
        r"--dec_layers is 3, but .*checkpoint\.pkl was trained with 2: leave "
        r"the flag out, or .*--finetune",
    ),
    "fewer layers": (
        lambda good, path: ["--resume", good, "--dec_layers", 1],
        r"--dec_layers is 1, but .*checkpoint\.pkl was trained with 2",
    ),
    "another width": (
        lambda good, path: ["--resume", good, "--hidden_dim", 64],
        r"--hidden_dim is 64, but .*checkpoint\.pkl was trained with 32",
    ),
    "another backbone": (
        lambda good, path: ["--resume", good, "--backbone", "resnet50"],
        r"--backbone is resnet50, but .*checkpoint\.pkl was trained with resnet18",
    ),
    "weights of another backbone": (
        lambda good, path: ["--resume", without_flags(good, path), "--backbone", "resnet50"],
        r"--backbone is resnet50, but .*bad\.pkl was trained with resnet18: leave the flag out",
    ),
    "weights of another width": (
        lambda good, path: ["--resume", without_flags(good, path), "--hidden_dim", 64],
        r"--hidden_dim is 64, but .*bad\.pkl was trained with 32",
    ),
    "weights of fewer layers": (
        lambda good, path: ["--resume", without_flags(good, path), "--dec_layers", 1],
        r"--dec_layers is 1, but .*bad\.pkl was trained with 2",
    ),
    "other classes": (
        lambda good, path: ["--resume", good, "--num_classes", 90],
        "--num_classes is 90, but .* has 91 classes",
    ),
    "other groups": (
        lambda good, path: ["--resume", good, "--lr_backbone", 0],
        r"checkpoint\.pkl: its optimizer does not fit",
    ),
    "backbone": (
        lambda good, path: ["--backbone_weights", path],
        r"--backbone_weights .*bad\.pkl: no such file; give imagenet, none, or",
    ),
}


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
def test_bad_checkpoint_is_named_before_the_first_step(name, coco, trained, tmp_path, capsys):
    make_flags, message = BAD_CHECKPOINTS[name]
    flags = make_flags(trained / "checkpoint.pkl", tmp_path / "bad.pkl")
    with pytest.raises(InputError, match=message):
        tiny.train("--coco_path", coco, *flags)
    assert "[0/" not in capsys.readouterr().out


def test_demo_trains_evaluates_and_draws(tmp_path, capsys):
    flags = [
        "--demo",
        "--coco_path",
        str(tmp_path / "shapes"),
        *"""
        --shapes_train 32 --shapes_val 8 --shapes_size 48 --epochs 1 --batch_size 8 --num_workers
        0 --device cpu
    """.split(),
    ]
    main(parse_args([*flags, "--output_dir", str(tmp_path / "out")]))
    [line] = log_of(tmp_path / "out")
    assert np.isfinite(line["train_loss"]) and len(line["test_coco_eval_bbox"]) == 12
    assert {"curves.png", "predictions.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    main(
        parse_args(
            [
                *flags,
                "--eval",
                "--resume",
                str(tmp_path / "out" / "checkpoint.pkl"),
                "--output_dir",
                str(tmp_path / "eval"),
            ]
        )
    )
    assert_same(
        load_figures(tmp_path / "eval" / "eval.pkl"),
        load_figures(tmp_path / "out" / "eval" / "latest.pkl"),
    )


def test_cuda_is_an_error_where_there_is_none(coco, monkeypatch):
    monkeypatch.setattr(jt, "has_cuda", False)
    with pytest.raises(InputError, match="--device cuda: .*use --device cpu"):
        tiny.train("--coco_path", coco, "--device", "cuda")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--coco_path", "/nowhere/coco"], "error: --coco_path /nowhere/coco: no such folder"),
        (
            ["--coco_path", "/nowhere/coco", "--output_dir", __file__],
            f"error: --output_dir {__file__} cannot be written",
        ),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(flags, message):
    process = subprocess.run(
        [sys.executable, "main.py", *flags], cwd=REPO, capture_output=True, text=True
    )
    assert process.returncode == 1
    assert [
        line.startswith(message) for line in process.stderr.splitlines() if line.startswith("error")
    ] == [True]
    assert "Traceback" not in process.stderr + process.stdout


def test_without_a_network_the_imagenet_weights_name_the_flags(coco, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    message = "put it there, or use --backbone_weights none or --backbone_weights PATH$"
    with pytest.raises(InputError, match=message):
        tiny.train("--coco_path", coco, "--backbone_weights imagenet")
