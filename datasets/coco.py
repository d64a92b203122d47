"""COCO detection data: reading the annotation file, checking it before any long work, and making the data set's items.

Source: `datasets/coco.py` of the original; the checks are ours.
"""
import contextlib
import io
import json
import math
import os
import random
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import datasets.transforms as T
from datasets import NUM_CLASSES
from util.errors import InputError

# What every image goes through last: ImageNet's mean and standard deviation, as the backbone's weights expect.
NORMALIZE = T.Compose([T.ToTensor(), T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])

MAX_SIZE = 1333  # the longer side that resizing aims at, pixels


class CocoImages:
    """What data sets of COCO's layout share: images with targets, in the order of the sorted image ids.

    A subclass has `target(image_id, image)`, the target before the transforms.
    What is random in an item derives from `seed`, `epoch` and the item's index only.

    Args:
        img_folder: folder of the images.
        images: the annotation file's list of images.
        transforms: called as `transforms(image, target, rng)`.
        seed: what the randomness derives from, with the epoch and the index.
        max_size: the longer side of the images after the transforms, about, in pixels.

    Raises:
        InputError: at `dataset[i]`, the image cannot be read.
    """

    def __init__(self, img_folder, images, transforms, seed=0, max_size=MAX_SIZE):
        self.img_folder = Path(img_folder)
        self.images = {image["id"]: image for image in images}
        self.ids = sorted(self.images)
        self.transforms = transforms
        self.seed = seed
        self.max_size = max_size
        self.epoch = 0

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        image_id = self.ids[index]
        path = self.img_folder / self.images[image_id]["file_name"]
        image = read_image(path)
        try:
            target = self.target(image_id, image)
            return self.transforms(image, target, random.Random(f"{self.seed}/{self.epoch}/{index}"))
        except InputError:
            raise
        except Exception as error:
            raise RuntimeError(f"{path}: the image or its annotations could not be prepared") from error


class CocoDetection(CocoImages):
    """Images and targets of one COCO annotation file.

    Item `i` is `(image, target)`: image float32 [3, H, W], normalised; target a dictionary of
      boxes float32 [n, 4]  cx, cy, w, h relative to the image's size;
      labels int64 [n]      category ids of the annotation file;
      image_id int;
      area float32 [n]      pixels of the transformed image;
      iscrowd int64 [n]     zeros, crowd annotations being left out;
      orig_size, size int64 [2]   height and width in pixels before and after the transforms;
      masks bool [n, H, W]  if `return_masks`.

    ann_file: COCO JSON with images, annotations and categories; return_masks: whether targets have masks; num_classes:
    upper bound (exclusive) of the category ids; the rest as in CocoImages.
    Raises InputError: the folder or the annotation file cannot be used.
    """

    def __init__(self, img_folder, ann_file, transforms, return_masks, num_classes, **options):
        self.coco = load_coco(Path(img_folder), Path(ann_file), return_masks, num_classes)
        super().__init__(img_folder, self.coco.dataset["images"], transforms, **options)
        self.prepare = ConvertCocoPolysToMask(return_masks)

    def target(self, image_id, image):
        return self.prepare(image, {"image_id": image_id, "annotations": self.coco.imgToAnns[image_id]})[1]


