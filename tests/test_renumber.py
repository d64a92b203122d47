"""Renumbering the ids of annotation files."""

import json

import pytest
from yolo_voc import load

from datasets.convert.renumber import renumber_coco
from util.errors import InputError

CAT, DOG = {"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}


def write(path, categories=(CAT, DOG), image_ids=(5, 9), ids=(1, 2), category_ids=(7, 3), refs=()):
    """Write a file with two images and an annotation of each; return its path."""
    refs = refs or image_ids
    data = {
        "info": {"year": 1},
        "images": [{"id": i, "file_name": f"{n}.png"} for n, i in enumerate(image_ids)],
        "annotations": [
            {"id": i, "image_id": image_id, "category_id": category_id, "bbox": [n, 0, 1, 1]}
            for n, (i, image_id, category_id) in enumerate(zip(ids, refs, category_ids))
        ],
        "categories": list(categories),
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"image_ids": ("17", 18), "refs": (17, "18"), "category_ids": ("7", 3)},
        {"image_ids": ("5f0c-a", "017"), "ids": ("x", None)},
        {"image_ids": (10**30, -1), "ids": (4, 4)},
    ],
)
def test_images_and_annotations_get_ids_from_1(tmp_path, fields):
    (path,) = renumber_coco([write(tmp_path / "a.json", **fields)], tmp_path / "out")
    for name in ("0.png", "1.png"):
        (tmp_path / name).touch()
    coco = load((tmp_path, path))
    assert {i: image["file_name"] for i, image in coco.imgs.items()} == {1: "0.png", 2: "1.png"}
    found = [(a["id"], a["image_id"], a["category_id"], a["bbox"][0]) for a in coco.anns.values()]
    assert found == [(1, 1, 7, 0), (2, 2, 3, 1)]
    assert coco.dataset["info"] == {"year": 1}


@pytest.mark.parametrize(
    "train, val, expected",
    [
        ((7, 3), (7, 3), {"cat": 7, "dog": 3}),
        ((0, 9999), (0, 9999), {"cat": 0, "dog": 9999}),
        ((7, 10000), (7, 10000), {"cat": 1, "dog": 2}),
        ((20000, 10000), (20000, 10000), {"cat": 2, "dog": 1}),
        ((1, 2), (2, 1), {"cat": 1, "dog": 2}),
        (("b", "a"), (3, 1), {"cat": 1, "dog": 2}),
    ],
)
def test_category_ids_are_the_same_in_all_files(tmp_path, train, val, expected):
    paths = []
    for part, (cat, dog) in (("train", train), ("val", val)):
        categories = [{"id": cat, "name": "cat"}, {"id": dog, "name": "dog"}]
        path = tmp_path / f"{part}.json"
        paths.append(write(path, categories, category_ids=(cat, dog)))
    for path in renumber_coco(paths, tmp_path / "out"):
        data = json.loads(path.read_text())
        assert {category["name"]: category["id"] for category in data["categories"]} == expected
        ids = [ann["category_id"] for ann in data["annotations"]]
        assert ids == [expected["cat"], expected["dog"]]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"image_ids": (5, "5")}, "a.json: duplicate image id 5"),
        ({"image_ids": (5, None)}, "a.json: image id None is neither an integer nor text"),
        ({"refs": (5, 6)}, "a.json: annotation 2: image_id 6 is not listed"),
        ({"refs": (5, [])}, r"a.json: annotation 2: image_id \[\] is not listed"),
        ({"category_ids": (7, "x")}, "a.json: annotation 2: category_id 'x' is not listed"),
        ({"categories": (CAT, CAT)}, "a.json: duplicate category id 7"),
        ({"categories": (CAT, {**CAT, "id": 3})}, "categories 7 and 3 are both named 'cat'"),
    ],
)
def test_unclear_ids_are_named_and_nothing_is_written(tmp_path, fields, message):
    sources = [write(tmp_path / "b.json"), write(tmp_path / "a.json", **fields)]
    with pytest.raises(InputError, match=message):
        renumber_coco(sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_file_is_overwritten(tmp_path):
    source = write(tmp_path / "a.json")
    with pytest.raises(InputError, match="a.json: exists already; remove it"):
        renumber_coco([source], tmp_path)
    with pytest.raises(InputError, match="two sources would be the same file"):
        renumber_coco([source, write(tmp_path / "b" / "a.json")], tmp_path / "out")
