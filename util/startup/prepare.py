"""Prepares the process for the first `import jittor`, which is in `util.backend`.

Some things keep a plain `import jittor` from working on many machines: a CUDA that it cannot work
with (see `cuda`); oneDNN (Jittor calls it "mkl"), which Jittor downloads from one university
server; and a Python whose python3.X-config is not where Jittor looks for it. `prepare` settles
these. It costs a few milliseconds once oneDNN is in place, and respects the environment variables
`JITTOR_HOME`, `use_mkl`, `use_parallel_op_compiler`, `python_config_path`, `cc_path`, `log_silent`,
`GOMP_SPINCOUNT` and `OMP_WAIT_POLICY` where the user has set them.
"""

import ctypes
import fcntl
import json
import os
import platform
import shutil
import socket
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import numpy as np

from util import launch, memory
from util.errors import InputError, warn
from util.startup import cuda

ONEDNN_WHEEL = "onednn-devel-cpu-gomp==2022.2.1"
ONEDNN_FOLDER = "dnnl_lnx_2.2.0_cpu_gomp"
JITTOR_SERVER = ("cg.cs.tsinghua.edu.cn", 443)


def prepare():
    """Chooses a CUDA that works, or none, and puts oneDNN where Jittor looks.

    Does nothing once Jittor is imported.

    May set these variables in `os.environ`, and prints a line on stderr where that costs speed.
    Ends the program with one line (SystemExit) where Jittor cannot work. Raises OSError where the
    Jittor home cannot be written.
    """
    if "jittor_utils" in sys.modules:
        return
    _check_numpy()
    _find_compiler()
    memory.keep_freed_memory()
    _flush_subnormals()
    cuda.prepare(jittor_home() / ".cache" / "jittor" / "jtcuda")
    os.environ.setdefault("use_parallel_op_compiler", _compiling_threads())
    if "OMP_WAIT_POLICY" not in os.environ:
        # How long OpenMP's threads spin while they wait for each other. By default it is so long
        # that a training step of R50 takes 2.5 times as long beside one busy process, and 5 times
        # beside three (on 2 cores); with 500 1.9 and 3 times, and as long on a quiet machine.
        os.environ.setdefault("GOMP_SPINCOUNT", "500")
    if core_is_compiled() and "log_v" not in os.environ:
        # Jittor's lines at every import. When it compiles its core, they show how far that is.
        os.environ.setdefault("log_silent", "1")
    if os.environ.get("use_mkl", "1") == "1":
        _provide_onednn()


def prepare_device(name):
    """`prepare` for a device, before anything imports Jittor.

    Prints what Jittor will compile, and why a GPU is not used.

    name: "auto" (CUDA where usable, else the CPU), "cpu" or "cuda". Raises InputError for "cuda"
    where CUDA cannot work.
    """
    if name == "cpu":
        os.environ["nvcc_path"] = ""  # Jittor would load CUDA all the same
    prepare()
    if cuda.obstacle and name != "cpu":
        if name == "cuda":
            remedy = f"{cuda.obstacle.remedy}, or " if cuda.obstacle.remedy else ""
            raise InputError(f"--device cuda: {cuda.obstacle.reason}; {remedy}use --device cpu")
        if cuda.obstacle.remedy and launch.is_main_process():
            warn(f"the GPU is not used: {cuda.obstacle.reason}; {cuda.obstacle.remedy}")
    elif os.environ.get("nvcc_path"):
        cuda.prepare_processes(jittor_home() / ".cache" / "jittor" / "nccl", _is_reachable)
    _announce_compilation()


def _compiling_threads():
    """How many threads compile operators: as many as this process has cores, with CUDA one.

    Where Jittor's tuner replaces what it compiles by an operator of a library, the threads change
    the graph without a lock. Convolutions and products on the CPU are no such case (see util.ops);
    with CUDA they are.
    """
    return "0" if os.environ["nvcc_path"] else str(len(os.sched_getaffinity(0)))


def jittor_home():
    """The folder (Path) of Jittor's `.cache/jittor`, as Jittor finds it; it is not created."""
    config = Path.home() / ".cache" / "jittor" / "config.json"
    remembered = json.loads(config.read_text()).get("JITTOR_HOME") if config.exists() else None
    return Path(os.environ.get("JITTOR_HOME") or remembered or Path.home()).absolute()


def core_is_compiled():
    """Whether Jittor's core has been compiled for this version of Python under the Jittor home."""
    # The levels are Jittor's version, compiler, Python, system, CPU, place of installation, branch
    # (which may hold slashes) and, with CUDA, its version. A recursive search would walk through
    # thousands of kernels.
    caches = f"jt*/*/py{platform.python_version()}/*/*/*/*"
    folder = jittor_home() / ".cache" / "jittor"
    with_cuda = bool(os.environ.get("nvcc_path"))
    version = "/cu*" if with_cuda else ""
    cores = [
        *folder.glob(f"{caches}{version}/jittor_core*.so"),
        *folder.glob(f"{caches}/*{version}/jittor_core*.so"),
    ]
    return any(core.parent.name.startswith("cu") == with_cuda for core in cores)


def _announce_compilation():
    """One line about how long compiling will take on this machine."""
    if os.environ.get("nvcc_path"):
        core = "" if core_is_compiled() else "its core once per machine, and "
        print(
            f"Jittor compiles {core}a new model's CUDA kernels, one after the other, in the first "
            "step (many minutes); later runs read its cache.",
            flush=True,
        )
    elif core_is_compiled():
        print(
            "Jittor compiles a new model's operators in the first step (about half a minute); "
            "later runs read its cache.",
            flush=True,
        )
    else:
        print(
            "Jittor compiles its core once per machine (about 2 minutes on 2 cores), then the "
            "model's operators in the first step (half a minute more); later runs read its cache.",
            flush=True,
        )


