"""Convert YOLO datasets (Ultralytics, Roboflow, LabelImg, CVAT) to COCO files.

Label files have one line per object: class index, then cx, cy, w, h of the box or the corners of a
polygon, relative to the image's width and height.
"""

import os
from pathlib import Path

from util.errors import InputError, print_escaped

from .coco_json import CocoWriter, find_images, read_lines, read_text, write_splits
from .yolo_labels import LabelFinder

SPLITS = ("train", "val", "test")
NULLS = ("", "~", "null", "Null", "NULL")  # YAML's, which BaseLoader leaves as text
TOLERANCE = 1e-3  # allowed excess outside 0..1, caused by rounding in label files


def convert_yolo(source: str | Path, out: str | Path) -> dict[str, tuple[Path, Path]]:
    """Convert a YOLO dataset: write OUT/train.json and so on, a file for each split.

    source: a data.yaml (Ultralytics, Roboflow), an obj.data (CVAT's "YOLO 1.1"), the folder of one
    of them, or a LabelImg folder with images, labels and classes.txt (one training split).

    Returns a dictionary split -> (image folder, annotation file). Raises InputError.
    """
    classes, splits = read_source(Path(source))
    finder, writers = LabelFinder(), {}
    for name, pairs in splits.items():
        images = [image for _, image in pairs]
        folders = dict.fromkeys(image.parent for image in images)
        # file_name in a COCO file is relative to one folder and must not contain `..`.
        root = Path(os.path.commonpath(folders))
        writers[name] = CocoWriter(classes, root, "label file", finder.list_label_folders(folders))
        for image in images:
            add_image(writers[name], image, finder.find(image), classes)
    orphans, count = finder.find_orphans([pair for pairs in splits.values() for pair in pairs])
    if orphans:
        next(iter(writers.values())).errors.append(  # the last one may be skipped
            f"{len(orphans)} of {count} label files belong to no image, the first: {orphans[0]}; "
            "give each the name of its image, add the images, or remove the label files"
        )
    return write_splits(writers, out)


def read_source(source):
    """Read a dataset. Return its classes {index: name}, and split -> result of `list_images`."""
    if not source.is_dir():
        return read_obj_data(source) if source.suffix == ".data" else read_data_yaml(source)
    if (source / "data.yaml").is_file():
        return read_data_yaml(source / "data.yaml")
    if (source / "obj.data").is_file():
        return read_obj_data(source / "obj.data")
    if (source / "classes.txt").is_file():
        return read_classes(source / "classes.txt"), {"train": list_images(source)}
    raise InputError(f"{source}: has no data.yaml, obj.data or classes.txt; add one of them")


def read_classes(path):
    names = [line.strip() for line in read_lines(path)]
    return {index: name for index, name in enumerate(names) if name}


def read_obj_data(path):
    """Read an obj.data, whose lines are `names = data/obj.names`, `train = data/train.txt`, …"""
    pairs = (line.partition("=") for line in read_lines(path))
    entries = {key.strip(): value.strip() for key, _, value in pairs}
    paths = {
        key: resolve_entry(entries[key], path.parent, path.parent.parent)
        for key in ("names", "train", "valid")
        if entries.get(key)
    }
    for key, found in paths.items():
        if found is None:
            raise InputError(f"{path}: {key}, {entries[key]}, is missing; add it")
    if "names" not in paths or len(paths) == 1:
        raise InputError(f"{path}: has no names, or neither train nor valid; add them")
    classes = read_classes(paths.pop("names"))
    images = {key.replace("valid", "val"): list_images(found) for key, found in paths.items()}
    return classes, images


