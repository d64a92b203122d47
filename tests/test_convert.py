"""`python -m datasets.convert`: what it prints, and what it needs."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from processes import REPO
from yolo_voc import labelimg_yolo, ultralytics

from arguments import parse_args
from datasets.annotations import load_coco
from datasets.convert.__main__ import main
from datasets.convert.voc import convert_voc
from datasets.convert.yolo import convert_yolo
from util.errors import InputError


def test_a_folder_without_a_data_set_is_an_input_error(tmp_path):
    for convert, message in (
        (convert_yolo, "has no data.yaml and no classes.txt"),
        (convert_voc, "has no XML files"),
    ):
        with pytest.raises(InputError, match=message):
            convert(tmp_path, tmp_path / "out")


def test_the_command_prints_how_to_train(tmp_path, monkeypatch, capsys):
    ultralytics(tmp_path / "in")
    command = ["convert", "yolo", str(tmp_path / "in"), str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    main()
    printed = capsys.readouterr().out
    assert "train.json: 7 images, 12 boxes, 3 classes" in printed
    assert (
        f"--train_images {tmp_path}/in/images/train --train_ann {tmp_path}/out/train.json"
        in printed
    )


def test_without_a_validation_set_the_command_says_how_to_make_one(tmp_path, monkeypatch, capsys):
    """And its lines can be pasted, also with a space in a path."""
    labelimg_yolo(tmp_path / "my data")
    command = ["convert", "yolo", str(tmp_path / "my data"), str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    main()
    *_, split, train = capsys.readouterr().out.splitlines()
    words = shlex.split(split.removeprefix("no images for validation: split them with "))
    monkeypatch.setattr(sys, "argv", words[2:])
    main()
    args = parse_args(shlex.split(train.removeprefix("train with: "))[2:])
    for images, file in ((args.train_images, args.train_ann), (args.val_images, args.val_ann)):
        load_coco(Path(images), Path(file), return_masks=False, num_classes=None)


def test_converting_needs_no_jittor():
    code = "import sys; sys.modules['jittor'] = None; import datasets.convert.__main__"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 0
