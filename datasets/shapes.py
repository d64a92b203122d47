"""Coloured shapes on a grey background: a synthetic dataset, generated in COCO's folder layout.

A small DETR learns it from scratch within minutes on a CPU (`python main.py --demo`), which
verifies the installation. The folder can also be read with `--dataset_file coco`.
"""

import colorsys
import json
import shutil
import tempfile
from argparse import Namespace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

import datasets.transforms as T
from datasets.classes import get_num_classes
from datasets.coco import NORMALIZE, SPLITS, CocoDetection, get_coco_paths
from datasets.faults import Faults
from util.download import get_user_cache
from util.errors import InputError
from util.files import lock_folder

CLASSES = ("circle", "rectangle", "triangle")  # category ids 1, 2, 3
SEED = 0  # seed of the images; --seed affects only training
MIN_SIDE, MAX_SIDE = 1 / 6, 0.6  # width and height of a shape, as a fraction of the image's side
MAX_SHAPES = 5
MAX_OVERLAP = 0.2  # as a fraction of the smaller shape's area
NOISE_STD = 4  # standard deviation of the noise, in grey levels of 0..255
SUPERSAMPLING = 4  # antialiasing: edges are drawn at this multiple of the resolution


def build(image_set: str, args: Namespace, faults: Faults) -> CocoDetection:
    """Build the shapes dataset from `args.coco_path` or the user's cache; generate it if missing.

    image_set: one of `datasets.coco.SPLITS`. Raises InputError if the folder cannot be written or
    contains something else.
    """
    counts = {"train": args.shapes_train, "val": args.shapes_val}
    name = f"shapes-{args.shapes_size}px-{args.shapes_train}-{args.shapes_val}"
    root = Path(args.coco_path) if args.coco_path else get_user_cache() / name
    write_shapes(root, counts, args.shapes_size)
    return CocoDetection(
        *get_coco_paths(root, SPLITS[image_set]),
        make_shapes_transforms(image_set),
        return_masks=args.masks,
        num_classes=get_num_classes(args),
        is_evaluated=image_set != "train",
        faults=faults,
        seed=args.seed,
        max_size=args.shapes_size,
    )


def make_shapes_transforms(image_set):
    """Return the transforms: a flip in training, no resizing, because the images are small."""
    return T.Compose([T.RandomHorizontalFlip(), NORMALIZE]) if image_set == "train" else NORMALIZE


def write_shapes(root, counts, size, seed=SEED):
    """Generate the dataset in `root`, in COCO's layout, unless it already exists.

    counts: {"train": n, "val": n}, images of each set; size: image side in pixels. The folder is
    created atomically; with several processes, one writes it and the others wait. Raises InputError
    if root has other content or cannot be written.
    """
    # Compared with what the folder says: a change makes all users generate their images again.
    description = "coloured shapes, drawn by datasets/shapes.py"
    info = {"description": description, "size": size, "seed": seed, **counts}
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with lock_folder(root.parent):
            if not (root.is_dir() and any(root.iterdir())):
                _write_folder(root, counts, size, seed, info)
    except OSError as error:
        raise InputError(
            f"{root}: the shapes cannot be written there ({error.strerror}); give another folder "
            "with --coco_path"
        ) from error
    if _read_info(root) != info:
        raise InputError(
            f"{root}: has other content than the {sum(counts.values())} shape images of {size} "
            "pixels that the flags ask for; give another --coco_path, or use --dataset_file coco "
            "to read it"
        )


