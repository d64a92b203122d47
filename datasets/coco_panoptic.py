"""COCO panoptic data: images with a PNG each, whose colours are the ids of things and stuff.

Source: `datasets/coco_panoptic.py` of the original, which pairs images and annotations by order;
here the ids pair them.
"""

import math
from pathlib import Path

import numpy as np

from datasets.annotation_arrays import Images, Segments, owners_of
from datasets.annotations import (
    BadSamples,
    category_names,
    check_categories,
    check_images,
    id_fault,
    is_number,
    load_coco,
    read_json,
    short,
)
from datasets.classes import get_num_classes
from datasets.coco import CocoImages, make_coco_transforms, read_image
from util.errors import InputError
from util.memory import return_freed_memory, without_garbage_collector


class CocoPanoptic(CocoImages):
    """Images and segments of one panoptic annotation file.

    Items are those of `datasets.coco.CocoDetection`, of all segments, crowds included; boxes are
    those of the masks.

    ann_folder: folder of the PNGs; ann_file: panoptic JSON with images, annotations with
    segments_info, and categories; num_classes: upper bound (exclusive) of the category ids; coco:
    `pycocotools.coco.COCO` with the instances, for the COCO figures; the rest as in CocoImages.
    Attributes: segments, annotation_arrays.Segments; classes, a dictionary category id -> name;
    categories, the annotation file's list.
    Raises InputError: the folders or the annotation file cannot be used; at `dataset[i]`, the image
    or its PNG cannot.
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
        skip_bad_samples=False,
        **options,
    ):
        self.ann_folder, self.ann_file = Path(ann_folder), Path(ann_file)
        self.coco = coco
        for folder, what in ((Path(img_folder), "images"), (self.ann_folder, "PNGs")):
            if not folder.is_dir():
                raise InputError(f"{folder}: no such folder; put the {what} there")
        with without_garbage_collector():
            images, self.segments, self.categories = read_panoptic(
                Path(img_folder),
                self.ann_folder,
                self.ann_file,
                num_classes,
                coco,
                skip_bad_samples,
            )
        return_freed_memory()
        self.classes = category_names(self.categories)
        self.return_masks = return_masks
        super().__init__(
            img_folder, images, transforms, skip_bad_samples=skip_bad_samples, **options
        )

    def list_boxes(self):
        return owners_of(self.segments.ends), self.segments.labels, self.segments.areas

    def is_thing_map(self):
        """Category id -> whether it is a thing (or stuff)."""
        return {category["id"]: bool(category["isthing"]) for category in self.categories}

    def ground_truth(self):
        """What was checked, as a dictionary like COCO's panoptic JSON; areas may be missing."""
        annotations = []
        for index, image_id in enumerate(self.ids.tolist()):
            of_image, segments = self.segments.of_image(index), []
            for segment_id, label, crowd, area in zip(
                self.segments.ids[of_image].tolist(),
                self.segments.labels[of_image].tolist(),
                self.segments.crowds[of_image].tolist(),
                self.segments.areas[of_image].tolist(),
            ):
                segment = {"id": segment_id, "category_id": label, "iscrowd": crowd}
                if not math.isnan(area):
                    segment["area"] = area
                segments.append(segment)
            name = self.segments.names.get(index)
            annotations.append({"image_id": image_id, "file_name": name, "segments_info": segments})
        return {"annotations": annotations, "categories": self.categories}

    def target(self, index, image):
        path = self.ann_folder / self.segments.names.get(index)
        png = read_image(path)
        if png.size != image.size:
            raise InputError(
                f"{path}: is of {png.size[0]} x {png.size[1]} pixels and its image of "
                f"{image.size[0]} x {image.size[1]}; replace one of them"
            )
        pixels = rgb2id(np.asarray(png))
        of_image = self.segments.of_image(index)
        ids, areas = self.segments.ids[of_image], self.segments.areas[of_image]
        masks = pixels == ids.reshape(-1, 1, 1)
        counts = masks.sum((1, 2))
        for segment_id, count in zip(ids, counts):
            if count == 0:
                raise InputError(
                    f"{path}: holds no pixel of segment {segment_id}, which {self.ann_file} "
                    "lists; remove it there, or replace the PNG"
                )
        size = np.array(pixels.shape, np.int64)
        target = {
            "boxes": masks_to_boxes(masks),
            "labels": self.segments.labels[of_image].copy(),
            "image_id": int(self.ids[index]),
            "area": np.where(np.isnan(areas), counts, areas).astype(np.float32),
            "iscrowd": self.segments.crowds[of_image].copy(),
            "orig_size": size,
            "size": size,
        }
        if self.return_masks:
            target["masks"] = masks
        return target


def rgb2id(colours):
    """uint8 [h, w, 3] -> int64 [h, w], the segment ids of a panoptic PNG's colours."""
    return colours.astype(np.int64) @ np.array([1, 256, 256**2])


def masks_to_boxes(masks):
    """The boxes of masks bool [n, h, w], none of them empty: float32 [n, 4], x0, y0, x1, y1.

    As in the original the last pixel's index is taken, not its right edge.
    """
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks):
        columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        box[:] = columns[0], rows[0], columns[-1], rows[-1]
    return boxes


