"""COCO detection data: images and targets, from checked annotations (see annotations.py).

Source: `datasets/coco.py` of the original.
"""

import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

import datasets.transforms as T
from datasets import EVAL_SIZE, MAX_RATIO, MAX_SIZE, SCALES, get_num_classes
from datasets.annotations import category_names, load_coco, segmentation_to_rle
from util.errors import InputError

# What every image goes through last: ImageNet's mean and standard deviation, as the backbone's
# weights expect.
NORMALIZE = T.Compose([T.ToTensor(), T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])

# What Pillow may take a file for. It knows many more formats, one of which (EPS) runs a program on
# the file.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")


class CocoImages:
    """Base of the data sets: images with targets, in the order of the image ids.

    A subclass has `target(image_id, image)`, the target before the transforms; `classes`, a
    dictionary category id -> name; and `list_boxes()`, what summary.py counts.
    What is random in an item derives from `seed`, `epoch` and the item's index only.

    Args:
        img_folder: folder of the images.
        images: the annotation file's list of images.
        transforms: called as `transforms(image, target, rng)`.
        seed: what the randomness derives from, with the epoch and the index.
        max_size: the longer side of the images after the transforms, about, in pixels.
        skip_bad_samples: whether the loader leaves out items that raise InputError.

    Raises:
        InputError: at `dataset[i]`, the image or what belongs to it cannot be read.
    """

    def __init__(
        self, img_folder, images, transforms, seed=0, max_size=MAX_SIZE, skip_bad_samples=False
    ):
        self.img_folder = Path(img_folder)
        self.images = {image["id"]: image for image in images}
        self.ids = sorted(self.images)
        self.transforms = transforms
        self.seed = seed
        self.max_size = max_size
        self.skip_bad_samples = skip_bad_samples
        self.epoch = 0

    def __len__(self):
        return len(self.ids)

    def read_image(self, image_id):
        """The image in RGB, in the orientation of its boxes. Raises InputError."""
        image_info = self.images[image_id]
        image = read_image(self.img_folder / image_info["file_name"])
        # COCO's boxes are of the image as it is stored, and its EXIF orientation is not applied.
        # Annotation tools show it upright, and then list width and height the other way round.
        if (
            image.width != image.height
            and (image_info.get("height"), image_info.get("width")) == image.size
        ):
            return read_image(self.img_folder / image_info["file_name"], upright=True)
        return image

    def __getitem__(self, index):
        image_id = self.ids[index]
        path = self.img_folder / self.images[image_id]["file_name"]
        image = self.read_image(image_id)
        try:
            target = self.target(image_id, image)
            return self.transforms(
                image, target, random.Random(f"{self.seed}/{self.epoch}/{index}")
            )
        except InputError:
            raise
        except Exception as error:
            raise RuntimeError(
                f"{path}: the image or its annotations could not be prepared"
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
    masks; num_classes: upper bound (exclusive) of the category ids, None for any; the rest as in
    CocoImages.
    Attributes: coco, pycocotools' index of the annotations; classes, a dictionary category id ->
    name.
    Raises InputError: the folder or the annotation file cannot be used.
    """

    def __init__(
        self,
        img_folder,
        ann_file,
        transforms,
        return_masks,
        num_classes,
        skip_bad_samples=False,
        **options,
    ):
        self.coco = load_coco(
            Path(img_folder), Path(ann_file), return_masks, num_classes, skip_bad_samples
        )
        self.ann_file = ann_file
        self.classes = category_names(self.coco.dataset["categories"])
        super().__init__(
            img_folder,
            self.coco.dataset["images"],
            transforms,
            skip_bad_samples=skip_bad_samples,
            **options,
        )
        self.prepare = ConvertCocoPolysToMask(return_masks)

    def list_boxes(self):
        """A tuple (image id, category id, area in pixels) for each box that is not a crowd's."""
        return [
            (ann["image_id"], ann["category_id"], ann["bbox"][2] * ann["bbox"][3])
            for ann in self.coco.dataset["annotations"]
            if not ann["iscrowd"]
        ]

    def target(self, image_id, image):
        image_info = self.images[image_id]
        if self.prepare.return_masks and (image_info["width"], image_info["height"]) != image.size:
            raise InputError(
                f"{self.img_folder / image_info['file_name']}: is of {image.size[0]} x "
                f"{image.size[1]} pixels, but of {image_info['width']} x {image_info['height']} in "
                f"{self.ann_file}; correct width and height there"
            )
        return self.prepare(
            image, {"image_id": image_id, "annotations": self.coco.imgToAnns[image_id]}
        )


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

    image: a path, a PIL image or an array uint8 [H, W, 3]. Raises InputError as `read_image` does.
    """
    if isinstance(image, np.ndarray):
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


class ConvertCocoPolysToMask:
    """Turns an image's COCO annotations into a target of arrays.

    The target is that of `CocoDetection`, but boxes are x0, y0, x1, y1 in pixels of the image.
    Crowd annotations and boxes without area inside the image are left out.
    """

    def __init__(self, return_masks=False):
        self.return_masks = return_masks

    def __call__(self, image, target):
        width, height = image.size
        annotations = [ann for ann in target["annotations"] if ann["iscrowd"] == 0]

        boxes = np.array([ann["bbox"] for ann in annotations], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes = np.clip(boxes, 0, np.float32([width, height, width, height]))
        keep = (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])

        size = np.array([height, width], dtype=np.int64)
        result = {
            "boxes": boxes[keep],
            "labels": np.array([ann["category_id"] for ann in annotations], dtype=np.int64)[keep],
            "image_id": target["image_id"],
            "area": np.array([ann["area"] for ann in annotations], dtype=np.float32)[keep],
            "iscrowd": np.zeros(keep.sum(), dtype=np.int64),
            "orig_size": size,
            "size": size,
        }
        if self.return_masks:
            segmentations = [ann["segmentation"] for ann, kept in zip(annotations, keep) if kept]
            result["masks"] = convert_coco_poly_to_mask(segmentations, height, width)
        return result


def convert_coco_poly_to_mask(segmentations, height, width):
    """bool [n, height, width]: one mask for each COCO segmentation."""
    masks = np.zeros((len(segmentations), height, width), dtype=bool)
    for mask, segmentation in zip(masks, segmentations):
        mask[:] = coco_mask.decode(segmentation_to_rle(segmentation, height, width))
    return masks


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
        if not root.is_dir():
            raise InputError(
                f"--coco_path {root}: no such folder; it should hold train2017, val2017 and "
                "annotations"
            )
        img_folder = root / f"{image_set}2017"
        ann_file = root / "annotations" / f"instances_{image_set}2017.json"
    return CocoDetection(
        img_folder,
        ann_file,
        make_coco_transforms(image_set, args.img_scales, args.eval_size, args.max_size),
        return_masks=args.masks,
        num_classes=get_num_classes(args),
        seed=args.seed,
        max_size=args.max_size,
        skip_bad_samples=args.skip_bad_samples,
    )
