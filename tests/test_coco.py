"""COCO data: items of every kind of image and annotation, and errors of folders and images."""

import copy
import json
import random

import numpy as np
import pytest
import tiny
from coco_files import IMAGES, arguments, make_coco, write_annotations
from peak_memory import measure_peak
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from datasets import build_dataset, get_coco_api_from_dataset
from datasets.classes import NUM_CLASSES
from datasets.transforms import ToTensor
from util.errors import InputError


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    return root, make_coco(root)


def link_coco(coco_folder, root):
    """Link the images of coco_folder below root. Return a copy of its annotations."""
    (root / "val2017").symlink_to(coco_folder[0] / "val2017")
    return copy.deepcopy(coco_folder[1])


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("image_set", ["train", "val"])
def test_items_have_the_documented_types_and_shapes(coco_folder, image_set, masks):
    dataset = build_dataset(image_set, arguments(coco_folder[0], masks=masks))
    assert len(dataset) == len(IMAGES)
    assert dataset.ids.tolist() == sorted(dataset.ids)
    sizes = {1000 - 7 * i: (height, width) for i, (_, width, height, _, _) in enumerate(IMAGES)}
    for index in range(len(dataset)):
        image, target = dataset[index]
        n = len(target["labels"])
        assert image.dtype == np.float32 and image.shape == (3, *target["size"])
        assert type(target["image_id"]) is int and target["image_id"] == dataset.ids[index]
        assert tuple(target["orig_size"]) == sizes[target["image_id"]]
        assert target["boxes"].shape == (n, 4)
        assert target["area"].shape == target["iscrowd"].shape == (n,)
        for key in ("boxes", "labels", "area", "iscrowd", "size", "orig_size"):
            assert target[key].dtype == (np.float32 if key in ("boxes", "area") else np.int64)
        assert (target["boxes"] > 0).all() and (target["boxes"] < 1 + 1e-6).all()
        assert not target["iscrowd"].any()
        assert ("masks" in target) == masks
        if masks:
            assert target["masks"].dtype == bool and target["masks"].shape == (n, *image.shape[1:])


def test_empty_boxes_and_crowds_are_dropped_and_others_clipped(coco_folder):
    dataset = build_dataset("val", arguments(coco_folder[0]))
    _, target = dataset[dataset.images.find(1000)]  # rgb.jpg, 97x61
    expected = np.array(
        [[0.2, 0.3, 0.7, 0.7], [48 / 97, 30 / 61, 49 / 97, 31 / 61], [0, 0, 0.6 - 3.5 / 97, 1]]
    )
    centre, extent = target["boxes"][:, :2], target["boxes"][:, 2:]
    boxes = np.concatenate([centre - extent / 2, centre + extent / 2], axis=1)
    np.testing.assert_allclose(boxes, expected, rtol=0, atol=1e-6)
    assert target["labels"].tolist() == [1, 17, 90]


def test_image_without_annotation_is_kept(coco_folder):
    dataset = build_dataset("train", arguments(coco_folder[0], masks=True))
    _, target = dataset[dataset.images.find(1000 - 7 * 3)]
    assert target["boxes"].shape == (0, 4) and target["masks"].shape == (0, *target["size"])


def test_items_depend_on_seed_epoch_and_index_only(coco_folder):
    def load(seed, epoch, order):
        dataset = build_dataset("train", arguments(coco_folder[0], seed=seed))
        dataset.epoch = epoch
        random.seed(len(order))
        items = {index: dataset[index][0] for index in order}
        return [items[index].sum() for index in sorted(items)]

    forward, backward = list(range(len(IMAGES))), list(range(len(IMAGES)))[::-1]
    assert load(1, 2, forward) == load(1, 2, backward)
    assert load(1, 2, forward) != load(1, 3, forward)
    assert load(1, 2, forward) != load(2, 2, forward)


def test_masks_of_every_segmentation_format(coco_folder, tmp_path):
    data = link_coco(coco_folder, tmp_path)
    square = np.zeros((61, 97), dtype=np.uint8, order="F")
    square[10:30, 20:50] = 1
    compressed = coco_mask.encode(square)
    runs = np.diff(np.flatnonzero(np.diff(square.flatten("F"), prepend=2, append=2)))
    segmentations = [
        [[20, 10, 50, 10, 50, 30, 20, 30]],
        {"size": [61, 97], "counts": compressed["counts"].decode()},
        {"size": [61, 97], "counts": runs.tolist()},
    ]
    for ann, segmentation in zip(data["annotations"], segmentations):
        ann.update(bbox=[20, 10, 30, 20], segmentation=segmentation)
    write_annotations(tmp_path, data)
    dataset = build_dataset("val", arguments(tmp_path, masks=True))
    dataset.transforms = ToTensor()
    _, target = dataset[dataset.images.find(1000)]
    assert (target["masks"] == square.astype(bool)).all()


def test_masks_of_a_large_image_are_never_decoded_as_a_whole(tmp_path):
    data = make_coco(tmp_path)
    Image.new("RGB", (3000, 2000)).save(tmp_path / "val2017" / "rgb.jpg")
    data["images"] = [{"id": 1, "file_name": "rgb.jpg", "width": 3000, "height": 2000}]
    box, triangle = [0, 0, 3000, 2000], [100, 100, 2900, 200, 2000, 1900]
    ann = {"image_id": 1, "category_id": 1, "bbox": box, "segmentation": [triangle]}
    data["annotations"] = [{**ann, "id": number} for number in range(1, 101)]
    write_annotations(tmp_path, data)
    dataset = build_dataset("val", arguments(tmp_path, masks=True, eval_size=200))
    (_, target), peak = measure_peak(lambda: dataset[0])
    assert target["masks"].shape == (100, 200, 300) and target["masks"].any((1, 2)).all()
    assert peak < 15, "MB; the 100 masks take 6, and at the image's size 600"


