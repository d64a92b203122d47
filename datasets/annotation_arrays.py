"""The annotations of a data set in arrays, which the processes of a training share.

COCO has a million annotations. As Python objects they take gigabytes in each process, and a data
worker that only looks at one copies the page of memory that holds it, because its reference count
changes.
"""

from itertools import chain
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from datasets.annotations import MAX_PIXELS, category_names


class Texts(NamedTuple):
    """Texts, one after the other in an array of bytes.

    content: uint8 [total], UTF-8; ends: int64 [n], where each text ends.
    """

    content: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, texts):
        parts = [text.encode("utf-8", "surrogatepass") for text in texts]
        return cls(np.frombuffer(b"".join(parts), np.uint8), ends_of(map(len, parts)))

    def get(self, index):
        part = self.content[starts_at(self.ends, index) : self.ends[index]]
        return part.tobytes().decode("utf-8", "surrogatepass")


class Images(NamedTuple):
    """The images of an annotation file, in the order of their ids.

    ids: int64 [N]; sizes: int64 [N, 2], height and width in pixels, 0 where the file does not say;
    names: Texts, paths relative to the images' folder.
    """

    ids: np.ndarray
    sizes: np.ndarray
    names: Texts

    @classmethod
    def of(cls, images):
        """images: the file's list, checked."""
        images = sorted(images, key=lambda image: image["id"])
        # A side without the other one may be any number.
        sides = [image.get(side) or 0 for image in images for side in ("height", "width")]
        return cls(
            np.array([image["id"] for image in images], np.int64),
            np.array([min(side, MAX_PIXELS) for side in sides], np.int64).reshape(-1, 2),
            Texts.of(image["file_name"] for image in images),
        )

    def find(self, image_id):
        """The index of the image with this id."""
        return int(np.searchsorted(self.ids, image_id))


class Segmentations(NamedTuple):
    """COCO's segmentations: each is polygons, or an RLE.

    points: float64 [total], x, y, x, y, … in pixels; point_ends: int64, where each polygon ends in
    it; polygon_ends: int64 [n], where the polygons of each segmentation end; rles: Texts, the
    counts of compressed RLEs, empty where there are polygons.
    """

    points: np.ndarray
    point_ends: np.ndarray
    polygon_ends: np.ndarray
    rles: Texts

    @classmethod
    def of(cls, segmentations):
        polygons = [each if isinstance(each, list) else [] for each in segmentations]
        flat = list(chain.from_iterable(polygons))
        rles = ("" if isinstance(each, list) else rle_counts(each) for each in segmentations)
        return cls(
            np.fromiter(chain.from_iterable(flat), np.float64),
            ends_of(map(len, flat)),
            ends_of(map(len, polygons)),
            Texts.of(rles),
        )

    def get(self, index, height, width):
        """The segmentation as pycocotools takes it, of an image of this size."""
        if counts := self.rles.get(index):
            return {"size": [height, width], "counts": counts}
        return [
            self.points[starts_at(self.point_ends, polygon) : self.point_ends[polygon]].tolist()
            for polygon in range(starts_at(self.polygon_ends, index), self.polygon_ends[index])
        ]


class Annotations(NamedTuple):
    """The annotations of an annotation file, ordered by image, and as in the file within one.

    ends: int64 [N], where the annotations of each image end; boxes: float64 [n, 4], x, y, width,
    height in pixels; labels: int64 [n], category ids; areas: float64 [n], pixels; crowds: bool [n];
    segmentations: of all of them, or of none where no masks are wanted.
    """

    ends: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowds: np.ndarray
    segmentations: Segmentations

    @classmethod
    def of(cls, annotations, images, with_masks):
        """annotations: the file's list, checked and filled in; images: Images."""
        image_ids = np.array([ann["image_id"] for ann in annotations], np.int64)
        owners = np.searchsorted(images.ids, image_ids)
        order = np.argsort(owners, kind="stable")
        annotations = [annotations[index] for index in order.tolist()]
        return cls(
            ends_of(np.bincount(owners, minlength=len(images.ids))),
            np.array([ann["bbox"] for ann in annotations], np.float64).reshape(-1, 4),
            np.array([ann["category_id"] for ann in annotations], np.int64),
            np.array([ann["area"] for ann in annotations], np.float64),
            np.array([ann["iscrowd"] for ann in annotations], bool),
            Segmentations.of([ann["segmentation"] for ann in annotations] if with_masks else []),
        )

    def of_image(self, index):
        """The indices of an image's annotations that are not crowds, int64 [n]."""
        start, end = starts_at(self.ends, index), self.ends[index]
        return start + np.flatnonzero(~self.crowds[start:end])


class Segments(NamedTuple):
    """The segments of a panoptic annotation file, ordered by image, and as in the file within one.

    ends: int64 [N], where the segments of each image end; ids: int64 [n], the colours in the PNG;
    labels: int64 [n], category ids; areas: float64 [n], pixels, NaN where the file does not say;
    crowds: int64 [n], 0 or 1; names: Texts [N], of the PNGs.
    """

    ends: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowds: np.ndarray
    names: Texts

    @classmethod
    def of(cls, annotations):
        """annotations: the file's, checked, in the order of their images' ids."""
        segments = list(chain.from_iterable(ann["segments_info"] for ann in annotations))
        return cls(
            ends_of(len(ann["segments_info"]) for ann in annotations),
            np.array([segment["id"] for segment in segments], np.int64),
            np.array([segment["category_id"] for segment in segments], np.int64),
            np.array([segment.get("area", np.nan) for segment in segments], np.float64),
            np.array([segment["iscrowd"] for segment in segments], np.int64),
            Texts.of(ann["file_name"] for ann in annotations),
        )

    def of_image(self, index):
        """The slice of an image's segments."""
        return slice(starts_at(self.ends, index), self.ends[index])


class CocoArrays(NamedTuple):
    """What a data set needs of an annotation file.

    classes: a dictionary category id -> name; notes: lines about what was filled in.
    """

    images: Images
    annotations: Annotations
    classes: dict
    notes: list

    @classmethod
    def of(cls, file, with_masks):
        """file: annotations.CocoFile; with_masks: whether segmentations are wanted."""
        images = Images.of(file.data["images"])
        annotations = Annotations.of(file.data["annotations"], images, with_masks)
        return cls(images, annotations, category_names(file.data["categories"]), file.notes)


def ends_of(lengths):
    return np.cumsum(np.fromiter(lengths, np.int64), dtype=np.int64)


def owners_of(ends):
    """Of each annotation the index of its image. ends: int64 [N], where each image's end."""
    return np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))


def starts_at(ends, index):
    return ends[index - 1] if index > 0 else 0


def rle_counts(segmentation):
    """The counts of an RLE, compressed or not, as the text of a compressed one."""
    counts = segmentation["counts"]
    if isinstance(counts, str):
        return counts
    return coco_mask.frPyObjects(segmentation, *segmentation["size"])["counts"].decode()


# ---- as one dictionary of arrays, and back


def flatten(record, prefix=""):
    """A dictionary name -> array of a NamedTuple of arrays and such NamedTuples."""
    arrays = {}
    for name, value in record._asdict().items():
        if isinstance(value, np.ndarray):
            arrays[prefix + name] = value
        else:
            arrays.update(flatten(value, f"{prefix}{name}."))
    return arrays


def restore(kind, arrays, prefix=""):
    """The way back of flatten, to the NamedTuple class `kind`."""
    return kind(
        *(
            arrays[prefix + name] if of is np.ndarray else restore(of, arrays, f"{prefix}{name}.")
            for name, of in kind.__annotations__.items()
        )
    )
