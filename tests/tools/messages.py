"""What the processes of a training exchange, beside the gradients, which Jittor averages:

    python -m tests.tools.messages [--processes 1 2 4 8 16]

Prints a table: the collectives of a training step with the numbers that they carry, and how long
one exchange takes. More processes than cores wait for each other: count there, and time with few.
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
    """In one of the processes: prints the table's row in the main one."""
    sys.path[:0] = [str(REPO / "tests" / "helpers")]
    from util.startup.prepare import prepare_device

    prepare_device("cpu")
    import tiny

    from util import dist, launch
    from util.backend import select_device

    select_device("cpu")
    from engine import train_one_epoch
    from util.optim import build_optimizer
    from util.signals import StopRequest

    args = tiny.arguments("--num_classes", 91)
    model, criterion, _ = tiny.build(args)
    optimizer, stop = build_optimizer(model, args), StopRequest()
    sizes, gather = [], dist.all_gather_floats

    def counting(values):
        sizes.append(len(values))
        return gather(values)

    def train(steps):
        batches = tiny.Batches([tiny.make_batch(launch.get_rank())] * steps)
        agree = lambda step, logger: stop.agree()  # noqa: E731
        with contextlib.redirect_stdout(io.StringIO()):
            train_one_epoch(model, criterion, batches, optimizer, 0, 0, 0.1, after_step=agree)

    train(1)  # compiles
    dist.all_gather_floats = counting
    counts = [count_collectives(lambda: train(steps)) for steps in (1, 1 + STEPS)]
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


def count_collectives(function):
    """How many of MPI's functions a call uses."""
    from util.backend import jt

    count = 0

    def profile(_, event, called):
        nonlocal count
        if event == "c_call" and called.__name__ in COLLECTIVES:
            count += not isinstance(called.__self__, jt.Var)  # which has a broadcast, too

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
            start = ["mpirun", "-np", str(count), "--oversubscribe", "--bind-to", "none"]
            command = start + ["--allow-run-as-root"] * (os.geteuid() == 0) + command
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
