"""Panoptic data: items, errors in the files, and training on it."""

import json

import numpy as np
import pytest
import tiny
from panoptic_files import make_panoptic, panoptic_args
from peak_memory import measure_peak
from PIL import Image

from datasets import build_dataset
from datasets.coco_panoptic import measure_segments
from datasets.summary import print_summary
from main import main
from models.segmentation import id2rgb
from models.weights.checkpoint import load_checkpoint
from util.errors import InputError


@pytest.fixture
def root(tmp_path):
    return make_panoptic(tmp_path / "panoptic")


def test_images_and_annotations_are_paired_by_id(root):
    dataset = build_dataset("val", panoptic_args(root))
    for index, (width, height) in enumerate(tiny.SIZES):
        target = dataset.load_target(index, Image.new("RGB", (width, height)))
        assert target["image_id"] == index + 1
        assert target["labels"].tolist() == [3, 199] and target["iscrowd"].tolist() == [0, 0]
        half = width // 2
        np.testing.assert_array_equal(
            target["boxes"], [[0, 0, half - 1, height - 1], [half, 0, width - 1, height - 1]]
        )
        masks = np.asarray(target["masks"])
        assert masks[0, :, :half].all() and not masks[0, :, half:].any()
        assert target["orig_size"].tolist() == [height, width]


def test_items_are_transformed_with_their_masks(root):
    image, target = build_dataset("val", panoptic_args(root))[0]
    assert target["masks"].shape == (2, *image.shape[1:]) and target["masks"].dtype == bool
    np.testing.assert_allclose(target["boxes"][:, 0], [0.25, 0.75], atol=0.01)
    args = panoptic_args(root)
    args.masks = False
    assert "masks" not in build_dataset("train", args)[0][1]


def test_area_and_iscrowd_may_be_missing(root, capsys):
    for key in ("area", "iscrowd"):
        edit(root, lambda data: get_first(data)["segments_info"][0].pop(key))
    dataset = build_dataset("val", panoptic_args(root))
    target = dataset.load_target(0, Image.new("RGB", tiny.SIZES[0]))
    assert target["area"].tolist() == [200 * 40, 200 * 40] and target["iscrowd"].tolist() == [0, 0]
    print_summary("validation data", dataset, 100)
    printed = capsys.readouterr().out
    assert "8 boxes of 2 classes" in printed and "below 16" not in printed


def test_things_and_stuff_are_those_of_the_dataset(root, monkeypatch):
    """In the user's own data, stuff may have the id of one of COCO's things."""
    seen = {}

    def evaluate(model, criterion, postprocessors, *_, **__):
        seen.update(postprocessors)
        raise InputError("seen")

    monkeypatch.setattr("engine.evaluate", evaluate)
    path = root / "annotations" / "panoptic_val2017.json"
    path.write_text(
        path.read_text().replace('_id": 199', '_id": 7').replace('"id": 199', '"id": 7')
    )
    with pytest.raises(InputError, match="seen"):
        main(panoptic_args(root, "--eval"))
    assert seen["panoptic"].is_thing_map == {3: True, 7: False}


def test_the_summary_counts_crowds(root, capsys):
    """Unlike in other datasets, training uses them."""
    edit(root, lambda data: get_first(data)["segments_info"][0].update(iscrowd=1))
    print_summary("validation data", build_dataset("val", panoptic_args(root)), 1)
    printed = capsys.readouterr().out
    assert "8 boxes of 2 classes" in printed and "4 images have more boxes than" in printed


def test_areas_and_boxes_of_segments():
    pixels = np.array([[9, 0, 0, 0], [0, 0, 2**24, 0], [0, 0, 0, 9]])
    counts, boxes = measure_segments(pixels, np.array([2**24, 9, 0, 7]))
    assert counts.tolist() == [1, 2, 9, 0]
    assert boxes.tolist() == [[2, 1, 2, 1], [0, 0, 3, 2], [0, 0, 3, 2], [0, 0, 0, 0]]
    assert measure_segments(pixels, np.array([], int))[1].shape == (0, 4)


def test_segments_of_a_large_image_take_the_memory_of_one(root):
    ids = np.arange(1, 101).repeat(20)[:, None].repeat(3000, axis=1)
    Image.fromarray(id2rgb(ids)).save(root / PNG)
    segments = [{"id": number, "category_id": 3} for number in range(1, 101)]
    edit(root, lambda data: get_first(data).update(segments_info=segments))
    dataset, image = build_dataset("val", panoptic_args(root)), Image.new("RGB", (3000, 2000))

    def load_thumbnails():
        target = dataset.load_target(0, image)
        return target, np.asarray(target["masks"][:, ::20, :][:, :, ::20])

    (target, masks), peak = measure_peak(load_thumbnails)
    assert target["boxes"][:, 1].tolist() == list(range(0, 2000, 20))
    assert (masks == np.eye(100, dtype=bool)[:, :, None]).all()
    assert peak < 100, "MB; the PNG takes 18, its ids 24, and all masks 600"


def edit(root, change, name="panoptic"):
    path = root / "annotations" / f"{name}_val2017.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def get_first(data):
    return next(ann for ann in data["annotations"] if ann["image_id"] == 1)


def remove_instances(data):
    """Remove image 1 with its annotations."""
    for key, name in (("images", "id"), ("annotations", "image_id")):
        data[key] = [entry for entry in data[key] if entry[name] != 1]


