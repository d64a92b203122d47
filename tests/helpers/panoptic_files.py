"""A small panoptic data set in COCO's layout."""

import json

import numpy as np
import tiny
from PIL import Image

from models.segmentation import id2rgb

CATEGORIES = [{"id": 3, "name": "car", "isthing": 1}, {"id": 199, "name": "wall", "isthing": 0}]


def make_panoptic(root, images=2):
    """The tiny COCO folder with panoptic annotations, in an order of their own: left half car,
    right half wall.
    """
    tiny.make_coco(root)
    for image_set in ("train", "val"):
        instances = json.loads(
            (root / "annotations" / f"instances_{image_set}2017.json").read_text()
        )
        (root / f"panoptic_{image_set}2017").mkdir()
        annotations = []
        for image in instances["images"]:
            ids = np.full((image["height"], image["width"]), 70000 + image["id"])
            ids[:, image["width"] // 2 :] = 300
            name = image["file_name"].replace(".jpg", ".png")
            Image.fromarray(id2rgb(ids)).save(root / f"panoptic_{image_set}2017" / name)
            area = image["height"] * (image["width"] // 2)
            annotations.insert(
                0,
                {
                    "image_id": image["id"],
                    "file_name": name,
                    "segments_info": [
                        {
                            "id": 70000 + image["id"],
                            "category_id": 3,
                            "iscrowd": 0,
                            "area": area,
                            "bbox": [0, 0, 1, 1],
                        },
                        {
                            "id": 300,
                            "category_id": 199,
                            "iscrowd": 0,
                            "area": ids.size - area,
                            "bbox": [0, 0, 1, 1],
                        },
                    ],
                },
            )
        content = {
            "images": instances["images"],
            "annotations": annotations,
            "categories": CATEGORIES,
        }
        (root / "annotations" / f"panoptic_{image_set}2017.json").write_text(json.dumps(content))
    return root


def panoptic_args(root, *flags):
    return tiny.arguments(
        "--dataset_file coco_panoptic",
        "--coco_path",
        root,
        "--coco_panoptic_path",
        root,
        "--masks --hidden_dim 128 --nheads 8 --backbone tiny --backbone_norm group",
        *flags,
    )
