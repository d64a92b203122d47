"""Files that appear whole or not at all, and folders that one run has for itself."""

import errno
import fcntl
import os
import re
from contextlib import contextmanager
from pathlib import Path

from util.errors import InputError

PARTIAL = ".detr-jittor.part"  # how the hidden names end that `replacing` writes to
# Where below --output_dir this program writes.
OUR_FOLDERS = (".", "eval", "panoptic_eval", "report", "tensorboard")
# What a training writes there, but for pictures and reports, which the next one replaces.
TRAINING_FILE = re.compile(
    r"checkpoint(\d{4,}|_best)?\.pkl|log\.txt|eval/(latest|\d{3,})\.pkl"
    r"|tensorboard/events\.out\.tfevents\..*"
)


@contextmanager
def replacing(path):
    """A binary file that replaces path when the block ends without an exception, else disappears.

    It is a hidden neighbour of path until it is complete on the disk, so that an earlier file at
    path survives a full disk, a killed process and a power cut. Raises InputError where it cannot
    be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}{PARTIAL}")
    with writing(path):
        try:
            with open(partial, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        sync_folder(path.parent)


@contextmanager
def writing(path):
    """Raises InputError, which names path, where the block cannot write it."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); free disk space there or "
            "choose another folder"
        ) from error


def sync_folder(path):
    """Has the names of a folder's files written to the disk, where the drive can do that."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # it cannot; some shared and network drives are so
            raise
    finally:
        os.close(folder)


def make_folder(path):
    """Makes a folder (Path) and those above it, where they are missing. Raises InputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be made ({error.strerror}); move what is there away, or give another "
            "folder"
        ) from error


@contextmanager
def exclusive(folder):
    """Lets one process at a time in, by a lock on the folder itself: no lock file is left."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def claim(folder):
    """Locks an output folder (Path) for this process, and makes it if it is missing.

    Removes what `replacing` left there when a process was killed.

    Raises InputError where the folder cannot be written, another run has it, or it holds a file
    where a folder of this program goes.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A record lock: unlike flock's it is not inherited by data workers, which may outlive a
        # killed run for a moment, and it works on network drives. It ends with the process; closing
        # the file would end it, so the file stays open.
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(
            f"--output_dir {folder} cannot be written ({error.strerror}): give a folder that can"
        ) from error
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(
            f"--output_dir {folder} is in use by another run; wait for it, or give another folder"
        ) from error
    except OSError as error:
        raise InputError(
            f"--output_dir {folder}: its file .lock cannot be locked ({error.strerror}); give a "
            "folder on a drive that has locks"
        ) from error
    for ours in OUR_FOLDERS:
        if (folder / ours).exists() and not (folder / ours).is_dir():
            raise InputError(
                f"{folder / ours}: is in the place of a folder that this program writes to; move "
                "it away, or give another --output_dir"
            )
        for leftover in (folder / ours).glob(f".*{PARTIAL}"):
            leftover.unlink()


def training_files(folder):
    """The files of a training in folder (Path): checkpoints, log.txt, eval/ and tensorboard/."""
    files = [*folder.glob("*"), *folder.glob("eval/*"), *folder.glob("tensorboard/*")]
    return sorted(
        file
        for file in files
        if file.is_file() and TRAINING_FILE.fullmatch(file.relative_to(folder).as_posix())
    )


def files_below(folder):
    """The paths of all files in a folder (Path) and below it, sorted; through links, too."""
    paths, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        real = os.path.realpath(root)
        if real in seen:  # links may form a circle
            folders.clear()
            continue
        seen.add(real)
        paths += [Path(root) / name for name in names]
    return sorted(paths)
