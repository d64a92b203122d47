"""The same images and objects in the layouts of YOLO and Pascal VOC, as tools export them."""

import numpy as np
import pytest
from exports import CLASSES, objects, save_images

from datasets.annotations import load_coco

WIDTH, HEIGHT = 80, 60
IMAGES = objects(7)
NAMES = [f"photo_{number}.png" for number in range(len(IMAGES))]


def make_yolo_lines(boxes, as_polygon=False):
    for kind, (x, y, w, h) in boxes:
        if as_polygon:
            corners = (x, y), (x + w, y), (x + w, y + h), (x, y + h)
            values = [value for cx, cy in corners for value in (cx / WIDTH, cy / HEIGHT)]
        else:
            values = [(x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT]
        yield " ".join([str(kind), *(f"{value:.6f}" for value in values)])


def write_labels(folder, polygons=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, boxes in zip(NAMES, IMAGES):
        if boxes:  # tools write no file, or an empty one, for an image without objects
            lines = make_yolo_lines(boxes, polygons)
            (folder / name).with_suffix(".txt").write_text("\n".join(lines) + "\n")


def write_ultralytics(root, polygons=False):
    """Write images/ and labels/ with train and val; data.yaml has `path` and a dictionary names."""
    pytest.importorskip("yaml")
    for name in ("train", "val"):
        save_images(root / "images" / name, NAMES)
        write_labels(root / "labels" / name, polygons)
    names = "\n".join(f"  {number}: {name}" for number, name in enumerate(CLASSES))
    (root / "data.yaml").write_text(
        f"path: {root}\ntrain: images/train\nval: images/val\ntest:\nnames:\n{names}\n"
    )
    return root / "data.yaml"


def write_roboflow(root):
    """Write train/ and valid/, each with images/ and labels/; paths in data.yaml begin with ../"""
    pytest.importorskip("yaml")
    for name in ("train", "valid"):
        save_images(root / name / "images", NAMES)
        write_labels(root / name / "labels")
    (root / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\n"
        f"nc: {len(CLASSES)}\nnames: {list(CLASSES)}\n"
    )
    save_images(root / "test" / "images", NAMES[:1])
    return root


def write_labelimg(root):
    """Write images, labels and classes.txt in one folder."""
    save_images(root, NAMES)
    write_labels(root)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


def make_voc_xml(name, boxes):
    parts = "".join(
        f"<object><name>{CLASSES[kind]}</name><pose>Unspecified</pose><truncated>0</truncated>"
        f"<difficult>{int(index == 1)}</difficult><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
        f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
        for index, (kind, (x, y, w, h)) in enumerate(boxes)
    )
    return (
        f"<annotation><folder>x</folder><filename>{name}</filename><size><width>{WIDTH}</width>"
        f"<height>{HEIGHT}</height><depth>3</depth></size>{parts}</annotation>"
    )


def write_voc2012(root):
    save_images(root / "JPEGImages", NAMES)
    (root / "Annotations").mkdir()
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    stems = [name.removesuffix(".png") for name in NAMES]
    for name, stem, boxes in zip(NAMES, stems, IMAGES):
        (root / "Annotations" / f"{stem}.xml").write_text(make_voc_xml(name, boxes))
    for split in ("train", "val"):
        (lists / f"{split}.txt").write_text("\n".join(stems) + "\n")
    (lists / "cat_train.txt").write_text(f"{stems[0]}  1\n")
    return root


def write_roboflow_voc(root):
    for name in ("train", "valid"):
        save_images(root / name, NAMES)
        for image, boxes in zip(NAMES, IMAGES):
            (root / name / image).with_suffix(".xml").write_text(make_voc_xml(image, boxes))
    return root


def load(split):
    """Load a converted split: (image folder, annotation file)."""
    return load_coco(*split, return_masks=False, num_classes=None)


def assert_converted(splits, names, crowds=False):
    """Check that each split has all images and objects."""
    for coco in map(load, splits.values()):
        assert {i: cat["name"] for i, cat in coco.cats.items()} == names
        ids = {image["file_name"]: i for i, image in coco.imgs.items()}
        assert sorted(ids) == NAMES
        for name, boxes in zip(NAMES, IMAGES):
            found = coco.imgToAnns[ids[name]]
            assert [names[ann["category_id"]] for ann in found] == [CLASSES[k] for k, _ in boxes]
            expected = np.array([box for _, box in boxes], float).reshape(-1, 4)
            converted = np.array([ann["bbox"] for ann in found]).reshape(-1, 4)
            np.testing.assert_allclose(converted, expected, atol=2e-3)
            difficult = [int(crowds and index == 1) for index in range(len(boxes))]
            assert [ann["iscrowd"] for ann in found] == difficult
