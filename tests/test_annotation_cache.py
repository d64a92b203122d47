"""The cache of training annotations: the same items, and never stale ones."""

import json
import multiprocessing
import os

import numpy as np
import pytest
import tiny
from pycocotools import mask as coco_mask
from same import assert_same

import datasets.annotation_cache
from datasets.annotations import load_coco
from datasets.coco import CocoDetection
from datasets.faults import Faults
from datasets.transforms import ToTensor
from util.errors import InputError


@pytest.fixture
def coco(tmp_path, monkeypatch):
    """A small dataset that is cached, in tmp_path: (image folder, annotation file)."""
    monkeypatch.setattr(datasets.annotation_cache, "MIN_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tiny.make_coco(tmp_path / "coco")
    return root / "train2017", root / "annotations" / "instances_train2017.json"


@pytest.fixture
def reads(monkeypatch):
    """The list of calls that read and check an annotation file."""
    reads, read_coco = [], datasets.annotation_cache.read_coco

    def counting(*args):
        reads.append(args)
        return read_coco(*args)

    monkeypatch.setattr(datasets.annotation_cache, "read_coco", counting)
    return reads


def build(coco, masks=False, num_classes=91, skip=False):
    return CocoDetection(*coco, ToTensor(), masks, num_classes, faults=Faults(skip))


def edit(coco, change):
    data = json.loads(coco[1].read_text())
    change(data)
    coco[1].write_text(json.dumps(data))


def list_cache(tmp_path):
    return sorted((tmp_path / "cache" / "detr-jittor" / "annotations").iterdir())


@pytest.mark.parametrize("masks", [False, True])
def test_a_second_start_reads_the_cache(coco, reads, masks, capsys):
    def complicate(data):
        size = data["images"][0]["height"], data["images"][0]["width"]
        square = np.zeros(size, np.uint8, order="F")
        square[5:20, 30:90] = 1
        compressed = coco_mask.encode(square)["counts"].decode()
        runs = np.diff(np.flatnonzero(np.diff(square.flatten("F"), prepend=2, append=2))).tolist()
        first, second = (ann for ann in data["annotations"] if ann["image_id"] == 1)
        first["segmentation"] = {"size": size, "counts": compressed}
        second["segmentation"] = {"size": size, "counts": runs}
        data["annotations"][-1]["segmentation"] *= 2  # two polygons
        data["annotations"].append({**first, "id": 70, "iscrowd": 1})
        del first["area"]
        data["images"].reverse()
        data["annotations"].reverse()
        data["categories"][0]["name"] = "猫"

    edit(coco, complicate)
    first = build(coco, masks)
    items, printed = [first[index] for index in range(3)], capsys.readouterr().out
    assert "filled in area of 1" in printed
    again = build(coco, masks)
    assert len(reads) == 1
    assert capsys.readouterr().out == printed
    assert_same([again[index] for index in range(3)], items)
    assert again.classes == first.classes == {1: "猫", 90: "class 90"}
    assert [len(target["labels"]) for _, target in items] == [2, 2, 2]


@pytest.mark.parametrize("masks", [False, True])
def test_targets_are_those_of_the_annotation_file(coco, masks):
    dataset, index = build(coco, masks), load_coco(*coco, masks, 91)
    for number in range(3):
        image, target = dataset[number]
        annotations = index.imgToAnns[target["image_id"]]
        assert target["labels"].tolist() == [ann["category_id"] for ann in annotations]
        assert target["area"].tolist() == [np.float32(ann["area"]) for ann in annotations]
        for box, ann in zip(target["boxes"], annotations):
            x, y, width, height = np.float32(ann["bbox"])
            assert box.tolist() == [x, y, x + width, y + height]
        if masks:
            for mask, ann in zip(target["masks"], annotations):
                assert (mask == index.annToMask(ann).astype(bool)).all()


def test_images_without_annotations(coco, reads):
    edit(coco, lambda data: data.update(annotations=[]))
    for dataset in (build(coco, masks=True), build(coco, masks=True)):
        assert dataset[2][1]["masks"].shape == (0, 36, 300)
    assert len(reads) == 1


def test_other_content_of_the_same_size_and_time_is_read_again(coco, reads, tmp_path):
    build(coco)
    before, times = list_cache(tmp_path), coco[1].stat()
    text = coco[1].read_text()
    coco[1].write_text(text.replace('"category_id": 90', '"category_id": 1 ', 1))
    os.utime(coco[1], ns=(times.st_atime_ns, times.st_mtime_ns))
    assert coco[1].stat().st_size == times.st_size
    assert build(coco)[0][1]["labels"].tolist() == [1, 1]
    assert len(reads) == 2
    assert len(list_cache(tmp_path)) == 1 and list_cache(tmp_path) != before, "the old one is gone"


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content[:-70] + bytes([content[-70] ^ 1]) + content[-69:],
        lambda content: content[:50] + b"}" + content[51:],
        lambda content: b"x" * len(content),
    ],
)
def test_a_damaged_cache_is_written_again(coco, reads, tmp_path, damage):
    items = [build(coco)[index] for index in range(3)]
    (path,) = list_cache(tmp_path)
    intact = path.read_bytes()
    path.write_bytes(damage(intact))
    again = build(coco)
    assert len(reads) == 2 and path.read_bytes() == intact
    assert_same([again[index] for index in range(3)], items)


def test_errors_that_arise_later_are_found(coco):
    build(coco)
    with pytest.raises(InputError, match="annotation 2 of image 1: category_id 90 is not in 0..49"):
        build(coco, num_classes=50)
    (coco[0] / "000000000002.jpg").unlink()
    with pytest.raises(InputError, match="000000000002.jpg: no such image; 1 of the 3 images"):
        build(coco)
    assert len(build(coco, skip=True)) == 2


def test_errors_are_reported_at_every_start(coco, capsys, tmp_path):
    edit(coco, lambda data: data["annotations"][0].update(bbox=[1, 2, -3, 4]))
    for _ in range(2):
        assert len(build(coco, skip=True)[0][1]["labels"]) == 1
        assert "left out 1 bad images and annotations" in capsys.readouterr().out
    with pytest.raises(InputError, match="annotation 1 of image 1: bbox"):
        build(coco)


def test_a_cache_that_cannot_be_written_costs_time_only(coco, reads, tmp_path, capsys):
    (tmp_path / "cache").write_text("a file")
    for _ in range(2):
        assert len(build(coco)[0][1]["labels"]) == 2
        assert "the annotations are not cached and will be read" in capsys.readouterr().out
    assert len(reads) == 2


def test_a_full_disk_costs_time_only(coco, reads, tmp_path, capsys, monkeypatch):
    def full(path, arrays, extra):
        raise InputError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr(datasets.annotation_cache, "write_arrays", full)
    for _ in range(2):
        assert len(build(coco)[0][1]["labels"]) == 2
        assert "No space left on device" in capsys.readouterr().out
    assert len(reads) == 2 and list_cache(tmp_path) == []


def _start(coco, barrier, results):
    barrier.wait()
    results.put([build(coco)[index][1]["boxes"].tolist() for index in range(3)])


def test_processes_that_start_together(coco, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_start, args=(coco, barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    boxes = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert all(each == boxes[0] for each in boxes) and len(list_cache(tmp_path)) == 1