def test_missing_area_iscrowd_and_info_are_filled_in(coco_folder, tmp_path, capsys):
    data = link_coco(coco_folder, tmp_path)
    first, second, third = data["annotations"][:3]
    del first["area"], first["iscrowd"], second["area"], second["segmentation"]
    third["area"] = None
    write_annotations(tmp_path, data)
    coco = get_coco_api_from_dataset(build_dataset("val", arguments(tmp_path)))
    first_line = capsys.readouterr().out.splitlines()[0]
    assert "instances_val2017.json: filled in area of 3 and iscrowd of 1" in first_line
    assert coco.anns[first["id"]]["iscrowd"] == 0
    # two triangles that cover half of the box, up to the pixels on their edges
    assert coco.anns[first["id"]]["area"] == pytest.approx(
        first["bbox"][2] * first["bbox"][3] / 2, rel=0.1
    )
    assert coco.anns[second["id"]]["area"] == 1
    assert coco.dataset["info"] == {}


def test_annotation_id_0_does_not_count_as_missed(tmp_path, capsys):
    path = tiny.make_coco(tmp_path) / "annotations" / "instances_val2017.json"
    data = json.loads(path.read_text())
    for number, ann in enumerate(data["annotations"]):
        ann["id"] = number
    path.write_text(json.dumps(data))
    coco = get_coco_api_from_dataset(build_dataset("val", arguments(tmp_path)))
    assert "renumbered annotation id 0" in capsys.readouterr().out
    evaluation = COCOeval(
        coco, coco.loadRes([{**ann, "score": 1} for ann in data["annotations"]]), "bbox"
    )
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


@pytest.mark.parametrize("image_set", ["train", "val"])
def test_boxes_outside_their_image_are_not_listed(tmp_path, capsys, image_set):
    """They are in no target."""
    data = make_coco(tmp_path)
    del data["images"][0]["width"]  # so it is unknown for this image
    write_annotations(tmp_path, data)
    dataset = build_dataset(image_set, arguments(tmp_path))
    dataset.transforms = lambda image, target, rng: (image, target)
    path = tmp_path / "annotations" / f"instances_{image_set}2017.json"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"warning: {path}: 22 of 66 boxes reach beyond their image; ")
    assert f"{path}: 36 of 84 boxes have no area inside their image; they are left out" in lines
    assert len(lines) == 4  # one more names an image's orientation, and one the crowds
    image_indices, labels, areas = dataset.list_boxes()
    for index in range(len(dataset) - 1):  # not the first image, which has the highest id
        target = dataset[index][1]
        assert labels[image_indices == index].tolist() == target["labels"].tolist()
    unknown = image_indices == len(dataset) - 1
    assert len(areas[unknown]) == len(dataset[len(dataset) - 1][1]["labels"]) + 1


@pytest.mark.parametrize(
    "number, reason", [(-1, "negative"), (NUM_CLASSES["coco"], r"not in 0\.\.90")]
)
def test_category_ids_outside_the_classes(coco_folder, tmp_path, number, reason):
    data = link_coco(coco_folder, tmp_path)
    data["categories"].append({"id": number, "name": "outside"})
    write_annotations(tmp_path, data)
    build_dataset("val", arguments(tmp_path))  # listed but not used
    data["annotations"][0]["category_id"] = number
    write_annotations(tmp_path, data)
    message = rf"annotation 1 of image 1000: category_id {number} is {reason}"
    with pytest.raises(InputError, match=message):
        build_dataset("val", arguments(tmp_path))


def test_missing_folders_and_unknown_datasets(tmp_path):
    with pytest.raises(InputError, match="val2017: no such folder"):
        build_dataset("val", arguments(tmp_path))
    (tmp_path / "val2017").mkdir()
    with pytest.raises(InputError, match="instances_val2017.json: no such file"):
        build_dataset("val", arguments(tmp_path))
    with pytest.raises(ValueError, match="dataset_file is voc: give one of coco, coco_panoptic"):
        build_dataset("val", arguments(tmp_path, dataset_file="voc"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:400]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("<html>404</html>"),
        lambda path: path.unlink(),
    ],
)
def test_a_damaged_image_is_named(tmp_path, damage):
    make_coco(tmp_path)
    dataset = build_dataset("val", arguments(tmp_path))
    damage(tmp_path / "val2017" / "rgb.jpg")
    message = r"val2017/rgb\.jpg: cannot be read as an image .* leave it out"
    with pytest.raises(InputError, match=message):
        dataset[dataset.images.find(1000)]


def test_a_bug_in_a_transform_names_the_image(tmp_path):
    make_coco(tmp_path)
    dataset = build_dataset("val", arguments(tmp_path))
    dataset.transforms = lambda image, target, rng: 1 / 0
    with pytest.raises(RuntimeError, match=r"val2017/rgb\.jpg") as caught:
        dataset[dataset.images.find(1000)]
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.coco
@pytest.mark.parametrize("image_set, annotations, crowds", [("train", 705, 6), ("val", 815, 11)])
def test_real_images(coco_path, image_set, annotations, crowds):
    dataset = build_dataset(image_set, arguments(coco_path))
    assert len(dataset) == 80 and len(dataset.annotations.labels) == annotations
    dataset.transforms = lambda image, target, rng: (image, target)
    assert sum(len(dataset[index][1]["boxes"]) for index in range(80)) == annotations - crowds
