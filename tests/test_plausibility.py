"""Datasets that are wrong in one systematic way, and none that only look unusual."""

import re

import numpy as np
import pytest
from PIL import Image
from plain_data import BOXES, SIZE, make

from datasets.images import TURNS
from util.errors import InputError


def set_crowds(count):
    def change(data):
        for annotation in data["annotations"][:count]:
            annotation["iscrowd"] = 1

    return change


def test_plain_data_say_nothing(tmp_path, capsys):
    make(tmp_path, BOXES)()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("is_evaluated", [False, True])
def test_fractions_instead_of_pixels(tmp_path, is_evaluated):
    load = make(tmp_path, BOXES / SIZE)
    message = r"8 of 8 boxes lie within 1.5 pixels of the top left corner, as fractions"
    with pytest.raises(InputError, match=message):
        load(is_evaluated)


@pytest.mark.parametrize("is_evaluated", [False, True])
def test_corners_instead_of_sizes(tmp_path, is_evaluated):
    load = make(tmp_path, np.concatenate([BOXES[:, :2], BOXES[:, :2] + BOXES[:, 2:]], 1))
    with pytest.raises(InputError, match="3 of 8 boxes reach beyond .* x0, y0, x1, y1; convert"):
        load(is_evaluated)


def test_centres_instead_of_corners(tmp_path):
    boxes = make_random(3, 40, 20, 60, SIZE)
    boxes[:, :2] += boxes[:, 2:] / 2
    with pytest.raises(InputError, match="boxes reach beyond .* centre x, centre y, width, height"):
        make(tmp_path, boxes)()


def test_most_boxes_outside_of_their_images(tmp_path):
    boxes = np.concatenate([BOXES + [SIZE, 0, 0, 0], BOXES[:3] + [-30, 0, 0, 0]])
    with pytest.raises(InputError, match="8 of 11 boxes have no area inside their image; check"):
        make(tmp_path, boxes)()


@pytest.mark.parametrize("count", [49, 50])
def test_boxes_of_smaller_images_are_a_warning(tmp_path, capsys, count):
    """In percent, or in pixels before the images were enlarged."""
    make(tmp_path, make_random(4, count, 5, 20, SIZE) / 2, per_image=5)()
    said = "none of 50 boxes reaches beyond 50% of its image's width and 49% of its height"
    assert bool(re.search(said, capsys.readouterr().out)) == (count == 50)


def test_boxes_of_larger_images_are_a_warning(tmp_path, capsys):
    boxes = BOXES + [60, 0, 0, 0]
    make(tmp_path, np.concatenate([boxes, BOXES * [2, 1, 0.5, 1]]))()
    printed = capsys.readouterr().out
    assert "warning: " in printed and "boxes reach beyond their image; check the boxes" in printed


def make_random(seed, count, low, high, size):
    """Boxes inside an image, their sides from low to high pixels."""
    rng = np.random.default_rng(seed)
    sides = rng.uniform(low, high, (count, 2))
    return np.concatenate([rng.uniform(0, 1, (count, 2)) * (size - sides), sides], 1)


