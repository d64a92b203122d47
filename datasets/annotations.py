"""Read and validate COCO annotation files before training. Nothing in them is trusted.

An error stops the program with one line that names the file, the id and the fix; with
--skip_bad_samples the sample is skipped instead.
"""

import contextlib
import io
import json
import math
import os
from pathlib import Path

from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from datasets.faults import Faults
from datasets.file_names import FileIndex
from datasets.segmentations import is_segmentation, segmentation_to_rle
from util.errors import InputError, escape_unprintable
from util.memory import without_garbage_collector

RENUMBER = "renumber the ids with python -m datasets.convert renumber"
MAX_BOX_COORDINATE = 1e7  # pixels
MAX_AREA = 1e30  # pixels; float32 holds up to 3e38
MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # Pillow refuses larger images


def read_coco(img_folder, ann_file, return_masks, num_classes, faults):
    """Read and check an annotation file, and fill in missing optional fields.

    img_folder, ann_file: Path; num_classes: exclusive upper bound on category ids, or None; faults:
    Faults, which decides whether the first faulty sample raises InputError.

    Returns (data, notes): the file's content without faulty samples, and messages about what was
    changed.
    """
    if not img_folder.is_dir():
        raise InputError(f"{img_folder}: no such folder; put the images there")
    data = read_annotation_file(ann_file)
    for image in data["images"]:
        convert_integers(image, "id", "width", "height")
    listed = {image.get("id") for image in data["images"] if type(image.get("id")) is int}
    data["images"], notes = select_images(
        data["images"], img_folder, ann_file, faults, return_masks
    )
    data["annotations"] = select_annotations(
        data, listed, ann_file, return_masks, num_classes, faults
    )
    faults.report()
    return data, notes + complete_annotations(data, ann_file)


def load_coco(img_folder, ann_file, return_masks, num_classes, faults=None):
    """Load an annotation file into a pycocotools `COCO` object; see `read_coco`."""
    data, notes = read_coco(img_folder, ann_file, return_masks, num_classes, faults or Faults())
    for note in notes:
        print(note)
    return make_index(data)


