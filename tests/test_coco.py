"""COCO data: items of every kind of image and annotation, and the checks at the start."""

import copy
import errno
import json
import random
from pathlib import Path

import numpy as np
import pytest
import tiny
from coco_files import IMAGES, arguments, make_coco, write_annotations
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from datasets import build_dataset, get_coco_api_from_dataset
from datasets.annotations import read_json
from datasets.classes import NUM_CLASSES
from datasets.coco import CocoDetection
from util.errors import InputError


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    return root, make_coco(root)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("image_set", ["train", "val"])
def test_items_keep_the_contract(coco_folder, image_set, masks):
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
        assert target["boxes"].shape == (n, 4) and target["area"].shape == target[
            "iscrowd"
        ].shape == (n,)
        assert {
            key: target[key].dtype
            for key in ("boxes", "labels", "area", "iscrowd", "size", "orig_size")
        } == {
            "boxes": np.float32,
            "labels": np.int64,
            "area": np.float32,
            "iscrowd": np.int64,
            "size": np.int64,
            "orig_size": np.int64,
        }
        assert (target["boxes"] > 0).all() and (target["boxes"] < 1 + 1e-6).all()
        assert not target["iscrowd"].any()
        assert ("masks" in target) == masks
        if masks:
            assert target["masks"].dtype == bool and target["masks"].shape == (n, *image.shape[1:])


def test_boxes_of_no_area_and_crowds_are_dropped_and_others_clamped(coco_folder):
    dataset = build_dataset("val", arguments(coco_folder[0]))
    _, target = dataset[dataset.images.find(1000)]  # rgb.jpg, 97x61
    expected = np.array(
        [[0.2, 0.3, 0.7, 0.7], [48 / 97, 30 / 61, 49 / 97, 31 / 61], [0, 0, 0.6 - 3.5 / 97, 1]]
    )
    centre, extent = target["boxes"][:, :2], target["boxes"][:, 2:]
    assert (
        np.abs(np.concatenate([centre - extent / 2, centre + extent / 2], axis=1) - expected).max()
        < 1e-6
    )
    assert target["labels"].tolist() == [1, 17, 90]


def test_image_without_annotation_is_kept(coco_folder):
    dataset = build_dataset("train", arguments(coco_folder[0], masks=True))
    _, target = dataset[dataset.images.find(1000 - 7 * 3)]
    assert target["boxes"].shape == (0, 4) and target["masks"].shape == (0, *target["size"])


def test_items_derive_from_seed_epoch_and_index_only(coco_folder):
    def sizes(seed, epoch, order):
        dataset = build_dataset("train", arguments(coco_folder[0], seed=seed))
        dataset.epoch = epoch
        random.seed(len(order))
        items = {index: dataset[index][0] for index in order}
        return [items[index].sum() for index in sorted(items)]

    forward, backward = list(range(len(IMAGES))), list(range(len(IMAGES)))[::-1]
    assert sizes(1, 2, forward) == sizes(1, 2, backward)
    assert sizes(1, 2, forward) != sizes(1, 3, forward)
    assert sizes(1, 2, forward) != sizes(2, 2, forward)


def test_masks_from_any_segmentation_format(tmp_path):
    data = make_coco(tmp_path)
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
    dataset = CocoDetection(
        tmp_path / "val2017",
        tmp_path / "annotations" / "instances_val2017.json",
        lambda image, target, rng: (image, target),
        return_masks=True,
        num_classes=91,
    )
    _, target = dataset[dataset.images.find(1000)]
    assert (target["masks"] == square.astype(bool)).all()


def test_missing_area_iscrowd_and_info_are_filled_in(tmp_path, capsys):
    data = make_coco(tmp_path)
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


def test_the_annotation_id_0_is_no_missed_object(tmp_path, capsys):
    path = tiny.make_coco(tmp_path) / "annotations" / "instances_val2017.json"
    data = json.loads(path.read_text())
    for number, ann in enumerate(data["annotations"]):
        ann["id"] = number
    path.write_text(json.dumps(data))
    coco = get_coco_api_from_dataset(build_dataset("val", arguments(tmp_path)))
    assert "the annotation id 0" in capsys.readouterr().out
    evaluation = COCOeval(
        coco, coco.loadRes([{**ann, "score": 1} for ann in data["annotations"]]), "bbox"
    )
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


@pytest.mark.parametrize("image_set", ["train", "val"])
def test_boxes_outside_their_image_are_not_listed(tmp_path, capsys, image_set):
    """They are in no target. Of a complete file nothing else is printed."""
    data = make_coco(tmp_path)
    del data["images"][0]["width"]  # of which it is not known
    write_annotations(tmp_path, data)
    dataset = build_dataset(image_set, arguments(tmp_path))
    dataset.transforms = lambda image, target, rng: (image, target)
    path = tmp_path / "annotations" / f"instances_{image_set}2017.json"
    printed = f"{path}: 36 boxes have no area inside their image; the losses leave them out\n"
    assert capsys.readouterr().out == printed
    owners, labels, areas = dataset.list_boxes()
    for index in range(len(dataset) - 1):  # not the first image, which has the highest id
        target = dataset[index][1]
        assert labels[owners == index].tolist() == target["labels"].tolist()
    unknown = owners == len(dataset) - 1
    assert len(areas[unknown]) == len(dataset[len(dataset) - 1][1]["labels"]) + 1


def test_segmentation_is_needed_for_masks_only(tmp_path):
    data = make_coco(tmp_path)
    del data["annotations"][4]["segmentation"]
    write_annotations(tmp_path, data)
    build_dataset("val", arguments(tmp_path))
    with pytest.raises(InputError, match="annotation 5 of image 1000: has no segmentation"):
        build_dataset("val", arguments(tmp_path, masks=True))


