"""Preparing for Jittor's import, in new processes with empty home folders."""

import errno
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import run_python

from util.errors import InputError
from util.startup import compilation, machine, onednn
from util.startup.prepare import prepare_device

STAGED = Path(".cache/jittor/mkl") / onednn.FOLDER
PREPARE = "from util.startup.prepare import prepare; prepare()\n"
REPORT = (
    PREPARE + "import os; print({name: os.environ.get(name) for name in ('nvcc_path', 'use_mkl')})"
)
NO_WHEEL = "from importlib import metadata; metadata.distributions = lambda **_: []\n"
NO_NETWORK = (
    "import socket\n"
    "def refuse(*_, **__): raise OSError('no network')\n"
    "socket.create_connection = refuse\n"
)
PYTHON = f"python3.{sys.version_info.minor}"

needs_wheel = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"),
    reason="oneDNN's wheels are for Linux on x86-64",
)


def start(home, code, **variables):
    unset = dict.fromkeys(("nvcc_path", "use_mkl", "python_config_path"))
    folders = dict(HOME=home, JITTOR_HOME=home, PYTHONDONTWRITEBYTECODE="1")
    return run_python("-c", code, **{**unset, **folders, **variables})


def run(home, code=REPORT, **variables):
    """Run code, and return (what it prints, as a Python value; stderr)."""
    done = start(home, code, **variables)
    assert done.returncode == 0, done.stderr
    return eval(done.stdout), done.stderr


def fail(home, code, **variables):
    """Run code that has to fail, and return the one line that it prints."""
    done = start(home, code, **variables)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def list_staged(home):
    files = (path for path in (home / STAGED).rglob("*") if not path.is_dir())
    return {str(path.relative_to(home / STAGED)) for path in files}


@pytest.fixture
def home(tmp_path):
    """An empty home folder, removed after the test because oneDNN takes 40 MB."""
    yield tmp_path
    for path in tmp_path.iterdir():
        shutil.rmtree(path)


@needs_wheel
def test_onednn_is_copied_into_an_empty_home(home):
    variables, err = run(home)
    assert variables["use_mkl"] is None and err == ""
    headers = {"include/dnnl.hpp", "include/oneapi/dnnl/dnnl.hpp"}
    assert headers | {"lib/libmkldnn.so", "lib/libdnnl.so.2"} <= list_staged(home)
    library = home / STAGED / "lib/libmkldnn.so"
    assert not library.is_symlink() and library.stat().st_size > 10**7
    assert os.readlink(library.with_name("libdnnl.so.2")) == "libmkldnn.so"
    # Jittor takes the first folder whose name starts with dnnl.
    assert [path.name for path in (home / STAGED).parent.glob("dnnl*")] == [STAGED.name]
    assert not (home / STAGED).with_name("staging").exists()


@needs_wheel
def test_a_staged_folder_stays_and_start_up_is_fast(home):
    run(home)
    before = (home / STAGED / "lib/libmkldnn.so").stat()
    code = f"import time, numpy; start = time.process_time(); {PREPARE}"
    code += "print(time.process_time() - start)"
    seconds = min(run(home, NO_WHEEL + code)[0] for _ in range(3))
    after = (home / STAGED / "lib/libmkldnn.so").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert seconds < 0.3  # 0.04 beside two busy processes


@needs_wheel
def test_processes_that_start_together_stage_once(home):
    with ThreadPoolExecutor(3) as pool:
        assert all(err == "" for _, err in pool.map(lambda _: run(home), range(3)))
    assert "lib/libmkldnn.so" in list_staged(home)
    assert {path.name for path in (home / STAGED).parent.iterdir()} == {STAGED.name}


def break_by_dangling_links(staged):
    (staged / "lib").mkdir(parents=True)
    (staged / "include").symlink_to("/deleted/venv/include")
    (staged / "lib/libmkldnn.so").symlink_to("/deleted/venv/lib/libdnnl.so")


def break_by_a_dangling_folder(staged):
    staged.parent.mkdir(parents=True)
    staged.symlink_to("/deleted")


def break_by_an_empty_library(staged):
    (staged / "lib").mkdir(parents=True)
    (staged / "lib/libmkldnn.so").touch()


def break_by_an_interrupted_copy(staged):
    (staged.with_name("staging") / "lib").mkdir(parents=True)
    (staged.with_name("staging") / "lib/rubbish").touch()


@needs_wheel
@pytest.mark.parametrize(
    "damage",
    [
        break_by_dangling_links,
        break_by_a_dangling_folder,
        break_by_an_empty_library,
        break_by_an_interrupted_copy,
    ],
)
def test_a_broken_staging_is_repaired(home, damage):
    damage(home / STAGED)
    run(home)
    assert (home / STAGED / "lib/libmkldnn.so").stat().st_size > 10**7
    assert (home / STAGED / "include/dnnl.hpp").is_file()
    assert "lib/rubbish" not in list_staged(home)


