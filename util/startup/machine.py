"""Find what keeps Jittor from working on this machine, before its import fails after minutes."""

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

from util.startup import compilation, gpu
from util.startup.toolkit import get_output

# Bytes that have to be free, rounded down so that no machine that works is refused.
ONEDNN_SPACE = 38 << 20
CORE_SPACE = 18 << 20
SPACE = 1 << 20  # each import of Jittor writes 0.5 MB of sources
LOCK_WAIT = 10  # seconds
SHELL_CHARACTERS = re.compile(r"""[\s"'$&();<>\\`|]""")
# Needs the newest symbols of libstdc++ that Jittor's core needs.
PROBE = """
#include <condition_variable>
#include <iostream>
#include <sstream>
#include <vector>
void probe(size_t size, std::condition_variable& changed, std::unique_lock<std::mutex>& lock) {
    changed.wait(lock);
    std::vector<std::string> words(size);
    std::ostringstream text;
    std::cout << text.str() << words[0];
}
"""


def find_obstacles(cache):
    """Yield what is wrong and what to do, one line for each obstacle.

    Takes milliseconds, or a second if libstdc++ may be too old; leaves no file. cache: Jittor's
    (Path)
    """
    checks = (_check_home, _check_cache, _check_mount, _check_paths, _check_libstdcxx)
    yield from filter(None, (check(cache) for check in checks))


def find_existing(folder, exists=os.path.exists):
    """Return the folder (Path) or its nearest parent that exists, readable or not."""
    return next(path for path in (folder, *folder.parents) if exists(path))


def _check_home(cache):
    """Jittor makes ~/.cache/jittor and notes JITTOR_HOME there, even if its cache is elsewhere."""
    folder = compilation.get_config_folder()
    is_noted = compilation.join_cache(compilation.read_saved_home()) == cache
    if folder == cache or is_noted and folder.is_dir():
        return None
    return _check_writing(folder, "HOME", 4096)


def _check_cache(cache):
    variable = "HOME" if cache == compilation.get_config_folder() else "JITTOR_HOME"
    space = CORE_SPACE if os.path.isdir(cache / "mkl") else CORE_SPACE + ONEDNN_SPACE
    has_space = shutil.disk_usage(find_existing(cache)).free >= space
    if has_space or compilation.is_core_compiled():
        space = SPACE
    return _check_writing(cache, variable, space)


def _check_writing(folder, variable, size):
    try:
        # With `lexists`, because Jittor fails at a dangling link.
        with tempfile.TemporaryFile(dir=find_existing(folder, os.path.lexists)) as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        return (
            f"{folder}: Jittor cannot write there ({error.strerror}); set {variable} to a folder "
            f"that can be written, with 300 MB of free space: `export {variable}=/path/to/folder`"
        )
    return None


def _check_mount(cache):
    if os.statvfs(find_existing(cache)).f_flag & os.ST_NOEXEC:
        return (
            f"{cache}: what Jittor compiles there cannot be loaded, because the file system is "
            "mounted noexec; set JITTOR_HOME to a folder elsewhere: "
            "`export JITTOR_HOME=/path/to/folder`"
        )
    return None


def _check_paths(cache):
    """Jittor does not quote these paths when it compiles an operator for the CPU."""
    if os.environ.get("nvcc_path") != "" and gpu.has_gpu():
        return None
    jittor = importlib.util.find_spec("jittor")
    for path in filter(None, (sys.executable, jittor and jittor.origin)):
        if found := SHELL_CHARACTERS.search(path):
            return (
                f"{path}: Jittor cannot compile with {found[0]!r} in this path; create the virtual "
                "environment in another folder"
            )
    return None


def _check_libstdcxx(cache):
    """What the compiler builds may need a newer libstdc++ than conda's, which Python loads."""
    compiler = os.environ.get("cc_path", "g++")
    given = os.path.realpath(get_output(compiler, "-print-file-name=libstdc++.so.6").strip())
    loaded = _load_libstdcxx()
    if loaded in (None, given) or not os.path.isfile(given):
        return None
    available = _read_versions(loaded)
    if _read_versions(given) <= available:
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = os.path.join(folder, "probe.so")
        command = [compiler, "-std=c++14", "-shared", "-fPIC", "-x", "c++", "-", "-o", library]
        if subprocess.run(command, input=PROBE, capture_output=True, text=True).returncode:
            return None  # Jittor will print what the compiler lacks
        missing = _read_versions(library) - available
    if missing:
        return (
            f"{loaded}: Python loads this libstdc++, which is too old for what {compiler} compiles "
            f"({max(missing)} is missing); run `export LD_PRELOAD={given}`, or with conda "
            "`conda install -c conda-forge libstdcxx-ng`"
        )
    return None


def _load_libstdcxx():
    """Return the path of the libstdc++ that this process uses, or None."""
    try:
        ctypes.CDLL("libstdc++.so.6")
    except OSError:
        return None
    found = re.search(r"/.*/libstdc\+\+\.so\.6[.\d]*$", Path("/proc/self/maps").read_text(), re.M)
    return found and found[0]


def _read_versions(library):
    return {name.decode() for name in re.findall(rb"GLIBCXX_[\d.]+", Path(library).read_bytes())}


@contextmanager
def announce_lock_wait():
    """Print a line if the block, which imports Jittor, waits for another process's compilation."""
    finished = threading.Event()

    def watch():
        while not finished.wait(LOCK_WAIT):
            if holder := _find_lock_holder():
                lock = sys.modules["jittor_utils.lock"].lock_path
                print(
                    f"process {os.getpid()} waits for process {holder}, which holds Jittor's lock "
                    f"{lock} while it compiles",
                    flush=True,
                )
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        finished.set()


def _find_lock_holder():
    """Return the id of the process that holds the lock for which this process waits, or None."""
    holders = {}
    for line in Path("/proc/locks").read_text().splitlines():
        number, *fields = line.split()
        if fields[0] != "->":
            holders[number] = fields[3]
        elif fields[4] == str(os.getpid()):
            return holders.get(number)
    return None
