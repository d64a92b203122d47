"""Panoptic data and figures: items, checks, the ground truth against itself, and the whole program
on it.
"""

import json

import numpy as np
import pytest
import tiny
from panoptic_files import make_panoptic, panoptic_args
from PIL import Image

from datasets import build_dataset
from datasets.coco_panoptic import masks_to_boxes
from datasets.summary import print_summary
from main import main
from util.errors import InputError


@pytest.fixture
def root(tmp_path):
    return make_panoptic(tmp_path / "panoptic")


def test_images_and_annotations_are_paired_by_id(root):
    dataset = build_dataset("val", panoptic_args(root))
    for index, (width, height) in enumerate(tiny.SIZES):
        target = dataset.target(index, Image.new("RGB", (width, height)))
        assert target["image_id"] == index + 1
        assert target["labels"].tolist() == [3, 199] and target["iscrowd"].tolist() == [0, 0]
        half = width // 2
        np.testing.assert_array_equal(
            target["boxes"], [[0, 0, half - 1, height - 1], [half, 0, width - 1, height - 1]]
        )
        assert target["masks"][0, :, :half].all() and not target["masks"][0, :, half:].any()
        assert target["orig_size"].tolist() == [height, width]


def test_items_are_transformed_with_their_masks(root):
    image, target = build_dataset("val", panoptic_args(root))[0]
    assert target["masks"].shape == (2, *image.shape[1:]) and target["masks"].dtype == bool
    np.testing.assert_allclose(target["boxes"][:, 0], [0.25, 0.75], atol=0.01)
    args = panoptic_args(root)
    args.masks = False
    assert "masks" not in build_dataset("train", args)[0][1]


def test_area_and_iscrowd_may_be_missing(root, capsys):
    def forget(data):
        for key in ("area", "iscrowd"):
            first(data)["segments_info"][0].pop(key)

    edit(forget)(root)
    dataset = build_dataset("val", panoptic_args(root))
    target = dataset.target(0, Image.new("RGB", tiny.SIZES[0]))
    assert target["area"].tolist() == [200 * 40, 200 * 40] and target["iscrowd"].tolist() == [0, 0]
    print_summary("validation data", dataset, 100)
    printed = capsys.readouterr().out
    assert "8 boxes of 2 classes" in printed and "below 16" not in printed


def test_things_are_those_of_the_data(root, monkeypatch):
    """In the user's own data, stuff may have the id of one of COCO's things."""
    seen = {}

    def evaluate(model, criterion, postprocessors, *_, **__):
        seen.update(postprocessors)
        raise InputError("seen")

    monkeypatch.setattr("engine.evaluate", evaluate)
    path = root / "annotations" / "panoptic_val2017.json"
    data = json.loads(path.read_text())
    data["categories"][1]["id"] = 7
    for annotation in data["annotations"]:
        for segment in annotation["segments_info"]:
            if segment["category_id"] == 199:
                segment["category_id"] = 7
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match="seen"):
        main(panoptic_args(root, "--eval"))
    assert seen["panoptic"].is_thing_map == {3: True, 7: False}


def test_the_summary_counts_crowds_which_are_trained_on(root, capsys):
    edit(lambda data: first(data)["segments_info"][0].update(iscrowd=1))(root)
    print_summary("validation data", build_dataset("val", panoptic_args(root)), 1)
    printed = capsys.readouterr().out
    assert "8 boxes of 2 classes" in printed and "4 images have more boxes than" in printed


def test_boxes_of_masks():
    masks = np.zeros((3, 5, 7), bool)
    masks[0, 2, 3] = masks[1, 0, 0] = masks[1, 4, 6] = True
    masks[2] = True
    assert masks_to_boxes(masks).tolist() == [[3, 2, 3, 2], [0, 0, 6, 4], [0, 0, 6, 4]]
    assert masks_to_boxes(masks[:0]).shape == (0, 4)


def edit(change):
    def edit(root):
        path = root / "annotations" / "panoptic_val2017.json"
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return edit


def edit_instances(root, change):
    path = root / "annotations" / "instances_val2017.json"
    data = json.loads(path.read_text())
    change(data)
    kept = {image["id"] for image in data["images"]}
    data["annotations"] = [ann for ann in data["annotations"] if ann["image_id"] in kept]
    path.write_text(json.dumps(data))


def first(data):
    return next(a for a in data["annotations"] if a["image_id"] == 1)


def resize_png(root):
    path = root / "panoptic_val2017" / "000000000000.png"
    Image.open(path).resize((30, 30)).save(path)


