"""Check Jittor's compiler, and announce and speed up its compilation."""

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from util.errors import InputError, warn
from util.files import lock_folder

# The first lines of Jittor's generated sources.
HEADER = """
#define JIT 1
#define JIT_cpu 1
#include <assert.h>
#include <algorithm>
#include <cmath>
#include <limits>
#include "var.h"
#include "executor.h"
#include "fused_op.h"
#include "misc/cpu_math.h"
#include "misc/cuda_flags.h"
#include "ops/array_op.h"
#include "ops/binary_op.h"
#include "ops/broadcast_to_op.h"
#include "ops/code_op.h"
#include "ops/getitem_op.h"
#include "ops/op_register.h"
#include "ops/reduce_op.h"
#include "ops/reindex_op.h"
#include "ops/setitem_op.h"
#include "ops/ternary_op.h"
#include "ops/unary_op.h"
"""


def check_compiler():
    """Set python_config_path if python3.X-config is not where Jittor looks.

    Exits (SystemExit) with one line if Python's headers or the C++ compiler are missing.
    """
    name = f"python3.{sys.version_info.minor}-config"
    compiler = os.environ.get("cc_path", "g++")
    install = f"on Debian or Ubuntu: `apt-get install g++ python3.{sys.version_info.minor}-dev`"
    searched_by_jittor = (
        Path(sys.executable).parent / name,
        Path(f"{sys.executable}-config"),
        Path("/usr/bin") / name,
        Path("/usr/local/bin") / name,
        Path(sys.executable).parent / "python3-config",
    )
    bases = (Path(sysconfig.get_config_var("BINDIR")) / name, Path(sys.base_prefix) / "bin" / name)
    if "python_config_path" not in os.environ and not any(map(Path.is_file, searched_by_jittor)):
        config = next(filter(Path.is_file, bases), None)
        if config is None:
            sys.exit(
                f"error: {name} is missing, so Jittor cannot find Python's headers; install them "
                f"({install}) or set python_config_path to the file"
            )
        os.environ["python_config_path"] = str(config)
    if not shutil.which(compiler):
        sys.exit(f"error: {compiler} is missing, the compiler for Jittor; install it ({install})")


def get_config_folder():
    """Return ~/.cache/jittor (Path), which Jittor makes even if JITTOR_HOME is set.

    Raises InputError if the user has no home folder.
    """
    try:
        return join_cache(Path.home())
    except RuntimeError as error:
        raise InputError(
            "this user has no home folder, which Jittor needs; set HOME to a folder that can be "
            "written: `export HOME=/path/to/folder`"
        ) from error


def read_saved_home():
    """Return the home (Path) that Jittor has noted for later runs, or the user's.

    Raises InputError if the note cannot be read.
    """
    config = get_config_folder() / "config.json"
    try:
        saved = json.loads(config.read_text()) if os.path.exists(config) else {}
    except (OSError, ValueError) as error:
        raise InputError(f"{config}: Jittor cannot read this file ({error}); remove it") from error
    return Path(saved.get("JITTOR_HOME", Path.home()))


def get_jittor_cache():
    """Return the folder (Path) of Jittor's cache, located as Jittor does; it may not exist.

    Raises InputError as `get_config_folder` and `read_saved_home` do.
    """
    saved = read_saved_home()  # Jittor reads it even if it is not used
    return join_cache(Path(os.environ.get("JITTOR_HOME") or saved))


def join_cache(home):
    """Return the folder (Path) of Jittor's cache in a home (Path)."""
    return home.absolute() / ".cache" / "jittor"


def is_core_compiled():
    """Return True if the cache holds Jittor's core for this host, Python and choice of CUDA."""
    # The levels are Jittor's version, compiler, Python, host, CPU, installation path, branch (which
    # may hold a slash) and, with CUDA, its version. A recursive search would walk through thousands
    # of kernels.
    levels = f"jt*/*/py{platform.python_version()}/{get_host_folder()}/*/*/*"
    with_cuda = bool(os.environ.get("nvcc_path"))
    end = "/cu*/jittor_core*.so" if with_cuda else "/jittor_core*.so"
    cache = get_jittor_cache()
    cores = [*cache.glob(f"{levels}{end}"), *cache.glob(f"{levels}/*{end}")]
    return any(core.parent.name.startswith("cu") == with_cuda for core in cores)


def get_host_folder():
    """Return the name of the folder in Jittor's cache for this system and host, as Jittor does."""
    name = platform.platform() + platform.node()
    for _ in range(2):  # Jittor shortens it twice
        name = f"{name[:14]}x{hashlib.md5(name.encode()).hexdigest()[:2]}"
    return name


def announce_compilation():
    """Print how long compiling Jittor takes, if it has not been compiled on this machine.

    Later on, Jittor itself shows the progress of operators that take longer than 2 s.
    """
    if is_core_compiled():
        return
    what = "a new model's operators in the first step (about half a minute)"
    if os.environ.get("nvcc_path"):
        what = "a new model's CUDA kernels in the first step (a few minutes on 2 cores)"
    print(
        f"Jittor compiles its core once per machine (about 2 minutes on 2 cores), then {what}; "
        "later runs read its cache.",
        flush=True,
    )


def use_precompiled_header(flags):
    """Compile CPU operators with a precompiled header, which is built if it is missing.

    Each operator is a source file that includes Jittor's headers, 70 thousand lines. Precompiling
    them more than halves the compile time.

    flags: `jittor.flags`. Does nothing unless the compiler is g++.
    """
    if flags.cc_type != "g++":
        return
    # Jittor passes -g; reduce debug information, which is not needed here, to save time.
    flags.cc_flags += " -femit-struct-debug-baseonly -fno-var-tracking "
    # g++ uses a precompiled header only with the options that it was compiled with.
    linker_options = ("-l", "-L", "-Wl,", "-shared")
    options = [each for each in shlex.split(flags.cc_flags) if not each.startswith(linker_options)]
    command = [flags.cc_path, *options, "-g", "-x", "c++-header"]
    digest = hashlib.sha1("\0".join([HEADER, *command]).encode()).hexdigest()[:16]
    folder = Path(flags.cache_path) / f"precompiled-{digest}"
    header = folder / "operators.h"
    folder.mkdir(exist_ok=True)
    with lock_folder(folder):
        if not header.with_name("operators.h.gch").exists() and not _precompile(header, command):
            return
    flags.cc_flags += f' -include "{header}" '


def _precompile(header, command):
    """Return True on success. Precompiling is an optimisation; failure is harmless."""
    header.write_text(HEADER)
    building = header.with_name("building.gch")
    done = subprocess.run([*command, header, "-o", building], capture_output=True, text=True)
    if done.returncode:
        warn(f"Jittor's headers cannot be precompiled: {done.stderr.strip()[:500]}")
        return False
    os.replace(building, header.with_name("operators.h.gch"))
    return True