def read_panoptic(img_folder, ann_folder, ann_file, num_classes, coco, skip_bad_samples):
    """Reads and checks an annotation file: annotation_arrays.Images, Segments, and the categories.

    The arguments are those of CocoPanoptic. Raises InputError.
    """
    content = read_json(ann_file)
    bad_samples = BadSamples(skip_bad_samples)
    content["images"] = check_images(content["images"], img_folder, ann_file, bad_samples)
    annotations = check_panoptic_annotations(
        content, ann_folder, ann_file, num_classes, coco, bad_samples
    )
    bad_samples.report()
    images = Images.of([image for image in content["images"] if image["id"] in annotations])
    segments = Segments.of([annotations[image_id] for image_id in images.ids.tolist()])
    return images, segments, content["categories"]


def check_panoptic_annotations(content, ann_folder, ann_file, num_classes, coco, bad_samples):
    """A dictionary image id -> annotation, of the annotations whose PNG and segments can be used.

    Raises InputError where no image has one, or, unless `bad_samples` skips them, for the first
    fault found.
    """
    check_categories(content["categories"], ann_file)
    for category in content["categories"]:
        if not 0 <= category["id"] < num_classes:
            raise InputError(
                f"{ann_file}: category id {category['id']} is not in 0..{num_classes - 1}; "
                "renumber the categories, or give a larger --num_classes"
            )
    categories = {category["id"] for category in content["categories"]}
    known = {image["id"] for image in content["images"]}
    names = {path.name for path in ann_folder.iterdir()}
    annotations = {}
    for annotation in content["annotations"]:
        image_id = annotation.get("image_id")
        if type(image_id) is not int or image_id not in known or image_id in annotations:
            fault = "no image with this id is listed, or it has two annotations; correct image_id"
        elif coco is not None and image_id not in coco.imgs:
            fault = "the file with the instances has no such image; add it there"
        else:
            fault = panoptic_annotation_fault(annotation, ann_folder, names, categories)
        if fault:
            bad_samples.add(f"{ann_file}: annotation of image {short(image_id)}: {fault}")
        else:
            annotations[image_id] = annotation
    for image in content["images"]:
        if image["id"] not in annotations:
            bad_samples.add(
                f"{ann_file}: image {image['id']} has no annotation; add it, or remove the image"
            )
    if not annotations:
        raise InputError(f"{ann_file}: no image has an annotation that can be used; add one")
    return annotations


def panoptic_annotation_fault(annotation, ann_folder, names, categories):
    """What is wrong with an image's annotation, and the remedy; or None.

    names: of the files in ann_folder.
    """
    name, segments = annotation.get("file_name"), annotation.get("segments_info")
    if not isinstance(name, str) or name not in names:
        return f"{ann_folder / str(name)} is missing; put the PNG there"
    if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
        return "has no segments_info; export it in COCO's panoptic format"
    ids = set()
    for segment in segments:
        if fault := id_fault(segment.get("id"), ids, "segment"):
            return fault
        category = segment.get("category_id")
        if type(category) is not int or category not in categories:
            return f"segment {segment['id']}: category {short(category)} is not listed; add it"
        if "area" in segment and not is_number(segment["area"], 0, 2**63):
            return f"segment {segment['id']}: area {short(segment['area'])}; correct or remove it"
        if segment.setdefault("iscrowd", 0) not in (0, 1):
            return f"segment {segment['id']}: iscrowd is neither 0 nor 1; correct it"
    return None


def check_things_and_stuff(dataset):
    """Raises InputError for a CocoPanoptic that panoptic quality is not defined for.

    PQ is the mean of the classes of things, of stuff, and of all, and needs objects of both.
    """
    segments = dataset.segments
    present = set(segments.labels[segments.crowds == 0].tolist())
    found = set()
    for category in dataset.categories:
        if category.get("isthing") not in (0, 1):
            raise InputError(
                f"{dataset.ann_file}: category {category['id']}: isthing is neither 0 nor 1; set "
                "it to 1 for things and to 0 for stuff"
            )
        if category["id"] in present:
            found.add(category["isthing"])
    for isthing, kind in ((1, "things"), (0, "stuff")):
        if isthing not in found:
            raise InputError(
                f"{dataset.ann_file}: has no segment of {kind}, and panoptic quality needs things "
                "and stuff; add some, or use --dataset_file coco"
            )


def build(image_set, args):
    """Builds COCO 2017 (`args.coco_path`) with panoptic annotations (`args.coco_panoptic_path`).

    For 'val' the instances of COCO are read too: as in the original they give the figures of boxes
    and masks.

    Raises:
        InputError: see `CocoPanoptic`.
    """
    images, panoptic, name = Path(args.coco_path), Path(args.coco_panoptic_path), f"{image_set}2017"
    num_classes = get_num_classes(args)
    coco = None
    if image_set == "val":
        coco = load_coco(
            images / name,
            images / "annotations" / f"instances_{name}.json",
            return_masks=args.masks,
            num_classes=num_classes,
            skip_bad_samples=args.skip_bad_samples,
        )
    dataset = CocoPanoptic(
        images / name,
        panoptic / f"panoptic_{name}",
        panoptic / "annotations" / f"panoptic_{name}.json",
        make_coco_transforms(image_set, args.img_scales, args.eval_size, args.max_size),
        return_masks=args.masks,
        num_classes=num_classes,
        coco=coco,
        skip_bad_samples=args.skip_bad_samples,
        seed=args.seed,
        max_size=args.max_size,
    )
    if image_set == "val" and args.masks:
        check_things_and_stuff(dataset)
    return dataset