BAD = {  # name -> (what is done to the folder, what the message says)
    "no folder": (
        lambda root: (root / "panoptic_val2017").rename(root / "x"),
        r"panoptic_val2017: no such folder",
    ),
    "no JSON": (
        lambda root: (root / "annotations" / "panoptic_val2017.json").unlink(),
        r"panoptic_val2017\.json: no such file",
    ),
    "no instances": (
        lambda root: (root / "annotations" / "instances_val2017.json").unlink(),
        r"instances_val2017\.json: no such file",
    ),
    "PNG missing": (
        lambda root: (root / "panoptic_val2017" / "000000000000.png").unlink(),
        r"image 1: .*000000000000\.png is missing",
    ),
    "image without annotation": (
        edit(lambda data: data["annotations"].remove(first(data))),
        "image 1 has no annotation",
    ),
    "two annotations": (
        edit(lambda data: data["annotations"].append(first(data))),
        "image 1: .*two annotations",
    ),
    "no segments_info": (
        edit(lambda data: first(data).pop("segments_info")),
        "image 1: has no segments_info",
    ),
    "category not listed": (
        edit(lambda data: first(data)["segments_info"][0].update(category_id=4)),
        "segment 70001: category 4 is not listed",
    ),
    "category too high": (
        edit(lambda data: data["categories"].append({"id": 250})),
        "category id 250 is not in 0..249",
    ),
    "category negative": (
        edit(lambda data: data["categories"].append({"id": -1})),
        "category id -1 is not in 0..249; .*--num_classes",
    ),
    "image not in the instances": (
        lambda root: edit_instances(root, lambda data: data["images"].pop(0)),
        "annotation of image 1: the file with the instances has no such image",
    ),
    "neither a thing nor stuff": (
        edit(lambda data: data["categories"][1].pop("isthing")),
        "category 199: isthing is neither 0 nor 1",
    ),
    "no stuff": (
        edit(lambda data: data["categories"][1].update(isthing=1)),
        "has no segment of stuff, and panoptic quality needs things and stuff",
    ),
    "things that are crowds only": (
        edit(lambda data: [a["segments_info"][0].update(iscrowd=1) for a in data["annotations"]]),
        "has no segment of things",
    ),
    "PNG of another size": (
        resize_png,
        r"000000000000\.png: is of 30 x 30 pixels and its image of 400 x 40",
    ),
    "segment absent in the PNG": (
        edit(lambda data: first(data)["segments_info"][0].update(id=5)),
        r"000000000000\.png: holds no pixel of segment 5",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_named(name, root):
    damage, message = BAD[name]
    damage(root)
    with pytest.raises(InputError, match=message):
        build_dataset("val", panoptic_args(root))[0]


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            ["--frozen_weights", "box.pkl"],
            "--frozen_weights trains the mask head only: give --masks",
        ),
        (["--masks"], "--masks needs multiples of 128 and of 8 as --hidden_dim"),
        (["--dataset_file", "coco_panoptic"], "--coco_panoptic_path is missing"),
    ],
)
def test_flags_that_do_not_go_together_are_named(flags, message, root):
    with pytest.raises(InputError, match=message):
        main(tiny.arguments("--coco_path", root, *flags))


def test_training_and_resuming_with_panoptic_figures(root, tmp_path, capsys):
    pytest.importorskip("panopticapi")
    flags = ("--output_dir", tmp_path / "out", "--num_workers", 0, "--seed", 47)
    main(panoptic_args(root, *flags, "--epochs", 1))
    main(
        panoptic_args(root, *flags, "--epochs", 2, "--resume", tmp_path / "out" / "checkpoint.pkl")
    )
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.txt").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    for line in lines:
        assert {
            "train_loss_mask",
            "train_loss_dice",
            "test_coco_eval_bbox",
            "test_coco_eval_masks",
        } <= set(line)
        assert (
            set(line["test_PQ_all"])
            == {"pq", "sq", "rq", "n"}
            == set(line["test_PQ_th"])
            == set(line["test_PQ_st"])
        )
    assert "PQ     SQ     RQ" in capsys.readouterr().out
    segments = json.loads((tmp_path / "out" / "detections_segm.json").read_text())
    assert len(segments) == len(tiny.SIZES) * 10 and set(segments[0]["segmentation"]) == {
        "size",
        "counts",
    }
    pngs = {path.name for path in (tmp_path / "out" / "panoptic_eval").glob("*.png")}
    assert pngs == {f"{i:012}.png" for i in range(1, 5)}


def test_masks_on_top_of_a_trained_box_model(root, tmp_path):
    pytest.importorskip("panopticapi")
    args = panoptic_args(
        root, "--epochs 1 --num_workers 0 --seed 47", "--output_dir", tmp_path / "box"
    )
    args.masks = False
    main(args)
    main(
        panoptic_args(
            root,
            "--epochs 1 --num_workers 0 --seed 47",
            "--output_dir",
            tmp_path / "masks",
            "--frozen_weights",
            tmp_path / "box" / "checkpoint.pkl",
        )
    )
    from models.weights.checkpoint import load_checkpoint

    box, masks = (
        load_checkpoint(tmp_path / name / "checkpoint.pkl")["model"] for name in ("box", "masks")
    )
    for name, array in box.items():
        np.testing.assert_array_equal(masks[f"detr.{name}"], array, err_msg=name)
    assert len(masks) > len(box)
