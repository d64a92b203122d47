"""Split a COCO annotation file into training and validation sets."""

import json
import random
from collections import Counter, defaultdict
from pathlib import Path

from datasets.annotations import find_id_error, read_annotation_file
from util.errors import InputError
from util.files import atomic_write

from .coco_json import check_not_existing


def split_coco(source: Path, val_fraction: float, seed: int) -> list[Path]:
    """Write SOURCE_train.json and SOURCE_val.json beside source; return their paths.

    val_fraction: fraction of the images for validation; seed: random seed. The split is stratified
    by each image's rarest class, so that class proportions are similar in both files. Raises
    InputError if the file is invalid, an output exists, or a split would be empty.
    """
    if not 0 < val_fraction < 1:
        raise InputError(f"--val {val_fraction}: give a fraction between 0 and 1")
    paths = {name: source.with_name(f"{source.stem}_{name}.json") for name in ("train", "val")}
    check_not_existing(paths.values())
    data = read_annotation_file(source)
    if len(data["images"]) < 2:
        raise InputError(f"{source}: has {len(data['images'])} images; a split needs at least two")
    ids = set()
    for image in data["images"]:
        if error := find_id_error(image.get("id"), ids, "image"):
            raise InputError(f"{source}: {error}")
    classes = defaultdict(set)  # image id -> category ids
    for ann in data["annotations"]:
        classes[ann.get("image_id")].add(ann.get("category_id"))
    counts = Counter(class_id for image_classes in classes.values() for class_id in image_classes)

    def get_rarity(class_id):
        return counts[class_id], str(class_id)

    groups = defaultdict(list)  # rarest class -> images
    for image in data["images"]:
        groups[min(classes.get(image["id"], ()), key=get_rarity, default=None)].append(image)
    rng, val_ids, carry = random.Random(seed), set(), 0.0
    for class_id in sorted(groups, key=get_rarity):
        group = groups[class_id]
        rng.shuffle(group)
        carry += val_fraction * len(group)
        num_val = min(round(carry), len(group))
        carry -= num_val
        val_ids |= {image["id"] for image in group[:num_val]}
    if not 0 < len(val_ids) < len(data["images"]):
        raise InputError(
            f"--val {val_fraction}: leaves one part without images; give another fraction"
        )
    for name, path in paths.items():
        is_val = name == "val"
        images = [image for image in data["images"] if (image["id"] in val_ids) == is_val]
        anns = [ann for ann in data["annotations"] if (ann.get("image_id") in val_ids) == is_val]
        with atomic_write(path) as file:
            part = {**data, "images": images, "annotations": anns}
            file.write(json.dumps(part).encode())
        print(f"{path}: {len(images)} images, {len(anns)} boxes")
    return list(paths.values())