def read_data_yaml(path):
    """Read a data.yaml. Returns the same as `read_source`."""
    try:
        import yaml
    except ImportError as error:
        raise InputError(f"{path}: needs the package pyyaml: pip install pyyaml") from error
    try:
        # Leaves all values as text: class names may be `no`, `on`, `0123` or `1.0`.
        data = yaml.load(read_text(path), yaml.BaseLoader)
    except yaml.YAMLError as error:
        message = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read ({message}); correct it") from error
    data = data if isinstance(data, dict) else {}
    if data.get("kpt_shape", "null") not in NULLS:
        raise InputError(f"{path}: has kpt_shape: export boxes or polygons instead of keypoints")
    names = data.get("names")
    if isinstance(names, list):
        names = {str(index): name for index, name in enumerate(names)}
    if not isinstance(names, dict) or not names or not all(map(is_class, names.items())):
        raise InputError(f"{path}: names is not a list of class names; add them")
    roots = path.parent / str(get_value(data, "path")), path.parent
    splits = {}
    for split in SPLITS:
        entries = get_value(data, split) or []
        entries = entries if isinstance(entries, list) else [entries]
        paths = {entry: resolve_entry(entry, *roots) for entry in entries}
        missing = [entry for entry, found in paths.items() if found is None]
        if missing and split == "test":  # exporters list a test set even if there is none
            print_escaped(
                f"{path}: {missing[0]} is not a folder or list of images: skipping the test set"
            )
        elif missing:
            raise InputError(f"{path}: {missing[0]} is not a folder or list of images; correct it")
        elif images := [pair for found in paths.values() for pair in list_images(found)]:
            splits[split] = images
    if not splits:
        raise InputError(f"{path}: has no images for train, val or test; add them")
    return {int(index): name for index, name in names.items()}, splits


def is_class(item):
    """Return True if an item of `names` is a class index, which YAML has as text, and a name."""
    index, name = item
    return index.isdecimal() and isinstance(name, str)


def get_value(data, key):
    """Return a value of data.yaml, or "" if it is missing or null."""
    return "" if data.get(key, "") in NULLS else data[key]


def resolve_entry(entry, *folders):
    """Return the path of an entry that is relative to one of the folders; None if none exists.

    Roboflow begins with `../`, and CVAT with `data/`, for what is in the dataset's own folder.
    """
    entries = entry, entry.removeprefix("../"), entry.removeprefix("data/")
    paths = [folder / each for folder in folders for each in entries]
    return next((Path(os.path.abspath(path)) for path in paths if path.exists()), None)


def list_images(path):
    """Return pairs (folder, image) of a folder, or of the images that a text file lists.

    All paths are absolute. Raises InputError if a listed image is missing.
    """
    if path.is_dir():
        folder = Path(os.path.abspath(path))
        return [(folder, image) for image in find_images(folder)]
    lines = [line.strip() for line in read_lines(path) if line.strip()]
    images = [resolve_entry(line, path.parent) for line in lines]
    if None in images:
        raise InputError(
            f"{path}: {images.count(None)} of {len(images)} images are missing, the first: "
            f"{lines[images.index(None)]}; add them (in CVAT, export with 'Save images')"
        )
    return [(image.parent, image) for image in images]


def add_image(writer, path, labels, classes):
    """Add an image and the objects of its label file, which may be None, to a CocoWriter."""
    if (added := writer.add_image(path)) is None:
        return
    if labels is None:
        writer.unlabelled.append(path)
        return
    image_id, width, height = added
    try:
        lines = read_lines(labels)
    except InputError as error:
        writer.errors.append(str(error))
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parsed = parse_line(line, classes)
        if isinstance(parsed, str):
            writer.errors.append(f"{labels}, line {number}: {parsed}")
            continue
        class_id, values = parsed
        if len(values) == 4:
            cx, cy, w, h = values
            box = (cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height
            writer.add_annotation(image_id, class_id, box)
        else:
            xs, ys = [x * width for x in values[::2]], [y * height for y in values[1::2]]
            box = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
            polygon = [value for point in zip(xs, ys) for value in point]
            writer.add_annotation(image_id, class_id, box, polygon)


def parse_line(line, classes):
    """Return (class index, coordinates) of a line of a label file, or an error message."""
    words = line.split()
    try:
        class_id, *values = map(float, words)
    except ValueError:
        return "has something else than numbers; correct or remove it"
    if class_id not in classes:
        return f"class {words[0]} is not in the list of names; add it, or correct the line"
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        return (
            f"has {len(values)} numbers after the class; give 4 for a box, or an even number of 6 "
            "or more for a polygon"
        )
    if not all(-TOLERANCE <= value <= 1 + TOLERANCE for value in values):  # rejects NaN, too
        return "has numbers outside 0..1; divide them by the image's width and height"
    return int(class_id), values
