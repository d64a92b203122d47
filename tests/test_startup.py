"""Preparing for Jittor's import, in new processes with empty home folders."""

import os
import platform
import shutil
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prepared import PREPARE, REPORT, fail, run
from processes import run_python

from util.startup import compilation, onednn
from util.startup.prepare import prepare_device

STAGED = Path(".cache/jittor/mkl") / onednn.FOLDER
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
