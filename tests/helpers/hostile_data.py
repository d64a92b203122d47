"""Image folders and annotation files that are partly wrong, and reading all their items."""

import io
import json
import os
import random
import zlib

import numpy as np
import tiny
from PIL import Image

from datasets import transforms as T
from datasets.coco import NORMALIZE, CocoDetection
from datasets.faults import Faults
from util.errors import InputError

SIZE = (30, 20)
PLAIN = T.Compose([T.RandomHorizontalFlip(), NORMALIZE])


def encode(file_format, mode="RGB", size=SIZE):
    file = io.BytesIO()
    Image.effect_noise(size, 50).convert(mode).save(file, file_format)
    return file.getvalue()


def make_bomb(side):
    """Return a PNG of a few bytes whose header claims side x side pixels."""
    content = bytearray(encode("PNG", "L", (1, 1)))
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 30 20
%%EndComments
(mark) (w) file closefile
showpage
"""
GOOD_IMAGES = {
    "good.jpg": encode("JPEG"),
    "cmyk.jpg": encode("JPEG", "CMYK"),
    "grey.png": encode("PNG", "L"),
    "palette.gif": encode("GIF", "P"),
    "bits.tif": encode("TIFF", "1"),
    "good.webp": encode("WEBP"),
    "good.bmp": encode("BMP"),
    "good.ppm": encode("PPM"),
    "flat.png": encode("PNG", size=(300, 1)),
    "flat2.png": encode("PNG", size=(1, 90)),
    "pixel.png": encode("PNG", size=(1, 1)),
}
HOSTILE_IMAGES = {
    "empty.jpg": b"",
    "text.jpg": b"<html>",
    "bomb.png": make_bomb(2**31 - 1),
    "bomb2.png": make_bomb(50_000),
    "zero.png": make_bomb(0),
    "cut.jpg": GOOD_IMAGES["good.jpg"][:300],
    "postscript.jpg": EPS,
}


def make_images(root):
    """Write good and hostile images into root / "images". Return root."""
    (root / "images" / "sub").mkdir(parents=True)
    (root / "secret.png").write_bytes(GOOD_IMAGES["grey.png"])
    os.mkfifo(root / "images" / "fifo.png")
    for name, content in {**GOOD_IMAGES, **HOSTILE_IMAGES}.items():
        (root / "images" / name).write_bytes(content)
    return root


def read_items(folder, data, masks, skip, transforms, annotations="annotations.json"):
    """Build the dataset, load and check every item. Return the number of items."""
    (folder / annotations).write_text(json.dumps(data))
    dataset = CocoDetection(
        folder / "images", folder / annotations, transforms, masks, 4, faults=Faults(skip)
    )
    dataset.seed, count = random.random(), 0
    for index in range(len(dataset)):
        try:
            image, target = dataset[index]
        except InputError as error:
            assert str(error).isprintable()
            continue
        check_item(image, target, masks)
        count += 1
    return count


def check_item(image, target, masks):
    n = len(target["boxes"])
    assert image.dtype == np.float32 and image.ndim == 3 and np.isfinite(image).all()
    assert tuple(target["size"]) == image.shape[1:]
    assert target["boxes"].shape == (n, 4) and np.isfinite(target["boxes"]).all()
    assert n == 0 or (target["boxes"].min() >= 0 and target["boxes"].max() <= 1)
    assert target["labels"].shape == target["area"].shape == (n,)
    assert np.isfinite(target["area"]).all()
    assert not n or set(target["labels"]) <= {0, 1, 2, 3}
    assert not masks or target["masks"].shape == (n, *image.shape[1:])


GOOD = {
    "images": [
        {"id": i, "file_name": name, "width": SIZE[0], "height": SIZE[1]}
        for i, name in enumerate(("good.jpg", "grey.png"), 1)
    ],
    "annotations": [
        {
            "id": i,
            "image_id": 1 + i % 2,
            "bbox": [1, 2, 5, 6],
            "category_id": 1,
            "segmentation": [tiny.rectangle(1, 2, 5, 6)],
        }
        for i in range(4)
    ],
    "categories": [{"id": 1, "name": "a"}],
}


def entry(key, **values):
    """Return GOOD with one more image or annotation with these values; None removes a key."""
    new = {**GOOD[key][0], "id": 77, **values}
    new = {name: value for name, value in new.items() if value is not None}
    return {**GOOD, key: [*GOOD[key], new]}
