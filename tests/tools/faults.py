"""Inject faults of machines, disks and users into a training, and print a table of what is lost:

    python -m tests.tools.faults

Each fault is injected after the second of four epochs and then removed; the training resumes from
its last intact checkpoint, and its result is compared with that of an undisturbed one to the last
bit. Needs root, to mount a small disk. SIGKILL and SIGTERM at any moment: interrupt.py; hostile
files: hostile.py and test_hostile_data.py.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from models.weights.checkpoint import load_checkpoint
from tests.tools.interrupt import assert_same_training, finish, start
from util.errors import InputError


@dataclass
class Training:
    """A running training, and what a fault leaves for resuming it."""

    folder: Path
    shapes: Path
    process: subprocess.Popen  # the leader of a process group
    flags: list = field(default_factory=list)  # with which to resume
    message: str = ""  # the program's, about a damaged checkpoint


def full_disk(training):
    """disk full within a save"""
    ballast = training.folder / "ballast"
    room = (training.folder / "checkpoint.pkl").stat().st_size // 2
    disk = os.statvfs(training.folder)
    ballast.write_bytes(bytes(disk.f_bavail * disk.f_frsize - room))
    return ballast.unlink


def folder_gone(training):
    """output folder renamed"""
    away = training.folder.with_name("away")
    training.folder.rename(away)
    return lambda: away.rename(training.folder)


def log_is_a_folder(training):
    """log.txt replaced by a folder"""
    (training.folder / "log.txt").rename(training.folder / "log.old")
    (training.folder / "log.txt").mkdir()

    def restore():
        (training.folder / "log.txt").rmdir()
        (training.folder / "log.old").rename(training.folder / "log.txt")

    return restore


def images_gone(training):
    """all images removed"""
    images, away = training.shapes / "train2017", training.shapes / "away"
    images.rename(away)
    return lambda: away.rename(images)


def images_damaged(training):
    """all images truncated"""
    whole = {path: path.read_bytes() for path in (training.shapes / "train2017").iterdir()}
    for path, content in whole.items():
        path.write_bytes(content[: len(content) // 2])
    return lambda: [path.write_bytes(content) for path, content in whole.items()]


def worker_killed(training):
    """a data worker killed"""
    pid = training.process.pid
    while not (children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        time.sleep(0.01)
    os.kill(int(children[0]), signal.SIGKILL)


def signal_twice(training):
    """SIGTERM twice"""
    os.killpg(training.process.pid, signal.SIGTERM)
    time.sleep(0.05)
    os.killpg(training.process.pid, signal.SIGTERM)


def terminal_closed(training):
    """SIGHUP"""
    os.killpg(training.process.pid, signal.SIGHUP)


def checkpoint_damaged(training):
    """killed, and a bit of the checkpoint flips"""
    damage(training, lambda content: content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])


def checkpoint_cut(training):
    """killed, and the checkpoint truncated"""
    damage(training, lambda content: content[:-1000])


def damage(training, change):
    os.killpg(training.process.pid, signal.SIGKILL)
    training.process.wait()
    path = training.folder / "checkpoint.pkl"
    path.write_bytes(change(path.read_bytes()))
    try:
        load_checkpoint(path)
    except InputError as error:
        training.message = str(error)
    training.flags = ["--resume", str(training.folder / "checkpoint0001.pkl")]
    assert training.flags[1] in training.message, training.message


FAULTS = [
    full_disk,
    folder_gone,
    log_is_a_folder,
    images_gone,
    images_damaged,
    worker_killed,
    signal_twice,
    terminal_closed,
    checkpoint_damaged,
    checkpoint_cut,
]


def inject(fault, folder, shapes, expected):
    """Return a row of the table: the fault, exit code, message, and what is lost."""
    with tempfile.TemporaryFile("w+") as log:
        training = Training(folder, shapes, start(folder, shapes, log))
        while not (folder / "checkpoint0001.pkl").exists():
            assert training.process.poll() is None, log.seek(0) or log.read()[-2000:]
            time.sleep(0.01)
        restore = fault(training)
        code = training.process.wait(100)
        log.seek(0)
        message = training.message or (log.read().strip().splitlines() or [""])[-1]
    if restore:
        restore()
    last = load_checkpoint(training.flags[1] if training.flags else folder / "checkpoint.pkl")
    finish(folder, shapes, *training.flags)
    assert_same_training(folder, expected)
    shutil.rmtree(folder)  # the disk is small
    lost = f"nothing before epoch {last['epoch'] + 1}, step {last['step']}"
    return fault.__doc__, code, message.replace(str(folder.parent), "…"), lost


def main():
    rows = []
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", root], check=True)
        try:
            expected, shapes = root / "undisturbed", root / "shapes"
            finish(expected, shapes)
            for fault in FAULTS:
                rows.append(inject(fault, root / fault.__name__, shapes, expected))
                print(f"done: {fault.__doc__}", file=sys.stderr)
        finally:
            subprocess.run(["umount", "-l", root], check=True)
    print("| fault | exit code | message | lost |\n| --- | --- | --- | --- |")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    print(f"\n{len(rows)} faults; each training ended as the undisturbed one, to the last bit")


if __name__ == "__main__":
    main()
