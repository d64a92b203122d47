"""Build a folder where Jittor looks for a library, from files that are installed elsewhere."""

import shutil

from util.files import convert_write_errors, lock_folder


def stage(folder, is_complete, fill):
    """Build folder (Path) atomically, unless it is complete. Other processes wait.

    A broken folder is replaced. is_complete: function of folder; fill: function of an empty folder
    that is then renamed. Raises InputError if it cannot be written.
    """
    if is_complete(folder):
        return
    parent = folder.parent
    building = parent / "staging"  # Jittor takes the first folder whose name starts like folder's
    with convert_write_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        with lock_folder(parent):
            if is_complete(folder):
                return
            for leftover in (building, folder):
                if leftover.is_symlink():
                    leftover.unlink()
                elif leftover.exists():
                    shutil.rmtree(leftover)
            building.mkdir()
            fill(building)
            building.rename(folder)


def copy(folder, sources):
    """Copy files, with their permissions, into folder (Path). sources: {path in folder: Path}"""
    for name, source in sources.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / name)


def link(folder, targets):
    """Create links in folder (Path) and its subfolders. targets: {path in folder: target}"""
    for name, target in targets.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)