@needs_wheel
@pytest.mark.parametrize(
    "damage", [lambda staged: None, break_by_dangling_links, break_by_an_empty_library]
)
def test_without_wheel_and_network_onednn_is_off_and_warned_about(home, damage):
    damage(home / STAGED)
    variables, err = run(home, NO_WHEEL + NO_NETWORK + REPORT)
    assert variables["use_mkl"] == "0" and err.count("\n") == 1
    assert "100 times slower" in err and f"pip install {onednn.WHEEL}" in err


@needs_wheel
def test_a_wheel_with_the_wrong_interface_is_ignored(home):
    newer = (
        "from importlib import metadata\n"
        "distributions = metadata.distributions\n"
        "class Newer:\n"
        "    def __init__(self, wheel): self.files, self.version = wheel.files, '2023.0.0'\n"
        "metadata.distributions = lambda **name: map(Newer, distributions(**name))\n"
    )
    variables, _ = run(home, newer + NO_NETWORK + REPORT)
    assert variables["use_mkl"] == "0" and not (home / STAGED).exists()


def test_without_wheel_jittor_downloads_if_its_server_is_reachable(home):
    connect = "import socket\nsocket.create_connection = lambda address, timeout: socket.socket()\n"
    variables, err = run(home, NO_WHEEL + connect + REPORT)
    assert variables["use_mkl"] is None and err == ""


def test_variables_of_the_user_stay(home):
    given = dict(nvcc_path="", use_mkl="1")
    assert run(home, NO_WHEEL + NO_NETWORK + REPORT, **given) == (given, "")
    given = dict(nvcc_path="", use_mkl="0")
    assert run(home, **given) == (given, "")
    assert not (home / STAGED).exists()


def test_nothing_happens_once_jittor_is_imported(home):
    variables, err = run(home, "import sys; sys.modules['jittor_utils'] = sys\n" + REPORT)
    assert variables == {"nvcc_path": None, "use_mkl": None} and err == ""
    assert not list(home.iterdir())


@pytest.mark.parametrize("module", ["util.backend", "models.hub", "engine"])
def test_numpy_2_is_an_error(home, module):
    line = fail(home, f"import numpy; numpy.__version__ = '2.4.6'; import {module}")
    assert line.startswith("error: NumPy 2.4.6 is installed")
    assert "-m pip install 'numpy<2'`" in line


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 13, 0)])
def test_other_pythons_are_an_error(home, version):
    code = f"import sys; sys.version_info = {version}; sys.modules['numpy'] = None; import util"
    line = fail(home, code)
    assert line.startswith("error: this is Python ") and "3.10, 3.11 or 3.12" in line


HIDE_CONFIG = """from pathlib import Path; is_file = Path.is_file
Path.is_file = lambda path: {} and is_file(path)
"""


def test_python_config_is_found_beside_the_base_interpreter(home):
    """Environments of pyenv and uv have none."""
    base = Path(sysconfig.get_config_var("BINDIR"))
    is_base = f"str(path.parent) == {str(base)!r}"
    code = f"import sys; sys.executable = {str(home / 'bin' / 'python')!r}\n"
    code += HIDE_CONFIG.format(f"(not path.name.endswith('-config') or {is_base})")
    code += PREPARE + "print(repr(__import__('os').environ.get('python_config_path')))"
    assert run(home, code)[0] == str(base / f"{PYTHON}-config")
    assert run(home, code, python_config_path="/mine")[0] == "/mine"


def test_missing_headers_and_a_missing_compiler_are_errors(home):
    line = fail(home, HIDE_CONFIG.format("not path.name.endswith('-config')") + PREPARE)
    assert f"{PYTHON}-config is missing" in line and f"g++ {PYTHON}-dev`" in line
    line = fail(home, "import shutil; shutil.which = lambda name: None\n" + PREPARE, cc_path="g++")
    assert line.startswith("error: g++ is missing") and "apt-get install g++" in line


