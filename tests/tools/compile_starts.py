"""Starts that compile all operators of a very small model in many threads; do they crash?

    python -m tests.tools.compile_starts HOME [--times 60] [--threads 16]

HOME is a Jittor home of its own, in which the core is compiled once; its operators are removed
before each start. Every other start has two busy processes at nice 10 beside it.
`cc_path=/usr/lib/ccache/g++` in the environment (with Debian's ccache) makes a start take seconds
instead of a minute.
"""

import argparse
import collections
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.tools.interrupt import FLAGS, REPO

BUSY = ["nice", "-n", "10", sys.executable, "-c", "while True: pass"]


def start(home, folder, threads):
    """Trains two steps and evaluates. Returns (exit code, output, operators compiled, seconds)."""
    caches = list((home / ".cache" / "jittor").glob("jt*/*/*/*/*/*/*/jit"))
    for cache in caches:
        shutil.rmtree(cache)
        cache.mkdir()
    command = [
        sys.executable,
        "main.py",
        *FLAGS,
        *"--shapes_train 8 --shapes_val 2 --epochs 1 --num_workers 0 --coco_path".split(),
        str(folder / "shapes"),
    ]
    # Jittor writes its home into a file under HOME, for all processes that start later.
    environment = {
        **os.environ,
        "HOME": str(home),
        "JITTOR_HOME": str(home),
        "use_parallel_op_compiler": str(threads),
    }
    begin = time.time()
    done = subprocess.run(
        command,
        cwd=REPO,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    compiled = sum(
        len(list(cache.glob("*.so")))
        for cache in (home / ".cache" / "jittor").glob("jt*/*/*/*/*/*/*/jit")
    )
    return done.returncode, done.stdout, compiled, time.time() - begin


def main(home, times, threads):
    """Returns a Counter of the exit codes."""
    codes = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(times):
            busy = [subprocess.Popen(BUSY) for _ in range(2 * (number % 2))]
            code, output, compiled, seconds = start(home, Path(folder), threads)
            for process in busy:
                process.kill()
                process.wait()
            codes[code] += 1
            print(
                f"start {number + 1}{', with load' * (number % 2)}: exit code {code}, {compiled} "
                f"operators, {seconds:.0f} s",
                flush=True,
            )
            if code:
                print(output[-3000:], flush=True)
    return codes


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("--times", type=int, default=60)
    parser.add_argument("--threads", type=int, default=16)
    options = parser.parse_args()
    options.home.mkdir(parents=True, exist_ok=True)
    codes = main(options.home.resolve(), options.times, options.threads)
    print(
        f"{options.times} starts with {options.threads} threads that compile: exit codes "
        f"{dict(codes)}"
    )
    sys.exit(set(codes) != {0})
