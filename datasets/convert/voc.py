"""Convert Pascal VOC's XML files, as VOC, LabelImg and Roboflow write them, to COCO files.

Source: the VOC2012 devkit. Its boxes are 1-based inclusive pixel indices: xmin 1, xmax 500 spans an
image 500 pixels wide.
"""

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from datasets.images import IMAGE_SUFFIXES
from util.errors import InputError, print_escaped
from util.files import find_files

from .coco_json import (
    CocoWriter,
    find_images,
    find_subfolders,
    raise_errors,
    read_lines,
    write_splits,
)
from .voc_xml import parse_xml

# name of a folder or list -> split
FOLDERS = {"train": "train", "val": "val", "valid": "val", "test": "test"}


class Split(NamedTuple):
    """The files of a split. root: image folder; images: those to take even without XML file."""

    root: Path
    xmls: list[Path]
    images: list[Path]


def convert_voc(source: str | Path, out: str | Path) -> dict[str, tuple[Path, Path]]:
    """Convert a Pascal VOC dataset: write one OUT/{split}.json per split.

    source: a folder with one of these layouts:
      Annotations, JPEGImages, and optionally ImageSets/Main/{train,val,test}.txt;
      folders train, valid, test;
      any other folder with XML files and images, treated as one training split.
    Category ids start at 1, in alphabetical order of the class names. Difficult objects become
    crowds, which training and evaluation ignore. Images without XML file have no objects.

    Returns a dictionary split -> (image folder, annotation file). Raises InputError.
    """
    errors, guessed = [], []
    splits = find_splits(Path(source))
    parsed = {
        name: [file for path in split.xmls if (file := parse_xml(path, errors, guessed))]
        for name, split in splits.items()
    }
    raise_errors(errors)
    if guessed:
        print_escaped(
            f"{len(guessed)} XML files are in a guessed encoding, the first: {guessed[0]}"
        )
    names = {name for files in parsed.values() for _, _, objects in files for name, *_ in objects}
    classes = dict(enumerate(sorted(names), 1))
    ids = {class_name: class_id for class_id, class_name in classes.items()}
    writers = {}
    for name, (root, _, images) in splits.items():
        writer = writers[name] = CocoWriter(classes, root, "XML file", [Path(source)])
        finder, xml_by_image = ImageFinder(find_images(root)), {}
        for xml, filename, objects in parsed[name]:
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
        for image in images:
            if image not in xml_by_image and writer.add_image(image):
                writer.unlabelled.append(image)
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
    """Return a dictionary split -> Split. Names of folders may be in any case."""
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; give the one with the XML files")
    xml_folders = find_subfolders(source, "Annotations")
    image_folders = find_subfolders(source, "JPEGImages", "images")
    if xml_folders and image_folders:
        splits = find_listed_splits(source, image_folders[0], xml_folders[0])
    else:
        splits = {}
        for folder in find_subfolders(source, *FOLDERS):
            if (name := FOLDERS[folder.name.lower()]) in splits:
                both = f"{splits[name].root.name} and {folder.name}"
                raise InputError(f"{source}: has folders {both}; remove one of them")
            splits[name] = find_split(folder, folder)
        splits = splits or {"train": find_split(source, source)}
    if not any(split.xmls for split in splits.values()):
        raise InputError(f"{source}: has no XML files; give the folder that has them")
    every = find_files(source, {".xml"})
    if unused := sorted(set(every).difference(*(split.xmls for split in splits.values()))):
        print_escaped(
            f"{source}: {len(unused)} of {len(every)} XML files are not in {', '.join(splits)} "
            f"and left out; the first: {unused[0]}"
        )
    return {name: split for name, split in splits.items() if split.xmls or split.images}


def find_split(image_folder, xml_folder):
    images = find_files(image_folder, IMAGE_SUFFIXES)
    return Split(image_folder, find_files(xml_folder, {".xml"}), images)


def find_listed_splits(source, image_folder, xml_folder):
    """Return the splits that ImageSets/Main lists, or one if it has no such list."""
    every = find_split(image_folder, xml_folder)
    lists = {
        path.stem.lower(): path
        for sets in find_subfolders(source, "ImageSets")
        for folder in find_subfolders(sets, "Main")
        for path in find_files(folder, {".txt"})
    }
    splits = {
        name: read_list(lists[stem], every, xml_folder)
        for stem, name in FOLDERS.items()
        if stem in lists
    }
    return splits or {"train": every}  # CVAT calls its only list default.txt


def read_list(path, every, xml_folder):
    """Return the Split of a list: stems of files, or names with a suffix. every: Split of all."""
    xmls, images = index_stems(every.xmls, xml_folder), index_stems(every.images, every.root)
    stems = {}  # ordered
    for entry in filter(None, map(str.strip, read_lines(path))):
        has_suffix = Path(entry).suffix.lower() in {".xml", *IMAGE_SUFFIXES}
        stem = str(Path(entry).with_suffix("")) if has_suffix and entry not in xmls else entry
        if stem not in xmls and stem not in images:
            raise InputError(
                f"{path}: {entry} has neither an XML file in {xml_folder} nor an image in "
                f"{every.root}; add them, or correct the list"
            )
        stems[stem] = None
    return Split(
        every.root,
        [xmls[stem] for stem in stems if stem in xmls],
        [images[stem] for stem in stems if stem in images],
    )


def index_stems(paths, folder):
    """Return a dictionary of paths; keys are relative to the folder and without suffix."""
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}
