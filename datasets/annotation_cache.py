"""Training annotations in arrays, kept in a file of the user's cache.

Reading and checking COCO's JSON takes many seconds and gigabytes. What is kept is read in a second,
and all processes of a machine share its memory. Only annotations without a fault are kept, so that
a fault is found and reported at every start.
"""

import hashlib

from datasets.annotation_arrays import Annotations, CocoArrays, Images, flatten, restore
from datasets.annotations import FilesBelow, read_coco
from util.array_file import read_arrays, write_arrays
from util.download import user_cache
from util.errors import InputError
from util.files import exclusive
from util.memory import return_freed_memory, without_garbage_collector

VERSION = 1  # to be raised with every change of the arrays or of the checks
MIN_BYTES = 20_000_000  # of JSON; less is read and checked within a second or two


def load_annotations(img_folder, ann_file, return_masks, num_classes, skip_bad_samples=False):
    """Loads an annotation file, or what was kept of it if it has not changed. Returns CocoArrays.

    The arguments, and what is raised, are those of `annotations.read_coco`.
    """
    path = _kept_path(ann_file, return_masks)
    arrays = path and _read_kept(path, img_folder, num_classes)
    if arrays is None:
        with without_garbage_collector():
            file = read_coco(img_folder, ann_file, return_masks, num_classes, skip_bad_samples)
            is_complete, arrays = file.is_complete, CocoArrays.of(file, return_masks)
            del file
        if path and is_complete and _keep(path, arrays):
            # From here on in the memory that other processes share.
            arrays = _read_kept(path, img_folder, num_classes) or arrays
    return_freed_memory()
    return arrays


def _kept_path(ann_file, return_masks):
    """Where the annotation file's arrays are kept, or None for no file or a small one.

    The name says of which file they are, and of which content.
    """
    if not ann_file.is_file() or ann_file.stat().st_size < MIN_BYTES:
        return None
    of_path = hashlib.sha256(str(ann_file.resolve()).encode()).hexdigest()[:16]
    of_content = hashlib.sha256()
    with open(ann_file, "rb") as file:
        while block := file.read(2**24):
            of_content.update(block)
    kind = "masks" if return_masks else "boxes"
    name = f"{of_path}-{kind}-{VERSION}-{of_content.hexdigest()[:32]}.arrays"
    return user_cache() / "annotations" / name


def _read_kept(path, img_folder, num_classes):
    """CocoArrays of what was kept, or None where there is none or it has a fault by now.

    The images may have changed since, and --num_classes.
    """
    if (content := read_arrays(path)) is None:
        return None
    images = restore(Images, content[0], "images.")
    annotations = restore(Annotations, content[0], "annotations.")
    extra = content[1]
    files = FilesBelow(img_folder)
    if not all(images.names.get(index) in files for index in range(len(images.ids))):
        return None
    if num_classes is not None and annotations.labels.max(initial=0) >= num_classes:
        return None
    return CocoArrays(images, annotations, dict(extra["classes"]), extra["notes"])


def _keep(path, arrays):
    """Writes the arrays, and removes those of the file's earlier contents. Whether it worked."""
    content = {**flatten(arrays.images, "images."), **flatten(arrays.annotations, "annotations.")}
    extra = {"classes": list(arrays.classes.items()), "notes": arrays.notes}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(path.parent):
            of_path, kind, *_ = path.name.split("-")
            for earlier in path.parent.glob(f"{of_path}-{kind}-*.arrays"):
                earlier.unlink()
            write_arrays(path, content, extra)
    except (OSError, InputError) as error:
        print(f"the annotations will be read again at the next start: {error}")
        return False
    return True
