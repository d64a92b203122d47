"""YOLO folders as COCO annotation files: of Ultralytics and Roboflow (data.yaml), and of LabelImg.

A label file has a line for each object: the class's number, then the box's centre and size, or the
corners of a polygon, as parts of the image's width and height.
"""

import os
from pathlib import Path

from util.errors import InputError

from .coco_json import CocoJson, images_below, write_sets

SETS = ("train", "val", "test")
TOLERANCE = 1e-3  # by which a box may leave the image, as rounding in files does


def convert_yolo(source, out):
    """Writes OUT/train.json and so on, for each set of images that source has.

    source: a data.yaml, or the folder of one, or a folder of LabelImg with images, labels and
    classes.txt, which is one set; out: folder.

    Returns a dictionary set -> (folder of the images, annotation file). Raises InputError.
    """
    source = Path(source)
    if source.is_dir() and (source / "data.yaml").is_file():
        source = source / "data.yaml"
    if source.is_dir():
        classes, sets = read_labelimg(source)
    else:
        classes, sets = read_data_yaml(source)
    files = {name: CocoJson(classes) for name in sets}
    # Names in a COCO file are below one folder, and without `..`.
    sets = {name: [Path(os.path.abspath(path)) for path in paths] for name, paths in sets.items()}
    roots = {name: Path(os.path.commonpath([p.parent for p in sets[name]])) for name in sets}
    for name, paths in sets.items():
        for path in paths:
            add_image(files[name], path, roots[name], classes)
    written = write_sets(files, out)
    return {name: (roots[name], path) for name, path in written.items()}


def read_labelimg(folder):
    """The classes (number -> name), and one set with all images, of a folder with classes.txt."""
    path = folder / "classes.txt"
    if not path.is_file():
        raise InputError(f"{folder}: has no data.yaml and no classes.txt; add the one that it has")
    names = [line.strip() for line in read_lines(path)]
    classes = {number: name for number, name in enumerate(names) if name}
    return classes, {"train": images_below(folder)}


def read_lines(path):
    """The lines of a text file. Raises InputError where it is not UTF-8 or cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()  # Windows marks UTF-8 so
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 ({error}); save it as UTF-8") from error


def read_data_yaml(path):
    """The classes (number -> name), and the paths of the images of each set."""
    try:
        import yaml
    except ImportError as error:
        raise InputError(f"{path}: needs the package pyyaml: pip install pyyaml") from error
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if isinstance(data, dict) and data.get("kpt_shape"):
        raise InputError(f"{path}: has kpt_shape: export boxes or polygons instead of keypoints")
    names = data.get("names") if isinstance(data, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or any(type(i) is not int for i in names):
        raise InputError(f"{path}: names is no list of the classes; add it")
    sets = {}
    for name in SETS:
        entries = data.get(name) or []
        entries = entries if isinstance(entries, list) else [entries]
        places = {entry: find_place(entry, data, path) for entry in entries}
        missing = [entry for entry, place in places.items() if place is None]
        if missing and name == "test":  # tools name it where there is none
            print(f"{path}: {missing[0]} is no folder or list of images: no test set is written")
        elif missing:
            raise InputError(f"{path}: {missing[0]} is no folder or list of images; correct it")
        elif paths := [image for place in places.values() for image in images_of(place)]:
            sets[name] = paths
    if not sets:
        raise InputError(f"{path}: names no images as train, val or test; add them")
    return {number: str(name) for number, name in names.items()}, sets


def find_place(entry, data, yaml_path):
    """The folder or text file that an entry of data.yaml stands for, or None."""
    root = yaml_path.parent / str(data.get("path") or "")
    # Roboflow writes `../train/images` for a folder beside data.yaml.
    places = root / entry, root / str(entry).removeprefix("../"), yaml_path.parent / entry
    return next((place for place in places if place.exists()), None)


def images_of(place):
    """The images of a folder, or of a text file with their paths."""
    if place.is_dir():
        return images_below(place)
    lines = map(str.strip, read_lines(place))
    return [place.parent / line for line in lines if line]


def label_file(image):
    """The label file of an image: in `labels` where it is in `images`, or beside it."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index("images")
        path = Path(*parts[:last], "labels", *parts[last + 1 :]).with_suffix(".txt")
        if path.is_file():
            return path
    return image.with_suffix(".txt")


def add_image(file, path, root, classes):
    """Adds an image and its objects to a CocoJson. One without a label file has no objects."""
    added = file.add_image(path, root)
    labels = label_file(path)
    if added is None or not labels.is_file():
        return
    image_id, width, height = added
    try:
        lines = read_lines(labels)
    except InputError as error:
        file.faults.append(str(error))
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found = parse_line(line, classes)
        if isinstance(found, str):
            file.faults.append(f"{labels}, line {number}: {found}")
            continue
        class_id, sides = found
        if len(sides) == 4:
            cx, cy, w, h = sides
            box = (cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height
            file.add(image_id, class_id, box)
        else:
            xs, ys = [x * width for x in sides[::2]], [y * height for y in sides[1::2]]
            box = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
            file.add(image_id, class_id, box, [side for pair in zip(xs, ys) for side in pair])


def parse_line(line, classes):
    """(class's number, numbers) of a line of a label file, or what is wrong with it."""
    words = line.split()
    try:
        class_id, *sides = map(float, words)
    except ValueError:
        return "holds something else than numbers; correct or remove it"
    if class_id not in classes:
        return f"class {words[0]} is not in the list of names; add it, or correct the line"
    if len(sides) != 4 and (len(sides) < 6 or len(sides) % 2):
        return f"has {len(sides)} numbers after the class instead of 4 or those of a polygon"
    if not all(-TOLERANCE <= side <= 1 + TOLERANCE for side in sides):  # NaN is not, either
        return "has numbers outside 0..1; give parts of the image's width and height"
    return int(class_id), sides
