"""Reads and checks COCO's annotation files before any long work; nothing in them is trusted.

A fault ends with one line that names file, id and remedy, or with --skip_bad_samples leaves out the
sample.
"""

import contextlib
import io
import json
import os
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from util.errors import InputError, printable
from util.memory import without_garbage_collector

MAX_BOX_COORDINATE = 1e7  # pixels
MAX_POLYGON_COORDINATE = 1e6  # pixels; of a corner, and the most that an outline may be long
MAX_AREA = 1e30  # pixels; as many as a float32 holds, about
MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # where Pillow refuses an image


class BadSamples:
    """Messages about images and annotations that are left out.

    Without `skip` the first one is raised as InputError.
    """

    def __init__(self, skip):
        self.skip = skip
        self.messages = []

    def add(self, message):
        """message: one line with file, id and remedy."""
        error = InputError(message)
        if not self.skip:
            raise error
        self.messages.append(str(error))

    def report(self):
        """Prints how many samples were left out, and the first of them."""
        if self.messages:
            print(f"left out {len(self.messages)} bad images and annotations:")
            for message in self.messages[:5]:
                print(f"  {message}")


class CocoFile(NamedTuple):
    """A checked annotation file: its dictionary; whether nothing was left out; lines about what was
    filled in.
    """

    data: dict
    is_complete: bool
    notes: list


def read_coco(img_folder, ann_file, return_masks, num_classes, skip_bad_samples=False):
    """Reads and checks an annotation file, and fills in fields that may be missing.

    num_classes: upper bound (exclusive) of the category ids, None for any.
    skip_bad_samples: leave out bad images and annotations, and print how many.

    Raises:
        InputError: the first fault found, with the remedy.
    """
    if not img_folder.is_dir():
        raise InputError(f"{img_folder}: no such folder; put the images there")
    data = read_json(ann_file)
    bad_samples = BadSamples(skip_bad_samples)
    images = check_images(data["images"], img_folder, ann_file, bad_samples, return_masks)
    data["annotations"] = remove_annotations(data["annotations"], data["images"], images)
    data["images"] = images
    data["annotations"] = check_annotations(data, ann_file, return_masks, num_classes, bad_samples)
    bad_samples.report()
    notes = [*fill_in_missing(data, ann_file), *renumber_zero(data, ann_file)]
    return CocoFile(data, not bad_samples.messages, notes)


def load_coco(img_folder, ann_file, return_masks, num_classes, skip_bad_samples=False):
    """pycocotools' index of an annotation file; see read_coco."""
    file = read_coco(img_folder, ann_file, return_masks, num_classes, skip_bad_samples)
    for note in file.notes:
        print(note)
    return make_index(file.data)


