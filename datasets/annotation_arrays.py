"""Annotations packed into NumPy arrays, which all processes of a run share.

COCO has a million annotations. As Python objects they take gigabytes in each process: after a fork,
even reading one updates its reference count, which triggers copy-on-write of its memory page.
"""

from itertools import chain, compress
from typing import NamedTuple

import numpy as np

from datasets.annotations import MAX_PIXELS, get_class_names
from datasets.segmentations import segmentation_to_rle


class Strings(NamedTuple):
    """Strings concatenated into one byte array.

    content: uint8 [total], UTF-8; ends: int64 [n], end offset of each string.
    """

    content: np.ndarray
    ends: np.ndarray

    @classmethod
    def pack(cls, strings):
        parts = [string.encode("utf-8", "surrogatepass") for string in strings]
        return cls(np.frombuffer(b"".join(parts), np.uint8), get_ends(map(len, parts)))

    def get(self, index):
        part = self.content[get_slice(self.ends, index)]
        return part.tobytes().decode("utf-8", "surrogatepass")


class Images(NamedTuple):
    """The images of an annotation file, sorted by id.

    ids: int64 [N]; sizes: int64 [N, 2], height and width in pixels, 0 if missing in the file;
    names: Strings [N], paths relative to the image folder.
    """

    ids: np.ndarray
    sizes: np.ndarray
    names: Strings

    @classmethod
    def pack(cls, images):
        """Pack the validated images of an annotation file."""
        images = sorted(images, key=lambda image: image["id"])
        # find_size_error does not bound a side if the other one is missing.
        sides = [image.get(side) or 0 for image in images for side in ("height", "width")]
        return cls(
            np.array([image["id"] for image in images], np.int64),
            np.array([min(side, MAX_PIXELS) for side in sides], np.int64).reshape(-1, 2),
            Strings.pack(image["file_name"] for image in images),
        )

    def find(self, image_id):
        """Return the index of the image with this id."""
        return int(np.searchsorted(self.ids, image_id))


class Segmentations(NamedTuple):
    """COCO segmentations; each is a list of polygons or an RLE.

    points: float64 [total], x, y, x, y, … in pixels; point_ends: int64, end offset of each polygon
    in points; polygon_ends: int64 [n], end offset of each segmentation in point_ends; rles: Strings
    [n], counts of compressed RLEs, empty for polygons.
    """

    points: np.ndarray
    point_ends: np.ndarray
    polygon_ends: np.ndarray
    rles: Strings

    @classmethod
    def pack(cls, segmentations):
        polygons = [each if isinstance(each, list) else [] for each in segmentations]
        flat = list(chain.from_iterable(polygons))
        rles = ("" if isinstance(each, list) else compress_counts(each) for each in segmentations)
        return cls(
            np.fromiter(chain.from_iterable(flat), np.float64),
            get_ends(map(len, flat)),
            get_ends(map(len, polygons)),
            Strings.pack(rles),
        )

    def get(self, index, height, width):
        """Return a segmentation in pycocotools' format. height, width: image size in pixels."""
        if counts := self.rles.get(index):
            return {"size": [height, width], "counts": counts}
        polygons = range(len(self.point_ends))[get_slice(self.polygon_ends, index)]
        return [self.points[get_slice(self.point_ends, polygon)].tolist() for polygon in polygons]


