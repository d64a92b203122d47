"""Pascal VOC's XML files as COCO annotation files: of VOC itself, of LabelImg and of Roboflow.

Source: the VOC2012 devkit. Its boxes are of whole pixels and count from 1, so that the box
xmin 1, xmax 500 is the width of an image of 500 pixels.
"""

import xml.etree.ElementTree as ET
from pathlib import Path

from datasets.annotations import MAX_BOX_COORDINATE
from util.errors import InputError

from .coco_json import CocoJson, images_below, raise_faults

FOLDERS = {"train": "train", "valid": "val", "val": "val", "test": "test"}  # folder -> set


def convert_voc(source, out):
    """Writes OUT/train.json and so on, for each set of images that source has.

    source: a VOC folder with Annotations, JPEGImages and ImageSets/Main/train.txt and so on; or one
    with folders train, valid, test; or any with XML files and images, which is one set.
    Classes are numbered from 1, by name. Objects that are difficult become crowds: neither training
    nor evaluation counts them.

    Returns a dictionary set -> (folder of the images, annotation file). Raises InputError.
    """
    source = Path(source)
    sets = find_sets(source)
    faults, parsed = [], {}
    for name, (root, paths) in sets.items():
        parsed[name] = root, [one for path in paths if (one := parse(path, faults))]
    raise_faults(faults)
    names = {
        name for _, files in parsed.values() for _, _, objects in files for name, _, _ in objects
    }
    ids = {name: number for number, name in enumerate(sorted(names), 1)}
    classes = {number: name for name, number in ids.items()}
    files = {}
    for name, (root, annotations) in parsed.items():
        file = files[name] = CocoJson(classes)
        images = images_below(root)
        by_name = {path.name: path for path in images}
        by_stem = {path.stem: path for path in images}
        for xml, filename, objects in annotations:
            # The name in the file may have another suffix, or be the one before an upload.
            image = by_name.get(filename) or by_stem.get(Path(filename).stem)
            image = image or by_stem.get(xml.stem)
            if image is None:
                file.faults.append(f"{xml}: its image {filename} is missing; add it")
                continue
            if (added := file.add_image(image, root)) is None:
                continue
            for class_name, (left, top, right, bottom), difficult in objects:
                box = left - 1, top - 1, right - left + 1, bottom - top + 1
                file.add(added[0], ids[class_name], box, iscrowd=difficult)
    raise_faults([fault for file in files.values() for fault in file.faults])
    for name, file in files.items():
        file.write(out / f"{name}.json")
    return {name: (parsed[name][0], out / f"{name}.json") for name in files}


def find_sets(source):
    """Set -> (folder of the images, paths of its XML files)."""
    lists = source / "ImageSets" / "Main"
    sets = {}
    if (source / "Annotations").is_dir() and lists.is_dir():
        for name in ("train", "val", "test"):
            if (lists / f"{name}.txt").is_file():
                stems = (lists / f"{name}.txt").read_text().split()
                paths = [source / "Annotations" / f"{stem}.xml" for stem in stems]
                sets[name] = source / "JPEGImages", paths
    else:
        for folder, name in FOLDERS.items():
            if (source / folder).is_dir():
                sets[name] = source / folder, sorted((source / folder).rglob("*.xml"))
        sets = sets or {"train": (source, sorted(source.rglob("*.xml")))}
    sets = {name: both for name, both in sets.items() if both[1]}
    if not sets:
        raise InputError(f"{source}: has no XML files; give the folder that has them")
    return sets


def parse(path, faults):
    """(path, name of the image, [(class, (xmin, ymin, xmax, ymax), whether it is difficult)]).

    None, with one line more in faults, for a file that cannot be used.
    """
    try:
        root = ET.parse(path).getroot()
    except (OSError, ET.ParseError) as error:
        faults.append(f"{path}: cannot be read as XML ({error}); export it again")
        return None
    objects = []
    for number, element in enumerate(root.iter("object"), 1):
        name, box = (element.findtext("name") or "").strip(), element.find("bndbox")
        try:
            sides = [float(box.findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax")]
        except (AttributeError, TypeError, ValueError):
            sides = None
        if not name:
            faults.append(f"{path}, object {number}: has no name; add it")
        elif sides is None or not all(
            -MAX_BOX_COORDINATE < low <= high < MAX_BOX_COORDINATE
            for low, high in (sides[::2], sides[1::2])
        ):
            faults.append(f"{path}, object {number}: has no bndbox with four numbers; correct it")
        else:
            objects.append((name, sides, int(element.findtext("difficult") == "1")))
    return path, Path((root.findtext("filename") or path.stem).strip()).name, objects
