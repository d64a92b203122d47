"""What keeps Jittor from working on a machine, found before its import."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from prepared import fail, run
from processes import run_python

from util.errors import InputError
from util.startup import compilation, machine


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
