"""Atomic writes, locks on folders, and the files of a training."""

import errno
import os
import stat
import subprocess
import sys

import pytest
from processes import REPO

from util.errors import InputError
from util.files import (
    PARTIAL,
    atomic_write,
    find_files,
    find_training_files,
    lock_output_folder,
    make_folder,
)

CLAIM = """
import sys
from pathlib import Path
from util.files import lock_output_folder
lock_output_folder(Path(sys.argv[1]))
print("claimed", flush=True)
input()
"""


def test_the_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with atomic_write(path) as file:
        file.write(b"after")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_an_exception_leaves_only_the_earlier_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_an_unwritable_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere/file: cannot be written \(No such file"):
        with atomic_write(tmp_path / "nowhere" / "file") as file:
            file.write(b"")


def test_claim_makes_the_folder_and_removes_leftovers_of_a_killed_run(tmp_path):
    folder = tmp_path / "deep" / "out"
    (folder / "eval").mkdir(parents=True)
    leftovers = [folder / f".checkpoint.pkl{PARTIAL}", folder / "eval" / f".latest.pkl{PARTIAL}"]
    users = [folder / ".checkpoint.pkl.part", folder / "notes", folder / f"notes{PARTIAL}"]
    for path in leftovers + users:
        path.touch()
    lock_output_folder(folder)
    assert not any(path.exists() for path in leftovers)
    assert all(path.exists() for path in users), "only its own names are removed"


@pytest.mark.parametrize("name", ["eval", "report", "panoptic_eval", "tensorboard"])
def test_a_file_with_the_name_of_an_output_folder_is_an_error(tmp_path, name):
    (tmp_path / name).write_text("notes")
    with pytest.raises(InputError, match=f"{name}: is a file, but this program needs"):
        lock_output_folder(tmp_path)
    with pytest.raises(InputError, match=f"{name}: cannot be created"):
        make_folder(tmp_path / name)


def test_a_drive_that_cannot_sync_folders_is_no_error(tmp_path, monkeypatch):
    """Some shared drives answer EINVAL."""
    sync = os.fsync

    def fsync(handle, number=errno.EINVAL):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_write(tmp_path / "file") as file:
        file.write(b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
    monkeypatch.setattr(os, "fsync", lambda handle: fsync(handle, errno.EIO))
    with pytest.raises(InputError, match="file: cannot be written"):
        with atomic_write(tmp_path / "file") as file:
            file.write(b"more")


def test_a_process_holds_its_folder_until_it_ends(tmp_path):
    command = [sys.executable, "-c", CLAIM, str(tmp_path)]
    with subprocess.Popen(
        command, cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"claimed\n"
        with pytest.raises(InputError, match="is in use by another run"):
            lock_output_folder(tmp_path)
        process.kill()
    lock_output_folder(tmp_path)


TRAINING = """
    checkpoint.pkl checkpoint0099.pkl checkpoint_best.pkl log.txt eval/latest.pkl eval/050.pkl
""".split()
OTHERS = """
    checkpoint_backup.pkl checkpoint-good.pkl mycheckpoint.pkl log.txt.bak eval.pkl eval/mine.pkl
    eval/notes.txt
""".split()


def test_training_files_are_recognised_by_name(tmp_path):
    (tmp_path / "eval").mkdir()
    for name in TRAINING + OTHERS:
        (tmp_path / name).touch()
    assert find_training_files(tmp_path) == sorted(tmp_path / name for name in TRAINING)


def test_a_folder_is_no_training_file(tmp_path):
    (tmp_path / "log.txt").mkdir()
    assert find_training_files(tmp_path) == []


def test_linked_files_are_found_once(tmp_path):
    for name in ("a/1.TXT", "a/deep/2.txt", "elsewhere/3.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a" / "deep" / "cycle").symlink_to(tmp_path / "a")
    for name in ("a/1.jpg", "a/._1.txt", "a/__MACOSX/1.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_files(tmp_path / "a", {".txt"})]
    assert found == ["a/1.TXT", "a/deep/2.txt", "a/link/3.txt"]
