"""Check COCO segmentations (polygons or RLE) and convert them to RLE."""

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
    runs, value, shift = [], 0, 0
    for code in counts.encode("utf-8", "surrogatepass"):
        code -= 48
        if not 0 <= code < 64 or shift > 30:
            return None
        value |= (code & 31) << shift
        shift += 5
        if code < 32:  # the last five bits of the run; the highest of them is its sign
            value -= (code & 16) << shift - 4
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs if shift == 0 else None


def segmentation_to_rle(segmentation, height, width):
    """Convert a COCO segmentation (polygons, uncompressed or compressed RLE) to compressed RLE."""
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return segmentation