def read_image(path):
    """The image in RGB, as stored: an EXIF orientation is not applied, since COCO's boxes are of the stored image.

    Raises:
        InputError: the file is missing, damaged or no image.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # damaged, to Pillow
        raise InputError(f"{path}: cannot be read as an image ({error}); replace the file, or remove it from the "
                         "annotation file") from error


class ConvertCocoPolysToMask:
    """Turns an image's COCO annotations into a target of arrays.

    The target is that of `CocoDetection`, but boxes are x0, y0, x1, y1 in pixels of the image. Crowd annotations
    and boxes without area inside the image are left out.
    """

    def __init__(self, return_masks=False):
        self.return_masks = return_masks

    def __call__(self, image, target):
        width, height = image.size
        annotations = [ann for ann in target["annotations"] if ann["iscrowd"] == 0]

        boxes = np.array([ann["bbox"] for ann in annotations], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes = np.clip(boxes, 0, np.float32([width, height, width, height]))
        keep = (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])

        size = np.array([height, width], dtype=np.int64)
        result = {
            "boxes": boxes[keep],
            "labels": np.array([ann["category_id"] for ann in annotations], dtype=np.int64)[keep],
            "image_id": target["image_id"],
            "area": np.array([ann["area"] for ann in annotations], dtype=np.float32)[keep],
            "iscrowd": np.zeros(keep.sum(), dtype=np.int64),
            "orig_size": size,
            "size": size,
        }
        if self.return_masks:
            segmentations = [ann["segmentation"] for ann, kept in zip(annotations, keep) if kept]
            result["masks"] = convert_coco_poly_to_mask(segmentations, height, width)
        return image, result


def segmentation_to_rle(segmentation, height, width):
    """A COCO segmentation (polygons, uncompressed or compressed RLE) as compressed RLE."""
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return segmentation


def convert_coco_poly_to_mask(segmentations, height, width):
    """bool [n, height, width]: one mask for each COCO segmentation."""
    masks = np.zeros((len(segmentations), height, width), dtype=bool)
    for mask, segmentation in zip(masks, segmentations):
        mask[:] = coco_mask.decode(segmentation_to_rle(segmentation, height, width))
    return masks


def make_coco_transforms(image_set):
    """The augmentation of 'train', or the plain resize of 'val', with the original's sizes."""
    scales = [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]

    if image_set == "train":
        return T.Compose([
            T.RandomHorizontalFlip(),
            T.RandomSelect(
                T.RandomResize(scales, max_size=MAX_SIZE),
                T.Compose([
                    T.RandomResize([400, 500, 600]),
                    T.RandomSizeCrop(384, 600),
                    T.RandomResize(scales, max_size=MAX_SIZE),
                ]),
            ),
            NORMALIZE,
        ])
    if image_set == "val":
        return T.Compose([T.RandomResize([800], max_size=MAX_SIZE), NORMALIZE])
    raise ValueError(f"unknown image set {image_set!r}")


def build(image_set, args):
    """COCO 2017 under `args.coco_path` (train2017/, val2017/, annotations/), for `image_set` 'train' or 'val'.

    Raises:
        InputError: see `CocoDetection`.
    """
    root = Path(args.coco_path)
    if not root.is_dir():
        raise InputError(f"--coco_path {root}: no such folder; it should hold train2017, val2017 and annotations")
    return CocoDetection(root / f"{image_set}2017", root / "annotations" / f"instances_{image_set}2017.json",
                         make_coco_transforms(image_set), args.masks, num_classes=NUM_CLASSES["coco"],
                         seed=args.seed)


