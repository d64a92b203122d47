"""Choosing a CUDA toolkit among fake ones, with or without a GPU, and using the GPU."""

import os
import sys
from types import SimpleNamespace

import pytest
from processes import run_python

from util import step_memory
from util.backend import jt, select_device
from util.errors import InputError
from util.startup import cuda
from util.startup.prepare import prepare_device

# Written down again, so that a mistake in cuda.py fails.
LIBRARIES = """
    libcudart.so libcublas.so libcudnn.so libcudnn_ops_infer.so libcudnn_ops_train.so
    libcudnn_cnn_infer.so libcudnn_cnn_train.so libcurand.so libcufft.so libcusparse.so
""".split()
HEADERS = "cuda_runtime.h cublas.h cudnn.h curand.h cufft.h cusparse.h npp.h".split()


def make_program(path, *lines):
    """Make a program that prints lines; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + "".join(f"echo {line}\n" for line in lines))
    path.chmod(0o755)
    return path


def make_toolkit(home, version="12.4", cudnn=8, gcc=13, lacking=(), lib="lib64"):
    """Make a toolkit of empty files; return its nvcc."""
    for folder, names in ((home / lib, LIBRARIES), (home / "include", HEADERS)):
        folder.mkdir(parents=True)
        for name in set(names) - set(lacking):
            (folder / name).touch()
    (home / "include/cudnn_version.h").write_text(
        f"#define CUDNN_MAJOR {cudnn}\n#define CUDNN_MINOR 9\n"
    )
    (home / "include/crt").mkdir()
    (home / "include/crt/host_config.h").write_text(
        f"#if __GNUC__ > {gcc}\n"
        f"#error -- unsupported GNU version! gcc versions later than {gcc} are not supported!\n"
        "#endif\n"
    )
    return make_program(
        home / "bin/nvcc", f"Cuda compilation tools, release {version}, V{version}.99"
    )


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Fake a GPU of compute capability 8.0, a driver for CUDA 12.4, and g++ 12; no toolkit.

    Returns the environment variables.
    """
    compiler = make_program(tmp_path / "g++", "12")
    variables = {"HOME": str(tmp_path), "PATH": str(tmp_path / "bin"), "cc_path": str(compiler)}
    monkeypatch.setattr(os, "environ", variables)
    monkeypatch.setattr(cuda, "_has_gpu", lambda: True)
    monkeypatch.setattr(cuda, "_get_driver_version", lambda: (12, 4))
    monkeypatch.setattr(cuda, "_get_compute_capabilities", lambda: [80])
    monkeypatch.setattr(cuda, "obstacle", None)
    return variables


def choose(tmp_path, *nvccs):
    """Return the nvcc that is chosen if these are on PATH, and the obstacle."""
    os.environ.pop("nvcc_path", None)
    os.environ["PATH"] = os.pathsep.join(str(nvcc.parent) for nvcc in nvccs)
    cuda.choose_toolkit(tmp_path / "jtcuda")
    return os.environ["nvcc_path"], cuda.obstacle


def test_a_complete_toolkit_is_chosen_and_nothing_downloaded(tmp_path, machine):
    nvcc = make_toolkit(tmp_path / "cuda")
    assert choose(tmp_path, nvcc) == (str(nvcc), None)
    assert [machine[name] for name in ("use_cutlass", "use_cutt", "use_nccl")] == ["0"] * 3
    assert "nvcc_flags" not in machine


