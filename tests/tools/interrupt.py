"""Interrupt and resume trainings, and compare their results with an undisturbed one:

    python -m tests.tools.interrupt [--times 100] [--signal KILL] [--seed N] [--model tiny|resnet18]

The process group gets the signal at a random moment, in a third of the runs within a save. A
training that ends is compared to the last bit (weights, optimizer, log.txt), and another one starts
until all interruptions are spent. resnet18 spends most of its time in matrix products, where a
signal has once overwritten memory (see HandlerStack).
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
    """Start or resume a training as a new process group. flags: of main.py; they win over FLAGS."""
    checkpoint = folder / "checkpoint.pkl"
    command = [sys.executable, "main.py", *FLAGS, "--coco_path", str(shapes)]
    command += ["--output_dir", str(folder)]
    command += ["--resume", str(checkpoint)] if checkpoint.exists() else []
    command += flags
    return subprocess.Popen(
        command, cwd=REPO, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )


def wait(process, seconds):
    """Wait some seconds, or until the process ends."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def wait_for_save(process, folder, after):
    """Wait until a file is being written in folder, at least `after` seconds, or until the process
    ends.
    """
    wait(process, after)
    while process.poll() is None and not any(folder.rglob(".*.part")):
        time.sleep(0.0005)


def interrupt(folder, shapes, number, rng, longest, *flags):
    """Start and interrupt a run; return its exit code, and whether it was saving.

    Print the output of a crash.
    """
    with tempfile.TemporaryFile("w+") as log:
        process = start(folder, shapes, log, *flags)
        within_save, moment = rng.random() < 1 / 3, rng.uniform(0, longest)
        if within_save:
            wait_for_save(process, folder, moment)
            time.sleep(rng.uniform(0, 0.01))
        else:
            wait(process, moment)
        saving = any(folder.rglob(".*.part"))
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(process.pid, number)
        code = process.wait()
        log.seek(0)
        output = log.read()
    if code == 1 and "Caught SIGINT, quick exit" in output:
        code = -number  # while it is being imported, Jittor handles Ctrl-C itself
    if code not in (0, -number, 128 + number):
        print(f"exit code {code}: {output[-2000:]}", flush=True)
    if code == 128 + number:
        assert output.splitlines()[-1].startswith(
            f"stopped by {signal.Signals(number).name}: resume with python main.py"
        ), output
    return code, saving


def assert_same_training(folder, expected):
    """Compare two finished trainings to the last bit, except for the flags that resuming adds."""
    mine, theirs = (load_checkpoint(path / "checkpoint.pkl") for path in (folder, expected))
    for checkpoint in (mine, theirs):
        del checkpoint["args"]
    assert_same(mine, theirs)
    assert (folder / "log.txt").read_bytes() == (expected / "log.txt").read_bytes()
    leftovers = [path for path in folder.rglob(".*") if path.name != ".lock"]
    assert not leftovers, leftovers


def finish(folder, shapes, *flags):
    """Run a training to its end."""
    with tempfile.TemporaryFile("w+") as log:
        code = start(folder, shapes, log, *flags).wait()
        log.seek(0)
        assert code == 0, log.read()[-2000:]


def main(times, number, seed, root, *flags):
    """Return a Counter of exit codes, and how many trainings crashed or ended differently."""
    rng, shapes, expected = random.Random(seed), root / "shapes", root / "undisturbed"
    for folder in (root / "compiling", expected):
        begin = time.time()
        finish(folder, shapes, *flags)
        longest = time.time() - begin  # of the second one: the first one compiles
    assert_same_training(root / "compiling", expected)
    seen, spent, faults = collections.Counter(), 0, 0
    while spent < times:
        folder = root / f"run{seen['trainings']}"
        while spent < times:
            code, saving = interrupt(folder, shapes, number, rng, longest, *flags)
            if code == 0:
                break
            spent += 1
            seen[f"exit code {code}{' within a save' * saving}"] += 1
            faults += code not in (-number, 128 + number)
        else:
            finish(folder, shapes, *flags)
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
        number = signal.Signals[f"SIG{options.signal}"]
        seen, faults = main(options.times, number, options.seed, Path(folder), *flags)
    print(
        f"{options.times} x SIG{options.signal} in {time.time() - begin:.0f} s: {dict(seen)}; "
        f"{faults} trainings crashed or ended differently"
    )
    sys.exit(faults > 0)
