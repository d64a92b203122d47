"""Finds a CUDA that Jittor can work with, before its import, which aborts with any other.

Jittor 1.3.11 needs CUDA 11 or 12 and cuDNN 8, in the places where it looks. `prepare` tries all
toolkits of the machine, tells Jittor of the first that fits, and has it import without CUDA where
none does. It respects the environment variables `nvcc_path`, `use_cutt`, `use_cutlass` and
`use_nccl` where the user has set them.
"""

import ctypes
import functools
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple, Optional

from util import launch

OLDEST_CUDA, NEWEST_CUDA = (11, 0), (12, 9)  # toolkits whose CUDA Jittor's own sources compile with
LIBRARIES = """
    cublas cudnn cudnn_ops_infer cudnn_ops_train cudnn_cnn_infer cudnn_cnn_train curand cufft
    cusparse
""".split()
HEADERS = ("cuda_runtime.h", "cublas.h", "cudnn.h", "curand.h", "cufft.h", "cusparse.h", "npp.h")
JITTORS_OWN = {
    (12, 2): "cuda12.2_cudnn8_linux",
    (11, 2): "cuda11.2_cudnn8_linux",
    (11, 0): "cuda11.0_cudnn8_linux",
}
NCCL_SERVER = ("codeload.github.com", 443)


class Obstacle(NamedTuple):
    """Why CUDA is not used.

    remedy: what to do about it; None where there is no GPU to use, so nobody misses it.
    """

    reason: str
    remedy: Optional[str] = None


obstacle = None  # of this process, once `prepare` has run; None where CUDA is used


def prepare(jittors_own):
    """Sets the environment variables with which Jittor finds a CUDA that works, or none.

    jittors_own: the folder (Path) of the CUDA that `python -m jittor_utils.install_cuda` installs.
    """
    global obstacle
    # Jittor would download these while it is imported, and end the process where it cannot.
    os.environ.setdefault("use_cutlass", "0")  # not used here
    os.environ.setdefault("use_cutt", "0")  # for transposes, which are util.ops.transpose here
    if launch.get_world_size() == 1:
        os.environ.setdefault("use_nccl", "0")
    if "nvcc_path" in os.environ:
        return
    found = find_toolkit(jittors_own)
    if isinstance(found, Obstacle):
        os.environ["nvcc_path"], obstacle = "", found
    else:
        os.environ["nvcc_path"], obstacle = str(found), None
        _embed_ptx(_version(found))


def find_toolkit(jittors_own):
    """The first nvcc (Path) with which CUDA works, or the Obstacle of the first that was looked at.

    jittors_own: the folder (Path) of the CUDA that `python -m jittor_utils.install_cuda` installs.
    """
    if not _has_gpu():
        return Obstacle("this machine has no usable NVIDIA GPU")
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return Obstacle(
            f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']} hides every GPU"
        )
    command = f"{sys.executable} -m jittor_utils.install_cuda"
    install = f"`{command}` installs a CUDA with cuDNN 8 for Jittor alone"
    driver = _driver_version()
    obstacles = []
    if jittors_own.is_dir() and not any(jittors_own.iterdir()):
        # A failed download leaves it empty, and where it is, the import downloads again.
        jittors_own.rmdir()
    if jittors_own.is_dir():
        names = [name for oldest, name in JITTORS_OWN.items() if driver >= oldest]
        own = jittors_own / names[0] / "bin" / "nvcc" if names else None
        if own is None or not own.is_file():
            return Obstacle(
                f"Jittor's own CUDA in {jittors_own} is incomplete, or of another driver",
                f"remove that folder; then {install}",
            )
        obstacles.append(_obstacle(own, driver, install))
        if obstacles[-1] is None:
            return own
    for nvcc in _system_toolkits():
        obstacles.append(_obstacle(nvcc, driver, install))
        if obstacles[-1] is None:
            return nvcc
    return obstacles[0] if obstacles else Obstacle("there is no CUDA toolkit (nvcc)", install)


def _system_toolkits():
    """All files named nvcc, in the order in which Jittor would look for one."""
    folders = [
        *os.environ.get("PATH", "").split(os.pathsep),
        "/usr/local/cuda/bin",
        "/usr/bin",
        "/opt/cuda/bin",
        *sorted(map(str, Path("/usr/local").glob("cuda-1[12]*/bin")), reverse=True),
    ]
    found = (shutil.which("nvcc", path=folder) for folder in folders if folder)
    return [Path(nvcc) for nvcc in dict.fromkeys(filter(None, found))]


