"""COCO detection dataset: images and targets from validated annotations (see annotations.py).

Source: `datasets/coco.py` of the original.
"""

import random
from argparse import Namespace
from pathlib import Path

import numpy as np

import datasets.transforms as T
from datasets.annotation_arrays import get_image_indices
from datasets.annotation_cache import load_annotations
from datasets.annotations import MAX_BOX_COORDINATE, make_index, read_coco
from datasets.classes import get_num_classes
from datasets.faults import Faults
from datasets.images import read_header, read_image
from datasets.plausibility import check_targets, pack_checked
from datasets.segmentations import make_masks
from datasets.transforms import EVAL_SIZE, MAX_SIZE, SCALES
from util.errors import InputError, print_escaped

# Image set -> whose files it reads. "overfit": the training images, prepared as for evaluation.
SPLITS = {"train": "train", "val": "val", "overfit": "train"}
NUM_SURVEYED = 200  # images whose EXIF orientation is looked at before a run
# Last step of every pipeline: normalise with ImageNet's mean and std, as the backbones expect.
NORMALIZE = T.Compose([T.ToTensor(), T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])


class CocoDataset:
    """Base class of the datasets: items (image, target), sorted by image id.

    Subclasses implement `load_target(index, image)`, which returns the untransformed target;
    `classes`, a dictionary category id -> name; and `list_boxes()` for summary.py, which returns
    image index, category id and area in pixels of every box in a target, three arrays [n]; area is
    NaN if missing in the annotation file.
    Random transforms depend only on `seed`, `epoch` and the index. `dataset[i]` raises InputError
    if the image or its target cannot be read.

    img_folder: folder of the images; images: annotation_arrays.Images; transforms: called as
    `transforms(image, target, rng)`; faults: Faults, whose `skip` decides whether the loader skips
    items that raise InputError; seed: random seed of the transforms; max_size: approximate limit of
    the longer side after the transforms, in pixels.
    Attributes: ids, int64 [N], image ids; epoch, which the loader sets.
    """

    def __init__(self, img_folder, images, transforms, faults, seed=0, max_size=MAX_SIZE):
        self.img_folder = Path(img_folder)
        self.images, self.ids = images, images.ids
        self.transforms, self.skip_bad_samples = transforms, faults.skip
        self.seed, self.max_size, self.epoch = seed, max_size, 0
        self.is_upright = True
        self._survey_orientations()

    def __len__(self):
        return len(self.ids)

    def get_path(self, index):
        return self.img_folder / self.images.names.get(index)

    def _survey_orientations(self):
        """Print how many of some images have an EXIF orientation, and how their boxes are taken.

        If width and height in the annotation file say of more images that their boxes are for the
        image as it is stored than upright, this holds for all where both have the same size.
        """
        step = -(-len(self) // NUM_SURVEYED)
        surveyed = range(0, len(self), step)
        oriented, votes = [], 0
        for index in surveyed:
            try:
                header = read_header(self.get_path(index))
            except InputError:  # reported when the image is loaded
                continue
            if header.orientation == 1:
                continue
            oriented.append(index)
            stored, upright = header.get_size(False), header.get_size(True)
            listed = self._get_listed_size(index)
            votes += (listed == upright) - (listed == stored)
        if oriented:
            self.is_upright = votes >= 0
            looked_at = " looked at" if step > 1 else ""
            how = "upright, as viewers show it" if self.is_upright else "as it is stored"
            print_escaped(
                f"{self.img_folder}: {len(oriented)} of {len(surveyed)} images{looked_at} have an "
                f"EXIF orientation, such as {self.images.names.get(oriented[0])}; their boxes are "
                f"taken for the image {how}, unless its width and height say otherwise"
            )

    def _get_listed_size(self, index):
        """Return (width, height) as the annotation file says, 0 if missing."""
        height, width = self.images.sizes[index].tolist()
        return width, height

    def should_turn(self, header, index):
        """Return whether the boxes of image `index` refer to it with its orientation applied."""
        stored, upright = header.get_size(False), header.get_size(True)
        listed = self._get_listed_size(index)
        if stored != upright and listed in (stored, upright):
            return listed == upright
        return self.is_upright

    def check_image(self, index):
        """Read an image's header. Raises InputError if it cannot be read, or has another size."""
        header = read_header(self.get_path(index))
        self.check_size(index, header.get_size(self.should_turn(header, index)))
        return header

    def check_size(self, index, size):
        """Raise InputError if `size`, (width, height), is not the one in the annotation file."""
        listed = self._get_listed_size(index)
        if all(listed) and listed != tuple(size):
            raise InputError(
                f"{self.get_path(index)}: image is {size[0]}x{size[1]}, but {self.ann_file} says "
                f"{listed[0]}x{listed[1]}, which its boxes are for; use the images that were "
                "annotated, or scale the boxes together with width and height"
            )

    def read_image(self, index):
        """Read the image as RGB, in the orientation that its boxes refer to. Raises InputError."""
        path = self.get_path(index)
        return read_image(path, lambda header: self.should_turn(header, index))

    def read_image_by_id(self, image_id):
        return self.read_image(self.images.find(image_id))

    def __getitem__(self, index):
        image = self.read_image(index)
        rng = random.Random(f"{self.seed}/{self.epoch}/{index}")
        try:
            return self.transforms(image, self.load_target(index, image), rng)
        except InputError:
            raise
        except Exception as error:
            raise RuntimeError(
                f"{self.get_path(index)}: the image or its annotations cannot be prepared"
            ) from error


class CocoDetection(CocoDataset):
    """Images and targets of one COCO annotation file.

    Item `i` is `(image, target)`: image float32 [3, H, W], normalised; target a dictionary of
      boxes float32 [n, 4]  cx, cy, w, h relative to the image's size;
      labels int64 [n]      category ids of the annotation file;
      image_id int;
      area float32 [n]      pixels of the transformed image;
      iscrowd int64 [n]     always 0, because crowds are dropped;
      orig_size, size int64 [2]   height and width in pixels before and after the transforms;
      masks bool [n, H, W]  if `return_masks`.

    ann_file: COCO JSON with images, annotations and categories; return_masks: add masks to the
    targets; num_classes: exclusive upper bound of the category ids, or None; is_evaluated: build
    `coco`; faults: Faults, default: the first one raises InputError; the rest as in CocoDataset.
    Attributes: annotations, annotation_arrays.Annotations; classes, a dictionary category id ->
    name; coco, pycocotools' COCO, or None; in_target, bool [n], which annotations are in a target.
    Raises InputError if the folder or the annotation file is missing or invalid.
    """

    def __init__(
        self,
        img_folder,
        ann_file,
        transforms,
        return_masks,
        num_classes,
        is_evaluated=False,
        faults=None,
        **options,
    ):
        faults = faults or Faults()
        self.ann_file = ann_file
        self.return_masks = return_masks
        source = Path(img_folder), Path(ann_file), return_masks, num_classes, faults
        self.coco = None
        if is_evaluated:
            data, notes = read_coco(*source)
            self.coco = make_index(data)
            arrays = pack_checked(data, notes, ann_file, return_masks, True, faults)
        else:
            arrays = load_annotations(*source)
        self.images, self.annotations, self.classes, notes = arrays
        self.in_target = self._find_targets()
        checked = self.annotations, self.in_target, ann_file
        for note in [*notes, *check_targets(*checked, is_evaluated, faults)]:
            print(note)
        super().__init__(img_folder, self.images, transforms, faults, **options)

    def _find_targets(self):
        """Return a mask of the annotations that `make_target` keeps, bool [n]."""
        annotations = self.annotations
        sizes = self.images.sizes[get_image_indices(annotations.ends)]
        sizes = np.where(sizes.all(1, keepdims=True), sizes, MAX_BOX_COORDINATE)
        _, has_area = clip_boxes(annotations.boxes, width=sizes[:, 1:], height=sizes[:, :1])
        return has_area & ~annotations.crowds

    def list_boxes(self):
        annotations, keep = self.annotations, self.in_target
        areas = annotations.boxes[:, 2] * annotations.boxes[:, 3]
        return get_image_indices(annotations.ends)[keep], annotations.labels[keep], areas[keep]

    def load_target(self, index, image):
        self.check_size(index, image.size)
        return make_target(self.annotations, index, int(self.ids[index]), image, self.return_masks)


def make_target(annotations, index, image_id, image, with_masks):
    """Build the target of image `index`, before transforms. image: PIL image.

    Same keys as `CocoDetection`'s target, but boxes are x0, y0, x1, y1 in pixels, and masks are
    LazyMasks. Crowds and boxes without area inside the image are dropped.

    Source: `ConvertCocoPolysToMask` of the original.
    """
    width, height = image.size
    indices = annotations.get_indices(index)
    boxes, has_area = clip_boxes(annotations.boxes[indices], width, height)
    indices, boxes = indices[has_area], boxes[has_area]
    size = np.array([height, width], dtype=np.int64)
    target = {
        "boxes": boxes,
        "labels": annotations.labels[indices],
        "image_id": image_id,
        "area": annotations.areas[indices].astype(np.float32),
        "iscrowd": np.zeros(len(indices), dtype=np.int64),
        "orig_size": size,
        "size": size,
    }
    if with_masks:
        segmentations = [annotations.segmentations.get(i, height, width) for i in indices]
        target["masks"] = make_masks(segmentations, height, width)
    return target


def clip_boxes(boxes, width, height):
    """Clip boxes to their images and find those that are non-empty afterwards.

    boxes: [n, 4], x, y, width, height in pixels; width, height: of the images, scalar or [n, 1].
    Returns the clipped boxes, float32 [n, 4], x0, y0, x1, y1, and whether they have an area, bool
    [n].
    """
    boxes = boxes.astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    boxes[:, ::2] = np.clip(boxes[:, ::2], 0, width)
    boxes[:, 1::2] = np.clip(boxes[:, 1::2], 0, height)
    return boxes, (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])