@pytest.mark.parametrize(
    "toolkit, reason, remedy",
    [
        (
            dict(cudnn=9),
            r"cudnn_version\.h is cuDNN 9, and Jittor works with cuDNN 8",
            "install_cuda",
        ),
        (
            dict(version="13.0"),
            r"bin/nvcc \(CUDA 13\.0\) does not fit: Jittor works with CUDA 11 and 12",
            "install_cuda",
        ),
        (
            dict(version="10.2"),
            r"bin/nvcc \(CUDA 10\.2\) does not fit: Jittor works with CUDA 11 and 12",
            "install_cuda",
        ),
        (dict(lib="lib"), r"bin/nvcc .* lacks .*/lib64/libcudart\.so", "install_cuda"),  # conda
        (
            dict(lacking=["npp.h", "libcudnn_cnn_train.so"]),
            r"\(CUDA 12\.4\) lacks npp\.h, libcudnn_cnn_train\.so;",
            "install_cuda",
        ),
        (
            dict(gcc=11),
            r"\(CUDA 12\.4\) does not work with .*/g\+\+ 12;",
            "install g++-11 and set cc_path=g++-11",
        ),
        (dict(driver=(11, 8)), "the driver supports at most CUDA 11.8", "update the driver, or "),
    ],
)
def test_an_obstacle_is_one_line_with_a_remedy(
    tmp_path, machine, monkeypatch, capsys, toolkit, reason, remedy
):
    driver = toolkit.pop("driver", (13, 0))
    monkeypatch.setattr(cuda, "_get_driver_version", lambda: driver)
    chosen, obstacle = choose(tmp_path, make_toolkit(tmp_path / "cuda", **toolkit))
    assert chosen == "" and remedy in obstacle.remedy
    with pytest.raises(InputError, match=f"^--device cuda: .*{reason}") as error:
        prepare_device("cuda")
    assert str(error.value).endswith(f"; {obstacle.remedy}, or use --device cpu")
    prepare_device("auto")
    err = capsys.readouterr().err
    assert err.startswith(f"warning: the GPU is not used: {obstacle.reason}; ")
    assert err.count("\n") == 1
    prepare_device("cpu")
    assert capsys.readouterr().err == ""


def test_all_toolkits_are_tried_and_the_first_obstacle_is_reported(tmp_path, machine):
    """A wrapper script named nvcc, such as ccache's, hides no toolkit."""
    wrapper = make_program(
        tmp_path / "wrappers/nvcc", "Cuda compilation tools, release 12.4, V12.4.99"
    )
    broken = make_program(tmp_path / "broken/bin/nvcc", "segmentation fault")
    good = make_toolkit(tmp_path / "cuda")
    assert choose(tmp_path, wrapper, broken, good) == (str(good), None)
    chosen, obstacle = choose(tmp_path, broken, wrapper)
    assert chosen == "" and obstacle.reason == f"{broken} --version fails"


def test_a_link_to_nvcc_is_followed(tmp_path, machine):
    link = tmp_path / "links/nvcc"
    link.parent.mkdir()
    link.symlink_to(make_toolkit(tmp_path / "cuda"))
    assert choose(tmp_path, link) == (str(link), None)


def test_cuda_11_may_have_cudnn_only_under_its_number(tmp_path, machine):
    names = [name for name in LIBRARIES if "cudnn" in name]
    nvcc = make_toolkit(tmp_path / "cuda", version="11.8", lacking=names)
    for name in names:
        (tmp_path / "cuda/lib64" / f"{name}.8").touch()
    assert choose(tmp_path, nvcc) == (str(nvcc), None)


def test_an_empty_folder_of_jittors_cuda_is_removed(tmp_path, machine):
    """A failed download leaves it, and Jittor's import would try again."""
    (tmp_path / "jtcuda").mkdir()
    nvcc = make_toolkit(tmp_path / "cuda")
    assert choose(tmp_path, nvcc) == (str(nvcc), None)
    assert not (tmp_path / "jtcuda").exists()


@pytest.mark.parametrize(
    "driver, name", [((12, 4), "cuda12.2_cudnn8_linux"), ((11, 4), "cuda11.2_cudnn8_linux")]
)
def test_jittors_cuda_comes_first_unless_it_is_incomplete(
    tmp_path, machine, monkeypatch, driver, name
):
    monkeypatch.setattr(cuda, "_get_driver_version", lambda: driver)
    own = make_toolkit(tmp_path / "jtcuda" / name, version=name[4:8])
    assert choose(tmp_path, make_toolkit(tmp_path / "cuda", version=name[4:8])) == (str(own), None)
    own.unlink()
    chosen, obstacle = choose(tmp_path)
    assert chosen == "" and f"{tmp_path}/jtcuda is incomplete" in obstacle.reason
    assert obstacle.remedy.startswith("remove that folder")


