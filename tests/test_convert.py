"""`python -m datasets.convert`: what it prints, and what it needs."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from exports import cvat, objects
from processes import REPO
from yolo_voc import NAMES, load, write_labelimg, write_roboflow_voc, write_ultralytics

from arguments import parse_args
from datasets.convert.__main__ import main
from datasets.convert.voc import convert_voc
from datasets.convert.yolo import convert_yolo
from util.errors import InputError


@pytest.mark.parametrize(
    "convert, message",
    [
        (convert_yolo, "has no data.yaml, obj.data or classes.txt"),
        (convert_voc, "has no XML files"),
    ],
)
def test_a_folder_without_a_dataset_is_an_input_error(tmp_path, convert, message):
    with pytest.raises(InputError, match=message):
        convert(tmp_path, tmp_path / "out")


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, words)])
    main()
    return capsys.readouterr().out


def test_the_command_prints_how_to_train(tmp_path, monkeypatch, capsys):
    write_ultralytics(tmp_path / "in")
    printed = run(monkeypatch, capsys, "yolo", tmp_path / "in", tmp_path / "out")
    assert "train.json: 7 images, 12 boxes, 3 classes" in printed
    flags = f"--train_images {tmp_path}/in/images/train --train_ann {tmp_path}/out/train.json"
    assert flags in printed


def test_the_command_prints_how_to_split(tmp_path, monkeypatch, capsys):
    """Its lines can be pasted, even if a path has a space."""
    source = write_labelimg(tmp_path / "my data")
    *_, split, train = run(monkeypatch, capsys, "yolo", source, tmp_path / "out").splitlines()
    split = split.removeprefix("no images for validation: split them with ")
    run(monkeypatch, capsys, *shlex.split(split)[3:])
    args = parse_args(shlex.split(train.removeprefix("train with: "))[2:])
    load((Path(args.train_images), Path(args.train_ann)))
    load((Path(args.val_images), Path(args.val_ann)))


def test_splitting_prints_how_to_train_if_the_images_are_near(tmp_path, monkeypatch, capsys):
    source, images = cvat(tmp_path / "in", objects(4))
    out = tmp_path / "out"
    *_, train = run(monkeypatch, capsys, "split", source, "--val", 0.5, "--out", out).splitlines()
    args = parse_args(shlex.split(train.removeprefix("train with: "))[2:])
    assert args.train_images == args.val_images == str(images)
    assert [args.train_ann, args.val_ann] == [
        str(out / f"instances_default_{part}.json") for part in ("train", "val")
    ]
    source.rename(tmp_path / "all.json")
    assert "train with" not in run(monkeypatch, capsys, "split", tmp_path / "all.json")


def test_files_of_macos_are_passed_over(tmp_path):
    """Its archives have a `._` file, or a folder __MACOSX, for each file."""
    yolo, voc = write_labelimg(tmp_path / "yolo"), write_roboflow_voc(tmp_path / "voc")
    for path in [*yolo.iterdir(), *voc.rglob("photo*")]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    shutil.copytree(yolo, yolo / "__MACOSX")
    for convert, source in ((convert_yolo, yolo), (convert_voc, voc)):
        assert len(load(convert(source, tmp_path / source.name)["train"]).imgs) == len(NAMES)


def test_converting_needs_no_jittor():
    code = "import sys; sys.modules['jittor'] = None; import datasets.convert.__main__"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 0
