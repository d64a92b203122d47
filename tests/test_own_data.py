"""The user's own data: any layout in COCO's format, its classes and sizes, and the summary."""

import json
from types import SimpleNamespace

import exports
import numpy as np
import pytest
import tiny
from interrupt import FLAGS
from PIL import Image

from arguments import parse_args
from datasets import build_dataset
from datasets.annotations import get_class_names
from datasets.classes import find_num_classes, merge_classes
from datasets.coco import CocoDetection, make_coco_transforms
from datasets.summary import print_summary
from main import main
from models.weights.checkpoint import load_checkpoint
from util.errors import InputError
from util.jittor_file import write_jittor_file

PLAIN = ["--img_scales", "64", "--eval_size", "64", "--max_size", "96"]


def unchanged(image, target, rng):
    return image, target


def export(tool, root, count=6):
    """Write training and validation data as the tool exports them. Return main.py's flags."""
    flags = []
    for seed, image_set in enumerate(("train", "val")):
        ann, images = exports.TOOLS[tool][0](root / image_set, exports.objects(count, seed))
        flags += [f"--{image_set}_images", str(images), f"--{image_set}_ann", str(ann)]
    return flags


@pytest.mark.parametrize("tool", exports.TOOLS)
def test_exports_of_annotation_tools_are_read(tool, tmp_path):
    args = parse_args(export(tool, tmp_path))
    dataset = build_dataset("train", args)
    dataset.transforms = unchanged
    names, expected = exports.TOOLS[tool][1], exports.objects(6, 0)
    assert dataset.classes == names and len(dataset) == 6
    for (_, target), boxes in zip((dataset[i] for i in range(6)), expected):
        class_names = [exports.CLASSES[kind] for kind, _ in boxes]
        assert [names[label] for label in target["labels"]] == class_names
        wanted = np.float32([box for _, box in boxes]).reshape(-1, 4)
        low, high = target["boxes"][:, :2], target["boxes"][:, 2:]
        np.testing.assert_allclose(low, wanted[:, :2], atol=0.25)
        np.testing.assert_allclose(high - low, wanted[:, 2:], atol=0.3)
    classes = merge_classes(dataset, build_dataset("val", args))
    assert classes == names and find_num_classes(dataset) == max(names) + 1


def test_training_stores_the_classes_and_predicts_them(tmp_path, capsys):
    """Ids with gaps; --per_class; evaluating the checkpoint needs none of the model's flags."""
    flags, out = export("labelme2coco", tmp_path), tmp_path / "out"
    small = [word for word in FLAGS if word not in ("--dataset_file", "shapes")]
    small = small[: small.index("--shapes_train")] + small[small.index("--shapes_size") + 2 :]
    train = "--epochs 1 --batch_size 2 --num_workers 0 --output_dir".split()
    main(parse_args([*small, *flags, *PLAIN, *train, str(out)]))
    printed = capsys.readouterr().out
    assert "training data: 6 images, 9 boxes of 3 classes, 1 images without boxes" in printed
    checkpoint = load_checkpoint(out / "checkpoint.pkl")
    assert checkpoint["classes"] == {3: "cat", 7: "dog", 40: "traffic light"}
    assert checkpoint["args"]["num_classes"] == 41
    assert checkpoint["model"]["class_embed.bias"].shape == (42,)
    evaluate = f"--eval --per_class --num_workers 0 --device cpu --resume {out}/checkpoint.pkl"
    main(parse_args([*evaluate.split(), *flags[4:], "--output_dir", str(tmp_path / "eval")]))
    printed = capsys.readouterr().out
    detections = [
        json.loads((folder / "detections_bbox.json").read_text())
        for folder in (out, tmp_path / "eval")
    ]
    assert detections[0] == detections[1], "sizes and model are those of the checkpoint"
    rows = [line.split() for line in printed.split("AP50   AP75")[1].strip().splitlines()]
    assert {row[0] for row in rows} == {"cat", "dog", "traffic"} and len(rows) == 3


