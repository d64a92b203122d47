"""Coloured shapes on a grey ground: a data set that is drawn from a seed, as a COCO folder.

A small DETR learns it from scratch within minutes on a CPU (`python main.py --demo`), so that
anybody can tell a working installation from a broken one. Afterwards it is an ordinary COCO folder,
which `--dataset_file coco` reads too.
"""

import colorsys
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

import datasets.transforms as T
from datasets.classes import get_num_classes
from datasets.coco import NORMALIZE, CocoDetection
from util.download import user_cache
from util.errors import InputError
from util.files import exclusive

CLASSES = ("circle", "rectangle", "triangle")  # category ids 1, 2, 3
SEED = 0  # of the drawings; --seed changes the training, not the data
MIN_SIDE, MAX_SIDE = 1 / 6, 0.6  # width and height of a shape, of the image's side
MAX_SHAPES = 5
MAX_OVERLAP = 0.2  # of the smaller shape's area
NOISE = 4  # standard deviation of grey levels, of 255
SUPERSAMPLING = 4  # edges are drawn this many times finer than the image
NAME = "shapes"


def build(image_set, args):
    """Builds the shapes in `args.coco_path` or the user's cache, drawn where they are missing.

    Raises:
        InputError: the folder cannot be written, or holds other things than these shapes.
    """
    counts = {"train": args.shapes_train, "val": args.shapes_val}
    name = f"{NAME}-{args.shapes_size}px-{args.shapes_train}-{args.shapes_val}"
    root = Path(args.coco_path) if args.coco_path else user_cache() / name
    write_shapes(root, counts, args.shapes_size)
    return CocoDetection(
        root / f"{image_set}2017",
        root / "annotations" / f"instances_{image_set}2017.json",
        make_shapes_transforms(image_set),
        return_masks=args.masks,
        num_classes=get_num_classes(args),
        is_evaluated=image_set == "val",
        seed=args.seed,
        max_size=args.shapes_size,
    )


def make_shapes_transforms(image_set):
    """A flip in training, no resizing: the images are small on purpose."""
    return T.Compose([T.RandomHorizontalFlip(), NORMALIZE]) if image_set == "train" else NORMALIZE


def write_shapes(root, counts, size, seed=SEED):
    """Draws the data set into the folder root, in COCO's layout, unless it is there already.

    counts: {"train": n, "val": n}, images of each part; size: side of the images in pixels. The
    folder appears complete or not at all, and of several processes one draws while the others wait.
    Raises InputError where root holds something else or cannot be written.
    """
    info = {
        "description": "coloured shapes, drawn by datasets/shapes.py",
        "size": size,
        "seed": seed,
        **counts,
    }
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(root.parent):
            if not (root.is_dir() and any(root.iterdir())):
                _write_folder(root, counts, size, seed, info)
    except OSError as error:
        raise InputError(
            f"{root}: the shapes cannot be written there ({error.strerror}); give another folder "
            "with --coco_path"
        ) from error
    if _info(root) != info:
        raise InputError(
            f"{root}: holds something else than the {sum(counts.values())} shape images of {size} "
            "pixels that the flags ask for; give another --coco_path, or use --dataset_file coco "
            "to read it"
        )


def draw_image(size, seed, part, index):
    """One image of the data set, always the same for the same arguments.

    Returns (image, shapes): uint8 [size, size, 3], and a list of (class index in CLASSES, polygon
    float64 [k, 2] in pixels from the top left corner), those behind first.
    """
    rng = np.random.default_rng([seed, part, index])
    image = _background(size, rng)
    shapes, drawn = [], []
    for _ in range(rng.integers(1, MAX_SHAPES + 1)):
        for _ in range(20):
            kind = int(rng.integers(len(CLASSES)))
            polygon = _polygon(CLASSES[kind], size, rng)
            cover = _cover(polygon, size)
            if all(
                (cover * other).sum() <= MAX_OVERLAP * min(cover.sum(), other.sum())
                for other in drawn
            ):
                break
        else:
            continue  # no room left for it
        colour = 255 * np.array(
            colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.75, 1), rng.uniform(0.6, 1))
        )
        image += cover[:, :, None] * (colour - image)
        shapes.append((kind, polygon))
        drawn.append(cover)
    image += rng.normal(0, NOISE, (size, size, 1))
    return np.clip(image.round(), 0, 255).astype(np.uint8), shapes


def _background(size, rng):
    """A grey gradient in a random direction, float64 [size, size, 3]."""
    start, end = rng.uniform(50, 200, 2)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    along = np.cos(angle) * x + np.sin(angle) * y
    return np.repeat(
        (start + (end - start) * (along - along.min()) / np.ptp(along))[:, :, None], 3, axis=2
    )


def _polygon(name, size, rng):
    """Corners of a shape somewhere in the image."""
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


def _cover(polygon, size):
    """How much of each pixel the polygon covers, float64 [size, size] in 0..1."""
    fine = Image.new("L", (size * SUPERSAMPLING, size * SUPERSAMPLING))
    ImageDraw.Draw(fine).polygon(
        [tuple(point) for point in polygon * SUPERSAMPLING - 0.5], fill=255
    )
    return np.asarray(fine.reduce(SUPERSAMPLING), np.float64) / 255


def _annotation(kind, polygon):
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
    print(f"drawing {sum(counts.values()):,} images into {root}", flush=True)
    building = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}."))
    try:
        (building / "annotations").mkdir()
        with tqdm(
            total=sum(counts.values()), desc="drawing", unit="image", disable=None
        ) as progress:
            for part, (image_set, count) in enumerate(counts.items()):
                folder = building / f"{image_set}2017"
                folder.mkdir()
                images, annotations = [], []
                for index in range(count):
                    image, shapes = draw_image(size, seed, part, index)
                    image_id = index + 1
                    images.append(
                        {
                            "id": image_id,
                            "file_name": f"{image_id:012}.png",
                            "width": size,
                            "height": size,
                        }
                    )
                    Image.fromarray(image).save(folder / images[-1]["file_name"])
                    for shape in shapes:
                        annotations.append(
                            {
                                "id": len(annotations) + 1,
                                "image_id": image_id,
                                **_annotation(*shape),
                            }
                        )
                    progress.update()
                content = {
                    "info": info,
                    "images": images,
                    "annotations": annotations,
                    "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)],
                }
                (building / "annotations" / f"instances_{image_set}2017.json").write_text(
                    json.dumps(content)
                )
        building.chmod(0o755)
        building.rename(root)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _info(root):
    """What the folder says about itself, None where it is no data set."""
    try:
        return json.loads((root / "annotations" / "instances_val2017.json").read_bytes()).get(
            "info"
        )
    except (OSError, ValueError, AttributeError):
        return None
