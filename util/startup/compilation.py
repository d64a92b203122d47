"""How Jittor compiles operators: with a precompiled header, and lines that show the progress."""

import hashlib
import os
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

from tqdm import tqdm

from util.errors import warn
from util.files import exclusive

# What the sources begin with, so that the headers mean the same here.
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


def use_precompiled_header(flags):
    """Makes Jittor compile its CPU operators with a precompiled header, made where it is missing.

    Each operator is a source file of its own that includes Jittor's headers, 70 thousand lines with
    all that they include. The compiler reads them once, and from then on in its own format: an
    operator compiles in less than half the time.

    flags: `jittor.flags`. Only g++ is used this way.
    """
    if flags.cc_type != "g++":
        return
    # Jittor compiles to assembler with -g, but nobody debugs an operator: less of that is enough.
    flags.cc_flags += " -femit-struct-debug-baseonly -fno-var-tracking "
    # g++ takes a header only with the same options.
    command = [flags.cc_path, *_compiler_options(flags.cc_flags), "-g", "-x", "c++-header"]
    digest = hashlib.sha1("\0".join([HEADER, *command]).encode()).hexdigest()[:16]
    folder = Path(flags.cache_path) / f"precompiled-{digest}"
    header = folder / "operators.h"
    folder.mkdir(exist_ok=True)
    with exclusive(folder):
        if not header.with_name("operators.h.gch").exists() and not _precompile(header, command):
            return
    flags.cc_flags += f' -include "{header}" '


def _compiler_options(flags):
    """Jittor's flags without those for the linker."""
    linker = ("-l", "-L", "-Wl,", "-shared")
    return [flag for flag in shlex.split(flags) if not flag.startswith(linker)]


def _precompile(header, command):
    """Whether it worked. Without it everything works, too, and compiling takes longer."""
    header.write_text(HEADER)
    building = header.with_name("building.gch")
    done = subprocess.run([*command, header, "-o", building], capture_output=True, text=True)
    if done.returncode:
        warn(f"the headers are not precompiled: {done.stderr.strip()[:500]}")
        return False
    os.replace(building, header.with_name("operators.h.gch"))
    return True


def report_progress(flags, interval=10):
    """Prints a line every `interval` seconds in which Jittor has compiled operators.

    flags: `jittor.flags`. A thread does it until the process ends.
    """
    folder = Path(flags.cache_path) / "jit"
    threading.Thread(target=_report, args=(folder, interval), daemon=True).start()


def _report(folder, interval):
    first = last = _count_operators(folder)
    while True:
        time.sleep(interval)
        count = _count_operators(folder)
        if count > last:
            tqdm.write(f"Jittor has compiled {count - first} operators", file=sys.stderr)
        last = count


def _count_operators(folder):
    return sum(name.endswith(".so") for name in os.listdir(folder)) if folder.is_dir() else 0
