"""The one place where Jittor is imported.

The process is prepared before, and has its signals back afterwards.

Where CUDA works, Jittor uses the GPU from then on.
"""

import atexit
import os
import random
import sys

from util import dist, runtime
from util.compilation import use_precompiled_header
from util.errors import InputError
from util.signals import take_back_from_jittor

runtime.prepare()

try:
    import jittor as jt
except SystemExit as end:
    if end.code:
        raise
    # It has compiled a part of itself again, for another compiler.
    sys.exit("error: Jittor has compiled itself for another compiler; run the command again")
import jittor_utils  # noqa: E402
from jittor import nn  # noqa: E402, F401
from jittor.models import resnet  # noqa: E402, F401

take_back_from_jittor()


def select_device(name):
    """The device that Jittor uses, "cuda" or "cpu".

    name: "auto", "cpu" or "cuda", as given to `runtime.prepare_device`, which has to be called
    first. Raises InputError for "cuda" without a GPU.
    """
    gpus = _count_gpus()
    if name == "cuda" and gpus == 0:
        raise InputError(
            f"--device cuda: Jittor finds no GPU (nvcc_path={os.environ.get('nvcc_path', '')!r}); "
            "use --device cpu"
        )
    if name == "auto" and gpus == 0 and os.environ.get("nvcc_path") and dist.is_main_process():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        runtime.warn(f"the CPU is used: CUDA finds no GPU (CUDA_VISIBLE_DEVICES: {visible})")
    jt.flags.use_cuda = int(gpus > 0 and name != "cpu")
    processes = dist.get_local_size()
    on_the_cpu = jt.flags.use_cuda and processes > gpus and os.environ.get("use_nccl", "1") == "1"
    if on_the_cpu and dist.is_main_process():
        runtime.warn(
            f"{processes} processes on this machine see {gpus} GPU each, so they average their "
            "gradients on the CPU, which is slow; start as many processes as there are GPUs, and "
            "show every GPU to each (CUDA_VISIBLE_DEVICES)"
        )
    return "cuda" if jt.flags.use_cuda else "cpu"


def set_seed(seed):
    """Seeds the initial weights; those of different seeds are independent, and equal in all
    processes.

    seed: int >= 0
    """
    # Jittor's generator on the CPU gives the seeds 0 and 1 the same numbers, and 1 and 2 related
    # ones; those of large seeds are not.
    jt.set_global_seed(random.Random(seed).getrandbits(31), different_seed_for_mpi=False)


def _count_gpus():
    # Jittor's count may be -1 where CUDA does not start.
    return max(jt.get_device_count(), 0) if jt.has_cuda else 0


def _use_gpu():
    if _count_gpus() > 0:
        jt.flags.use_cuda = 1
        # A convolution takes the algorithm that cuDNN expects to be the fastest, as by default in
        # PyTorch. Jittor would try all of them for the first hundred sizes of convolutions, with up
        # to a quarter of the GPU's memory. A few batches of COCO's have as many.
        jt.compile_extern.cudnn.set_algorithm_cache_size(0)


def _end_compilers():
    """Ends the processes that compiled Jittor's core and have nothing more to do.

    A signal for the whole process group, as Ctrl-C is, would kill them while they hold the lock
    that Python waits for when it ends them at the exit.
    """
    if jittor_utils.pool_size:
        jittor_utils.pool_cleanup()
        atexit.unregister(jittor_utils.pool_cleanup)
        jittor_utils.pool_size = 0  # it would start them again


_end_compilers()
_use_gpu()
use_precompiled_header(jt.flags)
