"""Write COCO annotation files; find and read the files of a dataset."""

import codecs
import contextlib
import json
import re
from collections import Counter
from pathlib import Path

from datasets.images import IMAGE_SUFFIXES, read_header
from util.errors import InputError, print_escaped
from util.files import atomic_write, find_files, make_folder


class CocoWriter:
    """Collect the images and annotations of one COCO file, and any errors.

    classes: dictionary category id -> name; root: image folder that file names are relative to;
    label_name: what has an image's objects, such as "label file"; label_folders: where it would be.
    Attributes: errors, messages with file and line; unlabelled, paths of images without label file.
    """

    def __init__(self, classes, root, label_name, label_folders):
        self.root = root
        self.label_name, self.label_folders = label_name, label_folders
        self.images, self.annotations, self.errors, self.unlabelled = [], [], [], []
        self.categories = [{"id": i, "name": name} for i, name in sorted(classes.items())]

    def add_image(self, path):
        """Add an image. Returns (id, width, height), or None if it cannot be read."""
        try:
            # In YOLO and VOC, boxes refer to the image after its EXIF orientation is applied.
            width, height = read_header(path, remedy="remove it").get_size(is_upright=True)
        except InputError as error:
            self.errors.append(str(error))
            return None
        image_id = len(self.images) + 1
        name = path.relative_to(self.root).as_posix()
        self.images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        return image_id, width, height

    def add_annotation(self, image_id, category_id, box, polygon=None, iscrowd=0):
        """Add an object. box: x, y, width, height; polygon: x, y, x, y, …; in pixels."""
        area = box[2] * box[3] if polygon is None else compute_polygon_area(polygon)
        self.annotations.append(
            {
                "id": len(self.annotations) + 1,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": [round(value, 3) for value in box],
                "area": round(area, 3),
                "iscrowd": iscrowd,
                "segmentation": [] if polygon is None else [[round(v, 3) for v in polygon]],
            }
        )

    @property
    def is_unlabelled(self):
        return bool(self.unlabelled) and len(self.unlabelled) == len(self.images)

    def check(self):
        """Add an error if no image has a label file, or if all objects are crowds."""
        if self.is_unlabelled:
            folders = ", ".join(map(str, self.label_folders))
            self.errors.append(
                f"{self.root}: no {self.label_name} for any of its {len(self.images)} images "
                f"(looked in {folders}); add them, also for images without objects"
            )
        if self.annotations and all(ann["iscrowd"] for ann in self.annotations):
            self.errors.append(
                f"{self.root}: all {len(self.annotations)} objects are difficult, and difficult "
                "ones are not trained on; set difficult to 0"
            )

    def write(self, path):
        data = {"images": self.images, "annotations": self.annotations}
        write_json(path, {**data, "categories": self.categories})
        print_escaped(
            f"{path}: {len(self.images)} images, {len(self.annotations)} boxes, "
            f"{len(self.categories)} classes"
        )
        if self.unlabelled:
            print_escaped(
                f"{path}: {len(self.unlabelled)} of {len(self.images)} images have no "
                f"{self.label_name}: taken as images without objects; the first: "
                f"{self.unlabelled[0]}"
            )
        self.print_crowds(path)

    def print_crowds(self, path):
        totals = Counter(ann["category_id"] for ann in self.annotations)
        crowds = Counter(ann["category_id"] for ann in self.annotations if ann["iscrowd"])
        if crowds:
            names = [c["name"] for c in self.categories if 0 < totals[c["id"]] == crowds[c["id"]]]
            among = f", among them all of {', '.join(names)}" if names else ""
            print_escaped(
                f"{path}: {crowds.total()} of {totals.total()} objects are difficult{among}: "
                "they become crowds, which are not trained on"
            )


def write_splits(writers, out):
    """Write OUT/{split}.json for each split. Return {split: (image folder, path)}.

    writers: split -> CocoWriter; out: folder. Leaves out a test set without labels, as competitions
    publish it. Raises InputError, before anything is written, if a writer has errors or a file
    exists.
    """
    if len(writers) > 1 and "test" in writers and writers["test"].is_unlabelled:
        test = writers["test"]
        print_escaped(f"{test.root}: no {test.label_name} for any image: skipping the test set")
        writers = {name: writer for name, writer in writers.items() if name != "test"}
    for writer in writers.values():
        writer.check()
    raise_errors([error for writer in writers.values() for error in writer.errors])
    paths = {name: Path(out) / f"{name}.json" for name in writers}
    check_not_existing(paths.values())
    for name, writer in writers.items():
        writer.write(paths[name])
    return {name: (writer.root, paths[name]) for name, writer in writers.items()}


def write_json(path, data):
    """Write a JSON file atomically, and its folder if it is missing."""
    make_folder(path.parent)
    with atomic_write(path) as file:
        file.write(json.dumps(data).encode())


def check_not_existing(paths):
    """Raise InputError if a file exists already."""
    for path in paths:
        if path.exists():
            raise InputError(f"{path}: exists already; remove it first")


def raise_errors(errors):
    """Raise one InputError for all errors, if there are any."""
    if errors:
        more = f"; and {len(errors) - 5} more" if len(errors) > 5 else ""
        raise InputError("; ".join(errors[:5]) + more)


def compute_polygon_area(polygon):
    """Compute the area of a polygon x, y, x, y, … by the shoelace formula."""
    xs, ys = polygon[::2], polygon[1::2]
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2


def find_images(folder):
    """Return the sorted paths of all images below a folder; raise InputError if there are none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the one with the images")
    if not (paths := find_files(folder, IMAGE_SUFFIXES)):
        raise InputError(f"{folder}: has no images; give the folder with the images")
    return paths


def find_subfolders(folder, *names):
    """Return the subfolders of a folder that have one of these names in any case.

    Sorted by the order of `names`; the exact name comes first.
    """
    lower = [name.lower() for name in names]
    paths = [path for path in folder.iterdir() if path.name.lower() in lower and path.is_dir()]
    paths.sort(key=lambda path: (lower.index(path.name.lower()), path.name not in names, path.name))
    return paths


def decode(content, path, declared="utf-8"):
    """Decode bytes as their byte order mark says, as UTF-8, as declared, or else as GB18030.

    GB18030 includes GBK and GB2312, in which Windows in Chinese saves text. path: for messages;
    declared: name of an encoding, which may be unknown. Returns (text, encoding). Raises InputError
    if none of them fits.
    """
    is_utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ["utf-16"] if is_utf_16 else ["utf-8-sig", declared, "gb18030"]:
        with contextlib.suppress(UnicodeError, LookupError):
            return content.decode(encoding), encoding
    raise InputError(
        f"{path}: is neither UTF-8 nor GB18030 (GBK); convert it with "
        "iconv -f ITS_ENCODING -t utf-8"
    )


def describe_guess(path, text):
    """Return a line that says how a file was decoded, with an example to check."""
    example = re.search(r"\w*[^\x00-\x7f]\w*", text)[0][:20]
    return (
        f"{path}: is not UTF-8: read as GB18030 (GBK), with {example!r}; if that is wrong, save it "
        "as UTF-8"
    )


def read_lines(path):
    """Return the lines of a text file; print if its encoding is a guess. Raises InputError."""
    return read_text(path).splitlines()


def read_text(path):
    """Return the content of a text file; print if its encoding is a guess. Raises InputError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); add or correct it") from error
    text, encoding = decode(content, path)
    if encoding == "gb18030":
        print_escaped(describe_guess(path, text))
    return text