def _check_numpy():
    if int(np.__version__.split(".")[0]) >= 2:
        sys.exit(
            f"error: NumPy {np.__version__} is installed, with which Jittor would turn every array "
            f"into other numbers, without a word: `{sys.executable} -m pip install 'numpy<2'`"
        )


def _find_compiler():
    """Tells Jittor of a python3.X-config that is not where it looks.

    Ends the program where Python's headers or a compiler are missing.
    """
    name = f"python3.{sys.version_info.minor}-config"
    jittors = (
        Path(sys.executable).parent / name,
        Path(f"{sys.executable}-config"),
        Path("/usr/bin") / name,
        Path("/usr/local/bin") / name,
        Path(sys.executable).parent / "python3-config",
    )
    bases = (Path(sysconfig.get_config_var("BINDIR")) / name, Path(sys.base_prefix) / "bin" / name)
    packages = f"g++ python3.{sys.version_info.minor}-dev"
    if "python_config_path" not in os.environ and not any(path.is_file() for path in jittors):
        found = next((path for path in bases if path.is_file()), None)
        if found is None:
            sys.exit(
                f"error: {name} is missing, which tells Jittor where Python's headers are: install "
                f"them (on Debian or Ubuntu: `apt-get install {packages}`), or set "
                "python_config_path to the file"
            )
        os.environ["python_config_path"] = str(found)
    if not shutil.which(os.environ.get("cc_path", "g++")):
        sys.exit(
            f"error: {os.environ.get('cc_path', 'g++')} is missing, the compiler that Jittor "
            f"needs: install it (on Debian or Ubuntu: `apt-get install {packages}`)"
        )


def _flush_subnormals():
    """Has this thread, and those it will start, take numbers below 1e-38 as zero.

    Jittor's kernels do that (`-Ofast`), but from the moment on at which one was loaded, and in the
    thread that loaded it. A resumed run loads them at another moment, and would differ in the last
    bits.
    """
    if platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc":
        return
    for kind in (np.float16, np.float32, np.float64):
        str(np.finfo(kind))  # NumPy keeps it; it would warn if it had to work it out afterwards
    libm = ctypes.CDLL("libm.so.6")
    environment = (ctypes.c_uint32 * 8)()  # fenv_t, whose last member is the register MXCSR
    libm.fegetenv(environment)
    environment[7] |= 0x8040  # flush to zero, subnormals are zeros
    libm.fesetenv(environment)


def _provide_onednn():
    folder = jittor_home() / ".cache" / "jittor" / "mkl"
    wheels_fit = platform.system() == "Linux" and platform.machine() == "x86_64"
    if wheels_fit and _is_complete(folder / ONEDNN_FOLDER):
        return
    libraries = folder.glob("dnnl*/lib/libmkldnn.*")
    jittors_own = not wheels_fit and any(path.is_file() for path in libraries)
    if wheels_fit and (files := _onednn_files()):
        _stage(files, folder)
    elif "use_mkl" in os.environ or jittors_own or _is_reachable(JITTOR_SERVER):
        return  # Jittor has a copy, or will download one.
    else:
        os.environ["use_mkl"] = "0"
        remedy = f"a connection to {JITTOR_SERVER[0]}"
        if wheels_fit:
            remedy = f"`pip install {ONEDNN_WHEEL}`"
        warn(
            "oneDNN is missing, so convolutions on the CPU are about 100 times slower; the remedy "
            f"is {remedy}"
        )


def _is_complete(staged):
    files = ("include/dnnl.hpp", "lib/libmkldnn.so", "lib/libdnnl.so.2")
    return all((staged / name).is_file() and (staged / name).stat().st_size for name in files)


def _onednn_files():
    """The wheels' files, {place in the staged folder: Path}; {} without a fitting wheel."""
    found = {}
    for name in ("onednn-devel-cpu-gomp", "onednn-cpu-gomp"):
        for wheel in metadata.distributions(name=name):
            # Jittor uses the v2 interface; the wheels of 2023 and later hold v3.
            if int(wheel.version.split(".")[0]) > 2022:
                continue
            for file in wheel.files or ():
                if "include" in file.parts:
                    found["/".join(file.parts[file.parts.index("include") :])] = Path(file.locate())
                elif file.name == "libdnnl.so":
                    found["lib/libmkldnn.so"] = Path(file.locate())
    needed = {"include/dnnl.hpp", "lib/libmkldnn.so"}
    complete = needed <= found.keys() and all(path.is_file() for path in found.values())
    return found if complete else {}


def _stage(files, folder):
    # Copies, because the folder is shared between environments and must survive the deletion of
    # this one. The lock makes a second process wait; the rename makes the folder appear complete or
    # not at all. The temporary name must not start with "dnnl": Jittor takes the first folder that
    # does.
    folder.mkdir(parents=True, exist_ok=True)
    staged, building = folder / ONEDNN_FOLDER, folder / "staging"
    with open(folder / "staging.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_complete(staged):
            return
        for leftover in (building, staged):
            if leftover.is_symlink():
                leftover.unlink()
            elif leftover.exists():
                shutil.rmtree(leftover)
        for place, source in files.items():
            (building / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, building / place)
        (building / "lib" / "libdnnl.so.2").symlink_to("libmkldnn.so")
        building.rename(staged)


def _is_reachable(address):
    try:
        socket.create_connection(address, timeout=2).close()
    except OSError:
        return False
    return True
