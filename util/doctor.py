"""Print what DETR-Jittor finds on this machine, one screen for a bug report:

    python -m util.doctor

It does not import Jittor, compiles nothing and needs no GPU.
"""

import os
import platform
import re
import shutil
import sys
from importlib import metadata

from util.errors import InputError
from util.startup import compilation, cuda, gpu, machine, nccl, onednn, toolkit

PACKAGES = "jittor numpy scipy pillow pycocotools faster-coco-eval onednn-devel-cpu-gomp".split()
VARIABLES = re.compile(  # that change what Jittor or this program does
    r"(CUDA|NVIDIA|OMP|OMPI|GOMP|JITTOR|DETR|LD)_\w+|(cc|nvcc|python_config|nccl_\w+)_path"
    r"|(cc|nvcc|kernel)_flags|use_\w+|log_\w+|\w+_PROXY|\w+_proxy"
)


def main():
    try:
        for name, values in examine():
            for value in values:
                print(f"{name:<10}{value}")
                name = ""
    except (InputError, OSError) as error:  # a home without permission
        sys.exit(f"error: {error}")


def examine():
    """Yield (name, list of lines) for each part of the machine."""
    driver, gpus = gpu.get_driver_version(), gpu.get_gpus()
    capabilities = [each.capability for each in gpus]
    yield "system", [f"{platform.platform()}, {len(os.sched_getaffinity(0))} CPU cores"]
    yield "Python", [f"{platform.python_version()} ({sys.executable})"]
    yield "packages", [", ".join(f"{name} {_get_version(name)}" for name in PACKAGES)]
    cache = compilation.get_jittor_cache()
    yield "obstacles", list(machine.find_obstacles(cache)) or ["none found"]
    compiler = os.environ.get("cc_path", "g++")
    version = toolkit.get_output(compiler, "-dumpfullversion").strip()
    yield "compiler", [f"{compiler} {version}" if version else f"{compiler} is missing"]
    yield "driver", [_describe_driver(driver)]
    chosen = cuda.find_toolkit(cache, driver, capabilities)
    yield "GPUs", [_describe_gpu(each) for each in gpus] or ["none that NVML lists"]
    yield "CUDA", [*_list_toolkits(cache, driver, capabilities), _describe_choice(chosen)]
    yield "NCCL", [_describe_nccl(chosen, cache)]
    yield "MPI", [_describe_mpi()]
    staged = cache / "mkl" / onednn.FOLDER
    yield (
        "oneDNN",
        [f"in {staged}" if staged.is_dir() else "copied from its wheel at the first start"],
    )
    yield "cache", _describe_cache(cache)
    given = [f"{name}={value}" for name, value in os.environ.items() if VARIABLES.fullmatch(name)]
    yield "variables", sorted(given) or ["none that matter"]


def _get_version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(missing)"


def _describe_driver(driver):
    if driver is None:
        return "no libcuda.so.1: NVIDIA's driver is missing"
    nodes = "" if gpu.has_gpu() else ", but no device in /dev"
    return f"{gpu.get_driver_release()}, for CUDA {driver[0]}.{driver[1]} and older{nodes}"


def _describe_gpu(device):
    capability = f"{device.capability // 10}.{device.capability % 10}"
    return f"{device.name}, compute capability {capability}, {device.memory / 2**30:.0f} GiB"


def _list_toolkits(cache, driver, capabilities):
    """Yield a line for each nvcc, in the order in which they are tried."""
    for nvcc in toolkit.find_nvccs(cache / "jtcuda", driver or (0, 0)):
        found = toolkit.check_toolkit(nvcc, driver, capabilities)
        is_usable = isinstance(found, toolkit.Toolkit)
        yield _describe_toolkit(found) if is_usable else f"not used: {found.reason}"


def _describe_choice(chosen):
    if isinstance(chosen, toolkit.Toolkit):
        return f"--device auto takes the GPU, with {chosen.nvcc}"
    remedy = f"; {chosen.remedy}" if chosen.remedy else ""
    return f"--device auto takes the CPU: {chosen.reason}{remedy}"


def _describe_toolkit(found):
    version = ".".join(map(str, found.version))
    return (
        f"fits: {found.nvcc} (CUDA {version}), cuDNN {found.cudnn.version} in {found.cudnn.headers}"
    )


def _describe_nccl(chosen, cache):
    if isinstance(chosen, toolkit.Obstacle):
        return "not needed on the CPU"
    files = nccl.find_nccl(chosen.version, cache)
    return str(files[1]) if files else f"missing: {nccl.WHEELS[chosen.version[0]]}"


def _describe_mpi():
    version = toolkit.get_output("mpirun", "--version").partition("\n")[0]
    compiler = os.environ.get("mpicc_path") or shutil.which("mpicc")
    return f"{version or 'mpirun is missing'}; {compiler or 'mpicc is missing (libopenmpi-dev)'}"


def _describe_cache(cache):
    state = "with" if compilation.is_core_compiled() else "without"
    free = shutil.disk_usage(machine.find_existing(cache)).free / 2**30
    return [f"{cache}: {state} Jittor's core, {free:.0f} GiB free"]


if __name__ == "__main__":
    main()
