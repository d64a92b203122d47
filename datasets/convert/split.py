"""A COCO annotation file in two parts, for training and validation."""

import json
import random
from collections import Counter, defaultdict

from datasets.annotations import id_fault, read_json
from util.errors import InputError
from util.files import replacing

from .coco_json import check_are_new


def split_coco(source, share, seed):
    """Writes SOURCE_train.json and SOURCE_val.json beside source (Path); returns their paths.

    share: of the images that are for validation; seed: what the choice derives from. Images are
    dealt out class by class, the rarest first, so that both parts have each class in about the same
    proportion. Raises InputError.
    """
    if not 0 < share < 1:
        raise InputError(f"--val {share}: is not a share between 0 and 1; give one")
    paths = {name: source.with_name(f"{source.stem}_{name}.json") for name in ("train", "val")}
    check_are_new(paths.values())
    data = read_json(source)
    if len(data["images"]) < 2:
        raise InputError(f"{source}: has {len(data['images'])} images; a split needs two at least")
    ids = set()
    for image in data["images"]:
        if fault := id_fault(image.get("id"), ids, "image"):
            raise InputError(f"{source}: {fault}")
    classes = defaultdict(set)  # image id -> its classes
    for ann in data["annotations"]:
        classes[ann.get("image_id")].add(ann.get("category_id"))
    counts = Counter(class_id for of_image in classes.values() for class_id in of_image)
    groups = defaultdict(list)  # an image belongs to its rarest class
    for image in data["images"]:
        of_image = classes.get(image.get("id"), ())
        groups[min(of_image, key=lambda c: (counts[c], str(c)), default=None)].append(image)
    rng, chosen, owed = random.Random(seed), set(), 0.0
    for class_id in sorted(groups, key=lambda c: (counts[c], str(c))):
        group = groups[class_id]
        rng.shuffle(group)
        owed += share * len(group)
        take = min(round(owed), len(group))
        owed -= take
        chosen |= {image["id"] for image in group[:take]}
    if not 0 < len(chosen) < len(data["images"]):
        raise InputError(f"--val {share}: leaves one part without images; give another share")
    for name, path in paths.items():
        part = {
            **data,
            "images": [i for i in data["images"] if (i["id"] in chosen) == (name == "val")],
            "annotations": [
                ann
                for ann in data["annotations"]
                if (ann.get("image_id") in chosen) == (name == "val")
            ],
        }
        with replacing(path) as file:
            file.write(json.dumps(part).encode())
        print(f"{path}: {len(part['images'])} images, {len(part['annotations'])} boxes")
    return list(paths.values())
