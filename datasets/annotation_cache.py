"""Cache training annotations as arrays in the user's cache folder.

Reading and checking COCO's JSON takes many seconds and gigabytes. The cached arrays load in under a
second, and all processes of a machine share their memory. Only error-free files are cached, so that
errors are reported on every run.
"""

import hashlib

from datasets.annotation_arrays import Annotations, CocoArrays, Images, flatten, unflatten
from datasets.annotations import read_coco
from datasets.file_names import FileIndex
from datasets.plausibility import pack_checked
from util.array_file import read_arrays, write_arrays
from util.download import get_user_cache
from util.errors import InputError
from util.files import lock_folder
from util.memory import return_freed_memory, without_garbage_collector

VERSION = 3  # increment whenever the arrays or the checks change
MIN_BYTES = 20_000_000  # smaller JSON files are not cached: they load within two seconds


def load_annotations(img_folder, ann_file, return_masks, num_classes, faults):
    """Load training annotations as CocoArrays, from the cache if the file is unchanged.

    Arguments and errors are those of `annotations.read_coco`.
    """
    path = _get_cache_path(ann_file, return_masks)
    arrays = path and _read_cache(path, img_folder, num_classes)
    if arrays is None:
        with without_garbage_collector():
            data, notes = read_coco(img_folder, ann_file, return_masks, num_classes, faults)
            arrays = pack_checked(data, notes, ann_file, return_masks, False, faults)
            del data
        is_faulty = faults.samples or faults.files
        if path and not is_faulty and _write_cache(path, arrays):
            # Switch to the memory-mapped copy, which other processes share.
            arrays = _read_cache(path, img_folder, num_classes) or arrays
    return_freed_memory()
    return arrays


def _get_cache_path(ann_file, return_masks):
    """Return the cache path of an annotation file, or None if it is missing or too small to cache.

    The name contains hashes of the file's path and contents.
    """
    if not ann_file.is_file() or ann_file.stat().st_size < MIN_BYTES:
        return None
    path_hash = hashlib.sha256(str(ann_file.resolve()).encode()).hexdigest()[:16]
    content_hash = hashlib.sha256()
    with open(ann_file, "rb") as file:
        while block := file.read(2**24):
            content_hash.update(block)
    variant = "masks" if return_masks else "boxes"
    name = f"{path_hash}-{variant}-{VERSION}-{content_hash.hexdigest()[:32]}.arrays"
    return get_user_cache() / "annotations" / name


def _read_cache(path, img_folder, num_classes):
    """Return the cached CocoArrays, or None if they are missing or stale.

    Image files and --num_classes may have changed since.
    """
    if (content := read_arrays(path)) is None:
        return None
    images = unflatten(Images, content[0], "images.")
    annotations = unflatten(Annotations, content[0], "annotations.")
    extra = content[1]
    files = FileIndex(img_folder)
    if not all(images.names.get(index) in files for index in range(len(images.ids))):
        return None
    if num_classes is not None and annotations.labels.max(initial=0) >= num_classes:
        return None
    return CocoArrays(images, annotations, dict(extra["classes"]), extra["notes"])


def _write_cache(path, arrays):
    """Write the arrays and delete outdated ones. Return False on failure."""
    content = {**flatten(arrays.images, "images."), **flatten(arrays.annotations, "annotations.")}
    extra = {"classes": list(arrays.classes.items()), "notes": arrays.notes}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock_folder(path.parent):
            path_hash, variant, *_ = path.name.split("-")
            for earlier in path.parent.glob(f"{path_hash}-{variant}-*.arrays"):
                earlier.unlink()
            write_arrays(path, content, extra)
    except (OSError, InputError) as error:
        print(f"the annotations are not cached and will be read again at the next start: {error}")
        return False
    return True
