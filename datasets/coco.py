"""COCO detection data: images and targets, from checked annotations (see annotations.py).

Source: `datasets/coco.py` of the original.
"""

import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

import datasets.transforms as T
from datasets.annotation_arrays import CocoArrays, owners_of
from datasets.annotation_cache import load_annotations
from datasets.annotations import MAX_BOX_COORDINATE, make_index, read_coco, segmentation_to_rle
from datasets.classes import get_num_classes
from datasets.transforms import EVAL_SIZE, MAX_SIZE, SCALES
from util.errors import InputError

# What Pillow may take a file for. It knows many more formats, one of which (EPS) runs a program on
# the file.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jp2"}
MAX_RATIO = 100  # of an image's sides: the transforms would enlarge a flatter one to gigabytes
# What every image goes through last: ImageNet's mean and standard deviation, as the backbone's
# weights expect.
NORMALIZE = T.Compose([T.ToTensor(), T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])


class CocoImages:
    """Base of the data sets: images with targets, in the order of the image ids.

    A subclass has `target(index, image)`, the target before the transforms; `classes`, a dictionary
    category id -> name; and `list_boxes()`, what summary.py counts: of each box that is in a
    target the image's index, the category id and the area in pixels, three arrays [n]; an area that
    the annotation file does not say is NaN.
    What is random in an item derives from `seed`, `epoch` and the item's index only.

    Args:
        img_folder: folder of the images.
        images: annotation_arrays.Images.
        transforms: called as `transforms(image, target, rng)`.
        seed: what the randomness derives from, with the epoch and the index.
        max_size: the longer side of the images after the transforms, about, in pixels.
        skip_bad_samples: whether the loader leaves out items that raise InputError.

    Attributes:
        ids: int64 [N], of the images.

    Raises:
        InputError: at `dataset[i]`, the image or what belongs to it cannot be read.
    """

    def __init__(
        self, img_folder, images, transforms, seed=0, max_size=MAX_SIZE, skip_bad_samples=False
    ):
        self.img_folder = Path(img_folder)
        self.images = images
        self.ids = images.ids
        self.transforms = transforms
        self.seed = seed
        self.max_size = max_size
        self.skip_bad_samples = skip_bad_samples
        self.epoch = 0

    def __len__(self):
        return len(self.ids)

    def path(self, index):
        return self.img_folder / self.images.names.get(index)

    def read_image(self, index):
        """The image in RGB, in the orientation of its boxes. Raises InputError."""
        image = read_image(self.path(index))
        # COCO's boxes are of the image as it is stored, and its EXIF orientation is not applied.
        # Annotation tools show it upright, and then list width and height the other way round.
        if image.width != image.height and tuple(self.images.sizes[index]) == image.size:
            return read_image(self.path(index), upright=True)
        return image

    def read_by_id(self, image_id):
        return self.read_image(self.images.find(image_id))

    def __getitem__(self, index):
        image = self.read_image(index)
        try:
            target = self.target(index, image)
            return self.transforms(
                image, target, random.Random(f"{self.seed}/{self.epoch}/{index}")
            )
        except InputError:
            raise
        except Exception as error:
            raise RuntimeError(
                f"{self.path(index)}: the image or its annotations could not be prepared"
            ) from error