class Annotations(NamedTuple):
    """The annotations of an annotation file, sorted by image, in file order within each image.

    ends: int64 [N], end offset of each image's annotations; boxes: float64 [n, 4], x, y, width,
    height in pixels; labels: int64 [n], category ids; areas: float64 [n], pixels; crowds: bool [n];
    segmentations: empty unless packed with `with_masks`.
    """

    ends: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowds: np.ndarray
    segmentations: Segmentations

    @classmethod
    def pack(cls, annotations, images, with_masks):
        """Pack the annotations of a file, validated and with missing fields filled in.

        annotations: list, sorted by image.
        """
        image_ids = np.array([ann["image_id"] for ann in annotations], np.int64)
        image_indices = np.searchsorted(images.ids, image_ids)
        return cls(
            get_ends(np.bincount(image_indices, minlength=len(images.ids))),
            np.array([ann["bbox"] for ann in annotations], np.float64).reshape(-1, 4),
            np.array([ann["category_id"] for ann in annotations], np.int64),
            np.array([ann["area"] for ann in annotations], np.float64),
            np.array([ann["iscrowd"] for ann in annotations], bool),
            Segmentations.pack([ann["segmentation"] for ann in annotations] if with_masks else []),
        )

    def find_repeated(self):
        """Return which annotations repeat an earlier one of the image: class, box and area."""
        columns = get_image_indices(self.ends), self.labels, self.crowds, self.areas, self.boxes
        rows = np.column_stack(columns).astype(np.float64)
        # Sort hashes first, because sorting COCO's rows takes a second.
        bits = rows.view(np.uint64)
        hashes = ((bits ^ (bits >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(8)
        hashes = hashes @ (2 * np.arange(rows.shape[1], dtype=np.uint64) + np.uint64(1))
        _, groups, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        candidates = np.flatnonzero(counts[groups] > 1)
        _, first = np.unique(rows[candidates], axis=0, return_index=True)
        is_repeated = np.zeros(len(rows), bool)
        is_repeated[candidates] = True
        is_repeated[candidates[first]] = False
        return is_repeated

    def get_indices(self, index):
        """Return the indices of an image's non-crowd annotations, int64 [n]."""
        span = get_slice(self.ends, index)
        return span.start + np.flatnonzero(~self.crowds[span])


class Segments(NamedTuple):
    """The segments of a panoptic annotation file, sorted by image, in file order within each image.

    ends: int64 [N], end offset of each image's segments; ids: int64 [n], colours in the PNG;
    labels: int64 [n], category ids; areas: float64 [n], pixels, NaN if missing in the file; crowds:
    int64 [n], 0 or 1; names: Strings [N], file names of the PNGs.
    """

    ends: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowds: np.ndarray
    names: Strings

    @classmethod
    def pack(cls, annotations):
        """Pack the segments of validated annotations, sorted by image id."""
        segments = list(chain.from_iterable(ann["segments_info"] for ann in annotations))
        return cls(
            get_ends(len(ann["segments_info"]) for ann in annotations),
            np.array([segment["id"] for segment in segments], np.int64),
            np.array([segment["category_id"] for segment in segments], np.int64),
            np.array([segment.get("area", np.nan) for segment in segments], np.float64),
            np.array([segment["iscrowd"] for segment in segments], np.int64),
            Strings.pack(ann["file_name"] for ann in annotations),
        )

    def get_slice(self, index):
        """Return the slice of an image's segments."""
        return get_slice(self.ends, index)


class CocoArrays(NamedTuple):
    """The contents of an annotation file, packed into arrays.

    classes: dictionary category id -> name; notes: messages about what was changed or looks wrong.
    """

    images: Images
    annotations: Annotations
    classes: dict
    notes: list

    @classmethod
    def pack(cls, data, notes, with_masks, keep_repeated=False):
        """Pack the result of `annotations.read_coco`.

        with_masks: keep segmentations; keep_repeated: keep annotations that repeat another one.
        """
        images = Images.pack(data["images"])
        image_ids = np.array([ann["image_id"] for ann in data["annotations"]], np.int64)
        order = np.argsort(image_ids, kind="stable").tolist()
        listed = [data["annotations"][index] for index in order]
        annotations = Annotations.pack(listed, images, with_masks)
        if not keep_repeated and (is_repeated := annotations.find_repeated()).any():
            listed = list(compress(listed, ~is_repeated))
            annotations = Annotations.pack(listed, images, with_masks)
        return cls(images, annotations, get_class_names(data["categories"]), notes)


def get_ends(lengths):
    return np.cumsum(np.fromiter(lengths, np.int64), dtype=np.int64)


def get_slice(ends, index):
    return slice(ends[index - 1] if index > 0 else 0, ends[index])


def get_image_indices(ends):
    """Return the image index of each annotation. ends: int64 [N], end offset of each image."""
    return np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))


def compress_counts(rle):
    """Return the counts of an RLE as a compressed string."""
    counts = segmentation_to_rle(rle, *rle["size"])["counts"]
    return counts if isinstance(counts, str) else counts.decode()


# ---- conversion to and from a flat dictionary of arrays


def flatten(record, prefix=""):
    """Flatten a nested NamedTuple of arrays into a dictionary {dotted name: array}."""
    arrays = {}
    for name, value in record._asdict().items():
        if isinstance(value, np.ndarray):
            arrays[prefix + name] = value
        else:
            arrays.update(flatten(value, f"{prefix}{name}."))
    return arrays


def unflatten(cls, arrays, prefix=""):
    """Rebuild the NamedTuple `cls` from the arrays returned by `flatten`."""
    return cls(
        *(
            arrays[prefix + name]
            if kind is np.ndarray
            else unflatten(kind, arrays, f"{prefix}{name}.")
            for name, kind in cls.__annotations__.items()
        )
    )
