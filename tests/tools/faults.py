"""Does to a training what machines, disks and people do, and looks at what is lost: prints a table.
Needs root, for a small disk.

    python -m tests.tools.faults

Each fault strikes after the second of four epochs. Then it is mended, the training goes on from its
last intact checkpoint, and its end is compared with that of an undisturbed one to the last bit.
SIGKILL and SIGTERM at any moment: see interrupt.py; hostile files: hostile.py and
test_hostile_data.py.
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
    """A training that runs, in a folder and on images of its own, and what a fault leaves for the
    attempt to go on.
    """

    folder: Path
    shapes: Path
    process: subprocess.Popen  # the leader of a process group
    flags: list = field(default_factory=list)  # with which the training goes on
    said: str = ""  # by the program about a damaged checkpoint


def full_disk(training):
    """the disk is full in the middle of a save"""
    ballast = training.folder / "ballast"
    room = (training.folder / "checkpoint.pkl").stat().st_size // 2
    disk = os.statvfs(training.folder)
    ballast.write_bytes(bytes(disk.f_bavail * disk.f_frsize - room))
    return ballast.unlink


def folder_gone(training):
    """the output folder is renamed"""
    away = training.folder.with_name("away")
    training.folder.rename(away)
    return lambda: away.rename(training.folder)


def log_is_a_folder(training):
    """log.txt is replaced by a folder"""
    (training.folder / "log.txt").rename(training.folder / "log.old")
    (training.folder / "log.txt").mkdir()

    def mend():
        (training.folder / "log.txt").rmdir()
        (training.folder / "log.old").rename(training.folder / "log.txt")

    return mend


def images_gone(training):
    """all images vanish"""
    images, away = training.shapes / "train2017", training.shapes / "away"
    images.rename(away)
    return lambda: away.rename(images)


def images_damaged(training):
    """all images are cut off"""
    whole = {path: path.read_bytes() for path in (training.shapes / "train2017").iterdir()}
    for path, content in whole.items():
        path.write_bytes(content[: len(content) // 2])
    return lambda: [path.write_bytes(content) for path, content in whole.items()]


def worker_killed(training):
    """a data worker is killed, as when memory runs out"""
    while not (children := workers(training.process.pid)):
        time.sleep(0.01)
    os.kill(children[0], signal.SIGKILL)


def workers(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def signal_twice(training):
    """SIGTERM twice: at once"""
    os.killpg(training.process.pid, signal.SIGTERM)
    time.sleep(0.05)
    os.killpg(training.process.pid, signal.SIGTERM)


def terminal_closed(training):
    """SIGHUP: the terminal is closed"""
    os.killpg(training.process.pid, signal.SIGHUP)


def checkpoint_damaged(training):
    """killed, and a bit of the last checkpoint flips"""
    return damage(
        training, lambda content: content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]
    )


def checkpoint_cut(training):
    """killed, and the last checkpoint is cut off"""
    return damage(training, lambda content: content[:-1000])


def damage(training, change):
    kill(training)
    path = training.folder / "checkpoint.pkl"
    path.write_bytes(change(path.read_bytes()))
    try:
        load_checkpoint(path)
    except InputError as error:
        training.said = str(error)
    # The one that the message names.
    training.flags = ["--resume", str(training.folder / "checkpoint0001.pkl")]
    assert training.flags[1] in training.said, training.said


def kill(training):
    os.killpg(training.process.pid, signal.SIGKILL)
    training.process.wait()


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


def strike(fault, folder, shapes, expected):
    """A row of the table: the fault, how the program ended, what it said, what was lost."""
    with tempfile.TemporaryFile("w+") as log:
        training = Training(folder, shapes, start(folder, shapes, log))
        while not (folder / "checkpoint0001.pkl").exists():
            assert training.process.poll() is None, log.seek(0) or log.read()[-2000:]
            time.sleep(0.01)
        mend = fault(training)
        code = training.process.wait(100)
        log.seek(0)
        said = training.said or (log.read().strip().splitlines() or [""])[-1]
    if mend:
        mend()
    before = load_checkpoint(training.flags[1] if training.flags else folder / "checkpoint.pkl")
    finish(folder, shapes, *training.flags)
    assert_same_training(folder, expected)
    shutil.rmtree(folder)  # for the disk is small
    place = f"epoch {before['epoch'] + 1}, step {before['step']}"
    return fault.__doc__, code, said.replace(str(folder.parent), "…"), f"nothing before {place}"


def main():
    rows = []
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", root], check=True)
        try:
            expected, shapes = root / "undisturbed", root / "shapes"
            finish(expected, shapes)
            for fault in FAULTS:
                rows.append(strike(fault, root / fault.__name__, shapes, expected))
                print(f"done: {fault.__doc__}", file=sys.stderr)
        finally:
            subprocess.run(["umount", "-l", root], check=True)
    print(
        "| what happens after the second epoch | exit code | what the program says | what is lost "
        "|\n"
        "| --- | --- | --- | --- |"
    )
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    print(f"\n{len(rows)} faults; each training ended as the undisturbed one, to the last bit")


if __name__ == "__main__":
    main()
