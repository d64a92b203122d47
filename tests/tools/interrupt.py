"""Interrupts a training again and again, resumes it each time, and compares its end with that of an
undisturbed one:

    python -m tests.tools.interrupt [--times 100] [--signal KILL] [--seed N] [--model tiny|resnet18]

The whole process group gets the signal, at a random moment; a third of the moments are within a
save. A training that comes to its end is compared to the last bit (weights, optimizer, log.txt),
and another one starts until all interruptions are spent. resnet18 spends most of its time in matrix
products, where a signal has once overwritten memory (see HandlerStack).
"""

import argparse
import collections
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from models.weights.checkpoint import load_checkpoint
from tests.helpers.same import assert_same

REPO = Path(__file__).resolve().parents[2]
FLAGS = """
    --dataset_file shapes --shapes_train 48 --shapes_val 6 --shapes_size 32
    --backbone tiny --backbone_norm batch --backbone_weights none --enc_layers 1 --dec_layers 2
    --hidden_dim 128 --nheads 8 --dim_feedforward 128 --num_queries 8
    --batch_size 4 --epochs 4 --lr_drop 2 --device cpu --checkpoint_interval 2
""".split()
RESNET18 = """
    --shapes_train 16 --shapes_val 2 --shapes_size 160
    --backbone resnet18 --backbone_norm frozen --batch_size 2 --epochs 3
""".split()


def start(folder, shapes, log, *flags):
    """A training, or the rest of it, as a process group of its own. flags: more of main.py's, which
    win.
    """
    checkpoint = folder / "checkpoint.pkl"
    resume = ["--resume", str(checkpoint)] if checkpoint.exists() else []
    command = [
        sys.executable,
        "main.py",
        *FLAGS,
        "--coco_path",
        str(shapes),
        "--output_dir",
        str(folder),
        *resume,
        *flags,
    ]
    return subprocess.Popen(
        command, cwd=REPO, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )


def wait(process, seconds):
    """Returns after the time, or when the process has ended."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def wait_for_save(process, folder, after):
    """Returns when a file is being written in folder, some time `after` (seconds) has passed; or
    when the process has ended.
    """
    wait(process, after)
    while process.poll() is None and not any(folder.rglob(".*.part")):
        time.sleep(0.0005)


def interrupt(folder, shapes, number, rng, longest, *flags):
    """One interrupted run. Returns how it ended: its exit code, and whether it was within a save. A
    crash prints its output.
    """
    with tempfile.TemporaryFile("w+") as log:
        process = start(folder, shapes, log, *flags)
        aimed, moment = rng.random() < 1 / 3, rng.uniform(0, longest)
        if aimed:
            wait_for_save(process, folder, moment)
            time.sleep(rng.uniform(0, 0.01))
        else:
            wait(process, moment)
        saving = any(folder.rglob(".*.part"))
        with contextlib.suppress(ProcessLookupError):  # it has come to its end
            os.killpg(process.pid, number)
        code = process.wait()
        log.seek(0)
        output = log.read()
    if code == 1 and "Caught SIGINT, quick exit" in output:
        code = -number  # for a moment, while it is imported, Jittor answers Ctrl-C itself
    if code not in (0, -number, 128 + number):
        print(f"exit code {code}: {output[-2000:]}", flush=True)
    if code == 128 + number:
        assert output.splitlines()[-1].startswith(
            f"stopped by {signal.Signals(number).name}: resume with python main.py"
        ), output
    return code, saving


def assert_same_training(folder, expected):
    """The end of two trainings, to the last bit, but for the flags that resuming adds."""
    mine, theirs = (load_checkpoint(path / "checkpoint.pkl") for path in (folder, expected))
    for checkpoint in (mine, theirs):
        del checkpoint["args"]
    assert_same(mine, theirs)
    assert (folder / "log.txt").read_bytes() == (expected / "log.txt").read_bytes()
    left = [path for path in folder.rglob(".*") if path.name != ".lock"]
    assert not left, left


def finish(folder, shapes, *flags):
    """An undisturbed run. Returns its exit code, 0."""
    with tempfile.TemporaryFile("w+") as log:
        code = start(folder, shapes, log, *flags).wait()
        log.seek(0)
        assert code == 0, log.read()[-2000:]
    return code


def main(times, number, seed, root, *flags):
    """Returns a Counter of what happened, and how many trainings crashed or ended differently."""
    rng, shapes, expected = random.Random(seed), root / "shapes", root / "undisturbed"
    # Compiled once, a training takes a tenth of the time: that of the others.
    for folder in (root / "compiling", expected):
        begin = time.time()
        finish(folder, shapes, *flags)
        longest = time.time() - begin
    assert_same_training(root / "compiling", expected)
    seen, spent, faults = collections.Counter(), 0, 0
    while spent < times:
        folder = root / f"run{seen['trainings']}"
        code = None
        while code != 0:
            if spent < times:
                code, saving = interrupt(folder, shapes, number, rng, longest, *flags)
                if code != 0:
                    spent += 1
                    seen[f"exit code {code}{' within a save' * saving}"] += 1
                    faults += code not in (-number, 128 + number)
            else:
                code = finish(folder, shapes, *flags)
        try:
            assert_same_training(folder, expected)
        except AssertionError as error:
            print(f"{folder.name} ended differently: {error}", flush=True)
            faults += 1
        seen["trainings"] += 1
        print(f"{dict(seen)}; {faults} crashes or differences so far", flush=True)
    return seen, faults


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--signal", default="KILL", help="KILL, TERM, INT or USR1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="tiny", choices=["tiny", "resnet18"])
    options = parser.parse_args()
    flags = RESNET18 if options.model == "resnet18" else []
    with tempfile.TemporaryDirectory() as folder:
        begin = time.time()
        seen, faults = main(
            options.times,
            signal.Signals[f"SIG{options.signal}"],
            options.seed,
            Path(folder),
            *flags,
        )
    print(
        f"{options.times} x SIG{options.signal} in {time.time() - begin:.0f} s: {dict(seen)}; "
        f"{faults} crashes, or trainings that did not end as the undisturbed one to the last bit"
    )
    sys.exit(faults > 0)
