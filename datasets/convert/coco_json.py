"""Write COCO annotation files, and find the images of a dataset."""

import json
from pathlib import Path

from datasets.images import IMAGE_SUFFIXES, read_header
from util.errors import InputError
from util.files import atomic_write, list_files, make_folder


class CocoWriter:
    """Collect the images and annotations of one COCO file, and any errors.

    classes: dictionary category id -> name; root: image folder that file names are relative to.
    errors: messages with file and line.
    """

    def __init__(self, classes, root):
        self.root = root
        self.images, self.annotations, self.errors = [], [], []
        self.categories = [{"id": i, "name": name} for i, name in sorted(classes.items())]

    def add_image(self, path):
        """Add an image. Returns (id, width, height), or None if it cannot be read."""
        try:
            # In YOLO and VOC, boxes refer to the image after its EXIF orientation is applied.
            width, height = read_header(path).get_size(is_upright=True)
        except InputError as error:
            self.errors.append(str(error))
            return None
        image_id = len(self.images) + 1
        name = path.relative_to(self.root).as_posix()
        self.images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        return image_id, width, height

    def add_annotation(self, image_id, category_id, box, polygon=None, iscrowd=0):
        """Add an object. box: x, y, width, height; polygon: x, y, x, y, …; in pixels."""
        area = box[2] * box[3] if polygon is None else compute_polygon_area(polygon)
        self.annotations.append(
            {
                "id": len(self.annotations) + 1,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": [round(value, 3) for value in box],
                "area": round(area, 3),
                "iscrowd": iscrowd,
                "segmentation": [] if polygon is None else [[round(v, 3) for v in polygon]],
            }
        )

    def write(self, path):
        data = {"images": self.images, "annotations": self.annotations}
        make_folder(path.parent)
        with atomic_write(path) as file:
            file.write(json.dumps({**data, "categories": self.categories}).encode())
        print(
            f"{path}: {len(self.images)} images, {len(self.annotations)} boxes, "
            f"{len(self.categories)} classes"
        )


def write_splits(writers, out):
    """Write OUT/{split}.json for each split. Return {split: (image folder, path)}.

    writers: split -> CocoWriter; out: folder. Raises InputError, before anything is written, if a
    writer has errors or a file exists.
    """
    raise_errors([error for writer in writers.values() for error in writer.errors])
    paths = {name: Path(out) / f"{name}.json" for name in writers}
    check_not_existing(paths.values())
    for name, writer in writers.items():
        writer.write(paths[name])
    return {name: (writer.root, paths[name]) for name, writer in writers.items()}


def check_not_existing(paths):
    """Raise InputError if a file exists already."""
    for path in paths:
        if path.exists():
            raise InputError(f"{path}: exists already; remove it first")


def raise_errors(errors):
    """Raise one InputError for all errors, if there are any."""
    if errors:
        more = f"; and {len(errors) - 5} more" if len(errors) > 5 else ""
        raise InputError("; ".join(errors[:5]) + more)


def compute_polygon_area(polygon):
    """Compute the area of a polygon x, y, x, y, … by the shoelace formula."""
    xs, ys = polygon[::2], polygon[1::2]
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2


def find_images(folder):
    """Return the sorted paths of all images below a folder; raise InputError if there are none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the one with the images")
    paths = [path for path in list_files(folder) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not paths:
        raise InputError(f"{folder}: has no images; give the folder with the images")
    return paths
