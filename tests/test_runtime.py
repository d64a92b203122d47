"""What happens before Jittor is imported, in processes of their own with empty home folders."""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from util.startup import prepare

ROOT = Path(__file__).parent.parent
STAGED = Path(".cache/jittor/mkl/dnnl_lnx_2.2.0_cpu_gomp")
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

needs_wheel = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"),
    reason="oneDNN's wheels are for Linux on x86-64",
)


def start(home, code=REPORT, **variables):
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("nvcc_path", "use_mkl", "python_config_path")
    }
    environment.update(
        HOME=str(home), JITTOR_HOME=str(home), PYTHONDONTWRITEBYTECODE="1", **variables
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process):
    """(what was printed as a Python value, stderr)"""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return eval(out), err


def staged_files(home):
    return sorted(
        str(path.relative_to(home / STAGED))
        for path in (home / STAGED).rglob("*")
        if not path.is_dir()
    )


@pytest.fixture
def home(tmp_path):
    """An empty home folder that does not outlive the test, because oneDNN's 40 MB would."""
    yield tmp_path
    for path in tmp_path.iterdir():
        shutil.rmtree(path)


@needs_wheel
def test_an_empty_home_gets_its_own_copy_of_onednn(home):
    found, err = finish(start(home))
    assert found["use_mkl"] is None and err == ""
    assert {
        "include/dnnl.hpp",
        "include/oneapi/dnnl/dnnl.hpp",
        "lib/libmkldnn.so",
        "lib/libdnnl.so.2",
    } <= set(staged_files(home))
    library = home / STAGED / "lib"
    assert (
        not (library / "libmkldnn.so").is_symlink()
        and (library / "libmkldnn.so").stat().st_size > 10**7
    )
    assert os.readlink(library / "libdnnl.so.2") == "libmkldnn.so"
    # Jittor takes the first folder whose name begins with dnnl.
    assert [path.name for path in (home / STAGED).parent.glob("dnnl*")] == [STAGED.name]
    assert not (home / STAGED).with_name("staging").exists()


@needs_wheel
def test_what_is_staged_is_left_alone_and_costs_little(home):
    finish(start(home))
    before = (home / STAGED / "lib/libmkldnn.so").stat()
    code = (
        "import time, numpy; start = time.process_time(); "
        "from util.startup.prepare import prepare; prepare(); print(time.process_time() - start)"
    )
    seconds = min(finish(start(home, NO_WHEEL + code))[0] for _ in range(3))
    after = (home / STAGED / "lib/libmkldnn.so").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert seconds < 0.3  # 0.04 beside two busy processes


@needs_wheel
def test_two_processes_that_start_at_once_agree(home):
    processes = [start(home) for _ in range(3)]
    assert all(finish(process)[1] == "" for process in processes)
    assert "lib/libmkldnn.so" in staged_files(home)
    assert sorted(path.name for path in (home / STAGED).parent.iterdir()) == [
        STAGED.name,
        "staging.lock",
    ]


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
    finish(start(home))
    assert (home / STAGED / "lib/libmkldnn.so").stat().st_size > 10**7
    assert (home / STAGED / "include/dnnl.hpp").is_file() and "lib/rubbish" not in staged_files(
        home
    )


@needs_wheel
@pytest.mark.parametrize(
    "damage", [lambda staged: None, break_by_dangling_links, break_by_an_empty_library]
)
def test_without_wheel_and_network_it_warns_and_turns_onednn_off(home, damage):
    damage(home / STAGED)
    found, err = finish(start(home, NO_WHEEL + NO_NETWORK + REPORT))
    assert found["use_mkl"] == "0"
    assert (
        err.count("\n") == 1
        and "100 times slower" in err
        and f"pip install {prepare.ONEDNN_WHEEL}" in err
    )


@needs_wheel
def test_a_wheel_with_the_wrong_interface_is_not_used(home):
    newer = (
        "from importlib import metadata\n"
        "found = metadata.distributions\n"
        "class Newer:\n"
        "    def __init__(self, wheel): self.files, self.version = wheel.files, '2023.0.0'\n"
        "metadata.distributions = lambda **name: map(Newer, found(**name))\n"
    )
    found, err = finish(start(home, newer + NO_NETWORK + REPORT))
    assert found["use_mkl"] == "0" and not (home / STAGED).exists()


def test_without_a_wheel_but_with_the_server_jittor_downloads(home):
    reach = "import socket\nsocket.create_connection = lambda address, timeout: socket.socket()\n"
    found, err = finish(start(home, NO_WHEEL + reach + REPORT))
    assert found["use_mkl"] is None and err == ""


def test_what_the_user_set_stays(home):
    found, err = finish(
        start(home, NO_WHEEL + NO_NETWORK + REPORT, use_mkl="1", nvcc_path="/my/nvcc")
    )
    assert found == {"nvcc_path": "/my/nvcc", "use_mkl": "1"} and err == ""
    found, err = finish(start(home, use_mkl="0", nvcc_path=""))
    assert found == {"nvcc_path": "", "use_mkl": "0"} and err == ""
    assert not (home / STAGED).exists()


def test_nothing_happens_once_jittor_is_imported(home):
    found, err = finish(start(home, "import sys; sys.modules['jittor_utils'] = sys\n" + REPORT))
    assert found == {"nvcc_path": None, "use_mkl": None} and err == ""
    assert not list(home.iterdir())


def fails(home, code, **variables):
    """The one line with which a process ends that cannot begin."""
    process = start(home, code, **variables)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and out == "" and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("module", ["util.backend", "models.hub", "engine"])