def load_coco(img_folder, ann_file, return_masks, num_classes):
    """Reads and checks the annotation file, fills in what may be missing, and returns pycocotools' index of it.

    Raises:
        InputError: the first fault found, with the remedy.
    """
    if not img_folder.is_dir():
        raise InputError(f"{img_folder}: no such folder; put the images there")
    data = read_json(ann_file)
    check_images(data["images"], img_folder, ann_file)
    check_annotations(data, ann_file, return_masks, num_classes)
    fill_in_missing(data, ann_file)
    coco = COCO()
    coco.dataset = data
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def read_json(ann_file):
    """The annotation file's dictionary, with the three lists that every COCO file has."""
    if not ann_file.is_file():
        raise InputError(f"{ann_file}: no such file; put the COCO annotations there")
    try:
        data = json.loads(ann_file.read_bytes())
    except ValueError as error:  # broken syntax or broken UTF-8
        raise InputError(f"{ann_file}: not a JSON file ({error}); get or export it again") from error
    for key in ("images", "annotations", "categories"):
        entries = data.get(key) if isinstance(data, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise InputError(f"{ann_file}: '{key}' should be a list of objects; export it in COCO's detection format")
    return data


def check_images(images, img_folder, ann_file):
    """Every image has a unique id and a file on disk."""
    if not images:
        raise InputError(f"{ann_file}: lists no image; a data set needs one at least")
    check_ids(images, "image", ann_file)
    for image in images:
        if not isinstance(image.get("file_name"), str):
            raise InputError(f"{ann_file}: image {image['id']} has no file_name; add it")

    # One listing per folder: asking for every file by itself takes minutes on network drives.
    names = [os.path.split(image["file_name"]) for image in images]
    present = {}
    for folder in {folder for folder, _ in names}:
        path = img_folder / folder
        present[folder] = set(os.listdir(path)) if path.is_dir() else set()
    missing = [os.path.join(folder, name) for folder, name in names if name not in present[folder]]
    if missing:
        raise InputError(f"{img_folder / missing[0]}: no such image; {len(missing)} of the {len(images)} images in "
                         f"{ann_file} are missing: add them, or remove them from the annotation file")


def check_annotations(data, ann_file, return_masks, num_classes):
    """Every annotation has a unique id, a known image and category, a usable box and, if asked for, a segmentation."""
    annotations = data["annotations"]
    check_ids(data["categories"], "category", ann_file)
    check_ids(annotations, "annotation", ann_file)

    def refuse(ann, fault):
        raise InputError(f"{ann_file}: annotation {ann['id']} of image {ann.get('image_id')}: {fault}")

    images = {image["id"]: image for image in data["images"]}
    for image in data["images"] if return_masks else ():
        if not all(type(image.get(side)) is int for side in ("height", "width")):
            raise InputError(f"{ann_file}: image {image['id']} has no height and width, which masks need; add them")
    category_ids = {category["id"] for category in data["categories"]}
    for ann in annotations:
        if ann.get("image_id") not in images:
            refuse(ann, "no image with this id is listed; add the image, or remove the annotation")
        if ann.get("category_id") not in category_ids:
            refuse(ann, f"category {ann.get('category_id')} is not listed; add it, or correct category_id")
        if not 0 <= ann["category_id"] < num_classes:
            refuse(ann, f"category_id {ann['category_id']} is not in 0..{num_classes - 1}; renumber the categories")
        if not is_box(ann.get("bbox")):
            refuse(ann, f"bbox {ann.get('bbox')} is not x, y, width, height with finite numbers and no negative size; "
                        "correct or remove it")
        if return_masks and not ann.get("segmentation"):
            refuse(ann, "has no segmentation; add it, or train without --masks")
        if return_masks and not is_segmentation(ann["segmentation"], images[ann["image_id"]]):
            refuse(ann, "its segmentation is neither polygons of three points or more nor an RLE of the image's size; "
                        "correct or remove it")


def is_box(box):
    return (isinstance(box, list) and len(box) == 4
            and all(type(value) in (int, float) and math.isfinite(value) for value in box)
            and box[2] >= 0 and box[3] >= 0)


def is_segmentation(segmentation, image):
    """Whether it is a list of polygons, each x, y, x, y, …, or an RLE, compressed or not, of the image's size."""
    if isinstance(segmentation, list):
        return all(isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
                   and all(type(value) in (int, float) and math.isfinite(value) for value in polygon)
                   for polygon in segmentation)
    return (isinstance(segmentation, dict) and segmentation.get("size") == [image["height"], image["width"]]
            and isinstance(segmentation.get("counts"), (list, str)))


def check_ids(entries, kind, ann_file):
    """Every entry has a whole number of its own as id."""
    ids = set()
    for entry in entries:
        number = entry.get("id")
        if type(number) is not int or number in ids:
            raise InputError(f"{ann_file}: {kind} id {number!r} is not a whole number of its own; renumber the ids")
        ids.add(number)


def fill_in_missing(data, ann_file):
    """Adds what COCO's own files have but files made by users may lack: info, iscrowd and area (in pixels)."""
    data.setdefault("info", {})
    images = {image["id"]: image for image in data["images"]}
    areas = crowds = 0
    for ann in data["annotations"]:
        if ann.get("iscrowd") is None:
            ann["iscrowd"] = 0
            crowds += 1
        if ann.get("area") is None:
            image = images[ann["image_id"]]
            if ann.get("segmentation") and "height" in image and "width" in image:
                rle = segmentation_to_rle(ann["segmentation"], image["height"], image["width"])
                ann["area"] = float(coco_mask.area(rle))
            else:
                ann["area"] = float(ann["bbox"][2] * ann["bbox"][3])
            areas += 1
    if areas or crowds:
        total = len(data["annotations"])
        print(f"{ann_file}: filled in area of {areas} and iscrowd of {crowds} of {total} annotations")
