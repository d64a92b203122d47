"""Read and validate COCO annotation files before training. Nothing in them is trusted.

An error stops the program with one line that names the file, the id and the fix; with
--skip_bad_samples the sample is skipped instead.
"""

import contextlib
import io
import json
import os
from pathlib import Path

from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from datasets.segmentations import is_segmentation, segmentation_to_rle
from util.errors import InputError, escape_unprintable
from util.memory import without_garbage_collector

MAX_BOX_COORDINATE = 1e7  # pixels
MAX_AREA = 1e30  # pixels; float32 holds up to 3e38
MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # Pillow refuses larger images


class BadSamples:
    """Collect messages about skipped images and annotations.

    Raise InputError at the first one unless `skip` is set.
    """

    def __init__(self, skip):
        self.skip = skip
        self.messages = []

    def add(self, message):
        """Record a one-line message with file, id and fix; raise it unless `skip` is set."""
        error = InputError(message)
        if not self.skip:
            raise error
        self.messages.append(str(error))

    def report(self):
        """Print the number of skipped samples and the first messages."""
        if self.messages:
            print(f"left out {len(self.messages)} bad images and annotations:")
            for message in self.messages[:5]:
                print(f"  {message}")


def read_coco(img_folder, ann_file, return_masks, num_classes, skip_bad_samples=False):
    """Read and check an annotation file, and fill in missing optional fields.

    img_folder, ann_file: Path; num_classes: exclusive upper bound on category ids, or None;
    skip_bad_samples: skip bad images and annotations, and print how many.

    Returns (data, notes, is_complete): the file's content, messages about fields that were filled
    in, and whether no sample was skipped. Raises InputError at the first error unless
    skip_bad_samples is set.
    """
    if not img_folder.is_dir():
        raise InputError(f"{img_folder}: no such folder; put the images there")
    data = read_annotation_file(ann_file)
    bad_samples = BadSamples(skip_bad_samples)
    listed = {image.get("id") for image in data["images"] if type(image.get("id")) is int}
    data["images"] = select_images(data["images"], img_folder, ann_file, bad_samples, return_masks)
    data["annotations"] = select_annotations(
        data, listed, ann_file, return_masks, num_classes, bad_samples
    )
    bad_samples.report()
    return data, complete_annotations(data, ann_file), not bad_samples.messages


