"""`python -m datasets.check`: all faults of a dataset at once."""

import subprocess
import sys

import pytest
from conftest import REPO
from panoptic_files import make_panoptic
from PIL import Image
from plain_data import BOXES, SIZE, make


def check(*flags):
    command = [sys.executable, "-m", "datasets.check", *map(str, flags)]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True)


def flags_of(name, folder):
    return [f"--{name}_images", folder / "images", f"--{name}_ann", folder / "ann.json"]


def test_all_faults_are_named_at_once(tmp_path):
    def change(data):
        data["images"][0].update(width=2 * SIZE)
        data["images"][1]["file_name"] = "gone.png"
        for annotation in data["annotations"][4:]:
            annotation.update(area=-1, iscrowd=0)

    make(tmp_path / "train", BOXES, change)
    make(tmp_path / "val", BOXES / SIZE)
    (tmp_path / "val" / "images" / "3.png").write_bytes(b"no image")
    Image.new("F", (SIZE, SIZE)).save(tmp_path / "val" / "images" / "5.tif")
    (tmp_path / "val" / "images" / "5.tif").rename(tmp_path / "val" / "images" / "5.png")
    result = check(*flags_of("train", tmp_path / "train"), *flags_of("val", tmp_path / "val"))
    assert result.returncode == 1, result.stderr
    assert "training data: 7 images, 3 boxes of 1 classes" in result.stdout
    assert "training would stop; 6 faults:" in result.stdout
    assert "training would stop; 3 faults:" in result.stdout
    for part in (
        "ann.json: 8 of 8 boxes lie within 1.5 pixels",
        "train/images/gone.png: no such image",
        "annotation 5 of image 4: area -1 is not a number",
        "annotation 7 of image 6: area -1 is not a number",
        "… and 1 more\n",
        "train/images/0.png: image is 96x96, but ",
        "val/images/3.png: cannot be read as an image",
        "val/images/5.png: cannot be read as an image (its pixels are floats",
    ):
        assert result.stdout.count(part) == 1, (part, result.stdout)
    assert "annotation 8" not in result.stdout


def test_data_without_faults(tmp_path):
    make(tmp_path, BOXES)
    result = check(*flags_of("train", tmp_path), *flags_of("val", tmp_path))
    assert result.returncode == 0 and "no faults found" in result.stdout
    assert "warning: 8 images are training and validation data, such as " in result.stdout


def test_a_truncated_file_is_found_by_its_pixels(tmp_path):
    make(tmp_path, BOXES)
    path = tmp_path / "images" / "3.png"
    path.write_bytes(path.read_bytes()[:-30])
    assert check(*flags_of("val", tmp_path)).returncode == 0
    result = check(*flags_of("val", tmp_path), "--pixels")
    assert result.returncode == 1 and f"{path}: cannot be read as an image" in result.stdout


def test_one_image_set_with_one_image(tmp_path):
    make(tmp_path, BOXES[:1])
    result = check(*flags_of("val", tmp_path))
    assert result.returncode == 0 and "warning" not in result.stdout


def test_classes_that_differ(tmp_path):
    def rename(data):
        data["categories"][0]["name"] = "blue"

    make(tmp_path / "train", BOXES)
    make(tmp_path / "val", BOXES, rename)
    result = check(*flags_of("train", tmp_path / "train"), *flags_of("val", tmp_path / "val"))
    assert result.returncode == 1 and "class 1 is 'blue', but 'red' in" in result.stdout


@pytest.mark.parametrize(
    "train, val, message",
    [
        ((1, 1), (1, 1), ""),
        ((1, 1), (2, 1), ""),  # Roboflow lists a class twice, and uses one id
        ((1, 1), (1, 2), "the class 'red' has other ids in each file, [1] in "),
        ((2, 2), (1, 1), "warning: the class 'red' has several ids, [1, 2] in "),
    ],
)
def test_one_class_with_several_ids(tmp_path, train, val, message):
    def change(highest, used):
        def apply(data):
            data["categories"] = [{"id": i, "name": "red"} for i in range(1, highest + 1)]
            for annotation in data["annotations"]:
                annotation["category_id"] = 1 + annotation["id"] % used

        return apply

    def shift(data):
        data["categories"] = [{"id": i, "name": "red"} for i in range(1, 3)]
        for annotation in data["annotations"]:
            annotation["category_id"] = val[1]

    make(tmp_path / "train", BOXES, change(*train))
    make(tmp_path / "val", BOXES, shift)
    result = check(*flags_of("train", tmp_path / "train"), *flags_of("val", tmp_path / "val"))
    assert result.returncode == ("other ids" in message) and message in result.stdout
    assert message or "several ids" not in result.stdout


def test_missing_files_and_flags(tmp_path):
    for flags, message in (
        ([], "give --coco_path, or --train_images, --train_ann, --val_images and --val_ann"),
        (["--val_ann", "a.json"], "give both --val_images and --val_ann"),
        (["--coco_path", tmp_path], f"--coco_path {tmp_path}: has no train2017 and no val2017"),
        (["--dataset_file", "coco_panoptic", "--coco_path", "a"], "give --coco_path and --coco_p"),
    ):
        result = check(*flags)
        assert result.returncode == 2 and message in result.stderr
    (tmp_path / "val2017").mkdir()
    result = check("--coco_path", tmp_path)
    assert result.returncode == 1 and "instances_val2017.json: no such file" in result.stdout


def test_coco(coco):
    result = check("--coco_path", coco, "--masks")
    assert result.returncode == 0, result.stdout


def test_panoptic_data(tmp_path):
    root = make_panoptic(tmp_path)
    path = root / "panoptic_val2017" / "000000000000.png"
    Image.open(path).convert("L").save(path)
    paths = "--coco_path", root, "--coco_panoptic_path", root
    result = check("--dataset_file", "coco_panoptic", "--masks", *paths)
    assert result.returncode == 1 and f"{path}: PNG is grey, but COCO's" in result.stdout
