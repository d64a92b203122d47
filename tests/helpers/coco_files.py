"""A folder in COCO's layout with every kind of image and annotation."""

import json
import types

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from datasets.transforms import EVAL_SIZE, MAX_SIZE, SCALES


def make_image(width, height):
    """Make an RGB image of different pixels, so that a shift or a swap of channels shows."""
    rng = np.random.default_rng([width, height])
    ramp = np.add.outer(np.linspace(0, 150, height), np.linspace(0, 60, width))[..., None]
    return Image.fromarray((ramp + rng.uniform(0, 45, (height, width, 3))).astype(np.uint8))


def rotate_exif():
    """Return EXIF data that asks a viewer to rotate the image by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def make_deep(width, height):
    """Make a 16-bit grey image with values below 256, which the original converts correctly."""
    return Image.fromarray(np.arange(width * height, dtype=np.uint16).reshape(height, width) % 256)


# file name, width, height, how the image is made or converted, options of `save`
IMAGES = [
    ("rgb.jpg", 97, 61, None, {}),
    ("tall.jpg", 50, 301, None, {}),
    ("wide.png", 333, 40, None, {}),
    ("square.jpg", 64, 64, None, {}),
    ("pixel.png", 1, 1, None, {}),
    ("sub/folder.jpg", 81, 80, None, {}),
    ("grey.jpg", 60, 45, "L", {}),
    ("grey_alpha.png", 61, 47, "LA", {}),
    ("palette.png", 62, 49, "P", {}),
    ("palette_transparent.png", 63, 51, "P", {"transparency": 3}),
    ("cmyk.jpg", 70, 53, "CMYK", {}),
    ("rgba.png", 71, 55, "RGBA", {}),
    ("bits.png", 72, 57, "1", {}),
    ("deep.png", 73, 59, make_deep, {}),
    ("rotated.jpg", 74, 43, None, {"exif": rotate_exif()}),
]


def make_annotations(width, height):
    """Make an image's boxes: inside, one pixel, over the edges, empty, outside, and a crowd."""
    boxes = [
        [width * 0.2, height * 0.3, width * 0.5, height * 0.4],
        [width // 2, height // 2, 1, 1],
        [-3.5, -2, width * 0.6, height + 10],
        [width * 0.1, height * 0.1, 0, height * 0.5],
        [width * 0.1, height * 0.1, width * 0.5, 0],
        [width + 5, 0, 10, 10],
    ]
    annotations = [
        {
            "bbox": box,
            "area": box[2] * box[3] * 0.75,
            "iscrowd": 0,
            "segmentation": [
                [x, y, x + w, y, x + w, y + h / 2],
                [x, y + h / 2, x + w, y + h, x, y + h],
            ],
        }
        for box in boxes
        for x, y, w, h in [box]
    ]
    crowd = np.zeros((height, width), dtype=np.uint8, order="F")
    crowd[: height // 2 + 1] = 1
    counts = coco_mask.encode(crowd)["counts"].decode()
    annotations.append(
        {
            "bbox": [0, 0, width, height // 2 + 1],
            "area": float(crowd.sum()),
            "iscrowd": 1,
            "segmentation": {"size": [height, width], "counts": counts},
        }
    )
    return annotations


def make_coco(root):
    """Write IMAGES with annotations as train2017 and val2017; every fifth image has none."""
    data = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": f"class {i}"} for i in (1, 17, 90)],
    }
    for number, (name, width, height, convert, options) in enumerate(IMAGES):
        image_id = 1000 - 7 * number  # not in the order of the file
        image = make_image(width, height)
        image = convert(width, height) if callable(convert) else image.convert(convert)
        for folder in ("train2017", "val2017"):
            path = root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, **options)
        data["images"].append({"id": image_id, "file_name": name, "width": width, "height": height})
        for ann in make_annotations(width, height) if number % 5 != 3 else []:
            count = len(data["annotations"])
            data["annotations"].append(
                dict(ann, id=count + 1, image_id=image_id, category_id=(1, 17, 90)[count % 3])
            )
    write_annotations(root, data)
    return data


def write_annotations(root, data):
    (root / "annotations").mkdir(exist_ok=True)
    for image_set in ("train", "val"):
        (root / "annotations" / f"instances_{image_set}2017.json").write_text(json.dumps(data))


def arguments(root, **changes):
    flags = {
        "dataset_file": "coco",
        "coco_path": str(root),
        "masks": False,
        "seed": 42,
        "skip_bad_samples": False,
        "num_classes": None,
        "train_ann": None,
        "val_ann": None,
        "img_scales": SCALES,
        "eval_size": EVAL_SIZE,
        "max_size": MAX_SIZE,
    }
    return types.SimpleNamespace(**flags | changes)