def load_coco(img_folder, ann_file, return_masks, num_classes, skip_bad_samples=False):
    """Load an annotation file into a pycocotools `COCO` object; see `read_coco`."""
    data, notes, _ = read_coco(img_folder, ann_file, return_masks, num_classes, skip_bad_samples)
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
    except (ValueError, RecursionError) as error:  # bad syntax or UTF-8, or nested too deep
        raise InputError(
            f"{ann_file}: invalid JSON ({error}); download or export it again"
        ) from error
    for key in ("images", "annotations", "categories"):
        entries = data.get(key) if isinstance(data, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise InputError(
                f"{ann_file}: '{key}' has to be a list of objects; export it in COCO's format"
            )
    return data


def select_images(images, img_folder, ann_file, bad_samples, needs_size=False):
    """Return the images that have a unique id, a valid size, and a file in the folder."""
    if not images:
        raise InputError(f"{ann_file}: lists no images; add at least one")
    ids, names, files, selected, missing = set(), {}, FileIndex(img_folder), [], []
    for image in images:
        error = (
            find_id_error(image.get("id"), ids, "image")
            or find_size_error(image, needs_size)
            or find_file_name_error(image.get("file_name"))
            or find_duplicate_error(image, names)
        )
        if error:
            bad_samples.add(f"{ann_file}: image {abbreviate(image.get('id'))}: {error}")
            continue
        (selected if image["file_name"] in files else missing).append(image)
    for image in missing:
        bad_samples.add(
            f"{img_folder / image['file_name']}: no such image; {len(missing)} of the "
            f"{len(images)} images in {ann_file} are missing: add them, or remove them from the "
            "annotation file"
        )
    if not selected:
        raise InputError(
            f"{ann_file}: none of its {len(images)} images is usable: {bad_samples.messages[0]}"
        )
    return selected


class FileIndex:
    """Check quickly whether files exist in a folder tree: `relative_path in FileIndex(root)`.

    Each folder is listed once, because a stat per file takes minutes on network drives.
    """

    def __init__(self, root):
        self.root = root
        self.listings = {}

    def __contains__(self, path):
        folder, name = os.path.split(path)
        if folder not in self.listings:
            full = self.root / folder
            self.listings[folder] = set(os.listdir(full)) if full.is_dir() else set()
        return name in self.listings[folder]


def select_annotations(data, listed, ann_file, return_masks, num_classes, bad_samples):
    """Return the valid annotations; see `find_annotation_error`.

    listed: ids of all images in the file; annotations of skipped images are dropped silently.
    """
    check_categories(data["categories"], ann_file)
    images = {image["id"]: image for image in data["images"]}
    skipped = listed - images.keys()
    categories = {category["id"] for category in data["categories"]}
    ids, selected = set(), []
    for ann in data["annotations"]:
        if type(ann.get("image_id")) is int and ann["image_id"] in skipped:
            continue
        if error := find_annotation_error(ann, ids, images, categories, num_classes, return_masks):
            bad_samples.add(
                f"{ann_file}: annotation {abbreviate(ann.get('id'))} of image "
                f"{abbreviate(ann.get('image_id'))}: {error}"
            )
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
    if type(category) is not int or category not in categories:
        return f"category {abbreviate(category)} is not listed; add it, or correct category_id"
    if category < 0 or (num_classes is not None and category >= num_classes):
        valid = "0 or more" if num_classes is None else f"in 0..{num_classes - 1}"
        return (
            f"category_id {category} is not {valid}; renumber the categories, or train with a "
            "larger --num_classes"
        )
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


def find_id_error(value, ids, kind):
    """Return an error message for an invalid or duplicate id, or None. Add a valid id to `ids`."""
    if type(value) is not int or not -(2**63) <= value < 2**63:
        return f"{kind} id {abbreviate(value)} is not a 64-bit integer; renumber the ids"
    if value in ids:
        return f"duplicate {kind} id {value}; renumber the ids"
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


def find_file_name_error(name):
    if not isinstance(name, str):
        return "has no file_name; add it"
    if os.path.isabs(name) or ".." in Path(name).parts or "\0" in name:
        return (
            f"file_name {abbreviate(name)} is outside the image folder; give a path relative to it"
        )
    return None


def find_duplicate_error(image, names):
    """Return an error message for a file that another image lists, or None.

    names: path -> id of the images so far, updated in place.
    """
    name = os.path.normpath(image["file_name"])
    if name in names:
        return (
            f"file_name {abbreviate(image['file_name'])} is also that of image {names[name]}, and "
            "each would take the other's objects for background; merge the two images"
        )
    names[name] = image["id"]
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

    Return a list of messages that describe the changes.
    """
    notes = []
    data.setdefault("info", {})  # COCO.info() needs it
    annotations = data["annotations"]
    images = {image["id"]: image for image in data["images"]}
    num_areas = num_crowds = 0
    # Some tools write 0 for all. COCO's size classes would count every object as small.
    has_areas = any(ann.get("area") for ann in annotations)
    for ann in annotations:
        if ann.get("iscrowd") is None:
            ann["iscrowd"] = 0
            num_crowds += 1
        if ann.get("area") is None or not has_areas:
            ann["area"] = compute_area(ann, images[ann["image_id"]])
            num_areas += 1
    if num_areas or num_crowds:
        notes.append(
            f"{ann_file}: filled in area of {num_areas} and iscrowd of {num_crowds} of "
            f"{len(annotations)} annotations"
        )
    if zero := next((ann for ann in annotations if ann["id"] == 0), None):
        zero["id"] = 1 + max(ann["id"] for ann in annotations)
        notes.append(
            f"{ann_file}: renumbered annotation id 0 to {zero['id']}, because pycocotools counts "
            "a match with id 0 as missed"
        )
    return notes


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
