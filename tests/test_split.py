"""Splitting an annotation file."""

import json
from pathlib import Path

import numpy as np
import pytest

from datasets.convert.split import split_coco
from util.errors import InputError

IMAGES = [{"id": i, "file_name": f"{i}.jpg"} for i in range(10)]


def write(folder, images=IMAGES, annotations=(), categories=()):
    path = folder / "all.json"
    data = {"images": images, "annotations": list(annotations), "categories": list(categories)}
    path.write_text(json.dumps({"info": {"year": 1}, **data}))
    return path


def test_a_split_keeps_the_proportions_of_classes(tmp_path):
    rng = np.random.default_rng(0)
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(1000)]
    annotations = []
    for image in images:
        for class_id in range(1, 6):
            if rng.random() < 0.5**class_id:
                ids = {"image_id": image["id"], "category_id": class_id}
                annotations.append({"id": len(annotations) + 1, "bbox": [0, 0, 1, 1], **ids})
    categories = [{"id": i, "name": str(i)} for i in range(1, 6)]
    source = write(tmp_path, images, annotations, categories)
    train, val = (json.loads(path.read_text()) for _, path in split_coco(source, 0.2, 0).values())
    assert len(val["images"]) == 200 and train["info"] == val["info"] == {"year": 1}
    for part in (train, val):
        ids = {image["id"] for image in part["images"]}
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
        assert (json.loads(split_coco(again, 0.2, seed)["val"][1].read_text()) == val) == (
            seed == 0
        )


@pytest.mark.parametrize(
    "fraction, message",
    [
        (0.0001, "--val 0.0001: leaves one part without images"),
        (-0.1, "--val -0.1: give a fraction between 0 and 1"),
        (1, "--val 1: give a fraction"),
        (float("nan"), "--val nan: give a fraction"),
    ],
)
def test_an_impossible_fraction_is_an_error(tmp_path, fraction, message):
    source = write(tmp_path)
    with pytest.raises(InputError, match=message):
        split_coco(source, fraction, 0)
    assert list(tmp_path.iterdir()) == [source]


def test_a_file_under_several_ids_stays_in_one_part(tmp_path):
    again = [{"id": 10 + i, "file_name": f"./{i}.jpg"} for i in range(10)]
    annotations = [{"image_id": i, "category_id": i} for i in range(20)]
    source = write(tmp_path, IMAGES + again, annotations)
    parts = split_coco(source, 0.5, 0, tmp_path / "out").values()
    train, val = (json.loads(path.read_text())["images"] for _, path in parts)
    files = [{Path(image["file_name"]).name for image in part} for part in (train, val)]
    assert len(train) == len(val) == 10 and not files[0] & files[1]


def test_an_image_without_id_is_named(tmp_path):
    source = write(tmp_path, [*IMAGES, {"file_name": "2.jpg"}])
    with pytest.raises(InputError, match="all.json: image id None is not a 64-bit integer"):
        split_coco(source, 0.2, 0)


def test_an_existing_file_is_not_overwritten(tmp_path):
    source, existing = write(tmp_path), tmp_path / "all_val.json"
    existing.write_text("mine")
    with pytest.raises(InputError, match="all_val.json: exists already; remove it"):
        split_coco(source, 0.2, 0)
    assert existing.read_text() == "mine" and len(list(tmp_path.iterdir())) == 2
