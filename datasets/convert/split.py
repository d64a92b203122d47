"""Split a COCO annotation file into training and validation sets."""

import os
import random
from collections import Counter, defaultdict
from pathlib import Path

from datasets.annotations import find_id_error, read_annotation_file
from datasets.file_names import FileIndex
from util.errors import InputError

from .coco_json import check_not_existing, write_json


def split_coco(
    source: Path, val_fraction: float, seed: int, out: Path | None = None
) -> dict[str, tuple[Path | None, Path]]:
    """Write SOURCE_train.json and SOURCE_val.json to a folder.

    val_fraction: fraction of the images for validation; seed: random seed; out: folder, or None for
    the source's. The split is stratified by each image's rarest class, so that class proportions
    are similar in both files. A file that is listed as several images stays in one part.

    Returns a dictionary split -> (image folder or None if it is not near the source, annotation
    file). Raises InputError if the file is invalid, an output exists, or a split would be empty.
    """
    if not 0 < val_fraction < 1:
        raise InputError(f"--val {val_fraction}: give a fraction between 0 and 1")
    out = source.parent if out is None else out
    paths = {name: out / f"{source.stem}_{name}.json" for name in ("train", "val")}
    check_not_existing(paths.values())
    data = read_annotation_file(source)
    ids = set()
    for image in data["images"]:
        if error := find_id_error(image.get("id"), ids, "image"):
            raise InputError(f"{source}: {error}")
    files = group_by_file(data["images"])
    if len(files) < 2:
        raise InputError(f"{source}: has {len(files)} images; a split needs at least two")
    val_ids = select_val_ids(files, data["annotations"], val_fraction, random.Random(seed))
    if not 0 < len(val_ids) < len(data["images"]):
        raise InputError(
            f"--val {val_fraction}: leaves one part without images; give another fraction"
        )
    for name, path in paths.items():
        is_val = name == "val"
        images = [image for image in data["images"] if (image["id"] in val_ids) == is_val]
        anns = [ann for ann in data["annotations"] if (ann.get("image_id") in val_ids) == is_val]
        write_json(path, {**data, "images": images, "annotations": anns})
        print(f"{path}: {len(images)} images, {len(anns)} boxes")
    folder = find_image_folder(source, data["images"])
    return {name: (folder, path) for name, path in paths.items()}


def group_by_file(images):
    """Return a list of lists of image ids; those in a list are of the same file."""
    files = defaultdict(list)
    for image in images:
        name = image.get("file_name")
        files[os.path.normpath(name) if isinstance(name, str) else image["id"]].append(image["id"])
    return list(files.values())


def select_val_ids(files, annotations, val_fraction, rng):
    """Return a set of image ids. files: list of lists of image ids, which stay together."""
    classes = defaultdict(set)  # image id -> category ids
    for ann in annotations:
        classes[ann.get("image_id")].add(ann.get("category_id"))
    counts = Counter(class_id for image_classes in classes.values() for class_id in image_classes)

    def get_rarity(class_id):
        return counts[class_id], str(class_id)

    groups = defaultdict(list)  # rarest class -> files
    for ids in files:
        file_classes = set().union(*(classes.get(image_id, ()) for image_id in ids))
        groups[min(file_classes, key=get_rarity, default=None)].append(ids)
    val_ids, carry = set(), 0.0
    for class_id in sorted(groups, key=get_rarity):
        group = groups[class_id]
        rng.shuffle(group)
        carry += val_fraction * len(group)
        num_val = min(round(carry), len(group))
        carry -= num_val
        val_ids.update(image_id for ids in group[:num_val] for image_id in ids)
    return val_ids


def find_image_folder(source, images):
    """Return the folder near an annotation file that has all its images, or None."""
    names = [image.get("file_name") for image in images]
    if not all(isinstance(name, str) for name in names):
        return None
    for parent in (source.parent, source.parent.parent):
        for folder in (parent, parent / "images"):
            index = FileIndex(folder)
            if all(name in index for name in names):
                return folder
    return None
