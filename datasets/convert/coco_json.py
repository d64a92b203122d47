"""An annotation file in COCO's format while it is written, and the images of a data set."""

import json
from pathlib import Path

from PIL import ExifTags, Image, ImageOps

from datasets.coco import FORMATS, IMAGE_SUFFIXES
from util.errors import InputError
from util.files import files_below, make_folder, replacing


class CocoJson:
    """The dictionary of an annotation file, and what was found wrong on the way.

    classes: dictionary category id -> name. faults: one line for each, with file and line.
    """

    def __init__(self, classes):
        self.images, self.annotations, self.faults = [], [], []
        self.categories = [{"id": i, "name": name} for i, name in sorted(classes.items())]

    def add_image(self, path, root):
        """Adds an image, whose name is relative to root. Returns (id, width, height), or None for
        one that cannot be read.
        """
        try:
            with Image.open(path, formats=FORMATS) as image:
                # Upright: tools for these formats show it so, and the boxes are of that.
                width, height = ImageOps.exif_transpose(image).size
                orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
                is_turned = 2 <= orientation <= 8
                if is_turned and ((width, height) == image.size):
                    # The data set would load it as it is stored: only another size tells it.
                    self.faults.append(
                        f"{path}: is to be turned or mirrored (EXIF orientation {orientation}), "
                        "which COCO's format cannot say; save it upright"
                    )
        except Exception as error:  # Pillow raises almost any for damaged bytes
            self.faults.append(
                f"{path}: cannot be read as an image ({error}); replace or remove it"
            )
            return None
        image_id = len(self.images) + 1
        name = path.relative_to(root).as_posix()
        self.images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        return image_id, width, height

    def add(self, image_id, category_id, box, polygon=None, iscrowd=0):
        """Adds an object. box: x, y, width, height; polygon: x, y, x, y, …; pixels."""
        self.annotations.append(
            {
                "id": len(self.annotations) + 1,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": [round(side, 3) for side in box],
                "area": round(box[2] * box[3] if polygon is None else area_of(polygon), 3),
                "iscrowd": iscrowd,
                "segmentation": [] if polygon is None else [[round(side, 3) for side in polygon]],
            }
        )

    def write(self, path):
        """Writes the file. Raises InputError where it cannot be written."""
        data = {
            "images": self.images,
            "annotations": self.annotations,
            "categories": self.categories,
        }
        make_folder(path.parent)
        with replacing(path) as file:
            file.write(json.dumps(data).encode())
        print(
            f"{path}: {len(self.images)} images, {len(self.annotations)} boxes, "
            f"{len(self.categories)} classes"
        )


def write_sets(files, out):
    """Writes OUT/train.json and so on. Returns a dictionary set -> path.

    files: set -> CocoJson; out: a folder. Raises InputError for their faults, or for a file that is
    there already, before it writes anything.
    """
    raise_faults([fault for file in files.values() for fault in file.faults])
    paths = {name: out / f"{name}.json" for name in files}
    check_are_new(paths.values())
    for name, file in files.items():
        file.write(paths[name])
    return paths


def check_are_new(paths):
    """Raises InputError for a file that is there already."""
    for path in paths:
        if path.exists():
            raise InputError(f"{path}: is there already; remove it, to have it written again")


def raise_faults(faults):
    """Raises one InputError for all faults, if there are any."""
    if faults:
        more = f"; and {len(faults) - 5} more like these" if len(faults) > 5 else ""
        raise InputError("; ".join(faults[:5]) + more)


def area_of(polygon):
    """The area of a polygon x, y, x, y, …, by the shoelace formula."""
    xs, ys = polygon[::2], polygon[1::2]
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2


def images_below(folder):
    """The paths of the images in a folder and below, sorted. Raises InputError for none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the one with the images")
    paths = [path for path in files_below(folder) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not paths:
        raise InputError(f"{folder}: has no images; give the one with the images")
    return paths
