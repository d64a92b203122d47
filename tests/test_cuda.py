"""Using the GPU, and what happens without one; tests/test_toolkit.py has what start-up finds."""

from types import SimpleNamespace

import pytest
from processes import run_python

from util import backend, step_memory
from util.backend import jt, select_device
from util.errors import InputError

NO_GPU = dict(CUDA_VISIBLE_DEVICES="", nvcc_path=None)


def test_the_doctor_works_without_a_gpu_and_without_jittor():
    done = run_python("-X", "importtime", "-m", "util.doctor", **NO_GPU)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) < 30, done.stderr
    assert any("--device auto takes the CPU" in line for line in lines)
    assert " jittor_utils\n" not in done.stderr


@pytest.mark.parametrize("name", ["cub", "cudnn"])
def test_a_cuda_module_that_does_not_build_is_one_line(monkeypatch, name):
    """Jittor only logs it, and not with log_silent=1."""
    monkeypatch.setattr(jt, "has_cuda", True)
    for module in backend.CUDA_MODULES:
        monkeypatch.setattr(jt.compile_extern, module, object(), raising=False)
    backend.check_cuda_modules()
    monkeypatch.setattr(jt.compile_extern, name, None)
    with pytest.raises(SystemExit, match=rf"^error: Jittor's CUDA modules .*\({name} missing, "):
        backend.check_cuda_modules()


def test_gpu_memory_is_freed_between_batches_if_it_is_almost_full(monkeypatch):
    held, freed = 0, []

    class FakeJittor:
        flags = SimpleNamespace(use_cuda=1)

        @staticmethod
        def get_mem_info():
            return SimpleNamespace(total_cuda_ram=40 << 30, total_cuda_used=held << 30)

        @staticmethod
        def gc():
            freed.append(held)

    monkeypatch.setattr(step_memory, "jt", FakeJittor)
    memory = step_memory.StepMemory()
    for held in (1, 20, 35, 37, 5):
        memory.tidy()
    assert freed == [37]


@pytest.mark.parametrize("count", [0, -1])
def test_a_toolkit_without_a_visible_gpu_is_reported(monkeypatch, capsys, count):
    """For example CUDA_VISIBLE_DEVICES=1 on a machine with one GPU."""
    monkeypatch.setenv("nvcc_path", "/usr/local/cuda/bin/nvcc")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setattr(jt, "has_cuda", True)
    monkeypatch.setattr(jt, "get_device_count", lambda: count)
    assert select_device("auto") == "cpu"
    message = "the CPU is used: CUDA finds no GPU (CUDA_VISIBLE_DEVICES: 1)"
    assert capsys.readouterr().err == f"warning: {message}\n"
    assert select_device("cpu") == "cpu" and capsys.readouterr().err == ""
    with pytest.raises(InputError, match="--device cuda: Jittor finds no GPU"):
        select_device("cuda")


def test_device_cuda_without_a_gpu_fails_before_jittor(tmp_path):
    done = run_python("-X", "importtime", *"main.py --demo --device cuda".split(), **NO_GPU)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 1 and "Jittor" not in done.stdout and len(lines) == 1, lines
    assert lines[0].startswith("error: --device cuda: ") and lines[0].endswith("use --device cpu")
    assert " jittor_utils\n" not in done.stderr


def test_the_acceptance_without_a_gpu_fails_in_one_line(tmp_path):
    done = run_python("-m", "tests.cuda", "--out", tmp_path / "out", **NO_GPU)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("tests.cuda needs a GPU: --device cuda: ")
    assert not (tmp_path / "out").exists()
