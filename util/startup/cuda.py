"""Choose a CUDA toolkit for Jittor, or none, and a GPU for each process.

Importing Jittor with a toolkit that does not fit aborts the process. Environment variables set by
the user take precedence: `nvcc_path`, `nvcc_flags`, `use_cutt`, `use_cutlass`, `use_nccl`,
`nccl_include_path` and `nccl_lib_path`.
"""

import os
import sys
from pathlib import Path

from util import launch
from util.errors import warn
from util.startup import gpu
from util.startup.nccl import WHEELS, find_nccl, stage_nccl
from util.startup.toolkit import (
    INSTALL,
    Obstacle,
    check_toolkit,
    find_nvccs,
    get_cuda_version,
    get_gpu_code,
    get_install_command,
    get_jittor_folder,
    stage_toolkit,
)

obstacle = None  # Obstacle set by `choose_toolkit`; None if CUDA is used


def choose_toolkit(cache):
    """Set environment variables so that Jittor uses a working CUDA toolkit, or no CUDA.

    cache: Jittor's (Path). Raises InputError if it cannot be written.
    """
    global obstacle
    # Jittor would download these on import, and exit if it is offline.
    os.environ.setdefault("use_cutlass", "0")  # not used here
    os.environ.setdefault("use_cutt", "0")  # for transposes; replaced by util.ops.transpose
    if launch.get_world_size() == 1:
        os.environ.setdefault("use_nccl", "0")
    if os.environ.get("nvcc_path") == "":
        return
    nvcc = Path(os.environ.get("nvcc_path", ""))
    if (nvcc.parent.parent / "include" / "_toolkit").is_symlink():
        return  # a parent process chose this CUDA home
    capabilities = [each.capability for each in gpu.get_gpus()]
    result = find_toolkit(cache, gpu.get_driver_version(), capabilities)
    if isinstance(result, Obstacle):
        os.environ["nvcc_path"], obstacle = "", result
        return
    nvcc = stage_toolkit(result, cache / "detr_cuda")
    os.environ["nvcc_path"], obstacle = str(nvcc), None
    _compile_for_new_gpus(result.nvcc, capabilities)


def find_toolkit(cache, driver, capabilities):
    """Return the first Toolkit that fits, or the first Obstacle that was met.

    cache: as in `choose_toolkit`; driver, capabilities: as in `check_toolkit`. An empty folder of
    Jittor's own CUDA is removed.
    """
    if given := os.environ.get("nvcc_path"):
        nvccs = [Path(given)]
    else:
        if found := _check_gpu():
            return found
        if found := _check_jittor_cuda(cache / "jtcuda", driver):
            return found
        nvccs = find_nvccs(cache / "jtcuda", driver)
    first_obstacle = None
    for nvcc in nvccs:
        found = check_toolkit(nvcc, driver, capabilities)
        if not isinstance(found, Obstacle):
            return found
        first_obstacle = first_obstacle or found
    return first_obstacle or Obstacle(
        "there is no CUDA toolkit (nvcc)", get_install_command(driver, capabilities)
    )


def _check_gpu():
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not gpu.has_gpu():
        return Obstacle("this machine has no usable NVIDIA GPU")
    if visible in ("", "-1"):
        return Obstacle(f"CUDA_VISIBLE_DEVICES={visible} hides all GPUs")
    return None


def _check_jittor_cuda(folder, driver):
    """Return an Obstacle if Jittor's import would download its own CUDA into the folder (Path)."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()  # left by a failed download
    name = get_jittor_folder(driver)
    if not folder.is_dir() or name and (folder / name / "bin" / "nvcc").is_file():
        return None
    return Obstacle(
        f"Jittor's own CUDA in {folder} is incomplete, or for another driver",
        f"remove that folder; then {INSTALL}",
    )


def _compile_for_new_gpus(nvcc, capabilities):
    """Add code for GPUs above compute capability 9.0, the newest that Jittor compiles for."""
    codes = {get_gpu_code(nvcc, each) for each in capabilities}
    flags = "".join(f" -code=sm_{code} " for code in sorted(filter(None, codes)) if code > 90)
    if flags:
        os.environ.setdefault("nvcc_flags", flags)


def assign_gpus(cache):
    """Assign one GPU to each process, through NCCL if available, else CUDA_VISIBLE_DEVICES.

    cache: as in `choose_toolkit`
    """
    if launch.get_world_size() == 1:
        return
    paths = ("nccl_include_path", "nccl_lib_path")
    if os.environ.get("use_nccl", "1") == "1" and not set(paths) <= os.environ.keys():
        version = get_cuda_version(Path(os.environ["nvcc_path"]))
        if files := find_nccl(version, cache):
            folders = stage_nccl(*files, cache / "detr_cuda")
            os.environ.update(zip(paths, map(str, folders)))
        else:
            os.environ["use_nccl"] = "0"
            if launch.is_main_process():
                warn(
                    "NCCL is missing, so gradients are averaged on the CPU, which is slow; run "
                    f"`{sys.executable} -m pip install --no-deps {WHEELS[version[0]]}`"
                )
    if os.environ.get("use_nccl", "1") == "0":
        # Jittor selects a GPU per process only with NCCL; otherwise all would use the first.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else range(len(gpu.get_gpus()))
        if gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = str(gpus[launch.get_local_rank() % len(gpus)])
