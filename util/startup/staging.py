"""Stage the files of installed wheels where Jittor looks for a library."""

import fcntl
import shutil


def stage(files, links, folder, is_complete):
    """Copy files into folder (Path) atomically.

    Copy instead of linking, because environments share Jittor's home and may be deleted. Other
    processes wait. A broken folder is replaced.

    files: {path in folder: Path of the source}; links: {path in folder: target}; is_complete:
    function of folder. Raises OSError if folder cannot be written.
    """
    parent = folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    building = parent / "staging"  # Jittor takes the first folder whose name starts like folder's
    with open(parent / "staging.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_complete(folder):
            return
        for leftover in (building, folder):
            if leftover.is_symlink():
                leftover.unlink()
            elif leftover.exists():
                shutil.rmtree(leftover)
        for name, source in files.items():
            (building / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, building / name)
        for name, target in links.items():
            (building / name).symlink_to(target)
        building.rename(folder)