def test_numpy_2_is_refused(home, module):
    line = fails(home, f"import numpy; numpy.__version__ = '2.4.6'; import {module}")
    assert (
        line.startswith("error: NumPy 2.4.6 is installed") and "-m pip install 'numpy<2'`" in line
    )


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 13, 0)])
def test_other_pythons_are_refused(home, version):
    line = fails(
        home, f"import sys; sys.version_info = {version}; sys.modules['numpy'] = None; import util"
    )
    assert line.startswith("error: this is Python ") and "3.10, 3.11 and 3.12" in line


NO_CONFIG = """from pathlib import Path; is_file = Path.is_file
Path.is_file = lambda path: {} and is_file(path)
"""


def test_the_base_interpreters_config_is_found(home):
    """An environment of pyenv or uv has none beside its interpreter."""
    report = PREPARE + "print(repr(__import__('os').environ.get('python_config_path')))"
    base = Path(sysconfig.get_config_var("BINDIR"))
    hide_others = NO_CONFIG.format(
        f"(not path.name.endswith('-config') or str(path.parent) == {str(base)!r})"
    )
    make_nothing_else = f"import sys; sys.executable = {str(home / 'bin' / 'python')!r}\n"
    found, _ = finish(start(home, make_nothing_else + hide_others + report))
    assert found == str(base / f"python3.{sys.version_info.minor}-config")
    assert (
        finish(start(home, make_nothing_else + hide_others + report, python_config_path="/mine"))[0]
        == "/mine"
    )


def test_missing_headers_and_a_missing_compiler_are_named(home):
    line = fails(home, NO_CONFIG.format("not path.name.endswith('-config')") + PREPARE)
    assert (
        f"python3.{sys.version_info.minor}-config is missing" in line
        and f"g++ python3.{sys.version_info.minor}-dev`" in line
    )
    line = fails(home, "import shutil; shutil.which = lambda name: None\n" + PREPARE, cc_path="g++")
    assert line.startswith("error: g++ is missing") and "apt-get install g++" in line


@pytest.mark.parametrize("modules", ["main", "arguments, predict, models.weights.checkpoint"])
def test_what_comes_before_jittor_does_not_import_it(home, modules):
    found, _ = finish(
        start(
            home,
            f"import sys, {modules}; print([m for m in sys.modules if m.startswith('jittor')])",
        )
    )
    assert found == []


def test_the_home_is_found_as_jittor_finds_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("JITTOR_HOME", raising=False)
    assert prepare.jittor_home() == tmp_path
    (tmp_path / ".cache/jittor").mkdir(parents=True)
    (tmp_path / ".cache/jittor/config.json").write_text('{"JITTOR_HOME": "/remembered"}')
    assert prepare.jittor_home() == Path("/remembered")
    monkeypatch.setenv("JITTOR_HOME", "/chosen")
    assert prepare.jittor_home() == Path("/chosen")


def test_the_announcement_depends_on_the_cache(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path))
    monkeypatch.setenv("nvcc_path", "")
    assert not prepare.core_is_compiled()
    prepare.prepare_device("cpu")
    first = capsys.readouterr().out
    levels = f"jt1.3.11/g++12.2.0/py{platform.python_version()}/Linux/CPU/12ab/default"
    cache = tmp_path / ".cache/jittor" / levels / "cu12.2.0_sm_90"
    cache.mkdir(parents=True)
    (cache / "jittor_core.cpython-311-x86_64-linux-gnu.so").touch()
    assert not prepare.core_is_compiled()  # that of CUDA is another
    monkeypatch.setenv("nvcc_path", "/usr/local/cuda/bin/nvcc")
    assert prepare.core_is_compiled()
    (cache.parent / "jittor_core.cpython-311-x86_64-linux-gnu.so").touch()
    prepare.prepare_device("cpu")
    later = capsys.readouterr().out
    assert "core once per machine" in first and "core" not in later
    assert first.count("\n") == later.count("\n") == 1


def test_devices_and_threads_that_compile_on_a_machine_without_cuda():
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
    environment = {**os.environ, "nvcc_path": "", "log_silent": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    *found, message = eval(done.stdout.splitlines()[-1])
    assert found == ["cpu", 0, "cpu", len(os.sched_getaffinity(0))]
    assert message.startswith("--device cuda: ") and message.endswith("; use --device cpu")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors are left alone")
def test_subnormal_numbers_are_zero_in_every_thread_from_the_start():
    source = (
        "import threading, numpy as np\n"
        "from util.startup.prepare import prepare; prepare()\n"
        "def show(): print(*np.float32([1e-30]) * np.float32([1e-10, 1]))\n"
        "show(); threading.Thread(target=show).start()\n"
        "import scipy.optimize, matplotlib.figure\n"
    )
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0.0 1e-30\n" * 2, "")


@pytest.mark.parametrize(
    "given, expected",
    [({}, "500"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_that_wait_do_not_spin_long(given, expected):
    """OpenMP reads the environment when it is loaded: that must not be before."""
    source = (
        "import main; from util.startup.prepare import prepare; from pathlib import Path\n"
        "assert 'libgomp' not in Path('/proc/self/maps').read_text()\n"
        "prepare(); import os; print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run(
        [sys.executable, "-c", source],
        cwd=ROOT,
        env={**environment, **given},
        text=True,
        capture_output=True,
    )
    assert done.stdout == f"{expected}\n", done.stderr


def test_at_a_usual_start_jittor_prints_nothing():
    environment = {name: value for name, value in os.environ.items() if name != "log_silent"}
    done = subprocess.run(
        [sys.executable, "-c", "from util.backend import jt; print(jt.ones(1).item())"],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
    )
    assert (done.stdout, done.stderr) == ("1.0\n", "")
