"""The shapes dataset: its images, its annotations, and how its folder is written."""

import json
import multiprocessing

import numpy as np
import pytest
import tiny
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.ndimage import binary_dilation, binary_erosion

from datasets import build_dataset, shapes
from datasets.classes import NUM_CLASSES
from datasets.segmentations import segmentation_to_rle
from util.errors import InputError

SIZE = 96


def draw_images(count=150):
    return [shapes.draw_image(SIZE, 0, 0, index) for index in range(count)]


def draw_mask(polygon):
    rle = segmentation_to_rle([polygon.ravel().tolist()], SIZE, SIZE)
    return coco_mask.decode(rle).astype(bool)


def get_saturation(image):
    return np.ptp(image.astype(int), axis=2)


def build(image_set, folder, *flags, masks=False):
    sizes = "--shapes_train 6 --shapes_val 3 --shapes_size 48"
    args = tiny.arguments("--dataset_file shapes", "--coco_path", folder, sizes, *flags)
    args.masks = masks
    return build_dataset(image_set, args)


def test_images_depend_on_seed_set_and_index_only():
    for arguments in ((SIZE, 0, 0, 7), (48, 3, 1, 0)):
        (image, drawn), (again, drawn_again) = (shapes.draw_image(*arguments) for _ in range(2))
        assert image.shape == (arguments[0], arguments[0], 3) and image.dtype == np.uint8
        np.testing.assert_array_equal(image, again)
        assert [kind for kind, _ in drawn] == [kind for kind, _ in drawn_again]
    keys = (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)
    images = [shapes.draw_image(SIZE, *key)[0] for key in keys]
    assert len({image.tobytes() for image in images}) == 4


def test_images_have_one_to_five_shapes_of_all_classes_and_sizes():
    drawn = [shapes for _, shapes in draw_images()]
    assert {len(shapes) for shapes in drawn} == {1, 2, 3, 4, 5}
    assert {kind for shapes in drawn for kind, _ in shapes} == {0, 1, 2}
    corners = [polygon for shapes in drawn for _, polygon in shapes]
    extents = np.array([np.ptp(polygon, axis=0) for polygon in corners]) / SIZE
    assert extents.min() >= 1 / 6 - 1e-9 and extents.max() <= 0.6 + 1e-9
    assert extents.min() < 0.2 and extents.max() > 0.57
    assert min(polygon.min() for polygon in corners) >= 0
    assert max(polygon.max() for polygon in corners) <= SIZE


def test_shapes_overlap_by_at_most_a_fifth_of_the_smaller_one():
    overlaps = []
    for _, drawn in draw_images():
        masks = [draw_mask(polygon) for _, polygon in drawn]
        overlaps += [
            (a & b).sum() / min(a.sum(), b.sum()) for i, a in enumerate(masks) for b in masks[:i]
        ]
    assert 0.1 < max(overlaps) <= 0.22, "a pixel's width more, because masks have whole pixels"


def test_pixels_are_saturated_in_the_polygons_and_grey_elsewhere():
    for image, drawn in draw_images(40):
        covered = np.any([draw_mask(polygon) for _, polygon in drawn], axis=0)
        saturation = get_saturation(image)
        inside = saturation[binary_erosion(covered)]
        assert np.percentile(inside, 2) > 80, "except at edges between two colours"
        background = ~binary_dilation(covered, iterations=2)
        outside = saturation[background]
        assert np.percentile(outside, 99.5) == 0, "except at tips thinner than a pixel"
        assert image[background].std() > 2, "noise and gradient"


def test_the_folder_has_coco_layout(tmp_path):
    train, val = (build(part, tmp_path / "shapes", masks=True) for part in ("train", "val"))
    assert (len(train), len(val)) == (6, 3)
    assert [val.coco.cats[i]["name"] for i in (1, 2, 3)] == ["circle", "rectangle", "triangle"]
    for dataset in (train, val):
        for index in range(len(dataset)):
            image, target = dataset[index]
            assert image.shape == (3, 48, 48)
            assert set(target["labels"]) <= {1, 2, 3}
            assert max(target["labels"]) < NUM_CLASSES["shapes"]
            for box, mask, area in zip(target["boxes"], target["masks"], target["area"]):
                y, x = np.nonzero(mask)
                edges = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
                centre, extent = box[:2], box[2:]
                expected = 48 * np.concatenate([centre - extent / 2, centre + extent / 2])
                np.testing.assert_allclose(edges, expected, atol=2)
                assert area == pytest.approx(mask.sum(), rel=0.15, abs=8)