class CocoDetection(CocoImages):
    """Images and targets of one COCO annotation file.

    Item `i` is `(image, target)`: image float32 [3, H, W], normalised; target a dictionary of
      boxes float32 [n, 4]  cx, cy, w, h relative to the image's size;
      labels int64 [n]      category ids of the annotation file;
      image_id int;
      area float32 [n]      pixels of the transformed image;
      iscrowd int64 [n]     zeros, crowd annotations being left out;
      orig_size, size int64 [2]   height and width in pixels before and after the transforms;
      masks bool [n, H, W]  if `return_masks`.

    ann_file: COCO JSON with images, annotations and categories; return_masks: whether targets have
    masks; num_classes: upper bound (exclusive) of the category ids, None for any; is_evaluated:
    whether it has `coco`; the rest as in CocoImages.
    Attributes: annotations, annotation_arrays.Annotations; classes, a dictionary category id ->
    name; coco, pycocotools' index of the annotations, or None; in_target, bool [n], which
    annotations are in a target.
    Raises InputError: the folder or the annotation file cannot be used.
    """

    def __init__(
        self,
        img_folder,
        ann_file,
        transforms,
        return_masks,
        num_classes,
        is_evaluated=False,
        skip_bad_samples=False,
        **options,
    ):
        self.ann_file = ann_file
        self.return_masks = return_masks
        what = Path(img_folder), Path(ann_file), return_masks, num_classes, skip_bad_samples
        self.coco = None
        if is_evaluated:
            file = read_coco(*what)
            self.coco = make_index(file.data)
            arrays = CocoArrays.of(file, return_masks)
        else:
            arrays = load_annotations(*what)
        for note in arrays.notes:
            print(note)
        self.annotations, self.classes = arrays.annotations, arrays.classes
        super().__init__(
            img_folder, arrays.images, transforms, skip_bad_samples=skip_bad_samples, **options
        )
        self.in_target = self._find_targets()
        if count := np.count_nonzero(~self.annotations.crowds & ~self.in_target):
            print(
                f"{ann_file}: {count} boxes have no area inside their image; the losses leave them "
                "out"
            )

    def _find_targets(self):
        """Which annotations are in a target, bool [n]: see `make_target`."""
        annotations = self.annotations
        sizes = self.images.sizes[owners_of(annotations.ends)]
        sizes = np.where(sizes.all(1, keepdims=True), sizes, MAX_BOX_COORDINATE)
        _, has_area = clip_boxes(annotations.boxes, width=sizes[:, 1:], height=sizes[:, :1])
        return has_area & ~annotations.crowds

    def list_boxes(self):
        annotations, kept = self.annotations, self.in_target
        areas = annotations.boxes[:, 2] * annotations.boxes[:, 3]
        return owners_of(annotations.ends)[kept], annotations.labels[kept], areas[kept]

    def target(self, index, image):
        height, width = self.images.sizes[index]
        if self.return_masks and (width, height) != image.size:
            raise InputError(
                f"{self.path(index)}: is of {image.size[0]} x {image.size[1]} pixels, but of "
                f"{width} x {height} in {self.ann_file}; correct width and height there"
            )
        return make_target(self.annotations, index, int(self.ids[index]), image, self.return_masks)


def read_image(path, upright=False):
    """An image of a data set in RGB, as it is stored.

    upright: rotate it as its EXIF orientation says.

    Raises:
        InputError: the file is missing, damaged, no image, or one that is too large or too flat.
    """
    return _decode(
        path, upright, lambda image: image.convert("RGB"), "remove it from the annotation file"
    )


def read_picture(image):
    """A picture to predict on, as a PIL image in RGB, turned as its EXIF orientation says.

    image: a path, a PIL image or an array uint8 [H, W, 3]. Raises InputError as `read_image` does,
    and ValueError for an array of another type.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise ValueError(f"image is an array {image.dtype}: give uint8, 0 to 255")
        return to_rgb(Image.fromarray(image))
    if isinstance(image, Image.Image):
        return to_rgb(ImageOps.exif_transpose(image))
    return _decode(Path(image), True, to_rgb, "leave it out")


def to_rgb(image):
    """A PIL image in RGB; of 16 bits per pixel the upper eight count.

    Pillow's own conversion, which data sets use as the original does, makes nearly all white.
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _decode(path, upright, convert, remedy):
    """The image of a file. convert: makes RGB of it; remedy: the end of the messages."""
    if not path.is_file():
        raise InputError(f"{path}: cannot be read as an image (no such file); add it, or {remedy}")
    try:
        with Image.open(path, formats=FORMATS) as image:
            size = image.size
            if max(size) <= MAX_RATIO * min(size):
                return convert(ImageOps.exif_transpose(image) if upright else image)
    except Exception as error:  # Pillow raises almost any for damaged bytes
        raise InputError(
            f"{path}: cannot be read as an image ({error}); replace the file, or {remedy}"
        ) from error
    raise InputError(f"{path}: {size[0]} x {size[1]} pixels are too flat; {remedy}")


