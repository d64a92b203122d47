"""Find the label files of a YOLO dataset's images, and label files without an image."""

import codecs
from pathlib import Path

from datasets.images import IMAGE_SUFFIXES
from util.files import find_files

from .coco_json import find_subfolders

IMAGE_FOLDERS, LABEL_FOLDERS = ("images", "image"), ("labels", "label")


class LabelFinder:
    """Find label files, listing each folder once. All paths are absolute."""

    def __init__(self):
        self.label_folders, self.labels = {}, {}

    def find(self, image):
        """Return the label file of an image, or None."""
        return next(iter(self._find_all(image)), None)

    def list_label_folders(self, folders):
        """Return where labels of the images in these folders are looked for, existing or not."""
        found = {}
        for folder in folders:
            for index in find_image_parts(folder)[:1]:
                found[Path(*folder.parts[:index], "labels", *folder.parts[index + 1 :])] = None
            found |= dict.fromkeys(self._get_folders(folder))
        return list(found)

    def find_orphans(self, pairs):
        """Return (label files that belong to no image, number of all label files).

        pairs: (folder, image) of the dataset's images. Images that are not listed count as well.
        """
        folders, images = map(set, zip(*pairs))
        images |= {image for folder in folders for image in find_files(folder, IMAGE_SUFFIXES)}
        used = {label for image in images for label in self._find_all(image)}
        labels = set()
        for folder in folders | {image.parent for image in images}:
            *others, _ = self._get_folders(folder)
            labels.update(path for other in others for path in find_files(other, {".txt"}))
            own = set(self._list_labels(folder).values())
            if not others or own & used:
                labels |= own
        orphans = sorted(path for path in labels - used if is_label_file(path))
        return orphans, len(orphans) + len(used)

    def _find_all(self, image):
        folders = self._get_folders(image.parent)
        return [
            labels[image.stem] for f in folders if image.stem in (labels := self._list_labels(f))
        ]

    def _get_folders(self, folder):
        """Return the folders that may have labels of a folder's images: its own is the last."""
        if folder not in self.label_folders:
            self.label_folders[folder] = [*find_label_folders(folder), folder]
        return self.label_folders[folder]

    def _list_labels(self, folder):
        """Return a dictionary stem -> path of the text files in a folder."""
        if folder not in self.labels:
            self.labels[folder] = {
                path.stem: path
                for path in folder.iterdir()
                if path.suffix.lower() == ".txt" and not path.name.startswith("._")
            }
        return self.labels[folder]


def find_label_folders(folder):
    """Return the folders like `folder`, but with labels instead of images; ignore case."""
    found = []
    for index in find_image_parts(folder):
        paths = find_subfolders(Path(*folder.parts[:index]), *LABEL_FOLDERS)
        for part in folder.parts[index + 1 :]:
            paths = [below for path in paths for below in find_subfolders(path, part)]
        found += paths
    return found


def find_image_parts(folder):
    """Return the positions of `images` in a path, the last one first."""
    positions = [i for i, part in enumerate(folder.parts) if part.lower() in IMAGE_FOLDERS]
    return positions[::-1]


def is_label_file(path):
    """Return True if the first line of a text file is a class index and four or more numbers."""
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8).strip()
    try:
        return len(list(map(float, content.partition(b"\n")[0].split()))) >= 5
    except ValueError:
        return False