def _obstacle(nvcc, driver, install):
    """What keeps Jittor from using an nvcc (Path), or None.

    driver: the newest CUDA (major, minor) that the driver supports.
    """
    version = _version(nvcc)
    if version is None:
        return Obstacle(f"{nvcc} --version fails", install)
    number = ".".join(map(str, version))
    if not OLDEST_CUDA <= version <= NEWEST_CUDA:
        return Obstacle(f"{nvcc} is CUDA {number}, and Jittor works with 11 and 12", install)
    if driver[0] < version[0]:
        return Obstacle(
            f"{nvcc} is CUDA {number}, and the driver supports CUDA {driver[0]}.{driver[1]} at "
            "most",
            f"update the driver, or {install}",
        )
    home = Path(os.path.realpath(nvcc)).parent.parent
    target = home / "targets" / f"{platform.machine()}-linux"
    system = Path(f"/usr/lib/{platform.machine()}-linux-gnu")
    lib = system if str(nvcc) == "/usr/bin/nvcc" else home / "lib64"
    if not (lib / "libcudart.so").exists():
        return Obstacle(f"{nvcc} has no {lib / 'libcudart.so'}", install)
    headers = (home / "include", target / "include", Path("/usr/include"))
    libraries = (home / "bin", lib, target / "lib", system, Path("/usr/lib"))
    cudnn = _find("cudnn_version.h", headers)
    major = re.search(r"define CUDNN_MAJOR (\d+)", cudnn.read_text())[1] if cudnn else None
    if major not in (None, "8"):
        return Obstacle(f"{cudnn} is cuDNN {major}, and Jittor works with cuDNN 8", install)
    missing = [name for name in HEADERS if not _find(name, headers, version)]
    files = [f"lib{name}.so" for name in LIBRARIES]
    missing += [name for name in files if not _find(name, libraries, version)]
    if missing:
        return Obstacle(f"{nvcc} (CUDA {number}) lacks {', '.join(missing)}", install)
    return _compiler_obstacle(nvcc, home, number)


def _compiler_obstacle(nvcc, home, number):
    """What nvcc would say of the C++ compiler."""
    config = _find("crt/host_config.h", (home / "include", home / "bin"))
    message = r"gcc versions later than (\d+) are not supported"
    newest = re.search(message, config.read_text()) if config else None
    compiler = os.environ.get("cc_path", "g++")
    version = _output(compiler, "-dumpversion")
    if newest and version and int(version.split(".")[0]) > int(newest[1]):
        return Obstacle(
            f"{nvcc} (CUDA {number}) does not work with {compiler} {version.strip()}",
            f"install g++-{newest[1]} and set cc_path=g++-{newest[1]}",
        )
    return None


def _find(name, folders, version=()):
    """The file (Path) in the first folder that has it, or None.

    CUDA 11 may have only files whose names end with the number of cuDNN 8.
    """
    names = [f"{name}.8", name] if version[:1] == (11,) and "cudnn" in name else [name]
    paths = (folder / each for folder in folders for each in names)
    return next(filter(Path.is_file, paths), None)


@functools.cache  # asked for again once a toolkit is chosen
def _version(nvcc):
    """(major, minor), or None where nvcc does not run."""
    found = re.search(r"release (\d+)\.(\d+)", _output(nvcc, "--version") or "")
    return tuple(map(int, found.groups())) if found else None


def _output(*command):
    try:
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=60
        ).stdout
    except OSError:
        return None


def _has_gpu():
    # Device files and a driver library that loads, rather than cuInit: that takes up to seconds,
    # and a process that has called it cannot use CUDA in its forked children.
    nodes = ("nvidia[0-9]*", "dxg", "nvhost-gpu")
    if not any(next(Path("/dev").glob(pattern), None) for pattern in nodes):
        return False
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _driver_version():
    """The newest CUDA that the driver supports, as (major, minor)."""
    number = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    return number.value // 1000, number.value % 1000 // 10


def _compute_capabilities():
    """Compute capability of each GPU, 80 for 8.0; [] where the driver's NVML library is missing."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    count, device, major, minor = ctypes.c_uint(), ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    nvml.nvmlInit_v2()
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    found = []
    for number in range(count.value):
        nvml.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(device))
        nvml.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor))
        found.append(10 * major.value + minor.value)
    nvml.nvmlShutdown()
    return found


def _embed_ptx(version):
    """Adds PTX, which the driver compiles, for a GPU newer than all that Jittor compiles for."""
    newest = 90 if version >= (11, 8) else 86 if version >= (11, 1) else 80
    gpus = _compute_capabilities()
    if max(gpus, default=0) > newest and "nvcc_flags" not in os.environ:
        os.environ["nvcc_flags"] = f" -code=compute_{min(newest, *gpus)} "


def prepare_processes(folder, is_reachable):
    """Gives each of several processes its GPU: by NCCL if possible, else by CUDA_VISIBLE_DEVICES.

    folder: where Jittor keeps NCCL (Path). is_reachable: tells of an address (host, port) whether
    it answers.
    """
    if launch.get_world_size() == 1:
        return
    ready = (folder / "nccl-2.8.4-1" / "build" / "lib" / "libnccl.so").is_file()
    if not ready and os.environ.get("use_nccl", "1") == "1":
        if (folder / "nccl.tgz").is_file() or is_reachable(NCCL_SERVER):
            message = (
                f"Jittor downloads NCCL from {NCCL_SERVER[0]} and compiles it, once per machine "
                "(some minutes)"
            )
        else:
            os.environ["use_nccl"] = "0"
            message = (
                f"NCCL is missing, and {NCCL_SERVER[0]} cannot be reached: the gradients are "
                "averaged on the CPU, which is slow"
            )
        if launch.is_main_process():
            print(message, file=sys.stderr, flush=True)
    if os.environ.get("use_nccl", "1") == "0":
        # Only Jittor's part for NCCL selects a GPU; without it all processes would take the first.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        gpus = visible if visible != [""] else list(map(str, range(len(_compute_capabilities()))))
        if gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus[launch.get_local_rank() % len(gpus)]
