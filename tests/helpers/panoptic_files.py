"""A small panoptic dataset in COCO's layout."""

import json

import numpy as np
import tiny
from PIL import Image

from models.segmentation import id2rgb

CATEGORIES = [{"id": 3, "name": "car", "isthing": 1}, {"id": 199, "name": "wall", "isthing": 0}]
FLAGS = "--masks --hidden_dim 128 --nheads 8 --backbone tiny --backbone_norm group"


def make_panoptic(root):
    """Write the tiny COCO folder with panoptic annotations: left half car, right half wall.

    The annotations are not in the order of the images.
    """
    tiny.make_coco(root)
    for image_set in ("train", "val"):
        path = root / "annotations" / f"instances_{image_set}2017.json"
        images = json.loads(path.read_text())["images"]
        pngs = root / f"panoptic_{image_set}2017"
        pngs.mkdir()
        annotations = []
        for image in images:
            image_id, half = image["id"], image["width"] // 2
            ids = np.full((image["height"], image["width"]), 70000 + image_id)
            ids[:, half:] = 300
            name = image["file_name"].replace(".jpg", ".png")
            Image.fromarray(id2rgb(ids)).save(pngs / name)
            area = image["height"] * half
            segments = [
                {"id": 70000 + image_id, "category_id": 3, "area": area},
                {"id": 300, "category_id": 199, "area": ids.size - area},
            ]
            segments = [{**segment, "iscrowd": 0, "bbox": [0, 0, 1, 1]} for segment in segments]
            annotation = {"image_id": image_id, "file_name": name, "segments_info": segments}
            annotations.insert(0, annotation)
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (root / "annotations" / f"panoptic_{image_set}2017.json").write_text(json.dumps(content))
    return root


def panoptic_args(root, *flags):
    paths = ["--coco_path", root, "--coco_panoptic_path", root]
    return tiny.arguments("--dataset_file coco_panoptic", *paths, FLAGS, *flags)
