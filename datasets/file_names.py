"""Find the files that an annotation file names, also if it writes their paths differently."""

import os
import unicodedata
from pathlib import Path, PurePosixPath
from urllib.parse import unquote


class FileIndex:
    """Check quickly whether files exist in a folder tree: `relative_path in FileIndex(root)`.

    Each folder is listed once, because a stat per file takes minutes on network drives.
    """

    def __init__(self, root):
        self.root = root
        self.listings, self.names_by_key = {}, {}

    def __contains__(self, path):
        folder, name = os.path.split(path)
        return name in self.list(folder)

    def list(self, folder):
        """Return the names in a folder (relative path) as a set."""
        if folder not in self.listings:
            full = self.root / folder
            # `Path.is_dir` would raise OSError for a name that is too long.
            self.listings[folder] = set(os.listdir(full)) if os.path.isdir(full) else set()
        return self.listings[folder]

    def find(self, name):
        """Return the relative path of the only file that `name` can mean, or None.

        Accepted are Windows separators, URL escapes, leading folders up to the name of the root
        (`/data/images/1.jpg` and `images/1.jpg` for the file `1.jpg` in a folder `images`), other
        case, and other Unicode normal forms.
        """
        is_elsewhere = os.path.isabs(name) or ".." in Path(name).parts
        if is_elsewhere and os.path.exists(self.root / name):
            path, root = (self.root / name).resolve(), self.root.resolve()
            return path.relative_to(root).as_posix() if path.is_relative_to(root) else None
        found = {self._match(parts) for parts in self._get_candidates(name)} - {None}
        return found.pop() if len(found) == 1 else None

    def find_other_suffix(self, name):
        """Return the relative path of a file with the same stem in the same folder, or None."""
        folder, name = os.path.split(name)
        stem = Path(name).stem
        others = sorted(other for other in self.list(folder) if Path(other).stem == stem)
        return os.path.join(folder, others[0]) if others else None

    def _get_candidates(self, name):
        """Yield the relative paths that `name` can mean, as tuples of their parts."""
        roots = {self.root.name, self.root.resolve().name}
        for text in {name, unquote(name)}:
            parts = PurePosixPath(text.replace("\\", "/")).parts
            if ".." in parts:
                continue
            yield parts
            for index, part in enumerate(parts, 1):
                if part in roots:
                    yield parts[index:]

    def _match(self, parts):
        """Return the only existing path whose parts are equal but for case and normal form."""
        path = ""
        for part in parts:
            if part not in self.list(path):
                names = self._group_names(path).get(get_key(part), [])
                if len(names) != 1:
                    return None
                [part] = names
            path = os.path.join(path, part)
        return path or None

    def _group_names(self, folder):
        """Return a dictionary key -> the names of a folder with that key."""
        if folder not in self.names_by_key:
            groups = self.names_by_key[folder] = {}
            for name in self.list(folder):
                groups.setdefault(get_key(name), []).append(name)
        return self.names_by_key[folder]


def get_key(name):
    """Return a form of a file name that does not depend on case and Unicode normal form."""
    return unicodedata.normalize("NFC", name).casefold()
