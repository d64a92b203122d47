"""Import Jittor; everything else gets it from here.

Prepare the process before the import and restore its signal handlers afterwards. If CUDA works,
Jittor uses the GPU from then on.
"""

import atexit
import faulthandler
import os
import random
import signal
import sys
import threading

from util import launch
from util.errors import InputError, warn
from util.startup.compilation import use_precompiled_header
from util.startup.machine import announce_lock_wait
from util.startup.prepare import prepare

prepare()

try:
    with announce_lock_wait():
        import jittor as jt
except SystemExit as end:
    if end.code:
        raise
    # Jittor has recompiled a part of itself with another compiler.
    sys.exit("error: Jittor has compiled itself for another compiler; run the command again")
import jittor_utils  # noqa: E402
from jittor import nn  # noqa: E402, F401
from jittor.models import resnet  # noqa: E402, F401

TAKEN_BY_JITTOR = (
    *(signal.SIGINT, signal.SIGCHLD, signal.SIGQUIT),
    *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL),
)
CUDA_MODULES = ("cub", "cublas", "cudnn", "curand", "cufft", "cusparse")


def select_device(name):
    """Select the device and return its name, "cuda" or "cpu".

    name: "auto", "cpu" or "cuda", as given to `prepare_device`, which has to be called first.
    Raises InputError for "cuda" without a GPU.
    """
    gpus = _count_gpus()
    if name == "cuda" and gpus == 0:
        raise InputError(
            f"--device cuda: Jittor finds no GPU (nvcc_path={os.environ.get('nvcc_path', '')!r}); "
            "use --device cpu"
        )
    if name == "auto" and gpus == 0 and os.environ.get("nvcc_path") and launch.is_main_process():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        warn(f"the CPU is used: CUDA finds no GPU (CUDA_VISIBLE_DEVICES: {visible})")
    jt.flags.use_cuda = int(gpus > 0 and name != "cpu")
    processes = launch.get_local_size()
    on_the_cpu = jt.flags.use_cuda and processes > gpus and os.environ.get("use_nccl", "1") == "1"
    if on_the_cpu and launch.is_main_process():
        warn(
            f"{processes} processes on this machine see {gpus} GPU each, so they average their "
            "gradients on the CPU, which is slow; start as many processes as there are GPUs, and "
            "show every GPU to each (CUDA_VISIBLE_DEVICES)"
        )
    return "cuda" if jt.flags.use_cuda else "cpu"


def set_seed(seed):
    """Seed the initial weights: equal in all processes, independent between seeds.

    seed: int >= 0
    """
    # On the CPU, Jittor's generator gives the same values for the seeds 0 and 1 and correlated ones
    # for 1 and 2; large seeds are independent.
    jt.set_global_seed(random.Random(seed).getrandbits(31), different_seed_for_mpi=False)


def _count_gpus():
    # Jittor's count may be -1 if CUDA fails to initialize.
    return max(jt.get_device_count(), 0) if jt.has_cuda else 0


def check_cuda_modules():
    """Exit with one line if Jittor lacks a part of CUDA, which it does not say if it is silent."""
    modules = CUDA_MODULES if jt.has_cuda else ()
    missing = [name for name in modules if getattr(jt.compile_extern, name) is None]
    if missing:
        sys.exit(
            f"error: Jittor's CUDA modules are incomplete ({', '.join(missing)} missing, with "
            f"{os.environ.get('nvcc_path')}); log_silent=0 shows why, --device cpu works without"
        )


def _use_gpu():
    if _count_gpus() > 0:
        jt.flags.use_cuda = 1
        # Copy arrays to the GPU in a stream of their own, instead of moving them there, for which
        # the host waits for the GPU.
        jt.flags.use_cuda_host_allocator = 0
        # Use the algorithm that cuDNN's heuristic ranks first, as PyTorch does by default.
        # Otherwise Jittor benchmarks every algorithm for the first hundred shapes, using up to a
        # quarter of GPU memory; COCO reaches that many in a few batches.
        jt.compile_extern.cudnn.set_algorithm_cache_size(0)


def _end_compilers():
    """End the processes that compiled Jittor's core and have nothing more to do.

    A signal to the whole process group, such as Ctrl-C, would kill them while they hold the lock
    that Python waits for when it ends them at exit.
    """
    if jittor_utils.pool_size:
        jittor_utils.pool_cleanup()
        atexit.unregister(jittor_utils.pool_cleanup)
        jittor_utils.pool_size = 0  # otherwise it would start them again


def _restore_signals():
    """Restore the signal handlers that importing Jittor replaced. In the main thread only.

    Jittor's handlers run on the stack of the thread that a signal interrupts. They quit the process
    at Ctrl-C and when a child is killed. At a crash they call `exit`, which under MPI waits for the
    other processes, which wait for this one. Restore Python's handlers or the default ones, so that
    a crash ends the process with Python's traceback.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    faulthandler.disable()
    for number in TAKEN_BY_JITTOR:
        python_handler = signal.getsignal(number)  # None if it was installed in C, as Jittor's are
        signal.signal(number, python_handler or signal.SIG_DFL)
    standard_error = 2  # sys.stderr may have been replaced by something that is not a file
    faulthandler.enable(standard_error)


_restore_signals()
_end_compilers()
check_cuda_modules()
_use_gpu()
use_precompiled_header(jt.flags)
