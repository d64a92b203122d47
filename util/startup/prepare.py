"""Prepare the process for the first `import jittor`, which is in `util.backend`.

On many machines a plain import fails, or loads an unusable CUDA (see cuda.py), or downloads oneDNN
(onednn.py). `prepare` respects these environment variables if the user has set them: `JITTOR_HOME`,
`use_mkl`, `use_parallel_op_compiler`, `python_config_path`, `cc_path`, `log_silent`,
`GOMP_SPINCOUNT` and `OMP_WAIT_POLICY`.
"""

import ctypes
import os
import platform
import sys

import numpy as np

from util import launch, memory
from util.errors import InputError, warn
from util.startup import compilation, cuda, machine, onednn


def prepare():
    """Choose a CUDA toolkit or none, stage oneDNN, and set Jittor's environment variables.

    Takes milliseconds once oneDNN is staged. Does nothing once Jittor is imported. Warns about
    anything that makes training slow. Exits (SystemExit) with one line if Python, NumPy or the
    compiler do not fit. Raises InputError for the first obstacle on this machine (machine.py).
    """
    if "jittor_utils" in sys.modules:
        return
    _check_numpy()
    compilation.check_compiler()
    cache = compilation.get_jittor_cache()
    for obstacle in machine.find_obstacles(cache):
        raise InputError(obstacle)
    memory.keep_freed_memory()
    _flush_denormals()
    cuda.choose_toolkit(cache)
    # In threads, which is safe because Jittor's tuner replaces no operator (see util.ops).
    os.environ.setdefault("use_parallel_op_compiler", str(len(os.sched_getaffinity(0))))
    if "OMP_WAIT_POLICY" not in os.environ:
        # How long OpenMP's threads spin while they wait for each other. With the default, a
        # training step of R50 takes 2.5 times as long beside one busy process and 5 times beside
        # three (on 2 cores); with 500, 1.9 and 3 times, and as long on an idle machine.
        os.environ.setdefault("GOMP_SPINCOUNT", "500")
    if compilation.is_core_compiled() and "log_v" not in os.environ:
        # Silence Jittor's lines at every import, but not its progress when it compiles the core.
        os.environ.setdefault("log_silent", "1")
    if os.environ.get("use_mkl", "1") == "1":
        onednn.provide(cache / "mkl")


def prepare_device(name):
    """Call `prepare` for a device and announce compilation, before anything imports Jittor.

    name: "auto" (CUDA if usable, else the CPU; warns if a GPU is not used), "cpu" or "cuda". Raises
    InputError for "cuda" if it cannot work.
    """
    if name == "cpu":
        os.environ["nvcc_path"] = ""  # otherwise Jittor loads CUDA
    prepare()
    obstacle = cuda.obstacle
    if obstacle and name != "cpu":
        if name == "cuda":
            remedy = f"{obstacle.remedy}, or " if obstacle.remedy else ""
            raise InputError(f"--device cuda: {obstacle.reason}; {remedy}use --device cpu")
        if obstacle.remedy and launch.is_main_process():
            warn(f"the GPU is not used: {obstacle.reason}; {obstacle.remedy}")
    elif os.environ.get("nvcc_path"):
        cuda.assign_gpus(compilation.get_jittor_cache())
    compilation.announce_compilation()


def _check_numpy():
    if int(np.__version__.split(".")[0]) >= 2:
        sys.exit(
            f"error: NumPy {np.__version__} is installed, with which Jittor silently corrupts "
            f"arrays; run `{sys.executable} -m pip install 'numpy<2'`"
        )


def _flush_denormals():
    """Flush denormals to zero in this thread and those that it starts.

    Jittor's kernels do so (`-Ofast`), but only once one is loaded, in the thread that loads it. A
    resumed run loads them at a different point, so its results would differ in the last bits.
    """
    if platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc":
        return
    for dtype in (np.float16, np.float32, np.float64):
        str(np.finfo(dtype))  # cached by NumPy, which would warn if this were first computed later
    libm = ctypes.CDLL("libm.so.6")
    environment = (ctypes.c_uint32 * 8)()  # fenv_t, whose last member is the register MXCSR
    libm.fegetenv(environment)
    environment[7] |= 0x8040  # FTZ and DAZ: denormal results and operands are zero
    libm.fesetenv(environment)
