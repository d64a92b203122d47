"""Collectives across ranks; no-ops with a single process.

Jittor averages the gradients itself, in `Optimizer.backward`. Everything else goes through MPI:
floats of a training step in one collective, other values as pickled bytes. Every process has to
call these functions, in the same order.

Source: the distributed part of `util/misc.py` in the original.
"""

import pickle
import platform
from contextlib import contextmanager

import numpy as np

from util.backend import jt
from util.errors import InputError
from util.launch import get_local_rank, get_rank, get_world_size, is_main_process


def broadcast(value, root=0):
    """Broadcast a picklable value from rank `root` and return it."""
    if get_world_size() == 1:
        return value
    content = _broadcast_bytes(pickle.dumps(value) if get_rank() == root else b"", root)
    return value if get_rank() == root else pickle.loads(content)


def _broadcast_bytes(content, root):
    # As bytes, because Jittor converts int64 to int32.
    size = np.frombuffer(len(content).to_bytes(8, "little"), np.uint8).copy()
    jt.mpi.broadcast(size, root)
    data = np.empty(size.view(np.int64)[0], np.uint8)
    if get_rank() == root:
        data[:] = np.frombuffer(content, np.uint8)
    jt.mpi.broadcast(data, root)
    return data.tobytes()


def all_gather_floats(values):
    """Gather n floats from every rank into float64 [world_size, n]. values: list of n floats.

    One collective: the sum of arrays in which each process fills its own row.
    """
    rows = np.zeros((get_world_size(), len(values)))
    rows[get_rank()] = values
    if get_world_size() == 1:
        return rows
    with jt.flag_scope(use_cuda=0):
        gathered = jt.array(rows, dtype="float64").sync()
        jt.mpi.var_all_reduce(gathered)
        return gathered.numpy()


def all_gather(value):
    """Gather a picklable value from every rank into a list."""
    return [broadcast(value, root) for root in range(get_world_size())]


def gather(value):
    """Gather a picklable value from every rank on the main process; return None on the others.

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
    """Average a dict of floats over all ranks; keys must be the same on each.

    Source: `reduce_dict` of the original.
    """
    gathered = all_gather_floats(list(values.values()))
    # Python sums in rank order, so the result is bitwise equal in all processes and runs.
    return {name: sum(column) / len(gathered) for name, column in zip(values, gathered.T.tolist())}


def barrier():
    """Wait until all processes have reached the barrier."""
    if get_world_size() > 1:
        jt.mpi.mpi_barrier()


def check_same(compute, what):
    """Raise InputError unless `compute()` is the same in all processes.

    what: name of what is compared, in the plural. A single process computes nothing.
    """
    if get_world_size() == 1:
        return
    gathered = all_gather((compute(), f"process {get_rank()} on {platform.node()}"))
    different = [process for each, process in gathered if each != gathered[0][0]]
    if different:
        others = f" and {len(different) - 1} more" if len(different) > 1 else ""
        raise InputError(
            f"{what} of {gathered[0][1]} and of {different[0]}{others} differ; give all machines "
            "the same files"
        )


@contextmanager
def main_process_first():
    """Run the block in the main process, then in local rank 0 of each machine, then in the others.

    For work that is cached on disk, such as downloads and generated datasets.
    """
    my_turn = 0 if is_main_process() else 1 if get_local_rank() == 0 else 2
    for turn in range(3):
        if turn == my_turn:
            yield
        barrier()
