"""Convert Pascal VOC's XML files, as VOC, LabelImg and Roboflow write them, to COCO files.

Source: the VOC2012 devkit. Its boxes are 1-based inclusive pixel indices: xmin 1, xmax 500 spans an
image 500 pixels wide.
"""

import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

from datasets.annotations import MAX_BOX_COORDINATE
from util.errors import InputError
from util.files import list_files

from .coco_json import CocoWriter, find_images, raise_errors, write_splits

FOLDERS = {"train": "train", "valid": "val", "val": "val", "test": "test"}  # folder -> split


def convert_voc(source: str | Path, out: str | Path) -> dict[str, tuple[Path, Path]]:
    """Convert a Pascal VOC dataset: write one OUT/{split}.json per split.

    source: a folder with one of these layouts:
      Annotations, JPEGImages, and optionally ImageSets/Main/{train,val,test}.txt;
      folders train, valid, test;
      any other folder with XML files and images, treated as one training split.
    Category ids start at 1, in alphabetical order of the class names. Difficult objects become
    crowds, which training and evaluation ignore.

    Returns a dictionary split -> (image folder, annotation file). Raises InputError.
    """
    errors, parsed = [], {}
    for name, (root, paths) in find_splits(Path(source)).items():
        parsed[name] = root, [file for path in paths if (file := parse_xml(path, errors))]
    raise_errors(errors)
    names = {
        class_name
        for _, files in parsed.values()
        for _, _, objects in files
        for class_name, _, _ in objects
    }
    classes = dict(enumerate(sorted(names), 1))
    ids = {class_name: class_id for class_id, class_name in classes.items()}
    writers = {}
    for name, (root, files) in parsed.items():
        writer = writers[name] = CocoWriter(classes, root)
        finder, xml_by_image = ImageFinder(find_images(root)), {}
        for xml, filename, objects in files:
            image = finder.find(xml, filename, writer.errors)
            if image is None:
                continue
            if image in xml_by_image:
                writer.errors.append(
                    f"{xml}: its image {image} has {xml_by_image[image]} already; remove one"
                )
                continue
            xml_by_image[image] = xml
            if (added := writer.add_image(image)) is None:
                continue
            for class_name, (left, top, right, bottom), is_difficult in objects:
                box = left - 1, top - 1, right - left + 1, bottom - top + 1
                writer.add_annotation(added[0], ids[class_name], box, iscrowd=int(is_difficult))
    return write_splits(writers, out)


class ImageFinder:
    """Find the image of an XML file. paths: all image paths."""

    def __init__(self, paths):
        self.by_name, self.by_stem = defaultdict(list), defaultdict(list)
        for path in paths:
            self.by_name[path.name].append(path)
            self.by_stem[path.stem].append(path)

    def find(self, xml, filename, errors):
        """Return the path of an XML file's image; None, and add an error, if it is not clear.

        Match by the XML file's stem first, then by its `filename`, ignoring the suffix: `filename`
        is stale if both files were renamed. If several match, prefer one in the XML file's folder,
        then one in a folder of the same name: annotations/a/1.xml, images/a/1.jpg.
        """
        stem = Path(filename).stem
        images = self.by_stem[xml.stem] or self.by_name[filename] or self.by_stem[stem]
        if not images:
            errors.append(f"{xml}: its image {filename} is missing; add it")
            return None
        for is_preferred in (
            lambda path: path.parent == xml.parent,
            lambda path: path.parent.name == xml.parent.name,
            lambda path: path.name == filename,
        ):
            images = list(filter(is_preferred, images)) or images
        if len(images) > 1:
            errors.append(f"{xml}: its image may be {images[0]} or {images[1]}; rename one of them")
            return None
        return images[0]


def find_splits(source):
    """Return a dictionary split -> (image folder, paths of its XML files)."""
    lists = source / "ImageSets" / "Main"
    splits = {}
    if (source / "Annotations").is_dir() and (source / "JPEGImages").is_dir():
        for name in ("train", "val", "test"):
            if (lists / f"{name}.txt").is_file():
                lines = map(str.strip, (lists / f"{name}.txt").read_text().splitlines())
                paths = [source / "Annotations" / f"{stem}.xml" for stem in lines if stem]
                splits[name] = source / "JPEGImages", paths
        if not splits:  # CVAT calls its only list default.txt
            splits["train"] = source / "JPEGImages", find_xml_files(source / "Annotations")
    else:
        for folder, name in FOLDERS.items():
            if (source / folder).is_dir():
                if name in splits:
                    raise InputError(f"{source}: has folders val and valid; remove one of them")
                splits[name] = source / folder, find_xml_files(source / folder)
        splits = splits or {"train": (source, find_xml_files(source))}
    splits = {name: (root, paths) for name, (root, paths) in splits.items() if paths}
    if not splits:
        raise InputError(f"{source}: has no XML files; give the folder that has them")
    return splits


def find_xml_files(folder):
    return [path for path in list_files(folder) if path.suffix == ".xml"]


def parse_xml(path, errors):
    """Return (path, image name, [(class name, (xmin, ymin, xmax, ymax), is difficult)]).

    Append a message to `errors` for each invalid object; return None if the file cannot be parsed.
    """
    try:
        root = ET.parse(path).getroot()
    except OSError as error:
        errors.append(f"{path}: cannot be read ({error.strerror}); add it, or correct the list")
        return None
    except ET.ParseError as error:
        errors.append(f"{path}: invalid XML ({error}); export it again")
        return None
    objects = []
    for number, element in enumerate(root.iter("object"), 1):
        name, box = (element.findtext("name") or "").strip(), element.find("bndbox")
        try:
            corners = [float(box.findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax")]
        except (AttributeError, TypeError, ValueError):
            corners = None
        place = f"{path}, object {number}"
        if not name:
            errors.append(f"{place}: has no name; add it")
        elif corners is None:
            errors.append(f"{place}: has no bndbox with four numbers; correct it")
        elif not all(
            -MAX_BOX_COORDINATE < low <= high < MAX_BOX_COORDINATE
            for low, high in (corners[::2], corners[1::2])
        ):
            errors.append(f"{place}: its bndbox is reversed or far outside the image; correct it")
        else:
            objects.append((name, corners, element.findtext("difficult") == "1"))
    return path, Path((root.findtext("filename") or path.stem).strip()).name, objects
