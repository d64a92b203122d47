"""Small images with boxes, in COCO's format, to which a test adds one fault."""

import json

import numpy as np
from PIL import Image

from datasets.coco import CocoDetection
from datasets.faults import Faults

SIZE = 96
BOXES = np.array([[5 * i, 30, 40, 20] for i in range(1, 9)])


def unchanged(image, target, rng):
    return image, target


def make(folder, boxes, change=lambda data: None, size=SIZE, per_image=1):
    """Write images of size x size with boxes [n, 4], per_image boxes each, and return a function
    that loads them.
    """
    (folder / "images").mkdir(parents=True)
    data = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "red"}]}
    for i in range(-(-len(boxes) // per_image)):
        Image.new("RGB", (size, size)).save(folder / "images" / f"{i}.png")
        data["images"].append({"id": i, "file_name": f"{i}.png", "width": size, "height": size})
    for i, box in enumerate(np.asarray(boxes, float).tolist()):
        annotation = {"id": i + 1, "image_id": i // per_image, "category_id": 1, "bbox": box}
        data["annotations"].append({**annotation, "area": box[2] * box[3], "iscrowd": 0})
    change(data)
    (folder / "ann.json").write_text(json.dumps(data))

    def load(is_evaluated=False, skip_bad_samples=False):
        paths = folder / "images", folder / "ann.json"
        options = is_evaluated, Faults(skip_bad_samples)
        return CocoDetection(*paths, unchanged, False, None, *options)

    return load
