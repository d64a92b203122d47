"""Find CUDA toolkits and cuDNN, and make a CUDA home of them with which Jittor 1.3.11 works.

Jittor is written for CUDA 11 or 12 with cuDNN 8, all in one folder. `stage_toolkit` links an
installed toolkit into such a folder; the files in cuda_home/ replace those that differ in CUDA 13
and cuDNN 9.
"""

import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from util.startup.staging import copy, link, stage

CUDA_VERSIONS = (11, 12, 13)
HEADERS = ("cuda_runtime.h", "cublas.h", "curand.h", "cufft.h", "cusparse.h", "cub/cub.cuh")
LIBRARIES = ("cudart", "cublas", "cublasLt", "curand", "cufft", "cusparse")
ALSO_LINKED = ("cudadevrt", "nvJitLink", "nvrtc")  # used by nvcc, cuSPARSE and cuDNN
CUDNN_LIBRARIES = {
    8: ("cudnn", "cudnn_ops_infer", "cudnn_ops_train", "cudnn_cnn_infer", "cudnn_cnn_train"),
    9: ("cudnn", "cudnn_ops", "cudnn_cnn"),
}
CUDNN_NAMES = {  # libraries that Jittor opens, of cuDNN 8: those of cuDNN 9
    f"lib64/libcudnn_{part}_{half}.so": f"libcudnn_{part}.so.9"
    for part in ("ops", "cnn")
    for half in ("infer", "train")
}
CUDNN_WHEELS = {
    11: "nvidia-cudnn-cu11==8.9.6.50",
    12: "nvidia-cudnn-cu12==8.9.7.29",
    13: "nvidia-cudnn-cu13==9.28.1.4",
}
NEW_CUDNN_WHEELS = {**CUDNN_WHEELS, 12: "nvidia-cudnn-cu12==9.28.0.42"}  # for GPUs above 9.0
JITTOR_TOOLKITS = {  # oldest driver: folder
    (12, 2): "cuda12.2_cudnn8_linux",
    (11, 2): "cuda11.2_cudnn8_linux",
    (11, 0): "cuda11.0_cudnn8_linux",
}
INSTALL = (
    f"`{sys.executable} -m jittor_utils.install_cuda` installs a CUDA with cuDNN 8 for Jittor alone"
)
INSTALL_WHEELS = (
    f"`{sys.executable} -m pip install -r requirements-cuda.txt` installs CUDA and cuDNN into this "
    "Python environment"
)
FILES = Path(__file__).with_name("cuda_home")
SYSTEM = Path("/usr")


class Obstacle(NamedTuple):
    """Reason why CUDA is not used, and the remedy; None if there is no GPU to use."""

    reason: str
    remedy: str | None = None


class CuDNN(NamedTuple):
    version: str
    headers: Path  # folder
    libraries: tuple  # folders in the order in which they are searched


class Toolkit(NamedTuple):
    nvcc: Path
    version: tuple  # (major, minor)
    headers: Path
    libraries: tuple
    cudnn: CuDNN


def find_nvccs(jittor_cuda, driver):
    """Return all files named nvcc (Path) in the order in which they are tried.

    Those of pip's wheels come first, then Jittor's own, then those on PATH and in /usr and /opt.
    jittor_cuda: folder (Path) into which `python -m jittor_utils.install_cuda` installs; driver:
    newest CUDA that the driver supports, (major, minor).
    """
    own = get_jittor_folder(driver)
    folders = [
        *([str(jittor_cuda / own / "bin")] if own else []),
        *os.environ.get("PATH", "").split(os.pathsep),
        f"{SYSTEM}/local/cuda/bin",
        f"{SYSTEM}/bin",
        "/opt/cuda/bin",
        *sorted(map(str, SYSTEM.glob("local/cuda-1[123]*/bin")), reverse=True),
    ]
    nvccs = [shutil.which("nvcc", path=folder) for folder in folders if folder]
    nvccs = [*map(str, find_wheel_files("nvidia-cuda-nvcc", "nvcc")), *filter(None, nvccs)]
    by_target = {os.path.realpath(nvcc): Path(nvcc) for nvcc in reversed(nvccs)}
    return list(reversed(by_target.values()))


def get_jittor_folder(driver):
    """Return the name of the folder of Jittor's own CUDA for a driver, or None."""
    return next((name for oldest, name in JITTOR_TOOLKITS.items() if driver >= oldest), None)


def find_wheel_files(package, name):
    """Return the files (Path) of this name that installed wheels of a package contain."""
    wheels = metadata.distributions(name=package)
    files = [Path(f.locate()) for wheel in wheels for f in wheel.files or () if f.name == name]
    return list(filter(Path.is_file, files))


