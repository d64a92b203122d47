"""Find NCCL, which Jittor would download from GitHub (2.8.4, older than Hopper) and compile."""

import hashlib
from pathlib import Path

from util.startup.staging import link, stage
from util.startup.toolkit import find_wheel_files, get_system_folders

WHEELS = {
    11: "nvidia-nccl-cu11==2.21.5",
    12: "nvidia-nccl-cu12==2.32.3",
    13: "nvidia-nccl-cu13==2.32.3",
}
JITTOR_BUILD = "nccl-2.8.4-1/build"  # in the folder of Jittor's NCCL


def find_nccl(cuda_version, cache):
    """Return the paths of nccl.h and libnccl.so for a CUDA (major, minor), or None.

    Look for pip's wheel, then for the NCCL that the system or an earlier Jittor installed. cache:
    Jittor's (Path)
    """
    wheels = find_wheel_files(f"nvidia-nccl-cu{cuda_version[0]}", "nccl.h")
    build, (headers, libraries) = cache / "nccl" / JITTOR_BUILD, get_system_folders()
    found = [
        *((header, header.parent.parent / "lib" / "libnccl.so.2") for header in wheels),
        (headers / "nccl.h", libraries / "libnccl.so"),
        (build / "include" / "nccl.h", build / "lib" / "libnccl.so"),
    ]
    return next((files for files in found if all(map(Path.is_file, files))), None)


def stage_nccl(header, library, parent):
    """Return the folders (Path) of nccl.h and libnccl.so, which are built in parent (Path).

    The wheel's library has another name. Raises InputError if parent cannot be written.
    """
    home = parent / f"nccl-{hashlib.sha1(f'{header}:{library}'.encode()).hexdigest()[:12]}"
    targets = {"include/nccl.h": header, "lib/libnccl.so": library}
    is_complete = lambda folder: all((folder / name).exists() for name in targets)
    stage(home, is_complete, lambda folder: link(folder, targets))
    return home / "include", home / "lib"