def draw_image(size, seed, set_index, index):
    """Draw image `index` of the training (set_index 0) or validation set (1), deterministically.

    Returns (image, shapes): uint8 [size, size, 3], and a list of (class index in CLASSES, polygon
    float64 [k, 2] in pixels from the top left corner), from back to front.
    """
    rng = np.random.default_rng([seed, set_index, index])
    image = _make_background(size, rng)
    shapes, masks = [], []
    for _ in range(rng.integers(1, MAX_SHAPES + 1)):
        for _ in range(20):
            kind = int(rng.integers(len(CLASSES)))
            polygon = _sample_polygon(CLASSES[kind], size, rng)
            mask = _draw_mask(polygon, size)
            if all(
                (mask * other).sum() <= MAX_OVERLAP * min(mask.sum(), other.sum())
                for other in masks
            ):
                break
        else:
            continue  # no room found for it
        hsv = rng.random(), rng.uniform(0.75, 1), rng.uniform(0.6, 1)
        colour = 255 * np.array(colorsys.hsv_to_rgb(*hsv))
        image += mask[:, :, None] * (colour - image)
        shapes.append((kind, polygon))
        masks.append(mask)
    image += rng.normal(0, NOISE_STD, (size, size, 1))
    return np.clip(image.round(), 0, 255).astype(np.uint8), shapes


def _make_background(size, rng):
    """Make a grey gradient in a random direction, float64 [size, size, 3]."""
    start, end = rng.uniform(50, 200, 2)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    along = np.cos(angle) * x + np.sin(angle) * y
    grey = start + (end - start) * (along - along.min()) / np.ptp(along)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _sample_polygon(name, size, rng):
    """Sample the vertices of a shape with a random size and position, float64 [k, 2]."""
    width, height = rng.uniform(MIN_SIDE * size, MAX_SIDE * size, 2)
    if name == "circle":
        height = width
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        corners = 0.5 + 0.5 * np.stack([np.cos(angles), np.sin(angles)], 1)
    elif name == "rectangle":
        corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    else:
        corners = np.array([[0.5, 0], [1, 1], [0, 1]])
    corner = rng.random(2) * (size - np.array([width, height]))
    return corner + corners * [width, height]


def _draw_mask(polygon, size):
    """Draw an antialiased polygon: the covered fraction of each pixel, float64 [size, size]."""
    fine = Image.new("L", (size * SUPERSAMPLING, size * SUPERSAMPLING))
    ImageDraw.Draw(fine).polygon(list(map(tuple, polygon * SUPERSAMPLING - 0.5)), fill=255)
    return np.asarray(fine.reduce(SUPERSAMPLING), np.float64) / 255


def _make_annotation(kind, polygon):
    x, y = polygon.T
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    return {
        "category_id": kind + 1,
        "iscrowd": 0,
        "area": round(float(area), 2),
        "bbox": [round(float(v), 2) for v in (x.min(), y.min(), np.ptp(x), np.ptp(y))],
        "segmentation": [[round(float(v), 2) for v in polygon.ravel()]],
    }


def _write_folder(root, counts, size, seed, info):
    total = sum(counts.values())
    print(f"generating {total:,} images in {root}", flush=True)
    temporary = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}."))
    try:
        (temporary / "annotations").mkdir()
        with tqdm(total=total, desc="generating", unit="image", disable=None) as progress:
            for set_index, (image_set, count) in enumerate(counts.items()):
                folder, ann_file = get_coco_paths(temporary, image_set)
                folder.mkdir()
                images, annotations = [], []
                for image_id in range(1, count + 1):
                    image, shapes = draw_image(size, seed, set_index, image_id - 1)
                    name = f"{image_id:012}.png"
                    # Half the time of Pillow's default level 6, and smaller on these images.
                    Image.fromarray(image).save(folder / name, compress_level=3)
                    sides = {"width": size, "height": size}
                    images.append({"id": image_id, "file_name": name, **sides})
                    for shape in shapes:
                        ids = {"id": len(annotations) + 1, "image_id": image_id}
                        annotations.append({**ids, **_make_annotation(*shape)})
                    progress.update()
                content = {
                    "info": info,
                    "images": images,
                    "annotations": annotations,
                    "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)],
                }
                ann_file.write_text(json.dumps(content))
        temporary.chmod(0o755)
        temporary.rename(root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read_info(root):
    """Return the info entry of a dataset's annotation file, or None if there is none."""
    _, ann_file = get_coco_paths(root, "val")
    try:
        return json.loads(ann_file.read_bytes()).get("info")
    except (OSError, ValueError, AttributeError):
        return None
