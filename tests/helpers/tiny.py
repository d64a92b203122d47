"""A model and data small enough for tests that train."""

import json

import numpy as np
from PIL import Image

from arguments import parse_args
from datasets.classes import get_num_classes
from main import main
from models.detr import build_model
from util.misc import nested_tensor_from_arrays

FLAGS = """
    --backbone resnet18 --backbone_weights none --enc_layers 1 --dec_layers 2 --hidden_dim 32
    --nheads 2 --dim_feedforward 64 --num_queries 10 --device cpu
""".split()


def arguments(*flags):
    """The parsed flags of main.py for the tiny model; `flags` win over FLAGS.

    flags: "--flag", value, …; a string that begins with a flag may hold several: "--flag value …".
    """
    words = []
    for flag in flags:
        words += flag.split() if str(flag).startswith("--") else [str(flag)]
    return parse_args([*FLAGS, *words])


def train(*flags):
    """Runs main.py with the tiny model."""
    # With this seed the training images are not cropped in the first two epochs, and so stay small.
    main(arguments("--lr_drop", 1, "--seed", 47, *flags))


def build(args):
    """model, criterion, postprocessors for flags that decide the number of classes."""
    return build_model(args, get_num_classes(args))


def make_batch(seed, sizes=((64, 96), (80, 64))):
    """(NestedTensor of arrays, targets) as the loader yields them, one object per image."""
    random = np.random.default_rng(seed)
    images = [random.standard_normal((3, *size), np.float32) for size in sizes]
    targets = [
        {
            "labels": random.integers(1, 91, 1),
            "boxes": random.uniform(0.3, 0.6, (1, 4)).astype(np.float32),
            "image_id": number,
            "orig_size": np.array(size),
        }
        for number, size in enumerate(sizes)
    ]
    return nested_tensor_from_arrays(images), targets


class Batches(list):
    """Batches in place of the data loader, each a step or, with accum_steps, a part of one."""

    def __init__(self, batches, accum_steps=1):
        super().__init__(
            batches[start : start + accum_steps] for start in range(0, len(batches), accum_steps)
        )

    def set_epoch(self, epoch, start=0):
        self.epoch = epoch


# width and height; COCO's transforms enlarge images to a short side of 480 to 800 pixels, but the
# long side to 1333 at most, so that flat ones stay small
SIZES = [(400, 40), (360, 30), (300, 36), (320, 40)]


def rectangle(x, y, width, height):
    """The polygon of a box."""
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def make_coco(root):
    """Writes three training and four validation images with two boxes each, in COCO's layout."""
    for image_set, sizes in (("train", SIZES[:3]), ("val", SIZES)):
        (root / f"{image_set}2017").mkdir(parents=True)
        data = {
            "images": [],
            "annotations": [],
            "categories": [{"id": i, "name": f"class {i}"} for i in (1, 90)],
        }
        for number, (width, height) in enumerate(sizes):
            random = np.random.default_rng([len(image_set), number])
            name = f"{number:012}.jpg"
            Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(
                root / f"{image_set}2017" / name
            )
            data["images"].append(
                {"id": number + 1, "file_name": name, "width": width, "height": height}
            )
            for category in (1, 90):
                box = [width * 0.1, height * 0.1, width * 0.5 + category / 10, height * 0.6]
                data["annotations"].append(
                    {
                        "id": len(data["annotations"]) + 1,
                        "image_id": number + 1,
                        "bbox": box,
                        "category_id": category,
                        "area": box[2] * box[3],
                        "iscrowd": 0,
                        "segmentation": [rectangle(*box)],
                    }
                )
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{image_set}2017.json").write_text(json.dumps(data))
    return root
