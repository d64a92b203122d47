"""YOLO datasets converted to COCO's format, in the layouts that tools export."""

import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from exports import CLASSES, save_images
from PIL import Image, ImageOps
from yolo_voc import (
    NAMES,
    assert_converted,
    load,
    write_labelimg,
    write_roboflow,
    write_ultralytics,
)

from datasets.coco import CocoDetection
from datasets.convert.yolo import convert_yolo
from util.errors import InputError

INDEXED = dict(enumerate(CLASSES))


@pytest.mark.parametrize("polygons", [False, True])
def test_yolo_of_ultralytics(tmp_path, polygons):
    splits = convert_yolo(write_ultralytics(tmp_path, polygons), tmp_path)
    assert list(splits) == ["train", "val"]
    assert_converted(splits, INDEXED)
    data = json.loads((tmp_path / "train.json").read_text())
    ann = data["annotations"][0]
    assert ann["area"] == pytest.approx(ann["bbox"][2] * ann["bbox"][3], abs=0.1)
    assert bool(ann["segmentation"]) == polygons


def test_yolo_of_roboflow(tmp_path, capsys):
    """Its test set has no labels here, as competitions publish it."""
    splits = convert_yolo(write_roboflow(tmp_path), tmp_path / "out")
    assert list(splits) == ["train", "val"]
    assert_converted(splits, INDEXED)
    assert "no label file for any image: skipping the test set" in capsys.readouterr().out


def write_cvat(root):
    """Write CVAT's "YOLO 1.1": paths begin with data/, which the export lacks."""
    (write_labelimg(root / "obj_train_data") / "classes.txt").rename(root / "obj.names")
    lines = "".join(f"data/obj_train_data/{name}\n" for name in NAMES)
    (root / "train.txt").write_text(lines)
    (root / "obj.data").write_text(
        f"classes = {len(CLASSES)}\ntrain = data/train.txt\nnames = data/obj.names\n"
        "backup = backup/\n"
    )
    return root


def test_yolo_of_cvat(tmp_path):
    root = write_cvat(tmp_path / "in")
    assert_converted(convert_yolo(root, tmp_path / "out"), INDEXED)
    assert_converted(convert_yolo(root / "obj.data", tmp_path / "two"), INDEXED)
    for path in root.rglob("*.png"):  # "save images" was not ticked
        path.unlink()
    message = "train.txt: 7 of 7 images are missing, the first: data/obj_train_data/photo_0.png"
    with pytest.raises(InputError, match=f"{message}; .*Save images"):
        convert_yolo(root, tmp_path / "three")
    (root / "train.txt").unlink()
    with pytest.raises(InputError, match="obj.data: train, data/train.txt, is missing; add it"):
        convert_yolo(root, tmp_path / "four")


@pytest.mark.parametrize("images, labels", [("Images", "Labels"), ("images", "label")])
def test_label_folders_of_other_names(tmp_path, images, labels):
    path = write_ultralytics(tmp_path / "in")
    for old, new in (("images", images), ("labels", labels)):
        (path.parent / old).rename(path.parent / new)
    path.write_text(path.read_text().replace("images", images))
    for label in path.parent.rglob("*.txt"):
        label.rename(label.with_suffix(".TXT"))
    (path.parent / labels / "val").rename(path.parent / labels / "Val")
    assert_converted(convert_yolo(path, tmp_path / "out"), INDEXED)


def test_the_exact_label_folder_is_preferred(tmp_path):
    path = write_ultralytics(tmp_path / "in")
    for name in ("label", "LABELS"):
        shutil.copytree(tmp_path / "in" / "labels", tmp_path / "in" / name)
        for label in (tmp_path / "in" / name).rglob("*.txt"):
            label.write_text("0 0.5 0.5 1 1\n")
    assert_converted(convert_yolo(path, tmp_path / "out"), INDEXED)