def make_index(data):
    """pycocotools' index of a checked annotation file's dictionary."""
    coco = COCO()
    coco.dataset = data
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def read_json(ann_file):
    """The annotation file's dictionary, with the three lists that every COCO file has."""
    if ann_file.is_dir():
        raise InputError(f"{ann_file}: is a folder; give the JSON file with the annotations")
    if not ann_file.is_file():
        raise InputError(f"{ann_file}: no such file; put the COCO annotations there")
    try:
        with without_garbage_collector():
            data = json.loads(ann_file.read_bytes())
    except OSError as error:
        raise InputError(
            f"{ann_file}: cannot be read ({error.strerror}); give it read permission"
        ) from error
    except (ValueError, RecursionError) as error:  # syntax, UTF-8, or lists in lists without end
        raise InputError(
            f"{ann_file}: not a JSON file ({error}); get or export it again"
        ) from error
    for key in ("images", "annotations", "categories"):
        entries = data.get(key) if isinstance(data, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise InputError(
                f"{ann_file}: '{key}' should be a list of objects; export it in COCO's detection "
                "format"
            )
    return data


def check_images(images, img_folder, ann_file, bad_samples, needs_size=False):
    """The images that have an id of their own, a possible size, and a file in the folder."""
    if not images:
        raise InputError(f"{ann_file}: lists no image; a data set needs one at least")
    ids, files, good, missing = set(), FilesBelow(img_folder), [], []
    for image in images:
        fault = (
            id_fault(image.get("id"), ids, "image")
            or size_fault(image, needs_size)
            or name_fault(image.get("file_name"))
        )
        if fault:
            bad_samples.add(f"{ann_file}: image {short(image.get('id'))}: {fault}")
            continue
        (good if image["file_name"] in files else missing).append(image)
    if missing and not bad_samples.skip:
        raise InputError(
            f"{img_folder / missing[0]['file_name']}: no such image; {len(missing)} of the "
            f"{len(images)} images in {ann_file} are missing: add them, or remove them from the "
            "annotation file"
        )
    for image in missing:
        bad_samples.add(
            f"{img_folder / image['file_name']}: no such image; add it, or remove it from "
            f"{ann_file}"
        )
    if not good:
        raise InputError(
            f"{ann_file}: none of its {len(images)} images can be used; the first: "
            f"{bad_samples.messages[0]}"
        )
    return good


class FilesBelow:
    """Whether files are there: `name in FilesBelow(root)`, the name relative to root.

    One listing per folder: asking for every file takes minutes on network drives.
    """

    def __init__(self, root):
        self.root = root
        self.listings = {}

    def __contains__(self, path):
        folder, name = os.path.split(path)
        if folder not in self.listings:
            path = self.root / folder
            self.listings[folder] = set(os.listdir(path)) if path.is_dir() else set()
        return name in self.listings[folder]


def remove_annotations(annotations, images, good):
    """The annotations without those of images that were left out, which have no fault themselves.

    good: the images that were not.
    """
    if len(good) == len(images):
        return annotations
    ids = {image.get("id") for image in images if type(image.get("id")) is int}
    left_out = ids - {image["id"] for image in good}
    return [
        ann
        for ann in annotations
        if type(ann.get("image_id")) is not int or ann["image_id"] not in left_out
    ]


def check_annotations(data, ann_file, return_masks, num_classes, bad_samples):
    """The annotations that can be used: see `annotation_fault`."""
    check_categories(data["categories"], ann_file)
    images = {image["id"]: image for image in data["images"]}
    categories = {category["id"] for category in data["categories"]}
    ids, good = set(), []
    for ann in data["annotations"]:
        if fault := annotation_fault(ann, ids, images, categories, num_classes, return_masks):
            bad_samples.add(
                f"{ann_file}: annotation {short(ann.get('id'))} of image "
                f"{short(ann.get('image_id'))}: {fault}"
            )
        else:
            good.append(ann)
    return good


def category_names(categories):
    """A dictionary category id -> name, for categories with ids of their own."""
    return {
        category["id"]: printable(str(category.get("name", f"class {category['id']}")).strip())
        for category in categories
    }


def check_categories(categories, ann_file):
    """Raises InputError for a category without an id of its own."""
    ids = set()
    for category in categories:
        if fault := id_fault(category.get("id"), ids, "category"):
            raise InputError(f"{ann_file}: {fault}")


def annotation_fault(ann, ids, images, categories, num_classes, return_masks):
    """What is wrong with an annotation, and the remedy; or None.

    ids: those of the annotations before.
    """
    if fault := id_fault(ann.get("id"), ids, "annotation"):
        return fault
    image = images.get(ann.get("image_id")) if type(ann.get("image_id")) is int else None
    if image is None:
        return "no image with this id is listed; add the image, or remove the annotation"
    category = ann.get("category_id")
    if type(category) is not int or category not in categories:
        return f"category {short(category)} is not listed; add it, or correct category_id"
    if category < 0 or (num_classes is not None and category >= num_classes):
        return (
            f"category_id {category} is not in "
            f"0..{'' if num_classes is None else num_classes - 1}, the classes of the model; "
            "renumber the categories, or train with a larger --num_classes"
        )
    if not is_box(ann.get("bbox")):
        return (
            f"bbox {short(ann.get('bbox'))} is not x, y, width, height with finite numbers and no "
            "negative size; correct or remove it"
        )
    if ann.get("area") is not None and not is_number(ann["area"], 0, MAX_AREA):
        return f"area {short(ann['area'])} is not a number of pixels; correct or remove it"
    if ann.get("iscrowd") not in (None, 0, 1):
        return f"iscrowd {short(ann['iscrowd'])} is neither 0 nor 1; correct or remove it"
    if return_masks and not ann.get("segmentation"):
        return "has no segmentation; add it, or train without --masks"
    if return_masks and not is_segmentation(ann["segmentation"], image):
        return (
            "its segmentation is neither polygons of three points or more with numbers of pixels "
            "nor an RLE of the image's size; correct or remove it"
        )
    return None


def id_fault(value, ids, kind):
    """What is wrong with an id, or None. Adds it to ids, those of its kind so far."""
    if type(value) is not int or not -(2**63) <= value < 2**63:
        return f"{kind} id {short(value)} is not a whole number of 64 bits; renumber the ids"
    if value in ids:
        return f"{kind} id {short(value)} is there twice; renumber the ids"
    ids.add(value)
    return None


def size_fault(image, is_needed):
    sides = [image.get(side) for side in ("width", "height")]
    if is_needed and None in sides:
        return "has no height and width, which masks need; add them"
    if any(side is not None and (type(side) is not int or side < 1) for side in sides):
        return f"width and height {short(sides)} are not numbers of pixels; correct or remove them"
    if None not in sides and sides[0] * sides[1] > MAX_PIXELS:
        return (
            f"width and height {short(sides)} are more than {MAX_PIXELS:,} pixels; correct them, "
            "or shrink the image"
        )
    return None


def name_fault(name):
    if not isinstance(name, str):
        return "has no file_name; add it"
    if os.path.isabs(name) or ".." in Path(name).parts or "\0" in name:
        return f"file_name {short(name)} leaves the images' folder; give it relative to that folder"
    return None


def is_number(value, least, most):
    """Whether it is an int or float from least to most; NaN is not."""
    return type(value) in (int, float) and least <= value <= most


def is_box(box):
    if not isinstance(box, list) or len(box) != 4:
        return False
    if not all(is_number(value, -MAX_BOX_COORDINATE, MAX_BOX_COORDINATE) for value in box):
        return False
    return box[2] >= 0 and box[3] >= 0


def is_segmentation(segmentation, image):
    """Whether it is a list of polygons (x, y, x, y, …) or an RLE, of the image's size."""
    width, height = image["width"], image["height"]
    if isinstance(segmentation, list):
        return all(is_polygon(polygon) for polygon in segmentation)
    if not isinstance(segmentation, dict) or segmentation.get("size") != [height, width]:
        return False
    counts = segmentation.get("counts")
    runs = rle_runs(counts) if isinstance(counts, str) else counts
    # pycocotools writes as many pixels as the runs say.
    return (
        isinstance(runs, list)
        and all(type(run) is int and run >= 0 for run in runs)
        and sum(runs) == height * width
    )


def is_polygon(polygon):
    """Whether it is x, y, x, y, … of at least three points, with an outline of possible length."""
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        return False
    limit = MAX_POLYGON_COORDINATE
    if not all(is_number(value, -limit, limit) for value in polygon):
        return False
    if len(polygon) * max(map(abs, polygon)) < limit:
        return True
    # pycocotools walks along the outline in fifths of pixels and keeps each step.
    x, y = polygon[::2], polygon[1::2]
    return sum(abs(x[i] - x[i - 1]) + abs(y[i] - y[i - 1]) for i in range(len(x))) < limit


def rle_runs(counts):
    """The run lengths of a compressed RLE, or None where it is not one (COCO's `rleFrString`)."""
    runs, value, shift = [], 0, 0
    for code in counts.encode("utf-8", "surrogatepass"):
        code -= 48
        if not 0 <= code < 64 or shift > 30:
            return None
        value |= (code & 31) << shift
        shift += 5
        if code < 32:  # the last five bits, of which the first is the sign
            value -= (code & 16) << shift - 4
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs if shift == 0 else None


def segmentation_to_rle(segmentation, height, width):
    """A COCO segmentation (polygons, uncompressed or compressed RLE) as compressed RLE."""
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return segmentation


def fill_in_missing(data, ann_file):
    """Fills in iscrowd and area (pixels), which files made by users may lack, and info.

    Yields a line about it.
    """
    data.setdefault("info", {})  # COCO.info() needs it
    images = {image["id"]: image for image in data["images"]}
    areas = crowds = 0
    for ann in data["annotations"]:
        if ann.get("iscrowd") is None:
            ann["iscrowd"] = 0
            crowds += 1
        if ann.get("area") is None:
            image = images[ann["image_id"]]
            sized = image.get("height") is not None and image.get("width") is not None
            if ann.get("segmentation") and sized and is_segmentation(ann["segmentation"], image):
                rle = segmentation_to_rle(ann["segmentation"], image["height"], image["width"])
                ann["area"] = float(coco_mask.area(rle))
            else:
                ann["area"] = float(ann["bbox"][2] * ann["bbox"][3])
            areas += 1
    if areas or crowds:
        total = len(data["annotations"])
        yield (
            f"{ann_file}: filled in area of {areas} and iscrowd of {crowds} of {total} annotations"
        )


def renumber_zero(data, ann_file):
    """Gives the annotation with id 0 another one: pycocotools takes a match with 0 for no match.

    Yields a line about it.
    """
    for ann in data["annotations"]:
        if ann["id"] == 0:
            ann["id"] = 1 + max(other["id"] for other in data["annotations"])
            yield (
                f"{ann_file}: the annotation id 0, with which COCO's evaluation counts a found "
                f"object as missed, is {ann['id']} here"
            )


def short(value):
    """The beginning of a value from a file, as Python writes it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
