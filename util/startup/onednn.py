"""Provide oneDNN, which Jittor calls "mkl" and would download from a university's server."""

import os
import platform
from importlib import metadata
from pathlib import Path

from util.download import is_reachable
from util.errors import warn
from util.startup.staging import copy, link, stage

WHEEL = "onednn-devel-cpu-gomp==2022.2.1"
FOLDER = "dnnl_lnx_2.2.0_cpu_gomp"
LINKS = {"lib/libdnnl.so.2": "libmkldnn.so"}
JITTOR_SERVER = ("cg.cs.tsinghua.edu.cn", 443)


def provide(parent):
    """Stage oneDNN in parent (Path), where Jittor looks; if there is none, warn and disable it.

    Raises InputError if parent cannot be written.
    """
    has_wheels = platform.system() == "Linux" and platform.machine() == "x86_64"
    if has_wheels and _is_complete(parent / FOLDER):
        return
    libraries = parent.glob("dnnl*/lib/libmkldnn.*")
    has_download = not has_wheels and any(path.is_file() for path in libraries)
    if has_wheels and (files := _find_wheel_files()):
        # Copy instead of linking, because environments share Jittor's home and may be deleted.
        def fill(folder):
            copy(folder, files)
            link(folder, LINKS)

        stage(parent / FOLDER, _is_complete, fill)
    elif "use_mkl" not in os.environ and not has_download and not is_reachable(JITTOR_SERVER):
        os.environ["use_mkl"] = "0"
        remedy = f"run `pip install {WHEEL}`" if has_wheels else f"connect to {JITTOR_SERVER[0]}"
        warn(f"oneDNN is missing, so convolutions on the CPU are about 100 times slower; {remedy}")


def _is_complete(folder):
    files = [folder / name for name in ("include/dnnl.hpp", "lib/libmkldnn.so", *LINKS)]
    return all(file.is_file() and file.stat().st_size for file in files)


def _find_wheel_files():
    """Return {path in the staged folder: Path}, or {} without a matching wheel."""
    files = {}
    for name in ("onednn-devel-cpu-gomp", "onednn-cpu-gomp"):
        for wheel in metadata.distributions(name=name):
            # Jittor uses the v2 interface; the wheels of 2023 and later hold v3.
            if int(wheel.version.split(".")[0]) > 2022:
                continue
            for file in wheel.files or ():
                if "include" in file.parts:
                    files["/".join(file.parts[file.parts.index("include") :])] = Path(file.locate())
                elif file.name == "libdnnl.so":
                    files["lib/libmkldnn.so"] = Path(file.locate())
    is_whole = {"include/dnnl.hpp", "lib/libmkldnn.so"} <= files.keys()
    return files if is_whole and all(map(Path.is_file, files.values())) else {}
