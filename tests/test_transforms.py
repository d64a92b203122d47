"""The transforms, on images of odd sizes with boxes and masks."""

import random

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from same import assert_same

import datasets.transforms as T
from datasets.coco import make_coco_transforms
from datasets.segmentations import make_masks

SIZES = [(1, 1), (3, 5), (500, 500), (640, 480), (427, 640), (801, 799), (1333, 800)]
FLAT_SIZES = [(1000, 37), (37, 1000)]


def make_image(width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def make_target(width, height, boxes):
    boxes = np.float32(boxes).reshape(-1, 4)
    masks = np.zeros((len(boxes), height, width), dtype=bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int)):
        mask[y0:y1, x0:x1] = True
    size = np.array([height, width])
    return {
        "boxes": boxes,
        "labels": np.arange(len(boxes)),
        "area": (boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        "iscrowd": np.zeros(len(boxes), dtype=np.int64),
        "masks": masks,
        "image_id": 7,
        "orig_size": size,
        "size": size,
    }


def copy_target(target):
    return {key: np.copy(value) for key, value in target.items()}


def assert_unchanged(target, before):
    assert target.keys() == before.keys()
    assert all(np.array_equal(target[key], before[key]) for key in before)


@pytest.mark.parametrize("width, height", [*SIZES, *FLAT_SIZES])
@pytest.mark.parametrize("size, max_size", [(800, 1333), (480, 1333), (400, None), (600, None)])
def test_resize_scales_the_shorter_side_to_size(width, height, size, max_size):
    target = make_target(width, height, [[0, 0, width, height]])
    before = copy_target(target)
    image, resized = T.resize(make_image(width, height), target, size, max_size)
    assert_unchanged(target, before)
    new_height, new_width = resized["size"]
    assert image.size == (new_width, new_height)
    aspect_ratio = max(width, height) / min(width, height)
    if max_size is None or aspect_ratio * size <= max_size:
        assert min(image.size) == size
    else:
        assert min(image.size) <= size and abs(max(image.size) - max_size) <= aspect_ratio
    assert np.allclose(resized["boxes"], [[0, 0, new_width, new_height]], rtol=1e-6)
    assert np.allclose(resized["area"], new_width * new_height, rtol=1e-6)
    assert resized["masks"].shape == (1, new_height, new_width) and resized["masks"].all()


def test_resize_uses_the_originals_rounding():
    assert T.get_resized_shape(640, 480, 800, 1333) == (800, 1066)  # 1066.7 is cut, not rounded
    assert T.get_resized_shape(480, 640, 800, 1333) == (1066, 800)
    assert T.get_resized_shape(640, 360, 800, 1333) == (750, 1333)
    assert T.get_resized_shape(480, 640, 480, 1333) == (640, 480)
    assert T.get_resized_shape(640, 359, 800, 1333) == (748, 1333)


def test_hflip_flips_image_boxes_and_masks():
    image, target = make_image(7, 5), make_target(7, 5, [[0, 1, 3, 4], [6, 0, 7, 1]])
    before = copy_target(target)
    flipped, result = T.hflip(image, target)
    assert_unchanged(target, before)
    assert np.array_equal(np.asarray(flipped), np.asarray(image)[:, ::-1])
    assert result["boxes"].tolist() == [[4, 1, 7, 4], [0, 0, 1, 1]]
    assert np.array_equal(result["masks"], make_target(7, 5, result["boxes"])["masks"])


def test_crop_clips_boxes_and_drops_those_outside():
    boxes = [[0, 0, 10, 10], [4, 4, 5, 5], [8, 8, 10, 10], [0, 3, 2, 9], [2, 0, 3, 3]]
    image, target = make_image(10, 10), make_target(10, 10, boxes)
    before = copy_target(target)
    cropped, result = T.crop(image, target, (3, 2, 5, 6))  # rows 3..7, columns 2..7
    assert_unchanged(target, before)
    assert np.array_equal(np.asarray(cropped), np.asarray(image)[3:8, 2:8])
    assert result["boxes"].tolist() == [[0, 0, 6, 5], [2, 1, 3, 2]]
    assert result["labels"].tolist() == [0, 1] and result["area"].tolist() == [30, 1]
    assert result["size"].tolist() == [5, 6] and result["orig_size"].tolist() == [10, 10]
    assert np.array_equal(result["masks"], make_target(6, 5, result["boxes"])["masks"])


@pytest.mark.parametrize("image_set", ["train", "val"])
def test_lazy_masks_are_transformed_as_arrays_are(image_set):
    rng = np.random.default_rng(0)
    for seed, (width, height) in enumerate([*SIZES, *FLAT_SIZES] * 3):
        corners = rng.uniform(0, 1, (5, 2, 2)).astype(np.float32) * [width, height]
        corners = np.sort(corners, axis=1).round()
        image, target = make_image(width, height), make_target(width, height, corners)
        target["masks"] ^= rng.random((5, height, width)) < 0.1
        rles = coco_mask.encode(np.asfortranarray(target["masks"].transpose(1, 2, 0), np.uint8))
        lazy = {**target, "masks": make_masks(rles, height, width)}
        transform = make_coco_transforms(image_set, [24, 48, 60], 70, 90)
        _, expected = transform(image, target, random.Random(seed))
        _, found = transform(image, lazy, random.Random(seed))
        assert_same(found["masks"], expected["masks"])


def test_every_transform_accepts_an_empty_target():
    for transform in (
        T.RandomHorizontalFlip(p=1),
        T.RandomSizeCrop(20, 40),
        T.RandomResize([50], max_size=60),
    ):
        _, target = transform(make_image(45, 33), make_target(45, 33, []), random.Random(0))
        assert target["boxes"].shape == (0, 4) and target["masks"].shape == (0, *target["size"])


def test_normalize_converts_pixels_and_boxes():
    image, target = T.ToTensor()(make_image(8, 4), make_target(8, 4, [[2, 1, 6, 4]]), None)
    assert image.dtype == np.float32 and image.shape == (3, 4, 8)
    before = image.copy()
    result, target = T.Normalize([0.5, 0.25, 0], [0.5, 0.25, 2])(image, target, None)
    assert np.array_equal(image, before)
    expected = (before - [[[0.5]], [[0.25]], [[0]]]) / [[[0.5]], [[0.25]], [[2]]]
    assert np.allclose(result, expected, atol=1e-6)
    assert result.dtype == target["boxes"].dtype == np.float32
    assert target["boxes"].tolist() == [[0.5, 0.625, 0.5, 0.75]]


def test_random_size_crop_stays_within_its_bounds():
    rng = random.Random(0)
    for _ in range(50):
        image, target = T.RandomSizeCrop(20, 40)(make_image(31, 60), make_target(31, 60, []), rng)
        assert 20 <= image.width <= 31 and 20 <= image.height <= 40
        assert target["size"].tolist() == [image.height, image.width]


def test_random_select_and_flip_follow_their_probability():
    def mark(name):
        return lambda image, target, rng: (name, target)

    rng = random.Random(0)
    chosen = [T.RandomSelect(mark("a"), mark("b"), p=0.25)(None, {}, rng)[0] for _ in range(400)]
    assert 60 < chosen.count("a") < 140
    image, target = make_image(3, 2), make_target(3, 2, [])
    assert T.RandomHorizontalFlip(p=0)(image, target, rng)[0] is image
