"""Pascal VOC's XML files as COCO annotation files: of VOC itself, of LabelImg and of Roboflow.

Source: the VOC2012 devkit. Its boxes are of whole pixels and count from 1, so that the box
xmin 1, xmax 500 is the width of an image of 500 pixels.
"""

import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

from datasets.annotations import MAX_BOX_COORDINATE
from util.errors import InputError
from util.files import files_below

from .coco_json import CocoJson, images_below, raise_faults, write_sets

FOLDERS = {"train": "train", "valid": "val", "val": "val", "test": "test"}  # folder -> set


def convert_voc(source, out):
    """Writes OUT/train.json and so on, for each set of images that source has.

    source: a VOC folder with Annotations, JPEGImages and ImageSets/Main/train.txt and so on, or
    without these lists, which is one set; or one with folders train, valid, test; or any with XML
    files and images, which is one set.
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
        images, used = Images(images_below(root)), {}
        for xml, filename, objects in annotations:
            image = images.find(xml, filename, file.faults)
            if image is None:
                continue
            if image in used:
                file.faults.append(
                    f"{xml}: its image {image} has {used[image]} already; remove one"
                )
                continue
            used[image] = xml
            if (added := file.add_image(image, root)) is None:
                continue
            for class_name, (left, top, right, bottom), difficult in objects:
                box = left - 1, top - 1, right - left + 1, bottom - top + 1
                file.add(added[0], ids[class_name], box, iscrowd=difficult)
    written = write_sets(files, out)
    return {name: (parsed[name][0], path) for name, path in written.items()}


class Images:
    """The images of a data set, to be found by what their XML files say.

    paths: of the images.
    """

    def __init__(self, paths):
        self.by_name, self.by_stem = defaultdict(list), defaultdict(list)
        for path in paths:
            self.by_name[path.name].append(path)
            self.by_stem[path.stem].append(path)

    def find(self, xml, filename, faults):
        """The path of an XML file's image; None, with one line more in faults, if it is not clear.

        It is called like the XML file, or else as that says (filename), with any suffix: renaming
        both leaves the earlier filename. Of several images with that name the one counts that is in
        the folder of the XML file, or in one of the same name: annotations/a/1.xml, images/a/1.jpg.
        """
        found = (
            self.by_stem[xml.stem] or self.by_name[filename] or self.by_stem[Path(filename).stem]
        )
        if not found:
            faults.append(f"{xml}: its image {filename} is missing; add it")
            return None
        for fits in (
            lambda path: path.parent == xml.parent,
            lambda path: path.parent.name == xml.parent.name,
            lambda path: path.name == filename,
        ):
            found = list(filter(fits, found)) or found
        if len(found) > 1:
            faults.append(f"{xml}: its image may be {found[0]} or {found[1]}; rename one of them")
            return None
        return found[0]


def find_sets(source):
    """Set -> (folder of the images, paths of its XML files)."""
    lists = source / "ImageSets" / "Main"
    sets = {}
    if (source / "Annotations").is_dir() and (source / "JPEGImages").is_dir():
        for name in ("train", "val", "test"):
            if (lists / f"{name}.txt").is_file():
                lines = map(str.strip, (lists / f"{name}.txt").read_text().splitlines())
                paths = [source / "Annotations" / f"{stem}.xml" for stem in lines if stem]
                sets[name] = source / "JPEGImages", paths
        if not sets:  # CVAT calls its one list default.txt
            sets["train"] = source / "JPEGImages", xml_files_below(source / "Annotations")
    else:
        for folder, name in FOLDERS.items():
            if (source / folder).is_dir():
                if name in sets:
                    raise InputError(f"{source}: has folders val and valid; remove one of them")
                sets[name] = source / folder, xml_files_below(source / folder)
        sets = sets or {"train": (source, xml_files_below(source))}
    sets = {name: both for name, both in sets.items() if both[1]}
    if not sets:
        raise InputError(f"{source}: has no XML files; give the folder that has them")
    return sets


def xml_files_below(folder):
    return [path for path in files_below(folder) if path.suffix == ".xml"]


def parse(path, faults):
    """(path, name of the image, [(class, (xmin, ymin, xmax, ymax), whether it is difficult)]).

    None, with one line more in faults, for a file that cannot be used.
    """
    try:
        root = ET.parse(path).getroot()
    except OSError as error:
        faults.append(f"{path}: cannot be read ({error.strerror}); add it, or correct the list")
        return None
    except ET.ParseError as error:
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
        elif sides is None:
            faults.append(f"{path}, object {number}: has no bndbox with four numbers; correct it")
        elif not all(
            -MAX_BOX_COORDINATE < low <= high < MAX_BOX_COORDINATE
            for low, high in (sides[::2], sides[1::2])
        ):
            faults.append(
                f"{path}, object {number}: its bndbox is reversed or far outside the image; "
                "correct it"
            )
        else:
            objects.append((name, sides, int(element.findtext("difficult") == "1")))
    return path, Path((root.findtext("filename") or path.stem).strip()).name, objects
