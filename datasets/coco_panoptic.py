"""COCO panoptic data: one PNG per image, whose colours encode the segment ids.

Source: `datasets/coco_panoptic.py` of the original, which pairs images and annotations by their
order; here they are paired by image id.
"""

import math
from argparse import Namespace
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from datasets.annotation_arrays import Images, Segments, get_image_indices
from datasets.annotations import (
    abbreviate,
    check_categories,
    find_id_error,
    get_class_names,
    is_number,
    load_coco,
    read_annotation_file,
    select_images,
)
from datasets.classes import get_num_classes
from datasets.coco import SPLITS, CocoDataset, get_coco_paths, make_coco_transforms
from datasets.faults import Faults
from datasets.images import open_image
from datasets.segmentations import LazyMasks
from util.errors import InputError
from util.memory import return_freed_memory, without_garbage_collector


class CocoPanoptic(CocoDataset):
    """Images and segments of one panoptic annotation file.

    Items have the format of `CocoDetection`, with one object per segment, including crowds; boxes
    are computed from the masks.

    ann_folder: folder of the PNGs; ann_file: panoptic JSON with images, annotations with
    segments_info, and categories; num_classes: exclusive upper bound of the category ids; coco:
    `pycocotools.coco.COCO` with the instance annotations, for the box and mask metrics; the rest as
    in CocoDataset. Attributes: segments, annotation_arrays.Segments; classes, a dictionary category
    id -> name; categories, the annotation file's list.
    Raises InputError if a folder or the annotation file is missing or invalid; `dataset[i]` raises
    it if the image or its PNG is.
    """

    def __init__(
        self,
        img_folder,
        ann_folder,
        ann_file,
        transforms,
        return_masks,
        num_classes,
        coco=None,
        faults=None,
        **options,
    ):
        faults = faults or Faults()
        self.ann_folder, self.ann_file = Path(ann_folder), Path(ann_file)
        self.coco = coco
        self.return_masks = return_masks
        for folder, content in ((Path(img_folder), "images"), (self.ann_folder, "PNGs")):
            if not folder.is_dir():
                raise InputError(f"{folder}: no such folder; put the {content} there")
        source = Path(img_folder), self.ann_folder, self.ann_file
        with without_garbage_collector():
            loaded = read_panoptic(*source, num_classes, coco, faults)
        images, self.segments, self.categories = loaded
        return_freed_memory()
        self.classes = get_class_names(self.categories)
        super().__init__(img_folder, images, transforms, faults, **options)

    def list_boxes(self):
        return get_image_indices(self.segments.ends), self.segments.labels, self.segments.areas

    def get_is_thing_map(self):
        """Return a dictionary category id -> True for things, False for stuff."""
        return {category["id"]: bool(category["isthing"]) for category in self.categories}

    def get_ground_truth(self):
        """Return the validated annotations in COCO's panoptic JSON format; areas may be missing."""
        segments = self.segments
        arrays = segments.ids, segments.labels, segments.crowds, segments.areas
        annotations = []
        for index, image_id in enumerate(self.ids.tolist()):
            infos = []
            for values in zip(*(array[segments.get_slice(index)].tolist() for array in arrays)):
                info = dict(zip(("id", "category_id", "iscrowd", "area"), values))
                if math.isnan(info["area"]):
                    del info["area"]
                infos.append(info)
            name = segments.names.get(index)
            annotations.append({"image_id": image_id, "file_name": name, "segments_info": infos})
        return {"annotations": annotations, "categories": self.categories}

    def check_image(self, index):
        header = super().check_image(index)
        size = header.get_size(self.should_turn(header, index))
        with open_png(self.ann_folder / self.segments.names.get(index), size):
            return header

    def load_target(self, index, image):
        path = self.ann_folder / self.segments.names.get(index)
        with open_png(path, image.size) as png:
            png = png.convert("RGB")
        pixels = rgb2id(np.asarray(png))
        of_image = self.segments.get_slice(index)
        ids, areas = self.segments.ids[of_image], self.segments.areas[of_image]
        counts, boxes = measure_segments(pixels, ids)
        if not counts.all():
            raise InputError(
                f"{path}: has no pixel of segment {ids[counts == 0][0]}, which {self.ann_file} "
                "lists; remove it there, or replace the PNG"
            )
        size = np.array(pixels.shape, np.int64)
        target = {
            "boxes": boxes,
            "labels": self.segments.labels[of_image].copy(),
            "image_id": int(self.ids[index]),
            "area": np.where(np.isnan(areas), counts, areas).astype(np.float32),
            "iscrowd": self.segments.crowds[of_image].copy(),
            "orig_size": size,
            "size": size,
        }
        if self.return_masks:

            def decode(objects, rows, columns):
                return pixels[rows][:, columns] == ids[objects].reshape(-1, 1, 1)

            target["masks"] = LazyMasks(decode, (len(ids), *pixels.shape))
        return target


