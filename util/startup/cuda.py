"""Choose a CUDA toolkit that Jittor supports; importing Jittor with any other aborts the process.

Jittor 1.3.11 needs CUDA 11 or 12 and cuDNN 8 in the folders that it searches. Check the installed
toolkits, select the first usable one, or disable CUDA. Environment variables set by the user take
precedence: `nvcc_path`, `nvcc_flags`, `use_cutt`, `use_cutlass` and `use_nccl`.
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
from typing import NamedTuple

from util import launch
from util.download import is_reachable

MIN_CUDA, MAX_CUDA = (11, 0), (12, 9)  # versions that Jittor's sources compile with
LIBRARIES = """
    cublas cudnn cudnn_ops_infer cudnn_ops_train cudnn_cnn_infer cudnn_cnn_train curand cufft
    cusparse
""".split()
HEADERS = ("cuda_runtime.h", "cublas.h", "cudnn.h", "curand.h", "cufft.h", "cusparse.h", "npp.h")
JITTOR_TOOLKITS = {  # oldest driver: folder
    (12, 2): "cuda12.2_cudnn8_linux",
    (11, 2): "cuda11.2_cudnn8_linux",
    (11, 0): "cuda11.0_cudnn8_linux",
}
INSTALL = (
    f"`{sys.executable} -m jittor_utils.install_cuda` installs a CUDA with cuDNN 8 for Jittor alone"
)
NCCL_SERVER = ("codeload.github.com", 443)


class Obstacle(NamedTuple):
    """Reason why CUDA is not used, and the remedy; None if there is no GPU to use."""

    reason: str
    remedy: str | None = None


obstacle = None  # set by `choose_toolkit`; None if CUDA is used


def choose_toolkit(jittor_cuda):
    """Set environment variables so that Jittor uses a working CUDA toolkit, or no CUDA.

    jittor_cuda: folder (Path) into which `python -m jittor_utils.install_cuda` installs.
    """
    global obstacle
    # Jittor would download these on import, and exit if it is offline.
    os.environ.setdefault("use_cutlass", "0")  # not used here
    os.environ.setdefault("use_cutt", "0")  # for transposes; replaced by util.ops.transpose
    if launch.get_world_size() == 1:
        os.environ.setdefault("use_nccl", "0")
    if "nvcc_path" in os.environ:
        return
    result = find_toolkit(jittor_cuda)
    if isinstance(result, Obstacle):
        os.environ["nvcc_path"], obstacle = "", result
    else:
        os.environ["nvcc_path"], obstacle = str(result), None
        _embed_ptx(_get_cuda_version(result))


def find_toolkit(jittor_cuda):
    """Return the first nvcc (Path) that works, or the Obstacle of the first one that was tried.

    jittor_cuda: as in `choose_toolkit`. Removed if empty.
    """
    if not _has_gpu():
        return Obstacle("this machine has no usable NVIDIA GPU")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1"):
        return Obstacle(f"CUDA_VISIBLE_DEVICES={visible} hides all GPUs")
    driver = _get_driver_version()
    candidates = _find_system_toolkits()
    if jittor_cuda.is_dir() and not any(jittor_cuda.iterdir()):
        jittor_cuda.rmdir()  # left by a failed download; if it exists, Jittor's import downloads
    if jittor_cuda.is_dir():
        names = [name for oldest, name in JITTOR_TOOLKITS.items() if driver >= oldest]
        nvcc = jittor_cuda / names[0] / "bin" / "nvcc" if names else None
        if nvcc is None or not nvcc.is_file():
            return Obstacle(
                f"Jittor's own CUDA in {jittor_cuda} is incomplete, or for another driver",
                f"remove that folder; then {INSTALL}",
            )
        candidates.insert(0, nvcc)
    first_obstacle = None
    for nvcc in candidates:
        found = _check_toolkit(nvcc, driver)
        if found is None:
            return nvcc
        first_obstacle = first_obstacle or found
    return first_obstacle or Obstacle("there is no CUDA toolkit (nvcc)", INSTALL)


def _find_system_toolkits():
    """Return all files named nvcc (Path) in the order in which Jittor would look for one."""
    folders = [
        *os.environ.get("PATH", "").split(os.pathsep),
        "/usr/local/cuda/bin",
        "/usr/bin",
        "/opt/cuda/bin",
        *sorted(map(str, Path("/usr/local").glob("cuda-1[12]*/bin")), reverse=True),
    ]
    paths = (shutil.which("nvcc", path=folder) for folder in folders if folder)
    return [Path(nvcc) for nvcc in dict.fromkeys(filter(None, paths))]


def _check_toolkit(nvcc, driver):
    """Return the Obstacle that keeps Jittor from using an nvcc (Path), or None.

    driver: newest CUDA (major, minor) that the driver supports.
    """
    version = _get_cuda_version(nvcc)
    if version is None:
        return Obstacle(f"{nvcc} --version fails", INSTALL)
    name = f"{nvcc} (CUDA {version[0]}.{version[1]})"
    if not MIN_CUDA <= version <= MAX_CUDA:
        return Obstacle(f"{name} does not fit: Jittor works with CUDA 11 and 12", INSTALL)
    if driver[0] < version[0]:
        reason = f"{name} is too new: the driver supports at most CUDA {driver[0]}.{driver[1]}"
        return Obstacle(reason, f"update the driver, or {INSTALL}")
    home = Path(os.path.realpath(nvcc)).parent.parent
    target = home / "targets" / f"{platform.machine()}-linux"
    system = Path(f"/usr/lib/{platform.machine()}-linux-gnu")
    lib = system if str(nvcc) == "/usr/bin/nvcc" else home / "lib64"
    if not (lib / "libcudart.so").exists():
        return Obstacle(f"{name} lacks {lib / 'libcudart.so'}", INSTALL)
    headers = (home / "include", target / "include", Path("/usr/include"))
    libraries = (home / "bin", lib, target / "lib", system, Path("/usr/lib"))
    cudnn = _find(headers, "cudnn_version.h")
    major = re.search(r"define CUDNN_MAJOR (\d+)", cudnn.read_text())[1] if cudnn else "8"
    if major != "8":
        return Obstacle(f"{cudnn} is cuDNN {major}, and Jittor works with cuDNN 8", INSTALL)
    missing = [header for header in HEADERS if not _find(headers, header)]
    for library in (f"lib{name}.so" for name in LIBRARIES):
        # With CUDA 11, cuDNN may be installed only under its versioned name.
        numbered = [f"{library}.8"] if version[0] == 11 and "cudnn" in library else []
        if not _find(libraries, library, *numbered):
            missing.append(library)
    if missing:
        return Obstacle(f"{name} lacks {', '.join(missing)}", INSTALL)
    return _check_host_compiler(name, home)


def _check_host_compiler(name, home):
    """Return an Obstacle if the toolkit in home (Path) does not support the C++ compiler."""
    config = _find((home / "include", home / "bin"), "crt/host_config.h")
    message = r"gcc versions later than (\d+) are not supported"
    newest = re.search(message, config.read_text()) if config else None
    compiler = os.environ.get("cc_path", "g++")
    version = _get_output(compiler, "-dumpversion").strip()
    if newest and version and int(version.split(".")[0]) > int(newest[1]):
        return Obstacle(
            f"{name} does not work with {compiler} {version}",
            f"install g++-{newest[1]} and set cc_path=g++-{newest[1]}",
        )
    return None


def _find(folders, *names):
    """Return the first file (Path) of any of these names in the folders, or None."""
    paths = (folder / name for folder in folders for name in names)
    return next(filter(Path.is_file, paths), None)


@functools.cache
def _get_cuda_version(nvcc):
    """Return (major, minor), or None if nvcc does not run."""
    release = re.search(r"release (\d+)\.(\d+)", _get_output(nvcc, "--version"))
    return tuple(map(int, release.groups())) if release else None


def _get_output(*command):
    """Return what a command prints, or "" if it cannot be started."""
    try:
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=60
        ).stdout
    except OSError:
        return ""


def _has_gpu():
    # Not cuInit, which can take seconds and breaks CUDA in forked children.
    nodes = ("nvidia[0-9]*", "dxg", "nvhost-gpu")
    if not any(next(Path("/dev").glob(pattern), None) for pattern in nodes):
        return False
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _get_driver_version():
    """Return the newest CUDA that the driver supports, (major, minor)."""
    number = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    return number.value // 1000, number.value % 1000 // 10


def _get_compute_capabilities():
    """Return each GPU's compute capability, 80 for 8.0; [] without the driver's NVML library."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    count, device, major, minor = ctypes.c_uint(), ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    nvml.nvmlInit_v2()
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    capabilities = []
    for index in range(count.value):
        nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device))
        nvml.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor))
        capabilities.append(10 * major.value + minor.value)
    nvml.nvmlShutdown()
    return capabilities


