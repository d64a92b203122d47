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
from util.errors import InputError

SIZE = (30, 20)


PLAIN = T.Compose([T.RandomHorizontalFlip(), NORMALIZE])


def picture(form, mode="RGB", size=SIZE, **options):
    file = io.BytesIO()
    Image.effect_noise(size, 50).convert(mode).save(file, form, **options)
    return file.getvalue()


def bomb(side):
    """A PNG of a few bytes whose header claims side x side pixels."""
    content = bytearray(picture("PNG", "L", (1, 1)))
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 30 20
%%EndComments
(mark) (w) file closefile
showpage
"""


PICTURES = {
    "good.jpg": picture("JPEG"),
    "cmyk.jpg": picture("JPEG", "CMYK"),
    "grey.png": picture("PNG", "L"),
    "palette.gif": picture("GIF", "P"),
    "bits.tif": picture("TIFF", "1"),
    "good.webp": picture("WEBP"),
    "good.bmp": picture("BMP"),
    "good.ppm": picture("PPM"),
    "flat.png": picture("PNG", size=(300, 1)),
    "flat2.png": picture("PNG", size=(1, 90)),
    "pixel.png": picture("PNG", size=(1, 1)),
}


HOSTILE_PICTURES = {
    "empty.jpg": b"",
    "text.jpg": b"<html>",
    "bomb.png": bomb(2**31 - 1),
    "bomb2.png": bomb(50_000),
    "zero.png": bomb(0),
    "cut.jpg": PICTURES["good.jpg"][:300],
    "postscript.jpg": EPS,
}


def make_images(root):
    """Writes good and hostile pictures into root / "images". Returns root."""
    (root / "images" / "sub").mkdir(parents=True)
    (root / "secret.png").write_bytes(PICTURES["grey.png"])
    os.mkfifo(root / "images" / "fifo.png")
    for name, content in {**PICTURES, **HOSTILE_PICTURES}.items():
        (root / "images" / name).write_bytes(content)
    return root


def read_items(folder, data, masks, skip, transforms, annotations="annotations.json"):
    """Builds the data set and loads every item; checks what comes. Returns how many items came."""
    (folder / annotations).write_text(json.dumps(data))
    dataset = CocoDetection(
        folder / "images", folder / annotations, transforms, masks, 4, skip_bad_samples=skip
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
    assert (
        target["labels"].shape == target["area"].shape == (n,) and np.isfinite(target["area"]).all()
    )
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
    """GOOD with one more image or annotation, the values changed."""
    new = {**GOOD[key][0], "id": 77, **values}
    return {**GOOD, key: [*GOOD[key], new]}