PNG = "panoptic_val2017/000000000000.png"
DAMAGES = [  # (change of the folder, expected message)
    (
        lambda root: (root / "panoptic_val2017").rename(root / "x"),
        "panoptic_val2017: no such folder",
    ),
    (
        lambda root: (root / "annotations" / "panoptic_val2017.json").unlink(),
        r"panoptic_val2017\.json: no such file",
    ),
    (
        lambda root: (root / "annotations" / "instances_val2017.json").unlink(),
        r"instances_val2017\.json: no such file",
    ),
    (lambda root: (root / PNG).unlink(), f"image 1: .*{PNG} is missing"),
    (
        lambda root: Image.open(root / PNG).resize((30, 30)).save(root / PNG),
        f"{PNG}: PNG is 30x30, but its image is 400x40",
    ),
    (
        lambda root: Image.open(root / PNG).convert("L").save(root / PNG),
        f"{PNG}: PNG is grey, but COCO's panoptic PNGs are RGB, id = R . 256 G",
    ),
    (
        lambda root: edit(root, remove_instances, "instances"),
        "annotation of image 1: is not in the file with the instances",
    ),
]
BAD_CONTENT = [  # (change of the annotation file, expected message)
    (lambda data: data["annotations"].remove(get_first(data)), "image 1: has no annotation"),
    (lambda data: data["annotations"].append(get_first(data)), "image 1: has two annotations"),
    (lambda data: get_first(data).update(image_id=9), "image 9: no image has this id"),
    (lambda data: get_first(data).pop("segments_info"), "image 1: has no segments_info"),
    (
        lambda data: get_first(data)["segments_info"][0].update(category_id=4),
        "segment 70001: category 4 is not listed",
    ),
    *(
        (
            lambda data, id_=id_: get_first(data)["segments_info"][0].update(id=id_),
            f"image 1: segment id {id_} is not in 1..16777215, the ids that colours can stand for",
        )
        for id_ in (0, -1, 2**24)
    ),
    (
        lambda data: data["categories"].append({"id": 250}),
        "category id 250 is not in 0..249; .*--num_classes",
    ),
    (lambda data: data["categories"].append({"id": -1}), "category id -1 is not in 0..249"),
    (lambda data: data["categories"][1].pop("isthing"), "category 199: isthing is neither 0 nor 1"),
    (
        lambda data: data["categories"][1].update(isthing=1),
        "has no segment of stuff, and panoptic quality needs things and stuff",
    ),
    (  # all things are crowds
        lambda data: [a["segments_info"][0].update(iscrowd=1) for a in data["annotations"]],
        "has no segment of things",
    ),
    (
        lambda data: get_first(data)["segments_info"][0].update(id=5),
        f"{PNG}: has no pixel of segment 5",
    ),
]


@pytest.mark.parametrize("damage, message", DAMAGES)
def test_bad_files_are_named(damage, message, root):
    damage(root)
    with pytest.raises(InputError, match=message):
        build_dataset("val", panoptic_args(root))[0]


@pytest.mark.parametrize("change, message", BAD_CONTENT)
def test_bad_annotations_are_named(change, message, root):
    edit(root, change)
    with pytest.raises(InputError, match=message):
        build_dataset("val", panoptic_args(root))[0]


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            ["--frozen_weights", "box.pkl"],
            "--frozen_weights trains the mask head only: give --masks",
        ),
        (["--masks"], "--masks needs a --hidden_dim"),
        (["--dataset_file", "coco_panoptic"], "--coco_panoptic_path is missing"),
    ],
)
def test_flags_that_do_not_go_together_are_named(flags, message, root):
    with pytest.raises(InputError, match=message):
        main(tiny.arguments("--coco_path", root, *flags))


def test_training_and_resuming_with_panoptic_metrics(root, tmp_path, capsys):
    pytest.importorskip("panopticapi")
    out = tmp_path / "out"
    flags = ("--output_dir", out, "--num_workers", 0, "--seed", 47)
    main(panoptic_args(root, *flags, "--epochs", 1))
    main(panoptic_args(root, *flags, "--epochs", 2, "--resume", out / "checkpoint.pkl"))
    lines = [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    losses = {"train_loss_mask", "train_loss_dice"}
    for line in lines:
        assert losses | {"test_coco_eval_bbox", "test_coco_eval_masks"} <= set(line)
        for part in ("all", "th", "st"):
            assert set(line[f"test_PQ_{part}"]) == {"pq", "sq", "rq", "n"}
    assert "PQ     SQ     RQ" in capsys.readouterr().out
    segments = json.loads((out / "detections_segm.json").read_text())
    assert len(segments) == len(tiny.SIZES) * 10
    assert set(segments[0]["segmentation"]) == {"size", "counts"}
    pngs = {path.name for path in (out / "panoptic_eval").glob("*.png")}
    assert pngs == {f"{i:012}.png" for i in range(1, 5)}


def test_masks_on_top_of_a_trained_box_model(root, tmp_path):
    pytest.importorskip("panopticapi")
    flags = "--epochs 1 --num_workers 0 --seed 47 --output_dir"
    args = panoptic_args(root, flags, tmp_path / "box")
    args.masks = False
    main(args)
    frozen = ("--frozen_weights", tmp_path / "box" / "checkpoint.pkl")
    main(panoptic_args(root, flags, tmp_path / "masks", *frozen))
    box, masks = (
        load_checkpoint(tmp_path / name / "checkpoint.pkl")["model"] for name in ("box", "masks")
    )
    for name, array in box.items():
        np.testing.assert_array_equal(masks[f"detr.{name}"], array, err_msg=name)
    assert len(masks) > len(box)
