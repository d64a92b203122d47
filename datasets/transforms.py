"""Transforms and data augmentation for images with boxes and masks.

Images are PIL images in RGB before `ToTensor`, and float32 [3, H, W] after it. Targets are
dictionaries of NumPy arrays: boxes float32 [n, 4] as x0, y0, x1, y1 in pixels (`Normalize` turns
them into cx, cy, w, h in 0..1), labels int64 [n], area float32 [n] in pixels, iscrowd int64 [n],
size int64 [2] (height, width) and optionally masks bool [n, H, W], which are `LazyMasks` before
`ToTensor`. Transforms do not modify the target they are given.

Transforms are called as `t(image, target, rng)`. They draw from `rng`, a `random.Random`, in the
same order as the original, so that the same draws give the same result.

Source: `datasets/transforms.py` of the original.
"""

import numpy as np
from PIL import Image

from util.nearest import nearest_index

# The original's sizes in pixels: shorter sides in training and in evaluation, longest side.
SCALES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
EVAL_SIZE = 800
MAX_SIZE = 1333


def crop(image, target, region):
    """Crop to `region` = (top, left, height, width) in pixels; drop objects with no area left."""
    top, left, height, width = region
    image = image.crop((left, top, left + width, top + height))

    corners = target["boxes"].reshape(-1, 2, 2) - np.float32([left, top])
    corners = np.maximum(np.minimum(corners, np.float32([width, height])), np.float32(0))
    extent = corners[:, 1] - corners[:, 0]
    keep = (extent > 0).all(axis=1)

    target = dict(target, size=np.array([height, width], dtype=np.int64))
    target["boxes"] = corners.reshape(-1, 4)[keep]
    target["area"] = extent.prod(axis=1)[keep]
    target["labels"] = target["labels"][keep]
    target["iscrowd"] = target["iscrowd"][keep]
    if "masks" in target:
        target["masks"] = target["masks"][keep, top : top + height, left : left + width]
    return image, target


def hflip(image, target):
    """Flip horizontally."""
    x0, y0, x1, y1 = target["boxes"].T
    width = np.float32(image.width)
    target = dict(target, boxes=np.stack([width - x1, y0, width - x0, y1], axis=1))
    if "masks" in target:
        target["masks"] = target["masks"][:, :, ::-1]
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), target


def get_resized_shape(width, height, size, max_size=None):
    """Return (height, width) with a shorter side of `size`, or a longer one of about `max_size`."""
    short, long = min(width, height), max(width, height)
    if max_size is not None and long / short * size > max_size:
        size = int(round(max_size * short / long))
    if short == size:
        return height, width
    if width < height:
        return int(size * height / width), size
    return size, int(size * width / height)


def resize(image, target, size, max_size=None):
    """Resize to `get_resized_shape`: the image bilinearly, masks by the nearest pixel."""
    old_width, old_height = image.size
    height, width = get_resized_shape(old_width, old_height, size, max_size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)

    ratio_x, ratio_y = width / old_width, height / old_height
    target = dict(target, size=np.array([height, width], dtype=np.int64))
    target["boxes"] = target["boxes"] * np.float32([ratio_x, ratio_y, ratio_x, ratio_y])
    target["area"] = target["area"] * np.float32(ratio_x * ratio_y)
    if "masks" in target:
        rows, columns = nearest_index(old_height, height), nearest_index(old_width, width)
        target["masks"] = target["masks"][:, rows, :][:, :, columns]
    return image, target


class RandomHorizontalFlip:
    """Flip horizontally with probability `p`."""

    def __init__(self, p=0.5):
        self.p = p

    def __call__(self, image, target, rng):
        return hflip(image, target) if rng.random() < self.p else (image, target)


class RandomResize:
    """Resize the shorter side to one of `sizes`; `max_size` limits the longer side (pixels)."""

    def __init__(self, sizes, max_size=None):
        self.sizes, self.max_size = sizes, max_size

    def __call__(self, image, target, rng):
        return resize(image, target, rng.choice(self.sizes), self.max_size)


class RandomSizeCrop:
    """Crop a random region with sides of `min_size` to `max_size` pixels, at most the image's."""

    def __init__(self, min_size, max_size):
        self.min_size, self.max_size = min_size, max_size

    def __call__(self, image, target, rng):
        width = rng.randint(self.min_size, min(image.width, self.max_size))
        height = rng.randint(self.min_size, min(image.height, self.max_size))
        if (width, height) == image.size:  # torchvision draws no offset in this case
            return crop(image, target, (0, 0, height, width))
        top = rng.randint(0, image.height - height)
        left = rng.randint(0, image.width - width)
        return crop(image, target, (top, left, height, width))


class RandomSelect:
    """Apply `transforms1` with probability `p`, else `transforms2`."""

    def __init__(self, transforms1, transforms2, p=0.5):
        self.transforms1, self.transforms2, self.p = transforms1, transforms2, p

    def __call__(self, image, target, rng):
        transform = self.transforms1 if rng.random() < self.p else self.transforms2
        return transform(image, target, rng)


class ToTensor:
    """Convert a PIL image to float32 [3, H, W] in 0..1, and lazy masks to an array."""

    def __call__(self, image, target, rng):
        array = np.asarray(image).transpose(2, 0, 1).astype(np.float32, order="C")
        array /= np.float32(255)
        if "masks" in target:
            target = dict(target, masks=np.asarray(target["masks"]))
        return array, target


class Normalize:
    """Normalise the image per channel, and convert boxes to cx, cy, w, h in 0..1."""

    def __init__(self, mean, std):
        self.mean = np.float32(mean).reshape(3, 1, 1)
        self.std = np.float32(std).reshape(3, 1, 1)

    def __call__(self, image, target, rng):
        height, width = image.shape[1:]
        x0, y0, x1, y1 = target["boxes"].T
        boxes = np.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], axis=1)
        image = image - self.mean
        image /= self.std
        return image, dict(target, boxes=boxes / np.float32([width, height, width, height]))


class Compose:
    """Apply `transforms` one after the other."""

    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, image, target, rng):
        for transform in self.transforms:
            image, target = transform(image, target, rng)
        return image, target