@pytest.mark.parametrize(
    "segmentation",
    [
        [[]],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, 6, 7]],
        [[1, 2, float("nan"), 4, 5, 6]],
        [1, 2, 3, 4, 5, 6],
        "polygon",
        {"size": [1, 1], "counts": "0"},
        {"size": [61, 97]},
    ],
)
def test_a_segmentation_that_is_none(tmp_path, segmentation):
    data = make_coco(tmp_path)
    data["annotations"][4]["segmentation"] = segmentation
    write_annotations(tmp_path, data)
    with pytest.raises(InputError, match="annotation 5 of image 1000: its segmentation is neither"):
        build_dataset("val", arguments(tmp_path, masks=True))


def test_masks_need_the_images_sizes(tmp_path):
    data = make_coco(tmp_path)
    del data["images"][0]["height"]
    write_annotations(tmp_path, data)
    with pytest.raises(InputError, match="image 1000: has no height and width"):
        build_dataset("val", arguments(tmp_path, masks=True))
    dataset = build_dataset("val", arguments(tmp_path, masks=True, skip_bad_samples=True))
    assert len(dataset) == len(data["images"]) - 1


def change(key, index, **values):
    """A fault: the entry `index` of the list `key` gets `values`, where None removes one."""

    def apply(data):
        data[key][index].update(values)
        for name in [name for name, value in values.items() if value is None]:
            del data[key][index][name]

    return apply


FAULTS = [
    (
        change("images", 2, file_name="gone.jpg"),
        "val2017/gone.jpg: no such image; 1 of the 15 images",
    ),
    (change("images", 2, file_name="nowhere/gone.jpg"), "nowhere/gone.jpg: no such image"),
    (change("images", 2, file_name=None), "image 986: has no file_name"),
    (change("images", 2, id="x"), "image id 'x'"),
    (change("images", 2, id=1000), "image id 1000"),
    (change("annotations", 3, image_id=5), "annotation 4 of image 5: no image"),
    (
        change("annotations", 3, category_id=5),
        "annotation 4 of image 1000: category 5 is not listed",
    ),
    (
        change("annotations", 3, category_id=None),
        "annotation 4 of image 1000: category None is not listed",
    ),
    (change("annotations", 3, id=1), "annotation id 1"),
    (change("annotations", 3, bbox=None), "annotation 4 of image 1000: bbox None"),
    (change("annotations", 3, bbox=[1, 2, 3]), "annotation 4 of image 1000: bbox"),
    (change("annotations", 3, bbox=5), "annotation 4 of image 1000: bbox"),
    (change("annotations", 3, bbox=[1, 2, 3, "4"]), "annotation 4 of image 1000: bbox"),
    (change("annotations", 3, bbox=[1, 2, 3, float("nan")]), "annotation 4 of image 1000: bbox"),
    (change("annotations", 3, bbox=[1, float("inf"), 3, 4]), "annotation 4 of image 1000: bbox"),
    (change("annotations", 3, bbox=[1, 2, -3, 4]), "annotation 4 of image 1000: bbox"),
    (lambda data: data.update(images=[]), "lists no image"),
    (lambda data: data.pop("images"), "'images' should be a list"),
    (lambda data: data.pop("annotations"), "'annotations' should be a list"),
    (lambda data: data.pop("categories"), "'categories' should be a list"),
    (lambda data: data.update(images={"1": 2}), "'images' should be a list"),
]


@pytest.mark.parametrize("fault, message", FAULTS)
def test_faults_of_the_annotation_file_are_named_in_one_line(coco_folder, tmp_path, fault, message):
    root, data = coco_folder
    data = copy.deepcopy(data)
    fault(data)
    (tmp_path / "val2017").symlink_to(root / "val2017")
    write_annotations(tmp_path, data)
    with pytest.raises(InputError) as caught:
        build_dataset("val", arguments(tmp_path))
    assert (
        message in str(caught.value)
        and str(tmp_path) in str(caught.value)
        and "\n" not in str(caught.value)
    )


@pytest.mark.parametrize("number", [-1, NUM_CLASSES["coco"]])
def test_category_ids_outside_the_classes(coco_folder, tmp_path, number):
    root, data = coco_folder
    data = copy.deepcopy(data)
    data["categories"].append({"id": number, "name": "outside"})
    (tmp_path / "val2017").symlink_to(root / "val2017")
    write_annotations(tmp_path, data)
    build_dataset("val", arguments(tmp_path))  # listed but not used
    data["annotations"][0]["category_id"] = number
    write_annotations(tmp_path, data)
    with pytest.raises(
        InputError, match=rf"annotation 1 of image 1000: category_id {number} is not in 0\.\.90"
    ):
        build_dataset("val", arguments(tmp_path))


@pytest.mark.parametrize("content", [b'{"images": [', b"", b"\xff\xfe\x00junk", b"[1, 2]"])
def test_a_file_that_is_no_coco_json(coco_folder, tmp_path, content):
    (tmp_path / "val2017").symlink_to(coco_folder[0] / "val2017")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_bytes(content)
    with pytest.raises(InputError, match="instances_val2017.json: "):
        build_dataset("val", arguments(tmp_path))


def test_an_annotation_file_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "all.json").touch()
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match=r"\.json: cannot be read \(Permission denied\)"):
        read_json(tmp_path / "all.json")


def test_missing_folders_and_unknown_data_sets(tmp_path):
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
    with pytest.raises(
        InputError, match=r"val2017/rgb\.jpg: cannot be read as an image .* remove it"
    ):
        dataset[dataset.images.find(1000)]


def test_a_fault_of_the_program_names_the_image(tmp_path):
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
