"""COCO files in the style of the tools that people annotate with: what each of them adds, leaves
out and numbers in its own way.
"""

import json

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "traffic light")


def objects(count, seed=0, size=(80, 60)):
    """For each of count images a list of (class index, box x, y, width, height); the images are of
    size (width, height).
    """
    random = np.random.default_rng(seed)
    return [
        [
            (
                int(random.integers(len(CLASSES))),
                [int(v) for v in (*random.integers(0, 30, 2), *random.integers(8, 30, 2))],
            )
            for _ in range(number % 4)
        ]
        for number in range(1, count + 1)
    ]


def save_images(folder, names, size=(80, 60)):
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)


def cvat(root, images):
    """images/default and annotations/instances_default.json; ids from 1; licences, attributes."""
    names = [f"frame_{number:06}.PNG" for number in range(len(images))]
    save_images(root / "images", names)
    data = {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {
            "contributor": "",
            "date_created": "",
            "description": "",
            "url": "",
            "version": "",
            "year": "",
        },
        "categories": [
            {"id": i, "name": name, "supercategory": ""} for i, name in enumerate(CLASSES, 1)
        ],
        "images": [
            {
                "id": i,
                "width": 80,
                "height": 60,
                "file_name": name,
                "license": 0,
                "flickr_url": "",
                "coco_url": "",
                "date_captured": 0,
            }
            for i, name in enumerate(names, 1)
        ],
        "annotations": [],
    }
    for number, boxes in enumerate(images, 1):
        for kind, box in boxes:
            data["annotations"].append(
                {
                    "id": len(data["annotations"]) + 1,
                    "image_id": number,
                    "category_id": kind + 1,
                    "segmentation": [],
                    "area": float(box[2] * box[3]),
                    "bbox": [float(v) for v in box],
                    "iscrowd": 0,
                    "attributes": {"occluded": False, "rotation": 0.0},
                }
            )
    return write(root / "annotations" / "instances_default.json", data), root / "images"


def label_studio(root, images):
    """result.json and images/; every id from 0, `ignore`, file names with their folder, boxes with
    fractions.
    """
    names = [f"images/{number:08x}-photo.png" for number in range(len(images))]
    save_images(root, names)
    data = {
        "images": [
            {"width": 80, "height": 60, "id": i, "file_name": name} for i, name in enumerate(names)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES)],
        "annotations": [],
        "info": {
            "year": 2026,
            "version": "1.0",
            "description": "",
            "contributor": "Label Studio",
            "url": "",
            "date_created": "2026-11-24 12:00:00.000000",
        },
    }
    for number, boxes in enumerate(images):
        for kind, box in boxes:
            data["annotations"].append(
                {
                    "id": len(data["annotations"]),
                    "image_id": number,
                    "category_id": kind,
                    "segmentation": [],
                    "bbox": [v + 0.25 for v in box],
                    "ignore": 0,
                    "iscrowd": 0,
                    "area": box[2] * box[3],
                }
            )
    return write(root / "result.json", data), root


def roboflow(root, images):
    """_annotations.coco.json among the images; a category 0 that stands for the whole, and ids from
    0.
    """
    names = [f"photo-{number}_png.rf.{number:032x}.png" for number in range(len(images))]
    save_images(root, names)
    data = {
        "info": {
            "year": "2026",
            "version": "1",
            "description": "Exported from roboflow.com",
            "contributor": "",
            "url": "",
            "date_created": "2026-11-24T12:00:00+00:00",
        },
        "licenses": [{"id": 1, "url": "", "name": "CC BY 4.0"}],
        "categories": [
            {"id": 0, "name": "animals", "supercategory": "none"},
            *(
                {"id": i, "name": name, "supercategory": "animals"}
                for i, name in enumerate(CLASSES, 1)
            ),
        ],
        "images": [
            {
                "id": i,
                "license": 1,
                "file_name": name,
                "height": 60,
                "width": 80,
                "date_captured": "2026-11-24T12:00:00+00:00",
                "extra": {"name": "photo.png"},
            }
            for i, name in enumerate(names)
        ],
        "annotations": [],
    }
    for number, boxes in enumerate(images):
        for kind, box in boxes:
            data["annotations"].append(
                {
                    "id": len(data["annotations"]),
                    "image_id": number,
                    "category_id": kind + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "segmentation": [],
                    "iscrowd": 0,
                }
            )
    return write(root / "_annotations.coco.json", data), root


def labelme2coco(root, images):
    """dataset.json beside images/; polygons, ids that are not contiguous in a file that was merged
    from two.
    """
    names = [f"IMG_{number:04}.png" for number in range(len(images))]
    save_images(root / "images", names)
    ids = (3, 7, 40)
    data = {
        "images": [
            {"height": 60, "width": 80, "id": 10 * i + 1, "file_name": name}
            for i, name in enumerate(names)
        ],
        "categories": [
            {"supercategory": "", "id": i, "name": name} for i, name in zip(ids, CLASSES)
        ],
        "annotations": [],
    }
    for number, boxes in enumerate(images):
        for kind, (x, y, width, height) in boxes:
            data["annotations"].append(
                {
                    "iscrowd": 0,
                    "image_id": 10 * number + 1,
                    "bbox": [x, y, width, height],
                    "category_id": ids[kind],
                    "segmentation": [[x, y, x + width, y, x + width, y + height, x, y + height]],
                    "id": len(data["annotations"]) + 1,
                    "area": width * height,
                }
            )
    return write(root / "dataset.json", data), root / "images"


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


TOOLS = {
    "cvat": (cvat, {1: "cat", 2: "dog", 3: "traffic light"}),
    "label_studio": (label_studio, dict(enumerate(CLASSES))),
    "roboflow": (roboflow, {0: "animals", 1: "cat", 2: "dog", 3: "traffic light"}),
    "labelme2coco": (labelme2coco, {3: "cat", 7: "dog", 40: "traffic light"}),
}