def _embed_ptx(version):
    """Add PTX, which the driver compiles, if a GPU is newer than those that nvcc compiles for."""
    newest = 90 if version >= (11, 8) else 86 if version >= (11, 1) else 80
    gpus = _get_compute_capabilities()
    if max(gpus, default=0) > newest and "nvcc_flags" not in os.environ:
        os.environ["nvcc_flags"] = f" -code=compute_{min(newest, *gpus)} "


def assign_gpus(nccl):
    """Assign one GPU to each process, through NCCL if available, else CUDA_VISIBLE_DEVICES.

    nccl: folder (Path) of Jittor's NCCL.
    """
    if launch.get_world_size() == 1:
        return
    is_built = (nccl / "nccl-2.8.4-1" / "build" / "lib" / "libnccl.so").is_file()
    if not is_built and os.environ.get("use_nccl", "1") == "1":
        if (nccl / "nccl.tgz").is_file() or is_reachable(NCCL_SERVER):
            message = (
                f"Jittor downloads NCCL from {NCCL_SERVER[0]} and compiles it, once per machine "
                "(some minutes)"
            )
        else:
            os.environ["use_nccl"] = "0"
            message = (
                f"NCCL is missing, and {NCCL_SERVER[0]} cannot be reached: gradients are averaged "
                "on the CPU, which is slow"
            )
        if launch.is_main_process():
            print(message, file=sys.stderr, flush=True)
    if os.environ.get("use_nccl", "1") == "0":
        # Jittor selects a GPU per process only with NCCL; otherwise all would use the first.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else range(len(_get_compute_capabilities()))
        if gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = str(gpus[launch.get_local_rank() % len(gpus)])
