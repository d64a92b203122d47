"""Check COCO segmentations (polygons or RLE), convert them to RLE, and decode them lazily."""

import numpy as np
from pycocotools import mask as coco_mask

MAX_COORDINATE = 1e6  # pixels; limit of a polygon's coordinates and of its perimeter


def is_segmentation(segmentation, image):
    """Return True if it is a list of polygons or an RLE of the image's size.

    image: an entry of the annotation file, with width and height.
    """
    width, height = image["width"], image["height"]
    if isinstance(segmentation, list):
        return all(is_polygon(polygon) for polygon in segmentation)
    if not isinstance(segmentation, dict) or segmentation.get("size") != [height, width]:
        return False
    counts = segmentation.get("counts")
    runs = decode_counts(counts) if isinstance(counts, str) else counts
    # pycocotools writes as many pixels as the runs specify, even past the end of the mask.
    return (
        isinstance(runs, list)
        and all(type(run) is int and run >= 0 for run in runs)
        and sum(runs) == height * width
    )


def is_polygon(polygon):
    """Return True for [x, y, x, y, …] with at least three points and a bounded perimeter."""
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        return False
    if not all(type(value) in (int, float) and abs(value) <= MAX_COORDINATE for value in polygon):
        return False
    if len(polygon) * max(map(abs, polygon)) < MAX_COORDINATE:
        return True
    # pycocotools samples the outline five times per pixel and stores each sample.
    x, y = polygon[::2], polygon[1::2]
    perimeter = sum(abs(x[i] - x[i - 1]) + abs(y[i] - y[i - 1]) for i in range(len(x)))
    return perimeter < MAX_COORDINATE


def decode_counts(counts):
    """Return the run lengths of a compressed RLE, or None if it is malformed.

    Source: `rleFrString` of pycocotools.
    """
    codes = np.frombuffer(counts.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] > 31:
        return None
    ends = np.flatnonzero(codes < 32)
    starts = np.append(0, ends[:-1] + 1)
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, ends - starts + 1))
    if shifts.max() > 30:
        return None
    runs = np.add.reduceat((codes & 31) << shifts, starts)
    runs -= (codes[ends] & 16) << shifts[ends] + 1  # the highest bit of a run is its sign
    # From the fourth on, a run is stored as its difference to the last but one.
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    return runs.tolist()


def segmentation_to_rle(segmentation, height, width):
    """Convert a COCO segmentation (polygons, uncompressed or compressed RLE) to compressed RLE."""
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return segmentation


class LazyMasks:
    """Masks of one image, which `np.asarray` decodes to bool [n, H, W].

    `masks[objects, rows, columns]` selects along each axis, with slices or arrays of indices, and
    decodes nothing: the masks of a large photo take gigabytes, and transforms keep few pixels.

    decode: function of three int arrays, objects [n], rows [h] in ascending order and columns [w],
    that returns these pixels, bool [n, h, w]; shape: n, H, W.
    """

    def __init__(self, decode, shape):
        self.decode = decode
        self.indices = [np.arange(length) for length in shape]

    def __getitem__(self, key):
        selected = LazyMasks(self.decode, ())
        selected.indices = [indices[part] for indices, part in zip(self.indices, key)]
        return selected

    def __array__(self):
        return self.decode(*self.indices)


def make_masks(segmentations, height, width):
    """Return the LazyMasks of COCO segmentations, a list, in an image of height x width pixels."""

    def decode(objects, rows, columns):
        masks = np.empty((len(objects), len(rows), len(columns)), bool)
        for mask, index in zip(masks, objects):
            rle = segmentation_to_rle(segmentations[index], height, width)
            mask[:] = decode_pixels(rle, rows, columns)
        return masks

    return LazyMasks(decode, (len(segmentations), height, width))


def decode_pixels(rle, rows, columns):
    """Decode some rows, int [h] in ascending order, and columns, int [w], of an RLE: bool [h, w].

    rle: compressed; no other pixel is decoded.
    """
    counts = rle["counts"]
    runs = decode_counts(counts if isinstance(counts, str) else counts.decode())
    columns, order = np.unique(columns, return_inverse=True)
    # Runs go down the columns, from left to right. Map the end of each, as a number of pixels of
    # the whole mask, to a number of decoded pixels.
    end_columns, end_rows = np.divmod(np.cumsum(runs), rle["size"][0])
    before, until = (np.searchsorted(columns, end_columns, side) for side in ("left", "right"))
    ends = before * len(rows) + (until - before) * np.searchsorted(rows, end_rows)
    pixels = np.repeat(np.arange(len(ends)) % 2 == 1, np.diff(ends, prepend=0))
    return pixels.reshape(len(columns), len(rows))[order].T