def make_coco_transforms(
    image_set: str, scales=SCALES, eval_size: int = EVAL_SIZE, max_size: int = MAX_SIZE
) -> T.Compose:
    """Return the augmentation for "train", or the plain resize for "val" and "overfit".

    scales: shorter sides to choose from in training; eval_size: shorter side in evaluation;
    max_size: about the longest side; all in pixels. Crop sizes are the original's, scaled by
    max(scales) / 800.
    """
    if image_set == "train":

        def scale(size):
            return round(size * max(scales) / 800)

        resize = T.RandomResize(scales, max_size)
        small = T.RandomResize([scale(400), scale(500), scale(600)])
        crop = T.Compose([small, T.RandomSizeCrop(scale(384), scale(600)), resize])
        return T.Compose([T.RandomHorizontalFlip(), T.RandomSelect(resize, crop), NORMALIZE])
    if image_set in SPLITS:
        return T.Compose([T.RandomResize([eval_size], max_size), NORMALIZE])
    raise ValueError(f"unknown image set {image_set!r}")


def get_coco_paths(root, image_set):
    """Return the image folder and the annotation file in COCO's layout."""
    name = f"{image_set}2017"
    return Path(root) / name, Path(root) / "annotations" / f"instances_{name}.json"


def build(image_set: str, args: Namespace, faults: Faults) -> CocoDetection:
    """Build the COCO 2017 dataset, or a custom dataset in COCO format. Raises InputError.

    image_set: one of SPLITS. COCO 2017 is read from `args.coco_path` (train2017/, val2017/,
    annotations/), own data from `args.train_images`, `train_ann`, `val_images`, `val_ann`.
    """
    split = SPLITS[image_set]
    if args.train_ann or args.val_ann:
        paths = getattr(args, f"{split}_images"), getattr(args, f"{split}_ann")
    else:
        paths = get_coco_paths(args.coco_path, split)
    return CocoDetection(
        *paths,
        make_coco_transforms(image_set, args.img_scales, args.eval_size, args.max_size),
        return_masks=args.masks,
        num_classes=get_num_classes(args),
        is_evaluated=image_set != "train",
        seed=args.seed,
        max_size=args.max_size,
        faults=faults,
    )