def test_only_training_flips_images(tmp_path):
    train, val = (build(part, tmp_path / "shapes") for part in ("train", "val"))
    seen = set()
    for train.epoch in range(8):
        seen.add(train[0][0].tobytes())
    assert len(seen) == 2
    val.epoch = 1
    image = Image.open(tmp_path / "shapes" / "val2017" / "000000000001.png")
    pixels = np.asarray(image, np.float32) / 255
    expected = (pixels - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    np.testing.assert_allclose(val[0][0], expected.transpose(2, 0, 1), atol=1e-5)


def test_dataset_file_coco_reads_the_same_folder(tmp_path):
    drawn = build("val", tmp_path / "shapes")
    read = build_dataset("val", tiny.arguments("--coco_path", tmp_path / "shapes"))
    assert (read.ids == drawn.ids).all()
    for index in range(3):
        (_, expected), (image, target) = drawn[index], read[index]
        assert image.shape == (3, 800, 800), "COCO's own sizes"
        np.testing.assert_array_equal(target["labels"], expected["labels"])
        np.testing.assert_allclose(target["boxes"], expected["boxes"], atol=1e-6)


def test_the_folder_is_written_once_and_in_the_cache_by_default(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build("train", "")
    [folder] = (tmp_path / "detr-jittor").iterdir()
    assert folder.name == "shapes-48px-6-3"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    build("val", "")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    build("val", "", "--shapes_val", 2)
    assert len(list((tmp_path / "detr-jittor").iterdir())) == 2, "another dataset beside it"


def test_an_interrupt_leaves_no_files(tmp_path, monkeypatch):
    def interrupted(size, seed, set_index, index):
        if index == 3:
            raise KeyboardInterrupt
        return draw(size, seed, set_index, index)

    draw = shapes.draw_image
    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(shapes, "draw_image", interrupted)
        build("train", tmp_path / "shapes")
    assert not list(tmp_path.iterdir())
    assert len(build("train", tmp_path / "shapes")) == 6


def _write(folder):
    shapes.write_shapes(folder, {"train": 4, "val": 2}, 32)


def test_processes_that_start_together_share_one_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write, args=(tmp_path / "shapes",)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]
    assert len(list((tmp_path / "shapes" / "train2017").iterdir())) == 4


def test_a_folder_with_other_content_is_refused(tmp_path):
    build("train", tmp_path / "shapes")
    message = "shapes: has other content than the 10 shape images of 48 pixels"
    with pytest.raises(InputError, match=message):
        build("train", tmp_path / "shapes", "--shapes_train", 7)
    with pytest.raises(InputError, match="coco: has other content .*--dataset_file coco"):
        build("train", tiny.make_coco(tmp_path / "coco"))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("keep me")
    with pytest.raises(InputError, match="notes: has other content"):
        build("train", tmp_path / "notes")
    assert (tmp_path / "notes" / "todo.txt").read_text() == "keep me"


def test_an_unwritable_folder_is_named():
    message = r"/proc/shapes: the shapes cannot be written there .*--coco_path"
    with pytest.raises(InputError, match=message):
        build("train", "/proc/shapes")


def test_annotations_have_the_fields_of_coco(tmp_path):
    build("train", tmp_path / "shapes")
    path = tmp_path / "shapes" / "annotations" / "instances_train2017.json"
    data = json.loads(path.read_text())
    assert data["info"] == {
        "description": "coloured shapes, drawn by datasets/shapes.py",
        "size": 48,
        "seed": 0,
        "train": 6,
        "val": 3,
    }
    fields = {"id", "image_id", "category_id", "iscrowd", "area", "bbox", "segmentation"}
    for annotation in data["annotations"]:
        assert set(annotation) == fields
