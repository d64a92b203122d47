"""Panoptic data and figures: items, checks, the ground truth against itself, and the whole program
on it.
"""

import io
import json
from collections import defaultdict

import numpy as np
import pytest
import tiny
from PIL import Image

from datasets import build_dataset
from datasets.coco_panoptic import masks_to_boxes, rgb2id
from main import main
from models.segmentation import id2rgb
from util.errors import InputError

CATEGORIES = [{"id": 3, "name": "car", "isthing": 1}, {"id": 199, "name": "wall", "isthing": 0}]


def make_panoptic(root, images=2):
    """The tiny COCO folder with panoptic annotations, in an order of their own: left half car,
    right half wall.
    """
    tiny.make_coco(root)
    for image_set in ("train", "val"):
        instances = json.loads(
            (root / "annotations" / f"instances_{image_set}2017.json").read_text()
        )
        (root / f"panoptic_{image_set}2017").mkdir()
        annotations = []
        for image in instances["images"]:
            ids = np.full((image["height"], image["width"]), 70000 + image["id"])
            ids[:, image["width"] // 2 :] = 300
            name = image["file_name"].replace(".jpg", ".png")
            Image.fromarray(id2rgb(ids)).save(root / f"panoptic_{image_set}2017" / name)
            area = image["height"] * (image["width"] // 2)
            annotations.insert(
                0,
                {
                    "image_id": image["id"],
                    "file_name": name,
                    "segments_info": [
                        {
                            "id": 70000 + image["id"],
                            "category_id": 3,
                            "iscrowd": 0,
                            "area": area,
                            "bbox": [0, 0, 1, 1],
                        },
                        {
                            "id": 300,
                            "category_id": 199,
                            "iscrowd": 0,
                            "area": ids.size - area,
                            "bbox": [0, 0, 1, 1],
                        },
                    ],
                },
            )
        content = {
            "images": instances["images"],
            "annotations": annotations,
            "categories": CATEGORIES,
        }
        (root / "annotations" / f"panoptic_{image_set}2017.json").write_text(json.dumps(content))
    return root


def arguments(root, *flags):
    return tiny.arguments(
        "--dataset_file",
        "coco_panoptic",
        "--coco_path",
        root,
        "--coco_panoptic_path",
        root,
        "--masks",
        "--hidden_dim",
        128,
        "--nheads",
        8,
        "--backbone",
        "tiny",
        "--backbone_norm",
        "group",
        *flags,
    )


@pytest.fixture
def root(tmp_path):
    return make_panoptic(tmp_path / "panoptic")


def test_images_and_annotations_are_paired_by_id(root):
    dataset = build_dataset("val", arguments(root))
    for index, (width, height) in enumerate(tiny.SIZES):
        target = dataset.target(dataset.ids[index], Image.new("RGB", (width, height)))
        assert target["image_id"] == index + 1
        assert target["labels"].tolist() == [3, 199] and target["iscrowd"].tolist() == [0, 0]
        half = width // 2
        np.testing.assert_array_equal(
            target["boxes"], [[0, 0, half - 1, height - 1], [half, 0, width - 1, height - 1]]
        )
        assert target["masks"][0, :, :half].all() and not target["masks"][0, :, half:].any()
        assert target["orig_size"].tolist() == [height, width]


def test_items_are_transformed_with_their_masks(root):
    image, target = build_dataset("val", arguments(root))[0]
    assert target["masks"].shape == (2, *image.shape[1:]) and target["masks"].dtype == bool
    np.testing.assert_allclose(target["boxes"][:, 0], [0.25, 0.75], atol=0.01)
    args = arguments(root)
    args.masks = False
    assert "masks" not in build_dataset("train", args)[0][1]


def test_area_and_iscrowd_may_be_missing(root):
    def forget(data):
        for key in ("area", "iscrowd"):
            first(data)["segments_info"][0].pop(key)

    edit(forget)(root)
    target = build_dataset("val", arguments(root)).target(1, Image.new("RGB", tiny.SIZES[0]))
    assert target["area"].tolist() == [200 * 40, 200 * 40] and target["iscrowd"].tolist() == [0, 0]


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
        "segment 70001 is of category 4",
    ),
    "category too high": (
        edit(lambda data: data["categories"].append({"id": 250})),
        "category id 250 is not in 0..249",
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
        build_dataset("val", arguments(root))[0]


def test_panopticapi_missing(root, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "panopticapi.evaluation", None)
    with pytest.raises(InputError, match="not installed: pip install panopticapi-lite"):
        main(arguments(root))


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            ["--frozen_weights", "box.pkl"],
            "--frozen_weights trains the mask head only: give --masks",
        ),
        (["--masks"], "--masks normalises .*--hidden_dim"),
        (["--dataset_file", "coco_panoptic"], "--coco_panoptic_path is missing"),
    ],
)
def test_flags_that_do_not_go_together_are_named(flags, message, root):
    with pytest.raises(InputError, match=message):
        main(tiny.arguments("--coco_path", root, *flags))


def evaluator_of(root, folder):
    pytest.importorskip("panopticapi")
    from datasets.panoptic_eval import PanopticEvaluator

    return PanopticEvaluator(
        root / "annotations" / "panoptic_val2017.json", root / "panoptic_val2017", folder
    )


def truth(root):
    """The ground truth in the form of predictions."""
    for annotation in json.loads((root / "annotations" / "panoptic_val2017.json").read_text())[
        "annotations"
    ]:
        png = (root / "panoptic_val2017" / annotation["file_name"]).read_bytes()
        yield {
            **{key: annotation[key] for key in ("image_id", "file_name", "segments_info")},
            "png_string": png,
        }


