"""Compiling operators: the precompiled header, progress, and Jittor's tuner."""

import fcntl
import os
import shlex
import subprocess
import types
from pathlib import Path

import numpy as np
import pytest
import tiny
from processes import finish, start_mpi

from util import backend
from util.backend import jt
from util.startup import compilation


@pytest.fixture
def flags(tmp_path, monkeypatch):
    """Fake `jittor.flags`, with a header that compiles fast."""
    monkeypatch.setattr(compilation, "HEADER", "#include <cmath>\n")
    options = '-std=c++14 -Ofast -shared -L"/nowhere" -lnothing'
    return types.SimpleNamespace(
        cc_type="g++", cc_path="g++", cc_flags=options, cache_path=str(tmp_path)
    )


def list_includes(flags, source):
    """Return the files that g++ reads for a source, in order; `!` before a precompiled header."""
    options = [flag for flag in shlex.split(flags.cc_flags) if not flag.startswith(("-l", "-L"))]
    command = [flags.cc_path, *options, "-g", "-S", "-H", "-o", "/dev/null", "-x", "c++", "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=True)
    return done.stderr.splitlines()


def test_the_compiler_uses_the_header(flags):
    compilation.use_precompiled_header(flags)
    read = list_includes(flags, "#include <cmath>\nint main() {}\n")
    assert read[0].startswith("! ") and read[0].endswith("operators.h.gch")


def test_it_is_built_once_per_compiler_and_flags(flags, tmp_path):
    first = flags.cc_flags
    compilation.use_precompiled_header(flags)
    [header] = tmp_path.rglob("operators.h.gch")
    before = header.stat().st_mtime_ns
    flags.cc_flags = first
    compilation.use_precompiled_header(flags)
    assert header.stat().st_mtime_ns == before
    flags.cc_flags = first.replace("-Ofast", "-O0")
    compilation.use_precompiled_header(flags)
    assert len(list(tmp_path.rglob("operators.h.gch"))) == 2


def test_a_failure_to_precompile_is_only_a_warning(flags, monkeypatch, capsys):
    monkeypatch.setattr(compilation, "HEADER", "#include <no_such_header>\n")
    compilation.use_precompiled_header(flags)
    assert "Jittor's headers cannot be precompiled: " in capsys.readouterr().err
    assert "-include" not in flags.cc_flags
    assert not any("gch" in line for line in list_includes(flags, "int main() {}\n"))


def test_other_compilers_are_left_alone(flags):
    flags.cc_type = "clang"
    before = flags.cc_flags
    compilation.use_precompiled_header(flags)
    assert flags.cc_flags == before


def test_the_folder_of_this_host_is_jittors():
    assert compilation.get_host_folder() in Path(jt.flags.cache_path).parts


def test_a_new_operator_of_jittor_is_compiled_with_it():
    x = jt.array([1.0, 2.0, 3.0])
    assert jt.code([3], "float32", [x], cpu_src="out0_p[0] = 8325.5f;").numpy()[0] == 8325.5
    sources = Path(jt.flags.cache_path, "jit").glob("code__*_op.cc")
    [source] = [path for path in sources if "8325.5f" in path.read_text()]
    read = list_includes(jt.flags, source.read_text())
    assert read[0].startswith("! ") and "operators.h.gch" in read[0]
    assert not any("var.h" in line for line in read), "Jittor's headers are not read again"


def test_a_process_that_waits_for_jittors_lock_says_so():
    code = "from util.startup import machine; machine.LOCK_WAIT = 0.2; import util.backend"
    with open(backend.jittor_utils.lock.lock_path) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = start_mpi(1, "-c", code)
        line = process.stdout.readline()
    assert line.startswith(f"process {process.pid} waits for process {os.getpid()}, ")
    assert line.endswith(f" {lock.name} while it compiles\n")
    assert finish(process) == (0, "")


@pytest.mark.parametrize(
    "flags", ["--backbone tiny --backbone_norm batch", "--backbone resnet18", "--masks"]
)
def test_jittors_tuner_replaces_no_operator(flags):
    """It would change the graph in compiling threads; see `ops.convolution.ConvOneDNN`."""
    sizes = "--hidden_dim 128 --nheads 8"
    model, criterion, _ = tiny.build(tiny.arguments(sizes, flags))
    model.train()
    samples, targets = tiny.make_batch(0)
    for target, size in zip(targets, ((64, 96), (80, 64))):
        target["masks"] = np.ones((1, *size), bool)
    with jt.profile_scope() as report:
        losses = criterion(model(samples.to_jittor()), targets)
        names = [name for name in losses if name in criterion.weight_dict]
        parameters = [p for p in model.parameters() if not p.is_stop_grad()]
        gradients = jt.grad(sum(losses[name] for name in names), parameters)
        jt.fetch_sync(gradients)
    sources = [Path(row[1]) for row in report[1:]]
    assert len(sources) > 50
    assert not [path for path in sources if "relay_groups" in path.read_text()]
