"""Communication between the processes of a training, which Open MPI's `mpirun` starts.

With one process nothing happens here.

Jittor averages the gradients itself, in `Optimizer.backward`. Everything else goes through MPI, as
Jittor offers it for arrays: what a training step exchanges as numbers, one collective each, and
other things as bytes. All functions but the getters have to be called by all processes, in the same
order.

Source: the role of the distributed part of `util/misc.py` in the original.
"""

import os
import pickle
import shutil
import sys
import time
from contextlib import contextmanager

import numpy as np

from util.errors import InputError


def get_world_size():
    """Number of processes, from the environment: Jittor need not be imported."""
    return int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1))


def get_rank():
    """Number of this process among all."""
    return int(os.environ.get("OMPI_COMM_WORLD_RANK", 0))


def get_local_rank():
    """Number of this process among those of its machine, which is the number of its GPU."""
    return int(os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK", 0))


def get_local_size():
    """Number of processes on this machine."""
    return int(os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1))


def is_main_process():
    return get_rank() == 0


def launcher():
    """The part of the command line before `python`; empty for one process."""
    if get_world_size() == 1:
        return ""
    as_root = "--allow-run-as-root " if os.geteuid() == 0 else ""
    return f"mpirun -np {get_world_size()} --bind-to none {as_root}"


def broadcast(value, root=0):
    """The value, anything that pickles, that the process `root` has."""
    if get_world_size() == 1:
        return value
    content = _broadcast_bytes(pickle.dumps(value) if get_rank() == root else b"", root)
    return value if get_rank() == root else pickle.loads(content)


def _broadcast_bytes(content, root):
    from util.backend import jt

    # Jittor would make int32 of an int64.
    size = np.frombuffer(len(content).to_bytes(8, "little"), np.uint8).copy()
    jt.mpi.broadcast(size, root)
    data = np.empty(size.view(np.int64)[0], np.uint8)
    if get_rank() == root:
        data[:] = np.frombuffer(content, np.uint8)
    jt.mpi.broadcast(data, root)
    return data.tobytes()


def all_gather_numbers(values):
    """The numbers of all processes: float64 [N, n], by rank, for a list of n of each.

    One collective: the sum of arrays in which each process fills its own row.
    """
    numbers = np.zeros((get_world_size(), len(values)))
    numbers[get_rank()] = values
    if get_world_size() == 1:
        return numbers
    from util.backend import jt

    with jt.flag_scope(use_cuda=0):
        gathered = jt.array(numbers, dtype="float64").sync()
        jt.mpi.var_all_reduce(gathered)
        return gathered.numpy()


def all_gather(value):
    """List of the values, anything that pickles, of all processes, by rank."""
    return [broadcast(value, root) for root in range(get_world_size())]


def gather(value):
    """The list of all processes' values by rank, in the main process; None in the others.

    value: anything that pickles.
    """
    if get_world_size() == 1:
        return [value]
    gathered = []
    for root in range(get_world_size()):
        content = _broadcast_bytes(pickle.dumps(value) if get_rank() == root else b"", root)
        if is_main_process():
            gathered.append(pickle.loads(content))
    return gathered if is_main_process() else None


def reduce_dict(values):
    """Means over the processes of a dictionary of floats with the same keys in each.

    Source: `reduce_dict` of the original.
    """
    gathered = all_gather_numbers(list(values.values()))
    # Python's sum goes by rank, and so gives the same bits everywhere and every time.
    return {name: sum(column) / len(gathered) for name, column in zip(values, gathered.T.tolist())}


def barrier():
    """Returns when all processes have come here."""
    if get_world_size() > 1:
        from util.backend import jt

        jt.mpi.mpi_barrier()


def check_same(value, what):
    """Raises RuntimeError unless all processes have the same value; what: its name."""
    gathered = all_gather(value)
    different = [rank for rank, each in enumerate(gathered) if each != gathered[0]]
    if different:
        raise RuntimeError(
            f"{what} of process {', '.join(map(str, different))} differ from those of process 0"
        )


@contextmanager
def main_process_first():
    """The main process runs the block first, then the first one of each machine, then the others.

    For what only one has to do, because the others find it done: downloads, files that are drawn.
    """
    my_turn = 0 if is_main_process() else 1 if get_local_rank() == 0 else 2
    for turn in range(3):
        if turn == my_turn:
            yield
        barrier()


@contextmanager
def job():
    """Within the block only the main process prints, and one that fails ends the whole job.

    An InputError becomes one line and exit code 1. Under MPI a process that fails leaves at once: a
    usual exit would wait for the others, which wait for it. mpirun ends them then.
    """
    if not is_main_process():
        sys.stdout = open(os.devnull, "w")
    try:
        _check_mpi()
        yield
    except InputError as error:
        if get_world_size() == 1:
            sys.exit(f"error: {error}")
        _leave(f"error: {error}")
    except Exception:
        if get_world_size() == 1:
            raise
        import traceback

        _leave(traceback.format_exc())


def _check_mpi():
    """Raises InputError where Jittor, under mpirun, could not be imported for want of MPI."""
    usable = os.environ.get("use_mpi", "1") == "1" and (
        os.environ.get("mpicc_path") or shutil.which("mpicc")
    )
    if get_world_size() > 1 and not usable:
        raise InputError(
            "mpirun started several processes, but Jittor would have no MPI: install "
            "libopenmpi-dev, whose mpicc it needs, and do not set use_mpi=0"
        )


def _leave(message):
    if not is_main_process():
        # Most faults are everyone's: the main process ends the job meanwhile, and says it once.
        time.sleep(2)
        message = f"process {get_rank()}: {message}"
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)
    os._exit(1)