def test_ground_truth_against_itself_is_perfect(root, tmp_path):
    evaluator = evaluator_of(root, tmp_path / "out")
    evaluator.update(list(truth(root)))
    figures = evaluator.summarize()
    for part in ("All", "Things", "Stuff"):
        assert figures[part]["pq"] == figures[part]["sq"] == figures[part]["rq"] == 1


@pytest.mark.coco
def test_real_ground_truth_against_itself_is_perfect(coco_path, tmp_path):
    root = coco_path.parent / "coco_panoptic_sample"
    evaluator = evaluator_of(root, tmp_path / "out")
    evaluator.update(list(truth(root)))
    figures = evaluator.summarize()
    assert {part: figures[part]["pq"] for part in ("All", "Things", "Stuff")} == {
        "All": 1,
        "Things": 1,
        "Stuff": 1,
    }


def test_a_segment_given_to_another_class_and_a_shifted_one_cost_what_they_should(root, tmp_path):
    evaluator = evaluator_of(root, tmp_path / "out")
    predictions = list(truth(root))
    predictions[0]["segments_info"][0]["category_id"] = 199  # the car of one image is called wall
    evaluator.update(predictions)
    figures = evaluator.summarize()
    count = len(predictions)
    assert figures["Things"]["pq"] == pytest.approx(
        (count - 1) / (count - 1 + 0.5)
    )  # one false negative
    assert figures["Stuff"]["pq"] == pytest.approx(count / (count + 0.5))  # one false positive
    assert figures["All"]["sq"] == 1


def spoil(prediction):
    """A prediction with its first two segments merged, the third split, the fourth missing and all
    of them shifted.
    """
    ids = rgb2id(np.asarray(Image.open(io.BytesIO(prediction["png_string"]))))
    segments = [dict(segment) for segment in prediction["segments_info"]]
    ids[ids == segments[1]["id"]] = segments[0]["id"]
    columns = np.arange(ids.shape[1])
    middle = np.median(np.argwhere(ids == segments[2]["id"])[:, 1])
    ids[(ids == segments[2]["id"]) & (columns < middle)] = 1
    ids[ids == segments[3]["id"]] = 0
    ids = np.roll(ids, 7, axis=1)
    segments = [segments[0], dict(segments[2], id=1), segments[2], *segments[4:]]
    with io.BytesIO() as file:
        Image.fromarray(id2rgb(ids)).save(file, format="PNG")
        return {**prediction, "segments_info": segments, "png_string": file.getvalue()}


def quality_by_hand(pairs, isthing):
    """PQ, averaged over the classes, of pairs of ground truth and prediction: section 4 of the
    paper (arXiv 1801.00868).
    """
    overlaps, errors = defaultdict(list), defaultdict(float)
    for truth, prediction in pairs:
        true, found = (
            rgb2id(np.asarray(Image.open(io.BytesIO(p["png_string"])))) for p in (truth, prediction)
        )
        unused = {segment["id"]: segment["category_id"] for segment in prediction["segments_info"]}
        ignored = defaultdict(lambda: true == 0)  # no segment's pixels, and by class a crowd's
        for segment in truth["segments_info"]:
            mask, category = true == segment["id"], segment["category_id"]
            if segment["iscrowd"]:
                ignored[category] = ignored[category] | mask
                continue
            scores = {
                i: (mask & (found == i)).sum() / (mask | (found == i) & (true > 0)).sum()
                for i, c in unused.items()
                if c == category
            }
            best = max(scores, key=scores.get, default=None)
            if best is not None and scores[best] > 0.5:
                overlaps[category].append(scores[best])
                del unused[best]
            else:
                errors[category] += 0.5
        for i, category in unused.items():
            if ignored[category][found == i].mean() <= 0.5:
                errors[category] += 0.5
    present = {c for c in {*overlaps, *errors} if isthing[c]}
    return sum(sum(overlaps[c]) / (len(overlaps[c]) + errors[c]) for c in present) / len(present)


@pytest.mark.coco
def test_quality_of_known_errors_is_what_a_calculation_by_hand_gives(coco_path, tmp_path):
    root = coco_path.parent / "coco_panoptic_sample"
    evaluator = evaluator_of(root, tmp_path / "out")
    pairs = [(segments, spoil(segments)) for segments in truth(root)]
    evaluator.update([prediction for _, prediction in pairs])
    figures = evaluator.summarize()
    categories = json.loads((root / "annotations" / "panoptic_val2017.json").read_text())[
        "categories"
    ]
    things = {c["id"]: c["isthing"] for c in categories}
    for part, chosen in (
        ("All", dict.fromkeys(things, 1)),
        ("Things", things),
        ("Stuff", {c: 1 - t for c, t in things.items()}),
    ):
        assert figures[part]["pq"] == pytest.approx(quality_by_hand(pairs, chosen), abs=1e-12)
        assert 0.1 < figures[part]["pq"] < 0.95, "all right or all wrong would test nothing"


def test_training_and_resuming_with_panoptic_figures(root, tmp_path, capsys):
    pytest.importorskip("panopticapi")
    flags = ("--output_dir", tmp_path / "out", "--num_workers", 0, "--seed", 47)
    main(arguments(root, *flags, "--epochs", 1))
    main(arguments(root, *flags, "--epochs", 2, "--resume", tmp_path / "out" / "checkpoint.pkl"))
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
    args = arguments(
        root, "--epochs", 1, "--num_workers", 0, "--seed", 47, "--output_dir", tmp_path / "box"
    )
    args.masks = False
    main(args)
    main(
        arguments(
            root,
            "--epochs",
            1,
            "--num_workers",
            0,
            "--seed",
            47,
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