UNUSUAL = {
    "one image with one pixel": ([[0, 0, 1, 1]], 1),
    "one-pixel boxes": ([[3 * i, 2 * i, 1, 1] for i in range(20)], 1),
    "one box of the whole image": ([[0, 0, SIZE, SIZE]], 1),
    "boxes of whole images": ([[0, 0, SIZE, SIZE]] * 9, 1),
    "many small boxes": (make_random(0, 300, 2, 9, SIZE), 300),
    "large boxes": (make_random(1, 40, 50, 95, SIZE), 2),
    "large boxes, rounded up": (np.ceil(make_random(2, 40, 50, 95, SIZE)), 2),
    "boxes from the corner": ([[0, 0, 10 + i, 20 + i] for i in range(20)], 2),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_data_say_nothing(tmp_path, capsys, name):
    boxes, per_image = UNUSUAL[name]
    make(tmp_path, boxes, per_image=per_image)()
    assert capsys.readouterr().out == ""


def test_crowds_are_counted(tmp_path, capsys):
    load = make(tmp_path, BOXES, set_crowds(4))
    load()
    said = "4 of 8 annotations are crowds (iscrowd 1) and not trained on\n"
    assert capsys.readouterr().out == f"{tmp_path}/ann.json: {said}"
    load(is_evaluated=True)
    assert "(iscrowd 1), where detections do not count" in capsys.readouterr().out


def test_crowds_alone_cannot_be_trained_on(tmp_path):
    with pytest.raises(InputError, match="8 of 8 annotations are crowds .*; set iscrowd to 0 if"):
        make(tmp_path, BOXES, set_crowds(8))()


def test_images_of_another_size_than_listed(tmp_path):
    def change(data):
        for image in data["images"]:
            image.update(width=2 * SIZE, height=2 * SIZE)

    dataset = make(tmp_path, 2 * BOXES, change)()
    message = "0.png: image is 96x96, but .*ann.json says 192x192, which its boxes are for; use the"
    with pytest.raises(InputError, match=message):
        dataset[0]


def test_one_file_under_two_ids(tmp_path, capsys):
    def change(data):
        data["images"].append({**data["images"][2], "id": 20, "file_name": "./2.png"})

    load = make(tmp_path, BOXES, change)
    message = r"image 20: file_name '\./2.png' is also that of image 2, and .*; merge the two"
    with pytest.raises(InputError, match=message):
        load()
    assert len(load(skip_bad_samples=True)) == 8


def test_rotated_boxes(tmp_path, capsys):
    """CVAT exports the box before its rotation about its centre."""

    def change(data):
        for annotation, rotation in zip(data["annotations"], (90, 180.0, 45, 0, None, "90")):
            annotation["attributes"] = {"rotation": rotation}

    dataset = make(tmp_path, BOXES, change)()
    boxes, half = dataset.annotations.boxes, 30 / 2**0.5
    np.testing.assert_allclose(boxes[0], [15, 20, 20, 40])
    np.testing.assert_allclose(boxes[2], [35 - half, 40 - half, 2 * half, 2 * half], atol=1e-4)
    np.testing.assert_array_equal(boxes[[1, 3, 4, 5, 6, 7]], BOXES[[1, 3, 4, 5, 6, 7]])
    assert "3 of 8 boxes have attributes.rotation; the upright" in capsys.readouterr().out


def repeat(data):
    for id_, key in ((20, {}), (21, {}), (22, {"area": 1}), (23, {"image_id": 1})):
        data["annotations"].append({**data["annotations"][4], "id": id_, **key})


def test_repeated_annotations(tmp_path, capsys):
    """Training drops them; evaluation has to give pycocotools' figures."""
    load = make(tmp_path, BOXES, repeat)
    assert len(load().annotations.labels) == 10
    said = "2 of 12 annotations repeat another one (same image, class, box and area)"
    assert f"{said}; they are left out" in capsys.readouterr().out
    assert len(load(is_evaluated=True).coco.anns) == 12
    assert f"{said}; they count as missed; remove them" in capsys.readouterr().out


@pytest.mark.parametrize("count", [100, 101])
def test_more_objects_than_coco_counts(tmp_path, capsys, count):
    boxes = make_random(0, count, 2, 9, SIZE)
    make(tmp_path, boxes, per_image=count)(is_evaluated=True)
    said = "warning: .*1 images have more than 100 objects of one class, up to 101; COCO counts"
    assert bool(re.match(said, capsys.readouterr().out)) == (count > 100)


def orient(folder, orientations):
    """Store the images so that these EXIF orientations turn them upright, with a mark."""
    for name, orientation in orientations.items():
        path = folder / "images" / name
        image = Image.open(path)
        image.putpixel((0, 0), (255, 255, 255))
        exif = Image.Exif()
        exif[0x0112] = orientation
        undo = {6: 8, 8: 6}.get(orientation, orientation)
        image = image.transpose(TURNS[undo]) if undo in TURNS else image
        image.save(path, exif=exif)


def is_marked(dataset, index):
    return dataset[index][0].getpixel((0, 0)) == (255, 255, 255)


def test_orientations_that_keep_the_size(tmp_path, capsys):
    load = make(tmp_path, BOXES)
    orient(tmp_path, {f"{i}.png": i + 1 for i in range(8)})
    dataset = load()
    assert all(is_marked(dataset, i) for i in range(8))
    said = "7 of 8 images have an EXIF orientation, such as 1.png; their boxes are taken for the"
    assert f"{tmp_path}/images: {said} image upright, as viewers show it" in capsys.readouterr().out


@pytest.mark.parametrize("is_upright", [True, False])
def test_sizes_decide_about_other_images(tmp_path, capsys, is_upright):
    """An image that is listed as it is stored shows that its tool ignores the orientation."""
    stored = (SIZE, SIZE // 2)

    def change(data):
        width, height = stored[::-1] if is_upright else stored
        data["images"][0].update(width=width, height=height)

    load = make(tmp_path, BOXES, change)
    Image.new("RGB", stored[::-1]).save(tmp_path / "images" / "0.png")
    orient(tmp_path, {"0.png": 6, "1.png": 3})
    dataset = load()
    assert is_marked(dataset, 0) == is_marked(dataset, 1) == is_upright
    how = "upright, as viewers show it" if is_upright else "as it is stored"
    assert f"boxes are taken for the image {how}, unless" in capsys.readouterr().out


def test_areas_of_zero_are_filled_in(tmp_path, capsys):
    def change(data):
        for annotation in data["annotations"]:
            annotation["area"] = 0

    dataset = make(tmp_path, BOXES, change)()
    assert dataset.annotations.areas.tolist() == [800] * 8
    assert "filled in area of 8 and iscrowd of 0 of 8 annotations" in capsys.readouterr().out
