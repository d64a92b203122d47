"""Convert YOLO datasets (Ultralytics, Roboflow, LabelImg) to COCO files.

Label files have one line per object: class index, then cx, cy, w, h of the box or the corners of a
polygon, relative to the image's width and height.
"""

import os
from pathlib import Path

from util.errors import InputError

from .coco_json import CocoWriter, find_images, write_splits

SPLITS = ("train", "val", "test")
TOLERANCE = 1e-3  # allowed excess outside 0..1, caused by rounding in label files


def convert_yolo(source: str | Path, out: str | Path) -> dict[str, tuple[Path, Path]]:
    """Convert a YOLO dataset: write OUT/train.json and so on, a file for each split.

    source: a data.yaml, its folder, or a LabelImg folder with images, labels and classes.txt (one
    training split).

    Returns a dictionary split -> (image folder, annotation file). Raises InputError.
    """
    source = Path(source)
    if source.is_dir() and (source / "data.yaml").is_file():
        source = source / "data.yaml"
    classes, splits = read_labelimg(source) if source.is_dir() else read_data_yaml(source)
    writers = {}
    for name, paths in splits.items():
        # file_name in a COCO file is relative to one folder and must not contain `..`.
        paths = [Path(os.path.abspath(path)) for path in paths]
        root = Path(os.path.commonpath([path.parent for path in paths]))
        writers[name] = CocoWriter(classes, root)
        for path in paths:
            add_image(writers[name], path, classes)
    return write_splits(writers, out)


def read_labelimg(folder):
    """Read a LabelImg folder. Return the classes {index: name} and one split of all images."""
    path = folder / "classes.txt"
    if not path.is_file():
        raise InputError(f"{folder}: has neither data.yaml nor classes.txt; add one of them")
    names = [line.strip() for line in read_lines(path)]
    classes = {index: name for index, name in enumerate(names) if name}
    return classes, {"train": find_images(folder)}


def read_lines(path):
    """Return the lines of a text file. Raises InputError if it cannot be read as UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()  # Windows editors write a BOM
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 ({error}); save it as UTF-8") from error


def read_data_yaml(path):
    """Read a data.yaml. Returns the classes, index -> name, and the image paths of each split."""
    try:
        import yaml
    except ImportError as error:
        raise InputError(f"{path}: needs the package pyyaml: pip install pyyaml") from error
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        message = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read ({message}); correct it") from error
    if isinstance(data, dict) and data.get("kpt_shape"):
        raise InputError(f"{path}: has kpt_shape: export boxes or polygons instead of keypoints")
    names = data.get("names") if isinstance(data, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or any(type(i) is not int for i in names):
        raise InputError(f"{path}: names is not a list of class names; add them")
    splits = {}
    for split in SPLITS:
        entries = data.get(split) or []
        entries = entries if isinstance(entries, list) else [entries]
        paths = {entry: resolve_entry(entry, data, path) for entry in entries}
        missing = [entry for entry, found in paths.items() if found is None]
        if missing and split == "test":  # exporters list a test set even if there is none
            print(f"{path}: {missing[0]} is not a folder or list of images: skipping the test set")
        elif missing:
            raise InputError(f"{path}: {missing[0]} is not a folder or list of images; correct it")
        elif images := [image for found in paths.values() for image in list_images(found)]:
            splits[split] = images
    if not splits:
        raise InputError(f"{path}: has no images for train, val or test; add them")
    return {index: str(name) for index, name in names.items()}, splits


def resolve_entry(entry, data, yaml_path):
    """Return the folder or text file of an entry of data.yaml, or None if there is none."""
    root = yaml_path.parent / str(data.get("path") or "")
    # Roboflow writes `../train/images` for a folder beside data.yaml.
    paths = root / entry, root / str(entry).removeprefix("../"), yaml_path.parent / entry
    return next((path for path in paths if path.exists()), None)


def list_images(path):
    """Return the images of a folder, or the paths in a text file."""
    if path.is_dir():
        return find_images(path)
    lines = map(str.strip, read_lines(path))
    return [path.parent / line for line in lines if line]


def get_label_path(image):
    """Return the label file of an image: in `labels` instead of `images`, or beside the image."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index("images")
        path = Path(*parts[:last], "labels", *parts[last + 1 :]).with_suffix(".txt")
        if path.is_file():
            return path
    return image.with_suffix(".txt")


def add_image(writer, path, classes):
    """Add an image and its objects to a CocoWriter. Without a label file it has no objects."""
    added = writer.add_image(path)
    labels = get_label_path(path)
    if added is None or not labels.is_file():
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