def test_no_toolkit(tmp_path, machine, monkeypatch):
    monkeypatch.setattr(cuda, "_find_system_toolkits", lambda: [])
    chosen, obstacle = choose(tmp_path)
    assert chosen == "" and obstacle.reason == "there is no CUDA toolkit (nvcc)"
    assert obstacle.remedy.startswith(
        f"`{sys.executable} -m jittor_utils.install_cuda` installs a CUDA with cuDNN 8"
    )


@pytest.mark.parametrize(
    "visible, reason",
    [
        (None, "no usable NVIDIA GPU"),
        ("", "CUDA_VISIBLE_DEVICES= hides"),
        ("-1", "CUDA_VISIBLE_DEVICES=-1 hides"),
    ],
)
def test_a_missing_gpu_is_reported_only_for_device_cuda(
    tmp_path, machine, monkeypatch, capsys, visible, reason
):
    if visible is None:
        monkeypatch.setattr(cuda, "_has_gpu", lambda: False)
    else:
        machine["CUDA_VISIBLE_DEVICES"] = visible
    assert choose(tmp_path, make_toolkit(tmp_path / "cuda"))[0] == ""
    prepare_device("auto")
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match=f"--device cuda: .*{reason}.*; use --device cpu"):
        prepare_device("cuda")


def test_variables_of_the_user_stay(tmp_path, machine):
    given = dict(nvcc_path="/my/nvcc", use_cutt="1", use_cutlass="1", use_nccl="1")
    machine.update(given)
    cuda.choose_toolkit(tmp_path / "jtcuda")
    assert {name: machine[name] for name in given} == given


def test_device_cpu_does_not_load_cuda(tmp_path, machine):
    choose(tmp_path, make_toolkit(tmp_path / "cuda"))
    prepare_device("cpu")
    assert machine["nvcc_path"] == ""


@pytest.mark.parametrize(
    "gpus, version, flags",
    [
        ([80], "12.4", ""),
        ([90], "12.4", ""),
        ([90], "11.2", "-code=compute_86"),
        ([120], "12.4", "-code=compute_90"),
        ([120, 80], "12.4", "-code=compute_80"),
    ],
)
def test_ptx_is_added_for_a_gpu_newer_than_the_toolkit(
    tmp_path, machine, monkeypatch, gpus, version, flags
):
    monkeypatch.setattr(cuda, "_get_compute_capabilities", lambda: gpus)
    choose(tmp_path, make_toolkit(tmp_path / "cuda", version=version))
    assert machine.get("nvcc_flags", "").strip() == flags


@pytest.mark.parametrize(
    "is_reachable, is_built, visible, expected, message",
    [
        (True, False, None, None, "compiles it, once per machine"),
        (False, True, None, None, ""),
        (False, False, None, "1", "NCCL is missing"),
        (False, False, "5,7", "7", "NCCL is missing"),
    ],
)
def test_without_nccl_each_process_sees_one_gpu(
    tmp_path, machine, monkeypatch, capsys, is_reachable, is_built, visible, expected, message
):
    machine.update(
        OMPI_COMM_WORLD_SIZE="4", OMPI_COMM_WORLD_RANK="0", OMPI_COMM_WORLD_LOCAL_RANK="3"
    )
    if visible:
        machine["CUDA_VISIBLE_DEVICES"] = visible
    monkeypatch.setattr(cuda, "_get_compute_capabilities", lambda: [80, 80])
    monkeypatch.setattr(cuda, "is_reachable", lambda address: is_reachable)
    choose(tmp_path, make_toolkit(tmp_path / "cuda"))
    assert "use_nccl" not in machine
    if is_built:
        library = tmp_path / "nccl/nccl-2.8.4-1/build/lib/libnccl.so"
        library.parent.mkdir(parents=True)
        library.touch()
    cuda.assign_gpus(tmp_path / "nccl")
    assert machine.get("CUDA_VISIBLE_DEVICES") == expected
    assert machine.get("use_nccl") == ("0" if expected else None)
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == bool(message)


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


NO_GPU = dict(CUDA_VISIBLE_DEVICES="", nvcc_path=None)


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