def test_classes_other_than_the_checkpoints_are_refused(tmp_path):
    flags = export("cvat", tmp_path)
    model = {"class_embed.bias": np.zeros(5, np.float32)}
    content = {"model": model, "args": {}, "classes": {1: "dog", 2: "cat"}}
    write_jittor_file(content, tmp_path / "w.pkl")
    message = r"class 1 is 'cat', but 'dog' in .*w\.pkl .and 1 more differ.; if it .* --finetune"
    with pytest.raises(InputError, match=message):
        evaluate = ["--eval", "--resume", str(tmp_path / "w.pkl"), "--device", "cpu"]
        main(parse_args([*evaluate, *flags[4:]]))


def test_different_class_names_in_train_and_val_are_refused(tmp_path):
    flags = export("cvat", tmp_path)
    path = tmp_path / "val" / "annotations" / "instances_default.json"
    path.write_text(path.read_text().replace('"dog"', '"wolf"'))
    message = "instances_default.json: class 2 is 'wolf', but 'dog' in .*train.*same name .*else an"
    with pytest.raises(InputError, match=message):
        main(parse_args([*flags, "--backbone_weights", "none", "--device", "cpu"]))


@pytest.mark.parametrize("number", [10_000, -3])
def test_category_ids_out_of_range_are_refused(number):
    message = f"ann.json: the highest category id is {number}, .*renumber the ids"
    with pytest.raises(InputError, match=message):
        find_num_classes(SimpleNamespace(classes={number: "cat"}, ann_file="ann.json"))


def test_the_evaluated_file_is_named_in_errors(tmp_path):
    flags = export("cvat", tmp_path)
    path = tmp_path / "val" / "annotations" / "instances_default.json"
    data = json.loads(path.read_text())
    data["categories"].append({"id": 10_000, "name": "far away"})
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=f"^{path}: the highest category id is 10000"):
        main(parse_args(["--eval", *flags[4:], "--backbone_weights", "none", "--device", "cpu"]))


def test_class_names_are_printable_strings():
    escape, none, number, chinese = {"name": "a\x1b[2J"}, {}, {"name": 7}, {"name": "红绿灯"}
    categories = [{"id": i, **name} for i, name in enumerate([escape, none, number, chinese], 1)]
    names = get_class_names(categories)
    assert names == {1: "a\\x1b[2J", 2: "class 2", 3: "7", 4: "红绿灯"}


def test_summary(tmp_path, capsys):
    ann, images = exports.cvat(tmp_path, exports.objects(6))
    data = json.loads(ann.read_text())
    data["annotations"][-1]["iscrowd"] = 1
    for annotation in data["annotations"]:
        annotation["category_id"] = 1 + (annotation["id"] > 2)
    data["annotations"][0]["bbox"] = [0, 0, 20, 20]
    ann.write_text(json.dumps(data))
    dataset = CocoDetection(images, ann, unchanged, False, None)
    assert "1 of 9 annotations are crowds (iscrowd 1)" in capsys.readouterr().out
    print_summary("training data", dataset, 2)
    lines = capsys.readouterr().out.splitlines()
    # The images have 1, 2, 3, 0, 1 and 2 boxes; the last one is a crowd's.
    assert lines[0] == "training data: 6 images, 8 boxes of 3 classes, 1 images without boxes"
    assert lines[1] == "  boxes per class: dog 6, cat 2"
    assert lines[2] == "  classes without boxes: traffic light"
    per_image = "median 1, 95th percentile 3, maximum 3; --num_queries 2"
    assert lines[3] == f"  boxes per image: {per_image}"
    counts = {low: 0 for low in ("below 16", "16-32")}
    assert [line.split("#")[0].strip() for line in lines[5:-1]] == list(counts)
    assert sum(int(line.split()[-1][:-1]) for line in lines[5:-1]) in (99, 100, 101)
    assert lines[-1] == (
        "  warning: 1 images have more boxes than --num_queries 2, the most that can be detected "
        "in an image: give a larger one"
    )