def get_system_folders():
    """Return the system's folders (Path) of headers and of libraries."""
    return SYSTEM / "include", SYSTEM / "lib" / f"{platform.machine()}-linux-gnu"


def get_install_command(driver, capabilities):
    """Return how to install a CUDA for this driver and these GPUs; args: as in `check_toolkit`."""
    has_wheels = driver is None or driver >= (13, 0) and min(capabilities, default=75) >= 75
    return INSTALL_WHEELS if has_wheels else INSTALL


def check_toolkit(nvcc, driver, capabilities):
    """Return the Toolkit of an nvcc (Path), or the Obstacle that keeps Jittor from using it.

    driver: as in `find_nvccs`, or None: any; capabilities: of the GPUs, 80 for 8.0
    """
    install = get_install_command(driver, capabilities)
    version = get_cuda_version(nvcc)
    if version is None:
        return Obstacle(f"{nvcc} --version fails", install)
    major, name = version[0], f"{nvcc} (CUDA {version[0]}.{version[1]})"
    if major not in CUDA_VERSIONS:
        return Obstacle(f"{name} does not fit: Jittor works with CUDA 11, 12 and 13", install)
    if driver and driver[0] < major:
        reason = f"{name} is too new: the driver supports at most CUDA {driver[0]}.{driver[1]}"
        update = "update the driver to 580 or newer" if major == 13 else "update the driver"
        return Obstacle(reason, f"{update}, or {install}")
    for gpu in sorted(set(capabilities)):
        if get_gpu_code(nvcc, gpu) is None:
            reason = f"{name} does not support GPUs of compute capability {gpu // 10}.{gpu % 10}"
            return Obstacle(reason, install)
    home = Path(os.path.realpath(nvcc)).parent.parent
    target = home / "targets" / f"{platform.machine()}-linux"
    system_headers, system_libraries = get_system_folders()
    headers = (home / "include", target / "include", system_headers)
    libraries = (home / "lib64", home / "lib", target / "lib", system_libraries)
    runtime = _find(headers, HEADERS[0])
    folder = runtime.parent if runtime else home / "include"
    missing = [each for each in HEADERS if not _find((folder, folder / "cccl"), each)]
    missing += [f"lib{each}.so" for each in LIBRARIES if not _list(libraries, [each], ".so*")]
    if missing:
        more = f" and {len(missing) - 3} more files" if len(missing) > 3 else ""
        return Obstacle(f"{name} lacks {', '.join(missing[:3])}{more}", install)
    if obstacle := _check_host_compiler(name, (folder, home / "bin")):
        return obstacle
    cudnn = _find_cudnn(name, major, headers, libraries, max(capabilities, default=0))
    if isinstance(cudnn, Obstacle):
        return cudnn
    return Toolkit(Path(os.path.realpath(nvcc)), version, folder, libraries, cudnn)


def _find_cudnn(name, major, headers, libraries, newest_gpu):
    """Return the first CuDNN that fits CUDA of a major version, in its folders or from a wheel.

    name: of the toolkit; newest_gpu: the highest compute capability. Returns the Obstacle of the
    first one that was found if none fits.
    """
    wheels = (NEW_CUDNN_WHEELS if newest_gpu > 90 else CUDNN_WHEELS)[major]
    remedy = f"run `{sys.executable} -m pip install --no-deps {wheels}`"
    candidates = [(folder, libraries) for folder in headers]
    for header in find_wheel_files(f"nvidia-cudnn-cu{major}", "cudnn_version.h"):
        candidates.append((header.parent, (header.parent.parent / "lib",)))
    oldest = (9, 12) if major == 13 else (9, 7) if newest_gpu > 90 else (8, 0)
    first_obstacle = None
    for folder, searched in candidates:
        if not (folder / "cudnn_version.h").is_file():
            continue
        defined = dict(re.findall(r"define (CUDNN_\w+) (\d+)", _read(folder / "cudnn_version.h")))
        numbers = [defined.get(f"CUDNN_{part}", "0") for part in ("MAJOR", "MINOR", "PATCHLEVEL")]
        version, number = ".".join(numbers), int(numbers[0])
        is_new_enough = tuple(map(int, numbers)) >= oldest
        lacking = [
            f"lib{each}.so.{number}"
            for each in CUDNN_LIBRARIES.get(number, ())
            if not _list(searched, [each], f".so.{number}*")
        ]
        if number in CUDNN_LIBRARIES and is_new_enough and not lacking:
            return CuDNN(version, folder, searched)
        reason = f"cuDNN {version} in {folder} does not fit {name}"
        reason = f"{reason}: {', '.join(lacking)} are missing" if lacking else reason
        first_obstacle = first_obstacle or Obstacle(reason, remedy)
    return first_obstacle or Obstacle(f"there is no cuDNN for {name}", remedy)