@contextmanager
def open_png(path, size):
    """Open a panoptic PNG. Raises InputError if it is grey, or not of `size`, (width, height)."""
    with open_image(path) as png:
        if png.mode not in ("RGB", "RGBA", "P"):
            raise InputError(
                f"{path}: PNG is grey, but COCO's panoptic PNGs are RGB, id = R + 256 G + 65536 B; "
                "export it in colour"
            )
        if png.size != size:
            raise InputError(
                f"{path}: PNG is {png.width}x{png.height}, but its image is {size[0]}x{size[1]}; "
                "replace one of them"
            )
        yield png


def rgb2id(colours):
    """Convert colours of a panoptic PNG, uint8 [h, w, 3], to segment ids, int32 [h, w]."""
    ids = colours[..., 2].astype(np.int32)
    for channel in (1, 0):
        ids *= 256
        ids += colours[..., channel]
    return ids


def measure_segments(pixels, ids):
    """Count the pixels of segments, int64 [n], and compute their boxes, float32 [n, 4].

    pixels: segment ids int [h, w]; ids: [n]. Boxes are x0, y0, x1, y1; as in the original, x1 and
    y1 are inclusive: indices of the last pixel. A segment without pixels has a box of zeros.
    """
    counts, boxes = np.zeros(len(ids), np.int64), np.zeros((len(ids), 4), np.float32)
    for i, mask in enumerate(pixels == segment for segment in ids):
        counts[i] = np.count_nonzero(mask)
        if counts[i]:
            columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
            boxes[i] = columns[0], rows[0], columns[-1], rows[-1]
    return counts, boxes


def read_panoptic(img_folder, ann_folder, ann_file, num_classes, coco, faults):
    """Read and check an annotation file. Returns annotation_arrays.Images, Segments, categories.

    Arguments and errors are those of CocoPanoptic.
    """
    data = read_annotation_file(ann_file)
    data["images"], notes = select_images(data["images"], img_folder, ann_file, faults)
    annotations = select_annotations(data, ann_folder, ann_file, num_classes, coco, faults)
    faults.report()
    for note in notes:
        print(note)
    images = Images.pack([image for image in data["images"] if image["id"] in annotations])
    segments = Segments.pack([annotations[image_id] for image_id in images.ids.tolist()])
    return images, segments, data["categories"]


def select_annotations(data, ann_folder, ann_file, num_classes, coco, faults):
    """Return the valid annotations, a dictionary image id -> annotation.

    Raises InputError if no annotation is valid, or at the first error unless `faults.skip`.
    """
    check_categories(data["categories"], ann_file)
    for category in data["categories"]:
        if not 0 <= category["id"] < num_classes:
            raise InputError(
                f"{ann_file}: category id {category['id']} is not in 0..{num_classes - 1}; "
                "renumber the categories, or give a larger --num_classes"
            )
    categories = {category["id"] for category in data["categories"]}
    image_ids = {image["id"] for image in data["images"]}
    png_names = {path.name for path in ann_folder.iterdir()}
    annotations = {}
    for annotation in data["annotations"]:
        image_id = annotation.get("image_id")
        if type(image_id) is not int or image_id not in image_ids:
            error = "no image has this id; correct image_id"
        elif image_id in annotations:
            error = "has two annotations; remove one"
        elif coco is not None and image_id not in coco.imgs:
            error = "is not in the file with the instances; add it there"
        else:
            error = find_annotation_error(annotation, ann_folder, png_names, categories)
        if error:
            faults.add(f"{ann_file}: annotation of image {abbreviate(image_id)}", error)
        else:
            annotations[image_id] = annotation
    for image in data["images"]:
        if image["id"] not in annotations:
            faults.add(f"{ann_file}: image {image['id']}", "has no annotation; add one")
    if not annotations:
        raise InputError(f"{ann_file}: no image has a valid annotation; add one")
    return annotations


