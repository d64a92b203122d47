"""Count what processes exchange in a training step beside the gradients, which Jittor averages:

    python -m tests.tools.messages [--processes 1 2 4 8 16]

Prints a table: the collectives of a step with the number of values they carry, and the time of one
exchange. More processes than cores wait for each other: take the time from few of them.
"""

import argparse
import contextlib
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

REPO = Path(__file__).resolve().parents[2]
COLLECTIVES = {"broadcast", "var_all_reduce", "mpi_barrier"}  # of jt.mpi
STEPS = 3


def measure():
    """Measure in one of the processes; the main one prints the table's row."""
    sys.path[:0] = [str(REPO / "tests" / "helpers")]
    from util.startup.prepare import prepare_device

    prepare_device("cpu")
    import tiny

    from util import dist, launch
    from util.backend import jt, select_device

    select_device("cpu")
    from engine import train_one_epoch
    from util.optim import build_optimizer
    from util.signals import StopRequest

    args = tiny.arguments("--num_classes", 91)
    model, criterion, _ = tiny.build(args)
    optimizer, stop = build_optimizer(model, args), StopRequest()
    sizes, gather = [], dist.all_gather_floats

    def record_size(values):
        sizes.append(len(values))
        return gather(values)

    def train(steps):
        batches = tiny.Batches([tiny.make_batch(launch.get_rank())] * steps)
        agree = lambda step, logger: stop.agree()
        with contextlib.redirect_stdout(io.StringIO()):
            train_one_epoch(model, criterion, batches, optimizer, 0, 0, 0.1, after_step=agree)

    def is_collective(function):  # jt.Var has a broadcast, too
        return function.__name__ in COLLECTIVES and not isinstance(function.__self__, jt.Var)

    train(1)  # compiles
    dist.all_gather_floats = record_size
    counts = [count_calls(lambda: train(steps), is_collective) for steps in (1, 1 + STEPS)]
    dist.all_gather_floats = gather
    collectives = (counts[1] - counts[0]) / STEPS
    numbers = sizes[-len(sizes) // (2 + STEPS) :]
    times = []
    for _ in range(200):
        start = time.perf_counter()
        dist.all_gather_floats([0.0] * max(numbers))
        times.append(time.perf_counter() - start)
    if launch.is_main_process():
        processes = launch.get_world_size()
        print(
            f"| {processes} | {collectives:.0f} | {' + '.join(map(str, numbers))} | "
            f"{8 * processes * sum(numbers) * (processes > 1):,} | {1e3 * np.median(times):.2f} |",
            flush=True,
        )


def count_calls(function, is_counted):
    """Return how many built-in functions for which is_counted(f) holds a call of function uses."""
    count = 0

    def profile(_, event, called):
        nonlocal count
        if event == "c_call":
            count += is_counted(called)

    sys.setprofile(profile)
    function()
    sys.setprofile(None)
    return count


def main(processes):
    print(
        "| processes | collectives a step | numbers of each process | bytes | ms of the largest |"
    )
    print("| --- | --- | --- | --- | --- |", flush=True)
    for count in processes:
        command = [sys.executable, "-m", "tests.tools.messages", "--measure"]
        if count > 1:
            mpirun = ["mpirun", "-np", str(count), "--oversubscribe", "--bind-to", "none"]
            command = mpirun + ["--allow-run-as-root"] * (os.geteuid() == 0) + command
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=REPO, env=environment, check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    measure() if options.measure else main(options.processes)