def test_summary_of_many_classes_is_a_table(tmp_path, capsys):
    ann, images = exports.cvat(tmp_path, exports.objects(6))
    data = json.loads(ann.read_text())
    template = data["annotations"][0]
    data["categories"] = [{"id": number, "name": f"class {number}"} for number in range(1, 51)]
    data["annotations"] = [
        {
            **template,
            "id": 100 * category + number,
            "category_id": category,
            "bbox": [number, 0, 30, 30],
        }
        for category in range(1, 36)
        for number in range(category)
    ]
    ann.write_text(json.dumps(data))
    print_summary("training data", CocoDetection(images, ann, unchanged, False, None), 1000)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "  boxes of the 10 most frequent classes:"
    assert [line.split() for line in lines[2:12]] == [
        ["class", str(number), str(number)] for number in range(35, 25, -1)
    ]
    assert lines[12] == "  270 boxes of 15 classes between"
    assert lines[13] == "  boxes of the 10 least frequent classes:"
    assert [line.split()[1:] for line in lines[14:24]] == [
        [str(number), str(number)] for number in range(10, 0, -1)
    ]
    names = ", ".join(f"class {number}" for number in range(36, 46))
    assert lines[24] == f"  classes without boxes: {names} and 5 more"


def test_summary_without_boxes(tmp_path, capsys):
    ann, images = exports.cvat(tmp_path, [[], []])
    print_summary("validation data", CocoDetection(images, ann, unchanged, False, None), 100)
    assert "warning: there are no boxes" in capsys.readouterr().out


@pytest.mark.parametrize("upright_listed", [True, False])
def test_orientation_follows_the_listed_size(tmp_path, upright_listed):
    """Tools show a phone's photo upright and list that size; COCO lists the size as stored."""
    stored = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    stored.save(tmp_path / "photo.png", exif=exif)
    size = {"width": 60, "height": 80} if upright_listed else {"width": 80, "height": 60}
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 50, 70], "area": 9}
    data = {
        "images": [{"id": 1, "file_name": "photo.png", **size}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{**annotation, "iscrowd": 0}],
    }
    ann = exports.write(tmp_path / "ann.json", data)
    image, target = CocoDetection(tmp_path, ann, unchanged, False, None)[0]
    np.testing.assert_array_equal(
        image, np.rot90(np.asarray(stored), -1) if upright_listed else stored
    )
    assert target["boxes"].tolist() == [[1, 2, 51, 72 if upright_listed else 60]]


def test_sizes_of_images(tmp_path):
    """Crops scale with the largest scale; oracle/test_data.py compares the defaults."""
    ann, images = exports.cvat(tmp_path, exports.objects(3))

    def build(*transforms):
        return CocoDetection(images, ann, make_coco_transforms(*transforms), False, None)

    dataset = build("train", [100, 200], 64, 230)
    seen = set()
    for dataset.epoch in range(30):
        seen.update(min(dataset[i][0].shape[1:]) for i in range(3))
        assert max(max(dataset[i][0].shape[1:]) for i in range(3)) <= 230
    assert {100, 200 * 230 // 266} <= seen | {172} and max(seen) <= 200
    assert build("val", [100], 64, 80)[0][0].shape == (3, 60, 80)
    assert build("val", [100], 64, 1000)[0][0].shape == (3, 64, 85)


def test_num_classes_overrides_and_is_checked(tmp_path):
    flags = export("cvat", tmp_path)
    with pytest.raises(InputError, match=r"category_id 3 is not in 0\.\.2; .*--num_classes"):
        build_dataset("train", parse_args([*flags, "--num_classes", "3"]))
    assert len(build_dataset("train", parse_args([*flags, "--num_classes", "30"]))) == 6


def test_tiny_flags_have_coco_sizes():
    assert tiny.arguments().eval_size == 800