def find_annotation_error(annotation, ann_folder, png_names, categories):
    """Return an error message for an invalid annotation, or None.

    png_names: file names in ann_folder; categories: ids.
    """
    name, segments = annotation.get("file_name"), annotation.get("segments_info")
    if not isinstance(name, str) or name not in png_names:
        return f"{ann_folder / str(name)} is missing; put the PNG there"
    if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
        return "has no segments_info; export it in COCO's panoptic format"
    ids = set()
    for segment in segments:
        if error := find_id_error(segment.get("id"), ids, "segment"):
            return error
        if not 0 < segment["id"] < 2**24:
            return (
                f"segment id {segment['id']} is not in 1..{2**24 - 1}, the ids that colours can "
                "stand for (0 is no segment); renumber the ids"
            )
        category = segment.get("category_id")
        if type(category) is not int or category not in categories:
            return f"segment {segment['id']}: category {abbreviate(category)} is not listed; add it"
        if "area" in segment and not is_number(segment["area"], 0, 2**63):
            return (
                f"segment {segment['id']}: area {abbreviate(segment['area'])} is not a number of "
                "pixels; correct or remove it"
            )
        if segment.setdefault("iscrowd", 0) not in (0, 1):
            return f"segment {segment['id']}: iscrowd is neither 0 nor 1; correct it"
    return None


def check_things_and_stuff(dataset):
    """Raise InputError if panoptic quality is undefined for this dataset.

    PQ is averaged over thing classes, stuff classes and all classes, so both need segments.
    """
    for category in dataset.categories:
        if category.get("isthing") not in (0, 1):
            raise InputError(
                f"{dataset.ann_file}: category {category['id']}: isthing is neither 0 nor 1; set "
                "it to 1 for things and to 0 for stuff"
            )
    segments = dataset.segments
    present = set(segments.labels[segments.crowds == 0].tolist())
    found = {category["isthing"] for category in dataset.categories if category["id"] in present}
    for isthing, name in ((1, "things"), (0, "stuff")):
        if isthing not in found:
            raise InputError(
                f"{dataset.ann_file}: has no segment of {name}, and panoptic quality needs things "
                "and stuff; add some, or use --dataset_file coco"
            )


def build(image_set: str, args: Namespace, faults: Faults) -> CocoPanoptic:
    """Build COCO 2017 (`args.coco_path`) with panoptic annotations (`args.coco_panoptic_path`).

    image_set: one of `datasets.coco.SPLITS`. Except for "train", also load COCO's instance
    annotations, against which box and mask metrics are computed, as in the original. Raises
    InputError.
    """
    img_folder, instances = get_coco_paths(args.coco_path, SPLITS[image_set])
    panoptic, name = Path(args.coco_panoptic_path), f"panoptic_{SPLITS[image_set]}2017"
    is_evaluated = image_set != "train"
    options = dict(return_masks=args.masks, num_classes=get_num_classes(args), faults=faults)
    dataset = CocoPanoptic(
        img_folder,
        panoptic / name,
        panoptic / "annotations" / f"{name}.json",
        make_coco_transforms(image_set, args.img_scales, args.eval_size, args.max_size),
        coco=load_coco(img_folder, instances, **options) if is_evaluated else None,
        seed=args.seed,
        max_size=args.max_size,
        **options,
    )
    if is_evaluated and args.masks:
        check_things_and_stuff(dataset)
    return dataset