def _check_host_compiler(name, folders):
    """Return an Obstacle if the toolkit of these folders does not support the C++ compiler."""
    config = _find(folders, "crt/host_config.h")
    message = r"gcc versions later than (\d+) are not supported"
    newest = re.search(message, _read(config)) if config else None
    compiler = os.environ.get("cc_path", "g++")
    version = get_output(compiler, "-dumpversion").strip()
    if newest and version and int(version.split(".")[0]) > int(newest[1]):
        return Obstacle(
            f"{name} does not work with {compiler} {version}",
            f"install g++-{newest[1]} and set cc_path=g++-{newest[1]}",
        )
    return None


def stage_toolkit(toolkit, parent):
    """Return the nvcc (Path) of the toolkit's CUDA home, which is built in parent (Path).

    Raises InputError if parent cannot be written.
    """
    files = [path.relative_to(FILES) for path in sorted(FILES.rglob("*")) if path.is_file()]
    if not (toolkit.headers / "cccl").is_dir():  # where CUDA 13 has CUB, see cub.cuh
        files.remove(Path("include/cub/cub.cuh"))
    digest = hashlib.sha1(repr(toolkit).encode())
    for name in files:
        digest.update((FILES / name).read_bytes())
    version = ".".join(map(str, toolkit.version))
    home = parent / f"{version}-cudnn{toolkit.cudnn.version}-{digest.hexdigest()[:12]}"

    def fill(folder):
        copy(folder, {name: FILES / name for name in files})
        targets = _get_link_targets(toolkit)
        link(folder, {name: targets[name] for name in targets if not (folder / name).exists()})

    stage(home, _has_all_files, fill)
    return home / "bin" / "nvcc"


def _get_link_targets(toolkit):
    """Return {path in the CUDA home: target}."""
    cudnn, major = toolkit.cudnn, toolkit.cudnn.version.split(".")[0]
    targets = {
        "bin/nvcc.toolkit": toolkit.nvcc,
        "include/_toolkit": toolkit.headers,
        "include/_cudnn": cudnn.headers,
    }
    if toolkit.headers != get_system_folders()[0]:  # which every compiler searches last
        targets |= {f"include/{path.name}": path for path in toolkit.headers.iterdir()}
    targets |= {f"include/{path.name}": path for path in cudnn.headers.glob("cudnn*.h")}
    libraries = [
        *_list(toolkit.libraries, [*LIBRARIES, *ALSO_LINKED], "*"),
        *_list(cudnn.libraries, ["cudnn*"], f".so.{major}*"),
    ]
    for path in libraries:
        for name in (path.name, re.sub(r"\.so\..*", ".so", path.name)):  # the linker's name, too
            targets.setdefault(f"lib64/{name}", path)
    if major == "9":
        targets |= {name: targets[f"lib64/{file}"] for name, file in CUDNN_NAMES.items()}
    return targets


def _has_all_files(home):
    """Return True if home (Path) has been built and none of its links is dead."""
    return home.is_dir() and all(path.exists() for path in home.rglob("*"))


def get_gpu_code(nvcc, capability):
    """Return what nvcc compiles for a GPU of this compute capability, such as 90; None if nothing.

    Code for one GPU runs on later ones of the same generation (the capability's first digit).
    """
    codes = re.findall(r"^sm_(\d+)$", get_output(nvcc, "--list-gpu-code"), re.M)
    if not codes:  # CUDA 11.0 cannot list them
        return capability
    fitting = [code for code in map(int, codes) if code // 10 == capability // 10]
    return max((code for code in fitting if code <= capability), default=None)


@functools.cache
def get_cuda_version(nvcc):
    """Return (major, minor), or None if nvcc does not run."""
    release = re.search(r"release (\d+)\.(\d+)", get_output(nvcc, "--version"))
    return tuple(map(int, release.groups())) if release else None


@functools.cache
def get_output(*command):
    """Return what a command prints, or "" if it cannot be started."""
    try:
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=60
        ).stdout
    except OSError:
        return ""


def _find(folders, name):
    """Return the first file (Path) of this name in the folders, or None."""
    return next(filter(Path.is_file, (folder / name for folder in folders)), None)


def _list(folders, names, suffix):
    """Return the files (Path) lib<name><suffix> in the folders; both may have wildcards."""
    return [file for each in folders for name in names for file in each.glob(f"lib{name}{suffix}")]


def _read(path):
    return path.read_text(errors="replace")