def make_target(annotations, index, image_id, image, with_masks):
    """The target of image number `index`, a PIL image, before the transforms.

    It is that of `CocoDetection`, but boxes are x0, y0, x1, y1 in pixels of the image. Crowd
    annotations and boxes without area inside the image are left out.

    Source: `ConvertCocoPolysToMask` of the original.
    """
    width, height = image.size
    kept = annotations.of_image(index)
    boxes, has_area = clip_boxes(annotations.boxes[kept], width, height)
    kept, boxes = kept[has_area], boxes[has_area]
    size = np.array([height, width], dtype=np.int64)
    target = {
        "boxes": boxes,
        "labels": annotations.labels[kept],
        "image_id": image_id,
        "area": annotations.areas[kept].astype(np.float32),
        "iscrowd": np.zeros(len(kept), dtype=np.int64),
        "orig_size": size,
        "size": size,
    }
    if with_masks:
        masks = np.zeros((len(kept), height, width), dtype=bool)
        for mask, each in zip(masks, kept):
            segmentation = annotations.segmentations.get(each, height, width)
            mask[:] = coco_mask.decode(segmentation_to_rle(segmentation, height, width))
        target["masks"] = masks
    return target


def clip_boxes(boxes, width, height):
    """The parts of boxes inside of their images, and which of them have an area, bool [n].

    boxes: [n, 4], x, y, width, height in pixels; width, height: of the images, numbers or [n, 1].
    Returns the parts as x0, y0, x1, y1 float32 [n, 4].
    """
    boxes = boxes.astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    boxes[:, ::2] = np.clip(boxes[:, ::2], 0, width)
    boxes[:, 1::2] = np.clip(boxes[:, 1::2], 0, height)
    return boxes, (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])


def make_coco_transforms(image_set, scales=SCALES, eval_size=EVAL_SIZE, max_size=MAX_SIZE):
    """The augmentation of 'train', or the plain resize of 'val'.

    scales, eval_size: the shorter side in pixels, in training one of several; max_size: about the
    longest the other one becomes. The crop between two resizes keeps the proportion to the largest
    scale that it has in the original.
    """
    if image_set == "train":

        def share(of_800):
            return round(of_800 * max(scales) / 800)

        return T.Compose(
            [
                T.RandomHorizontalFlip(),
                T.RandomSelect(
                    T.RandomResize(scales, max_size=max_size),
                    T.Compose(
                        [
                            T.RandomResize([share(400), share(500), share(600)]),
                            T.RandomSizeCrop(share(384), share(600)),
                            T.RandomResize(scales, max_size=max_size),
                        ]
                    ),
                ),
                NORMALIZE,
            ]
        )
    if image_set == "val":
        return T.Compose([T.RandomResize([eval_size], max_size=max_size), NORMALIZE])
    raise ValueError(f"unknown image set {image_set!r}")


def build(image_set, args):
    """Builds COCO 2017, or the user's own data in COCO's format.

    COCO 2017 is under `args.coco_path`: train2017/, val2017/, annotations/.

    image_set: 'train' or 'val'. The latter's folders and files are `args.train_images`,
    `train_ann`, `val_images`, `val_ann`.

    Raises:
        InputError: see `CocoDetection`.
    """
    if args.train_ann or args.val_ann:
        img_folder = getattr(args, f"{image_set}_images")
        ann_file = getattr(args, f"{image_set}_ann")
    else:
        root = Path(args.coco_path)
        img_folder = root / f"{image_set}2017"
        ann_file = root / "annotations" / f"instances_{image_set}2017.json"
    return CocoDetection(
        img_folder,
        ann_file,
        make_coco_transforms(image_set, args.img_scales, args.eval_size, args.max_size),
        return_masks=args.masks,
        num_classes=get_num_classes(args),
        is_evaluated=image_set == "val",
        seed=args.seed,
        max_size=args.max_size,
        skip_bad_samples=args.skip_bad_samples,
    )
