"""Atomic writes, locks on folders, and lists of files."""

import errno
import fcntl
import os
import re
from contextlib import contextmanager
from pathlib import Path

from util.errors import InputError

PARTIAL = ".detr-jittor.part"  # suffix of the hidden files that `atomic_write` writes
OUTPUT_FOLDERS = (".", "eval", "panoptic_eval", "report", "tensorboard")  # below --output_dir
# Files that a training run writes there, except images and reports, which the next run overwrites.
TRAINING_FILE = re.compile(
    r"checkpoint(\d{4,}|_best)?\.pkl|log\.txt|eval/(latest|\d{3,})\.pkl"
    r"|tensorboard/events\.out\.tfevents\..*"
)


@contextmanager
def atomic_write(path):
    """Yield a binary file that replaces path if the block succeeds, and is deleted if it raises.

    Writes to a hidden file beside path and syncs it before renaming, so that an earlier file
    survives a full disk, a killed process and a power cut. Raises InputError if it cannot be
    written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}{PARTIAL}")
    with convert_write_errors(path):
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
def convert_write_errors(path):
    """Turn an OSError of the block into an InputError that names path."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); free disk space there or "
            "choose another folder"
        ) from error


@contextmanager
def convert_read_errors(path):
    """Convert any error of the block, which decodes a file, into an InputError that names path."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except Exception as error:
        # With damaged bytes, pickle, zipfile and NumPy raise almost any exception.
        raise InputError(
            f"{path}: the file is truncated or damaged; download or copy it again "
            f"({type(error).__name__}: {str(error)[:200]})"
        ) from error


def sync_folder(path):
    """Sync a folder, so that renames in it survive a power cut, if the file system supports it."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some shared and network drives cannot
            raise
    finally:
        os.close(folder)


def make_folder(path):
    """Make a folder (Path) and its parents unless they exist. Raises InputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be created ({error.strerror}); give another folder"
        ) from error


@contextmanager
def lock_folder(folder):
    """Hold an exclusive lock on a folder, without a lock file."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def lock_output_folder(folder):
    """Lock an output folder (Path) for this process; make it if it is missing.

    Removes temporary files that a killed process left behind. Raises InputError if the folder
    cannot be written, another run uses it, or a file is in the way of one of OUTPUT_FOLDERS.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A POSIX record lock: data workers, which may outlive a killed run for a moment, do not
        # inherit it, and it works on network drives. It lasts until the process exits.
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(
            f"--output_dir {folder} cannot be written ({error.strerror}); give another folder"
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
            "folder on a file system that supports locks"
        ) from error
    for output_folder in (folder / name for name in OUTPUT_FOLDERS):
        if output_folder.exists() and not output_folder.is_dir():
            raise InputError(
                f"{output_folder}: is a file, but this program needs a folder of that name; move "
                "it away, or give another --output_dir"
            )
        for leftover in output_folder.glob(f".*{PARTIAL}"):
            leftover.unlink()


def find_training_files(folder):
    """Return a training's files (Path) in folder (Path): checkpoints, logs, evaluations; sorted."""
    files = [*folder.glob("*"), *folder.glob("eval/*"), *folder.glob("tensorboard/*")]
    return sorted(
        file
        for file in files
        if file.is_file() and TRAINING_FILE.fullmatch(file.relative_to(folder).as_posix())
    )


def find_files(folder, suffixes):
    """Return the sorted files (Path) below a folder that have one of these lower-case suffixes.

    The suffix may be in any case. Follows links. Passes over the `._*` files and `__MACOSX` folders
    of macOS, which have metadata.
    """
    paths, visited = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if name != "__MACOSX")
        real = os.path.realpath(root)
        if real in visited:  # links may form a cycle
            folders.clear()
            continue
        visited.add(real)
        paths += [Path(root) / name for name in names if not name.startswith("._")]
    return sorted(path for path in paths if path.suffix.lower() in suffixes and path.is_file())