@pytest.fixture
def machine_home(tmp_path, monkeypatch):
    """Return an empty home, beside an empty JITTOR_HOME, on a machine that works."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path / "jittor"))
    monkeypatch.setenv("nvcc_path", "")
    return tmp_path / "home"


def find_obstacles():
    return list(machine.find_obstacles(compilation.get_jittor_cache()))


def fill_disk(folder, space=0):
    """Return a replacement of `os.posix_fallocate` that has so many bytes left below folder."""

    def allocate(file, start, size):
        if size > space and Path(os.readlink(f"/proc/self/fd/{file}")).is_relative_to(folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return allocate


def test_a_machine_that_works_has_no_obstacles_and_no_new_files(machine_home):
    assert find_obstacles() == []
    assert list(machine_home.parent.rglob("*")) == [machine_home]


@pytest.mark.parametrize("variable", ["HOME", "JITTOR_HOME"])
def test_a_folder_that_cannot_be_written_is_an_obstacle(machine_home, monkeypatch, variable):
    monkeypatch.setenv(variable, "/dev/null")
    [line] = find_obstacles()
    assert line.startswith("/dev/null/.cache/jittor: ") and f"set {variable} to " in line


def test_a_dangling_link_is_an_obstacle(machine_home):
    (machine_home / ".cache").symlink_to("/deleted")
    [line] = find_obstacles()
    assert "(No such file or directory); set HOME to " in line


def test_a_read_only_home_that_names_the_cache_is_no_obstacle(machine_home, monkeypatch):
    config = machine_home / ".cache/jittor/config.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"JITTOR_HOME": str(machine_home.parent / "jittor")}))
    monkeypatch.setattr(os, "posix_fallocate", fill_disk(config.parent))
    assert find_obstacles() == []
    config.write_text("{}")
    [line] = find_obstacles()
    assert "(No space left on device); set HOME to " in line


def test_a_full_disk_is_an_obstacle(machine_home, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", fill_disk(machine_home.parent, 30 << 20))
    assert find_obstacles() == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 0))
    [line] = find_obstacles()
    assert "(No space left on device); set JITTOR_HOME to " in line
    monkeypatch.setattr(compilation, "is_core_compiled", lambda: True)
    assert find_obstacles() == []


def test_a_noexec_mount_is_an_obstacle(machine_home, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9e9, 0, 9e9))
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_NOEXEC))
    [line] = find_obstacles()
    assert "mounted noexec; set JITTOR_HOME to " in line


def test_python_below_a_folder_with_a_space_is_an_obstacle(machine_home, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/home/\u738b \u4f1f/venv/bin/python")
    [line] = find_obstacles()
    assert line.startswith(sys.executable) and "' ' in this path" in line
    monkeypatch.setattr(sys, "executable", "/home/\u738b\u4f1f/venv/bin/python")
    assert find_obstacles() == []


@pytest.mark.parametrize("lacking, is_obstacle", [(rb"2[6-9]|3\d", True), (rb"2[78]", False)])
def test_a_libstdcxx_older_than_the_compilers_is_an_obstacle(tmp_path, lacking, is_obstacle):
    """As in environments of conda, unless Jittor does not need the symbols that are missing."""
    command = ["g++", "-print-file-name=libstdc++.so.6"]
    new = Path(subprocess.run(command, capture_output=True, text=True).stdout.strip()).resolve()
    old = tmp_path / "libstdc++.so.6"
    old.write_bytes(re.sub(rb"(GLIBCXX_)3(\.4\.(%b))\b" % lacking, rb"\g<1>9\2", new.read_bytes()))
    code = (
        f"from pathlib import Path; from util.startup import machine; cache = Path({str(old)!r})\n"
    )
    code += "print([line for line in machine.find_obstacles(cache.parent) if 'libstdc++' in line])"
    lines, _ = run(tmp_path, code, LD_LIBRARY_PATH=tmp_path)
    assert len(lines) == is_obstacle
    assert all(line.startswith(f"{old}: ") and f"LD_PRELOAD={new}`" in line for line in lines)
    assert run(tmp_path, code, LD_LIBRARY_PATH=tmp_path, LD_PRELOAD=new)[0] == []


@pytest.mark.parametrize("content", ["", '{"JITTOR_HOME": "/ho'])
def test_a_damaged_note_of_jittors_home_is_an_error(machine_home, content):
    config = machine_home / ".cache/jittor/config.json"
    config.parent.mkdir(parents=True)
    config.write_text(content)
    with pytest.raises(InputError, match=rf"^{config}: Jittor cannot read this file .*; remove it"):
        compilation.get_jittor_cache()


def test_a_user_without_a_home_is_an_error(machine_home, monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)  # as `docker run --user`
    with pytest.raises(InputError, match="no home folder, which Jittor needs; set HOME "):
        compilation.get_jittor_cache()


def test_an_obstacle_ends_the_program_and_is_named_by_the_doctor(tmp_path):
    code = "from util import launch\nfrom util.startup import prepare\n"
    code += "with launch.job(): prepare.prepare()"
    line = fail(tmp_path, code, JITTOR_HOME="/dev/null")
    assert line.startswith("error: /dev/null/.cache/jittor: ")
    done = run_python("-m", "util.doctor", JITTOR_HOME="/dev/null")
    assert f"obstacles {line.removeprefix('error: ')}" in done.stdout
    (tmp_path / ".cache/jittor").mkdir(parents=True)
    (tmp_path / ".cache/jittor/config.json").touch()
    done = run_python("-m", "util.doctor", HOME=tmp_path)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("modules", ["main", "checks, models.weights.checkpoint"])
def test_modules_before_jittor_do_not_import_it(home, modules):
    code = f"import sys, {modules}; print([m for m in sys.modules if m.startswith('jittor')])"
    assert run(home, code)[0] == []


def test_the_cache_is_found_as_jittor_finds_it(tmp_path, monkeypatch):
    cache = Path(".cache/jittor")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("JITTOR_HOME", raising=False)
    assert compilation.get_jittor_cache() == tmp_path / cache
    (tmp_path / cache).mkdir(parents=True)
    (tmp_path / cache / "config.json").write_text('{"JITTOR_HOME": "/saved"}')
    assert compilation.get_jittor_cache() == "/saved" / cache
    monkeypatch.setenv("JITTOR_HOME", "/chosen")
    assert compilation.get_jittor_cache() == "/chosen" / cache


def test_the_announcement_depends_on_the_cache(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path))
    monkeypatch.setenv("nvcc_path", "")
    assert not compilation.is_core_compiled()
    prepare_device("cpu")
    first = capsys.readouterr().out
    for host in ("Linux-6.1.0-2x00", compilation.get_host_folder()):
        assert not compilation.is_core_compiled()  # but on another host, which shares the home
        levels = f"jt1.3.11/g++12.2.0/py{platform.python_version()}/{host}/CPU/12ab/default"
        cache = tmp_path / ".cache/jittor" / levels / "cu12.2.0_sm_90"
        cache.mkdir(parents=True)
        (cache / "jittor_core.cpython-311-x86_64-linux-gnu.so").touch()
        (cache.parent / "jittor_core.cpython-311-x86_64-linux-gnu.so").touch()
    assert compilation.is_core_compiled()
    (cache.parent / "jittor_core.cpython-311-x86_64-linux-gnu.so").unlink()
    assert not compilation.is_core_compiled()  # CUDA has another core
    monkeypatch.setenv("nvcc_path", "/usr/local/cuda/bin/nvcc")
    assert compilation.is_core_compiled()
    (cache.parent / "jittor_core.cpython-311-x86_64-linux-gnu.so").touch()
    prepare_device("cpu")
    assert "core once per machine" in first and first.count("\n") == 1
    assert capsys.readouterr().out == ""


def test_devices_and_compiling_threads_without_cuda():
    code = (
        "from util.errors import InputError\n"
        "from util.startup.prepare import prepare_device\n"
        "prepare_device('auto')\n"
        "from util.backend import jt, select_device\n"
        "found = [select_device('auto'), jt.flags.use_cuda, select_device('cpu'), "
        "jt.flags.use_parallel_op_compiler]\n"
        "try: select_device('cuda')\n"
        "except InputError as error: found.append(str(error))\n"
        "print(found)"
    )
    done = run_python("-c", code, nvcc_path="", log_silent="1", timeout=600)
    assert done.returncode == 0, done.stderr
    *found, message = eval(done.stdout.splitlines()[-1])
    assert found == ["cpu", 0, "cpu", len(os.sched_getaffinity(0))]
    assert message.startswith("--device cuda: ") and message.endswith("; use --device cpu")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors are left alone")
def test_denormals_are_zero_in_every_thread():
    code = PREPARE + (
        "import threading, numpy as np\n"
        "def show(): print(*np.float32([1e-30]) * np.float32([1e-10, 1]))\n"
        "show(); threading.Thread(target=show).start()\n"
        "import scipy.optimize, matplotlib.figure\n"
    )
    done = run_python("-c", code)
    assert (done.stdout, done.stderr) == ("0.0 1e-30\n" * 2, "")


@pytest.mark.parametrize(
    "given, expected",
    [({}, "500"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_waiting_threads_do_not_spin_long(given, expected):
    """OpenMP reads the environment when it is loaded, which must not be before `prepare`."""
    code = (
        "import main; from util.startup.prepare import prepare; from pathlib import Path\n"
        "assert 'libgomp' not in Path('/proc/self/maps').read_text()\n"
        "prepare(); import os; print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    variables = {**dict.fromkeys(("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")), **given}
    done = run_python("-c", code, **variables)
    assert done.stdout == f"{expected}\n", done.stderr


def test_a_warm_import_of_jittor_prints_nothing():
    code = "from util.backend import jt; print(jt.ones(1).item())"
    done = run_python("-c", code, log_silent=None, timeout=600)
    assert (done.stdout, done.stderr) == ("1.0\n", "")