def test_images_without_labels_are_counted(tmp_path, capsys):
    path = write_ultralytics(tmp_path / "in")
    convert_yolo(path, tmp_path / "out")
    message = "val.json: 1 of 7 images have no label file: taken as images without objects; the"
    assert f"{message} first: {tmp_path}/in/images/val/photo_3.png" in capsys.readouterr().out
    (tmp_path / "in" / "labels" / "val").rename(tmp_path / "in" / "val")
    with pytest.raises(InputError, match="images/val: no label file for any of its 7 .*labels/val"):
        convert_yolo(path, tmp_path / "two")


@pytest.mark.parametrize(
    "stem", ["labels/train/photo_1_x", "labels/train/other/photo_1", "images/val/photo_9"]
)
def test_labels_without_image_are_an_error(tmp_path, stem):
    path = write_ultralytics(tmp_path / "in")
    for label in (tmp_path / "in" / "labels" / "val").iterdir():  # also read beside the images
        label.rename(tmp_path / "in" / "images" / "val" / label.name)
    label = tmp_path / "in" / f"{stem}.txt"
    label.parent.mkdir(exist_ok=True)
    label.write_bytes(b"\xef\xbb\xbf0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(InputError, match=f"^1 of 13 label files belong to no image, .*{stem}.txt;"):
        convert_yolo(path, tmp_path / "out")
    for text in ("", "cat\ndog\n"):  # no boxes are lost
        label.write_text(text)
        convert_yolo(path, tmp_path / f"out{len(text)}")


def test_labels_of_images_that_are_not_listed_are_left_out(tmp_path):
    path = write_ultralytics(tmp_path / "in")
    (tmp_path / "in" / "list.txt").write_text("images/train/photo_1.png")
    path.write_text(path.read_text().replace("images/train", "list.txt"))
    assert len(load(convert_yolo(path, tmp_path / "out")["train"]).imgs) == 1


def test_class_names_stay_as_written(tmp_path):
    names = ["no", "0123", "1.0", "on", "2020-01-01", "null", "~", "0x1F"]
    path = write_ultralytics(tmp_path / "in")
    text = path.read_text().partition("names:")[0].replace("test:", "test: ~\nkpt_shape: null")
    indexed = "".join(f"  {number}: {name}\n" for number, name in enumerate(names))
    for number, given in enumerate((f" [{', '.join(names)}]", f"\n{indexed}")):
        path.write_text(f"{text}names:{given}")
        coco = load(convert_yolo(path, tmp_path / f"out{number}")["train"])
        assert {i: category["name"] for i, category in coco.cats.items()} == dict(enumerate(names))


def test_yolo_of_labelimg(tmp_path):
    assert_converted(convert_yolo(write_labelimg(tmp_path / "in"), tmp_path / "out"), INDEXED)


def test_yolo_with_a_file_name_that_is_not_utf_8(tmp_path, monkeypatch):
    """The annotation file is UTF-8 nevertheless, its images are found, and it can be printed."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "utf-8"))
    source = write_labelimg(tmp_path / "in")
    name = os.fsdecode(b"caf\xe9")
    for path in [*source.rglob("photo_3.*")]:
        path.rename(path.with_stem(name))
    split = convert_yolo(source, tmp_path / "out")["train"]
    split[1].read_text("utf-8")
    names = {image["file_name"] for image in load(split).imgs.values()}
    assert len(names) == len(NAMES) and f"{name}.png" in names


def test_yolo_with_a_list_of_images(tmp_path):
    path = write_ultralytics(tmp_path)
    lines = "\n".join(f"./images/train/{name}" for name in NAMES)
    (tmp_path / "list.txt").write_text(lines)
    path.write_text(path.read_text().replace("images/train", "list.txt").replace("val:", "no:"))
    assert_converted(convert_yolo(path, tmp_path / "out"), INDEXED)


def test_yolo_of_several_folders(tmp_path):
    """File names are relative to the folder that has them all."""
    path = write_ultralytics(tmp_path / "data")
    save_images(tmp_path / "extra" / "images", ["more.png"])
    text = path.read_text().replace("train: images/train", "train: [images/train, ../extra/images]")
    path.write_text(text)
    split = convert_yolo(path, tmp_path / "out")["train"]
    names = {image["file_name"] for image in load(split).imgs.values()}
    assert split[0] == tmp_path and len(names) == len(NAMES) + 1
    assert "extra/images/more.png" in names


def test_a_missing_test_set_is_skipped(tmp_path, capsys):
    """Roboflow and Ultralytics name one in every data.yaml."""
    root = write_roboflow(tmp_path / "in")
    shutil.rmtree(root / "test")
    assert list(convert_yolo(root, tmp_path / "out")) == ["train", "val"]
    message = "../test/images is not a folder or list of images: skipping the test set"
    assert message in capsys.readouterr().out
    shutil.rmtree(root / "valid")
    with pytest.raises(InputError, match="../valid/images is not a folder or list of images"):
        convert_yolo(root, tmp_path / "two")


def test_an_existing_file_is_not_overwritten(tmp_path):
    source = write_labelimg(tmp_path / "in")
    (tmp_path / "train.json").write_text("mine")
    with pytest.raises(InputError, match="train.json: exists already; remove it"):
        convert_yolo(source, tmp_path)
    assert (tmp_path / "train.json").read_text() == "mine"


def test_a_class_index_may_be_a_float(tmp_path):
    folder = write_labelimg(tmp_path / "in")
    for label in folder.glob("photo*.txt"):
        lines = label.read_text().splitlines()
        label.write_text("\n".join(f"{line[0]}.0{line[1:]}" for line in lines))
    assert_converted(convert_yolo(folder, tmp_path / "out"), INDEXED)


def test_pyyaml_missing(tmp_path, monkeypatch):
    (tmp_path / "data.yaml").write_text("names: [a]")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(InputError, match="data.yaml: needs the package pyyaml: pip install pyyaml"):
        convert_yolo(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    "content, message",
    [
        ("names: [a]\ntrain: nowhere\n", "nowhere is not a folder or list of images"),
        ("names: [a]\n", "has no images for train, val or test"),
        ("train: .\n", "names is not a list of class names"),
        ("[1, 2]", "names is not a list of class names"),
        ("train: .\nnames: {a: b}", "names is not a list of class names"),
        ("a: [", "data.yaml: cannot be read"),
    ],
)
def test_a_bad_data_yaml_is_an_input_error(tmp_path, content, message):
    pytest.importorskip("yaml")
    (tmp_path / "data.yaml").write_text(content)
    with pytest.raises(InputError, match=message) as error:
        convert_yolo(tmp_path, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_keypoints_are_refused(tmp_path):
    path = write_ultralytics(tmp_path)
    path.write_text(f"{path.read_text()}kpt_shape: [12, 2]\n")
    with pytest.raises(InputError, match="data.yaml: has kpt_shape: export boxes"):
        convert_yolo(path, tmp_path / "out")


def test_text_files_from_windows(tmp_path, capsys):
    folder = write_labelimg(tmp_path / "in")
    for path in folder.glob("*.txt"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert_converted(convert_yolo(folder, tmp_path / "out"), INDEXED)
    names = ["猫", "狗", "交通灯"]
    (folder / "classes.txt").write_bytes("\r\n".join(names).encode("gbk"))
    coco = load(convert_yolo(folder, tmp_path / "gbk")["train"])
    assert [category["name"] for category in coco.cats.values()] == names
    assert "classes.txt: is not UTF-8: read as GB18030 (GBK), with '猫'" in capsys.readouterr().out
    (folder / "classes.txt").write_bytes("café\n".encode("cp1252"))
    with pytest.raises(InputError, match="classes.txt: is neither UTF-8 nor GB18030 .* iconv -f"):
        convert_yolo(folder, tmp_path / "cp1252")


def test_empty_lines_in_classes_txt_count(tmp_path):
    folder = write_labelimg(tmp_path / "in")
    (folder / "classes.txt").write_text("cat\n\ntraffic light\ndog\n")
    for label in folder.glob("photo*.txt"):
        lines = label.read_text().splitlines()
        label.write_text("\n".join({"0": "0", "1": "3", "2": "2"}[x[0]] + x[1:] for x in lines))
    coco = load(convert_yolo(folder, tmp_path / "out")["train"])
    names = {class_id: category["name"] for class_id, category in coco.cats.items()}
    assert names == {0: "cat", 2: "traffic light", 3: "dog"}


def test_absolute_and_relative_paths_in_one_list(tmp_path, monkeypatch):
    path = write_ultralytics(tmp_path / "in")
    text = path.read_text().replace(f"path: {tmp_path}/in", "path: .")
    path.write_text(text.replace("train: images/train", f"train: ['{tmp_path}/in/images/train']"))
    monkeypatch.chdir(tmp_path / "in")
    relative = Path("data.yaml")
    relative.write_text(relative.read_text().replace("train'", "train', images/val"))
    assert len(load(convert_yolo(relative, tmp_path / "out")["train"]).imgs) == 2 * len(NAMES)


def write_photo(folder, orientation):
    """Write a photo with this EXIF orientation, 40x30 as it is stored, and one object."""
    exif = Image.Exif()
    exif[274] = orientation
    folder.mkdir()
    Image.linear_gradient("L").rotate(45).resize((40, 30)).save(folder / "a.jpg", exif=exif)
    (folder / "a.txt").write_text("0 0.5 0.5 1 0.5\n")
    (folder / "classes.txt").write_text("cat\n")
    return folder


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_a_photo_whose_orientation_keeps_its_size(tmp_path, orientation):
    """The dataset loads it upright, too."""
    splits = convert_yolo(write_photo(tmp_path / "in", orientation), tmp_path)
    dataset = CocoDetection(*splits["train"], lambda *item: item[:2], False, None)
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "in" / "a.jpg")).convert("RGB")
    np.testing.assert_array_equal(dataset[0][0], upright)


def test_boxes_of_a_rotated_photo_refer_to_the_upright_image(tmp_path):
    convert_yolo(write_photo(tmp_path / "in", 6), tmp_path)
    data = json.loads((tmp_path / "train.json").read_text())
    assert (data["images"][0]["width"], data["images"][0]["height"]) == (30, 40)
    assert data["annotations"][0]["bbox"] == [0, 10, 30, 20]


@pytest.mark.parametrize(
    "line, message",
    [
        ("0 0.5 0.5 0.1", "has 3 numbers after the class"),
        ("0 0.1 0.1 0.2 0.2 0.3", "has 5 numbers after the class"),
        ("9 0.5 0.5 0.1 0.1", "class 9 is not in the list of names"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5 is not in the list of names"),
        ("cat 0.5 0.5 0.1 0.1", "has something else than numbers"),
        ("0 1.5 0.5 0.1 0.1", "has numbers outside 0..1"),
        ("0 nan 0.5 0.1 0.1", "has numbers outside 0..1"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(tmp_path, line, message):
    folder = write_labelimg(tmp_path / "in")
    label = sorted(folder.glob("photo*.txt"))[0]
    count = len(label.read_text().splitlines())
    label.write_text(label.read_text() + line + "\n")
    with pytest.raises(InputError, match=f"{label.name}, line {count + 1}: {message}"):
        convert_yolo(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_many_bad_lines_are_one_message(tmp_path):
    folder = write_labelimg(tmp_path / "in")
    for label in folder.glob("photo*.txt"):
        label.write_text("0 2 2 2 2\n" * 3)
    with pytest.raises(InputError, match="line 1: .* line 2: .*; and [0-9]+ more$"):
        convert_yolo(folder, tmp_path / "out")