def make_index(data):
    """Build a pycocotools `COCO` object from validated annotations."""
    coco = COCO()
    coco.dataset = data
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def read_annotation_file(ann_file):
    """Return the content of an annotation file, a dictionary with COCO's three lists."""
    if ann_file.is_dir():
        raise InputError(f"{ann_file}: is a folder; give the JSON file with the annotations")
    if not ann_file.is_file():
        raise InputError(f"{ann_file}: no such file; put the COCO annotations there")
    try:
        with without_garbage_collector():
            data = json.loads(ann_file.read_bytes())
    except OSError as error:
        raise InputError(
            f"{ann_file}: cannot be read ({error.strerror}); check its permissions"
        ) from error
    except (ValueError, RecursionError) as error:  # bad syntax or encoding, or nested too deep
        if isinstance(error, UnicodeDecodeError) and error.encoding == "utf-8":
            raise InputError(
                f"{ann_file}: is not UTF-8 ({error.reason} at byte {error.start}); convert it, for "
                f"example with iconv -f gb18030 -t utf-8 {ann_file} > utf8.json"
            ) from error
        raise InputError(
            f"{ann_file}: invalid JSON ({error}); download or export it again"
        ) from error
    for key in ("images", "annotations", "categories"):
        if key == "annotations" and key not in data:
            raise InputError(
                f"{ann_file}: has no 'annotations'; export it again, or add \"annotations\": [] if "
                "there are none, as in COCO's test sets"
            )
        entries = data.get(key) if isinstance(data, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise InputError(
                f"{ann_file}: '{key}' has to be a list of objects; export it in COCO's format"
            )
    return data


def select_images(images, img_folder, ann_file, faults, needs_size=False):
    """Select the images that have a unique id, a valid size, and a file in the folder.

    Returns (images, notes); `file_name` becomes the file's path if it was written differently.
    """
    if not images:
        raise InputError(f"{ann_file}: lists no images; add at least one")
    ids, ids_by_name, files = set(), {}, FileIndex(img_folder)
    selected, missing, renamed = [], [], []
    for image in images:
        name = image.get("file_name")
        error = (
            find_id_error(image.get("id"), ids, "image")
            or find_size_error(image, needs_size)
            or find_file_name_error(image, files)
            or find_duplicate_error(image, ids_by_name)
        )
        if error:
            faults.add(f"{ann_file}: image {abbreviate(image.get('id'))}", error)
            continue
        if name != image["file_name"]:
            renamed.append(f"{abbreviate(name)} for {abbreviate(image['file_name'])}")
        (selected if image["file_name"] in files else missing).append(image)
    for image in missing:
        other = files.find_other_suffix(image["file_name"])
        remedy = f"there is '{other}': correct file_name" if other else "add them, or remove them"
        faults.add(
            img_folder / image["file_name"],
            f"no such image; {len(missing)} of the {len(images)} images in {ann_file} are missing: "
            f"{remedy}",
        )
    if not selected:
        place, error = faults.samples[0]
        raise InputError(
            f"{ann_file}: none of its {len(images)} images is usable: {place}: {error}"
        )
    if not renamed:
        return selected, []
    return selected, [
        f"{ann_file}: file_name of {len(renamed)} images differs from the file's path in "
        f"separators, folders, case or Unicode form, such as {renamed[0]}; the files are used"
    ]


def select_annotations(data, listed, ann_file, return_masks, num_classes, faults):
    """Return the valid annotations; see `find_annotation_error`.

    listed: ids of all images in the file; annotations of skipped images are dropped silently.
    """
    check_categories(data["categories"], ann_file)
    images = {image["id"]: image for image in data["images"]}
    skipped = listed - images.keys()
    categories = {category["id"] for category in data["categories"]}
    ids, selected = set(), []
    for ann in data["annotations"]:
        image_id = ann.get("image_id")
        if type(image_id) is float or type(ann.get("id")) is float:
            convert_integers(ann, "id", "image_id", "category_id")
            image_id = ann.get("image_id")
        if type(image_id) is int and image_id in skipped:
            continue
        if error := find_annotation_error(ann, ids, images, categories, num_classes, return_masks):
            place = f"annotation {abbreviate(ann.get('id'))} of image"
            faults.add(f"{ann_file}: {place} {abbreviate(ann.get('image_id'))}", error)
        else:
            selected.append(ann)
    return selected


def get_class_names(categories):
    """Return the class names of validated categories, {category id: name}."""
    names = {each["id"]: each.get("name", f"class {each['id']}") for each in categories}
    return {class_id: escape_unprintable(str(name).strip()) for class_id, name in names.items()}


def check_categories(categories, ann_file):
    """Raise InputError if a category id is missing, invalid or duplicated."""
    ids = set()
    for category in categories:
        convert_integers(category, "id")
        if error := find_id_error(category.get("id"), ids, "category"):
            raise InputError(f"{ann_file}: {error}")


def find_annotation_error(ann, ids, images, categories, num_classes, return_masks):
    """Return an error message for an invalid annotation, or None.

    ids: annotation ids seen so far, updated in place. images: id -> image; categories: ids.
    """
    if error := find_id_error(ann.get("id"), ids, "annotation"):
        return error
    image = images.get(ann.get("image_id")) if type(ann.get("image_id")) is int else None
    if image is None:
        return "no image has this id; add the image, or remove the annotation"
    category = ann.get("category_id")
    if category is None:
        return "has no category_id; add it"
    if type(category) is not int or category not in categories:
        return f"category {abbreviate(category)} is not listed; add it, or correct category_id"
    if category < 0:
        return f"category_id {category} is negative; {RENUMBER}"
    if num_classes is not None and category >= num_classes:
        return (
            f"category_id {category} is not in 0..{num_classes - 1}; renumber the categories, or "
            "train with a larger --num_classes"
        )
    if ann.get("bbox") is None:
        return "has no bbox; add it, or export the file for object detection"
    if not is_box(ann.get("bbox")):
        return (
            f"bbox {abbreviate(ann.get('bbox'))} is not x, y, width, height with finite numbers "
            "and no negative size; correct or remove it"
        )
    if ann.get("area") is not None and not is_number(ann["area"], 0, MAX_AREA):
        return f"area {abbreviate(ann['area'])} is not a number of pixels; correct or remove it"
    if ann.get("iscrowd") not in (None, 0, 1):
        return f"iscrowd {abbreviate(ann['iscrowd'])} is neither 0 nor 1; correct or remove it"
    if return_masks and not ann.get("segmentation"):
        return "has no segmentation; add it, or leave out --masks"
    if return_masks and not is_segmentation(ann["segmentation"], image):
        return (
            "segmentation is neither polygons of at least three points in pixels nor an RLE of "
            "the image's size; correct or remove it"
        )
    return None


def convert_integers(entry, *keys):
    """Convert floats such as 96.0 to integers, in place: some tools write all numbers as floats."""
    for key in keys:
        value = entry.get(key)
        if type(value) is float and value.is_integer():
            entry[key] = int(value)


def find_id_error(value, ids, kind):
    """Return an error message for an invalid or duplicate id, or None. Add a valid id to `ids`."""
    if type(value) is not int or not -(2**63) <= value < 2**63:
        return f"{kind} id {abbreviate(value)} is not a 64-bit integer; {RENUMBER}"
    if value in ids:
        remedy = RENUMBER if kind == "annotation" else f"give each {kind} a unique id"
        return f"duplicate {kind} id {value}; {remedy}"
    ids.add(value)
    return None


def find_size_error(image, is_required):
    sides = [image.get(side) for side in ("width", "height")]
    given = f"width and height {abbreviate(sides)}"
    if is_required and None in sides:
        return "has no width and height, which masks need; add them"
    if any(side is not None and (type(side) is not int or side < 1) for side in sides):
        return f"{given} are not positive integers; correct or remove them"
    if None not in sides and sides[0] * sides[1] > MAX_PIXELS:
        return f"{given} are more than {MAX_PIXELS:,} pixels; correct them, or shrink the image"
    return None


def find_file_name_error(image, files):
    """Return an error message for an image without a path below the image folder, or None.

    If the path does not exist but can only mean one file, set `file_name` to it. files: FileIndex.
    """
    name = image.get("file_name")
    if not isinstance(name, str) or not name or "\0" in name:
        return "has no file_name; add it"
    is_inside = not os.path.isabs(name) and ".." not in Path(name).parts
    if is_inside and name in files:
        return None
    if (path := files.find(name)) is not None:
        image["file_name"] = path
    elif not is_inside:
        return (
            f"file_name {abbreviate(name)} is outside the image folder; give a path relative to it"
        )
    return None


def find_duplicate_error(image, ids_by_name):
    """Return an error message for a file that another image lists, or None.

    ids_by_name: path -> id of the images so far, updated in place.
    """
    name = os.path.normpath(image["file_name"])
    if name in ids_by_name:
        return (
            f"file_name {abbreviate(image['file_name'])} is also that of image "
            f"{ids_by_name[name]}, and each would take the other's objects for background; merge "
            "the two images"
        )
    ids_by_name[name] = image["id"]
    return None


def is_number(value, low, high):
    """Return True for an int or float in low..high, which NaN is not."""
    return type(value) in (int, float) and low <= value <= high


def is_box(box):
    """Return True if box is [x, y, width, height] with non-negative width and height."""
    if not isinstance(box, list) or len(box) != 4:
        return False
    if not all(is_number(value, -MAX_BOX_COORDINATE, MAX_BOX_COORDINATE) for value in box):
        return False
    return box[2] >= 0 and box[3] >= 0


def complete_annotations(data, ann_file):
    """Fill in `info`, and `iscrowd` and `area` (pixels) of annotations; renumber annotation 0.

    Boxes with CVAT's `attributes.rotation` become the upright boxes around the rotated ones.
    Returns a list of messages that describe the changes.
    """
    notes = []
    data.setdefault("info", {})  # COCO.info() needs it
    annotations = data["annotations"]
    images = {image["id"]: image for image in data["images"]}
    num_areas = num_crowds = num_rotated = 0
    # Some tools write 0 for all. COCO's size classes would count every object as small.
    has_areas = any(ann.get("area") for ann in annotations)
    for ann in annotations:
        if ann.get("iscrowd") is None:
            ann["iscrowd"] = 0
            num_crowds += 1
        if "attributes" in ann and (rotation := get_rotation(ann["attributes"])):
            ann["bbox"] = rotate_box(ann["bbox"], rotation)
            num_rotated += 1
        if ann.get("area") is None or not has_areas:
            ann["area"] = compute_area(ann, images[ann["image_id"]])
            num_areas += 1
    if num_areas or num_crowds:
        notes.append(
            f"{ann_file}: filled in area of {num_areas} and iscrowd of {num_crowds} of "
            f"{len(annotations)} annotations"
        )
    if num_rotated:
        notes.append(
            f"{ann_file}: {num_rotated} of {len(annotations)} boxes have attributes.rotation; the "
            "upright boxes around the rotated ones are used"
        )
    if zero := next((ann for ann in annotations if ann["id"] == 0), None):
        zero["id"] = 1 + max(ann["id"] for ann in annotations)
        notes.append(
            f"{ann_file}: renumbered annotation id 0 to {zero['id']}, because pycocotools counts "
            "a match with id 0 as missed"
        )
    return notes


def get_rotation(attributes):
    """Return the rotation of a box in degrees, as CVAT exports it; 0 if there is none."""
    rotation = attributes.get("rotation") if isinstance(attributes, dict) else None
    return rotation if is_number(rotation, -MAX_BOX_COORDINATE, MAX_BOX_COORDINATE) else 0


def rotate_box(box, degrees):
    """Return the upright box around a box x, y, width, height that is rotated about its centre."""
    x, y, width, height = box
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    new_width, new_height = width * cos + height * sin, width * sin + height * cos
    corner = x + (width - new_width) / 2, y + (height - new_height) / 2
    return [round(value, 4) for value in (*corner, new_width, new_height)]


def compute_area(ann, image):
    """Return the area in pixels of an annotation's segmentation, or of its box if it has none."""
    has_size = image.get("height") is not None and image.get("width") is not None
    if ann.get("segmentation") and has_size and is_segmentation(ann["segmentation"], image):
        rle = segmentation_to_rle(ann["segmentation"], image["height"], image["width"])
        return float(coco_mask.area(rle))
    return float(ann["bbox"][2] * ann["bbox"][3])


def abbreviate(value):
    """Return repr(value), truncated to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
