"""One annotation file as two."""

import json

import numpy as np
import pytest

from datasets.convert.split import split_coco
from util.errors import InputError


def test_a_split_keeps_every_class_in_proportion(tmp_path):
    rng = np.random.default_rng(0)
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(1000)]
    annotations = []
    for image in images:
        for class_id in range(1, 6):
            if rng.random() < 0.5**class_id:
                annotations.append({"id": len(annotations) + 1, "image_id": image["id"],
                                    "category_id": class_id, "bbox": [0, 0, 1, 1]})  # fmt: skip
    source = tmp_path / "all.json"
    data = {
        "info": {"year": 1},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": str(i)} for i in range(1, 6)],
    }
    source.write_text(json.dumps(data))
    train, val = (json.loads(path.read_text()) for path in split_coco(source, 0.2, 0))
    assert len(val["images"]) == 200 and train["info"] == val["info"] == {"year": 1}
    for part, key in ((train, "images"), (val, "images")):
        ids = {image["id"] for image in part[key]}
        assert {ann["image_id"] for ann in part["annotations"]} <= ids
    assert len(train["annotations"]) + len(val["annotations"]) == len(annotations)
    for class_id in range(1, 6):
        counts = [
            len({a["image_id"] for a in part["annotations"] if a["category_id"] == class_id})
            for part in (train, val)
        ]
        assert counts[1] / sum(counts) == pytest.approx(0.2, abs=0.06), class_id
    for seed in (0, 1):
        again = tmp_path / f"again{seed}.json"
        again.write_text(source.read_text())
        assert (json.loads(split_coco(again, 0.2, seed)[1].read_text()) == val) == (seed == 0)


@pytest.mark.parametrize(
    "share, message",
    [
        (0.0001, "--val 0.0001: leaves one part without images"),
        (-0.1, "--val -0.1: is not a share between 0 and 1"),
        (1, "--val 1: is not a share"),
        (float("nan"), "--val nan: is not a share"),
    ],
)
def test_a_share_that_is_none(tmp_path, share, message):
    source = tmp_path / "all.json"
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(10)]
    source.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    with pytest.raises(InputError, match=message):
        split_coco(source, share, 0)
    assert list(tmp_path.iterdir()) == [source]


def test_an_image_without_id_is_named(tmp_path):
    source = tmp_path / "all.json"
    images = [{"id": 1, "file_name": "1.jpg"}, {"file_name": "2.jpg"}]
    source.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    with pytest.raises(InputError, match="all.json: image id None is not a whole number"):
        split_coco(source, 0.2, 0)


def test_a_users_file_is_not_overwritten(tmp_path):
    source, users = tmp_path / "instances.json", tmp_path / "instances_val.json"
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(10)]
    source.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    users.write_text("mine")
    with pytest.raises(InputError, match="instances_val.json: is there already; remove it"):
        split_coco(source, 0.2, 0)
    assert users.read_text() == "mine" and len(list(tmp_path.iterdir())) == 2
