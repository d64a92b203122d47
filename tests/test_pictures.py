"""Pictures of detections."""

import json

import numpy as np
import pytest
import tiny
from PIL import Image
from pycocotools.coco import COCO

from util.pictures import CELL_SIZE, HEADER_HEIGHT, plot_predictions


def detection(image_id, bbox, score, category_id=1):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """(COCO, image folder) of six black images of 100 x 50 pixels, the first with one object."""
    folder = tmp_path_factory.mktemp("images")
    images = [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 50} for i in range(1, 7)]
    for image in images:
        Image.new("RGB", (100, 50)).save(folder / image["file_name"])
    coco = COCO()
    coco.dataset = {
        "images": images,
        "categories": [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 5, 30, 20], "area": 600}
        ],
    }
    coco.createIndex()
    return coco, folder


def draw(coco, tmp_path, results):
    coco, folder = coco

    def read_image(number):
        return Image.open(folder / coco.imgs[number]["file_name"]).convert("RGB")

    plot_predictions(coco, read_image, results, tmp_path / "predictions.png")
    with Image.open(tmp_path / "predictions.png") as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def cell(picture, number):
    row, column = divmod(number, 4)
    return picture[
        HEADER_HEIGHT + row * CELL_SIZE : HEADER_HEIGHT + (row + 1) * CELL_SIZE,
        column * CELL_SIZE : (column + 1) * CELL_SIZE,
    ]


def coloured(pixels):
    return np.ptp(pixels, axis=2) > 60


def test_one_cell_for_each_image_with_its_frames(coco, tmp_path):
    results = [detection(i, [50, 10, 40, 30], 0.9 if i == 2 else 0.1) for i in range(1, 7)]
    picture = draw(coco, tmp_path, results)
    assert picture.shape == (HEADER_HEIGHT + 2 * CELL_SIZE, 4 * CELL_SIZE, 3)
    scale = (CELL_SIZE - 4) / 100
    truth = cell(picture, 0)
    upper_edge = truth[int(5 * scale) : int(5 * scale) + 2, round(12 * scale) : round(38 * scale)]
    assert (upper_edge == 255).any(0).all()
    assert not coloured(truth).any(), "the score is too low"
    lower_edge = cell(picture, 1)[
        round(40 * scale) - 1 : round(40 * scale) + 1, round(52 * scale) : round(88 * scale)
    ]
    assert coloured(lower_edge).any(0).all()


def test_classes_have_colours_of_their_own(coco, tmp_path):
    colours = []
    for category_id in (1, 7):
        picture = draw(coco, tmp_path, [detection(2, [50, 10, 40, 30], 0.9, category_id)])
        pixels = cell(picture, 0)
        colours.append(tuple(np.median(pixels[coloured(pixels)], axis=0)))
    assert colours[0] != colours[1]


@pytest.mark.parametrize(
    "bbox", [[-5, -5, 120, 70], [99, 49, 30, 30], [10, 10, 0, 0], [300, 300, 5, 5], [5, 5, -3, -3]]
)
def test_odd_boxes_and_unlisted_classes_are_drawn_too(coco, tmp_path, bbox):
    draw(coco, tmp_path, [detection(1, bbox, 0.9, category_id=5)])


def test_images_of_all_shapes_fit(tmp_path):
    folder = tiny.make_coco(tmp_path)
    coco = COCO()
    coco.dataset = json.loads((folder / "annotations" / "instances_val2017.json").read_text())
    coco.createIndex()
    picture = draw(
        (coco, folder / "val2017"), tmp_path, [detection(i, [0, 0, 9, 9], 1) for i in coco.imgs]
    )
    assert picture.shape == (HEADER_HEIGHT + CELL_SIZE, 4 * CELL_SIZE, 3)
