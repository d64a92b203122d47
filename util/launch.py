"""Rank and world size under Open MPI's `mpirun`, available without importing Jittor.

Source: the rank and world size of `util/misc.py` in the original.
"""

import os
import platform
import shutil
import sys
import time
import traceback
from contextlib import contextmanager

from util.errors import InputError

# Where launchers that Jittor does not support say how many processes they have started. Batch
# scripts have SLURM_NTASKS, too, and mpirun starts itself on other machines as a step of one task.
OTHER_LAUNCHERS = {"SLURM_STEP_NUM_TASKS": "srun", "PMI_SIZE": "MPICH", "WORLD_SIZE": "torchrun"}


def get_world_size():
    """Return the number of processes."""
    return int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1))


def get_rank():
    """Return the rank of this process."""
    return int(os.environ.get("OMPI_COMM_WORLD_RANK", 0))


def get_local_rank():
    """Return the rank of this process on its machine, which is the index of its GPU."""
    return int(os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK", 0))


def get_local_size():
    """Return the number of processes on this machine."""
    return int(os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1))


def is_main_process():
    return get_rank() == 0


def get_launch_prefix():
    """Return the mpirun prefix of this run's command line; empty for one process."""
    if get_world_size() == 1:
        return ""
    if get_local_size() < get_world_size():  # a host file, which only mpirun knows
        return "mpirun (its options as before) "
    as_root = "--allow-run-as-root " if os.geteuid() == 0 else ""
    return f"mpirun -np {get_world_size()} --bind-to none {as_root}"


@contextmanager
def job():
    """Run a job: only the main process prints, and a process that fails ends all of them.

    An InputError becomes one line and exit code 1. Under MPI, a failing process exits immediately,
    so that mpirun terminates the others; a normal exit would deadlock, because MPI waits for all
    ranks.
    """
    if not is_main_process():
        sys.stdout = open(os.devnull, "w")
    if hasattr(sys.stdout, "reconfigure"):  # not in some IDEs
        # Not every locale's encoding has "…" and all class names. Python sets stderr up like this.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _check_launcher()
        _check_mpi()
        yield
    except InputError as error:
        if get_world_size() == 1:
            sys.exit(f"error: {error}")
        _leave(f"error: {error}")
    except Exception:
        if get_world_size() == 1:
            raise
        _leave(traceback.format_exc())


def _check_launcher():
    if "OMPI_COMM_WORLD_SIZE" in os.environ:
        return
    for name, launcher in OTHER_LAUNCHERS.items():
        count = int(os.environ.get(name) or 1)
        if count > 1:
            raise InputError(
                f"{launcher} started {count} processes ({name}), which do not know of each other: "
                "start them with Open MPI's mpirun, see docs/distributed.md"
            )


def _check_mpi():
    mpicc = os.environ.get("mpicc_path") or shutil.which("mpicc")
    if get_world_size() > 1 and not (mpicc and os.environ.get("use_mpi", "1") == "1"):
        raise InputError(
            "mpirun started several processes, but Jittor has no MPI: install libopenmpi-dev, "
            "whose mpicc it needs, and do not set use_mpi=0"
        )


def _leave(message):
    if not is_main_process():
        # Most errors occur in every process. The main process reports them first and ends the job.
        time.sleep(2)
        message = f"process {get_rank()} on {platform.node()}: {message}"
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)
    os._exit(1)
