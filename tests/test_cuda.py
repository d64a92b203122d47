"""Which CUDA is chosen, and what is said of one that does not fit: with made-up toolkits, on a
machine with or without a GPU.
"""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from processes import REPO

from util import step_memory
from util.backend import jt, select_device
from util.errors import InputError
from util.startup import cuda
from util.startup.prepare import prepare_device

LIBRARIES = [
    f"lib{name}.so"
    for name in (
        "cudart",
        "cublas",
        "cudnn",
        "cudnn_ops_infer",
        "cudnn_ops_train",
        "cudnn_cnn_infer",
        "cudnn_cnn_train",
        "curand",
        "cufft",
        "cusparse",
    )
]
HEADERS = ["cuda_runtime.h", "cublas.h", "cudnn.h", "curand.h", "cufft.h", "cusparse.h", "npp.h"]


def make_program(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + "".join(f"echo {line}\n" for line in lines))
    path.chmod(0o755)
    return path


def make_toolkit(home, version="12.4", cudnn=8, gcc=13, lacking=(), lib="lib64"):
    """The files that a toolkit's user looks for, empty. Returns its nvcc."""
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
    """A machine with a GPU of compute capability 8.0, a driver for CUDA 12.4, g++ 12 and no
    toolkit. Returns its variables.
    """
    compiler = make_program(tmp_path / "g++", "12")
    variables = {"HOME": str(tmp_path), "PATH": str(tmp_path / "bin"), "cc_path": str(compiler)}
    monkeypatch.setattr(os, "environ", variables)
    monkeypatch.setattr(cuda, "_has_gpu", lambda: True)
    monkeypatch.setattr(cuda, "_driver_version", lambda: (12, 4))
    monkeypatch.setattr(cuda, "_compute_capabilities", lambda: [80])
    monkeypatch.setattr(cuda, "obstacle", None)
    return variables


def prepare(tmp_path, *nvccs):
    """The nvcc that is chosen where these are on PATH, as a string, and the obstacle."""
    os.environ["PATH"] = os.pathsep.join(str(nvcc.parent) for nvcc in nvccs)
    cuda.prepare(tmp_path / "jtcuda")
    return os.environ["nvcc_path"], cuda.obstacle


def test_a_complete_toolkit_is_taken_and_nothing_downloaded(tmp_path, machine):
    nvcc = make_toolkit(tmp_path / "cuda")
    assert prepare(tmp_path, nvcc) == (str(nvcc), None)
    assert [machine[name] for name in ("use_cutlass", "use_cutt", "use_nccl")] == [
        "0"
    ] * 3 and "nvcc_flags" not in machine


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
            r"bin/nvcc is CUDA 13\.0, and Jittor works with 11 and 12",
            "install_cuda",
        ),
        (
            dict(version="10.2"),
            r"bin/nvcc is CUDA 10\.2, and Jittor works with 11 and 12",
            "install_cuda",
        ),
        (dict(lib="lib"), r"bin/nvcc has no .*/lib64/libcudart\.so", "install_cuda"),  # conda's
        (
            dict(lacking=["npp.h", "libcudnn_cnn_train.so"]),
            r"\(CUDA 12\.4\) lacks npp\.h, libcudnn_cnn_train\.so$",
            "install_cuda",
        ),
        (
            dict(gcc=11),
            r"\(CUDA 12\.4\) does not work with .*/g\+\+ 12$",
            "install g++-11 and set cc_path=g++-11",
        ),
        (
            dict(version="12.4", driver=(11, 8)),
            "the driver supports CUDA 11.8 at most",
            "update the driver, or ",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    tmp_path, machine, monkeypatch, capsys, toolkit, reason, remedy
):
    monkeypatch.setattr(
        cuda, "_driver_version", lambda driver=toolkit.pop("driver", (13, 0)): driver
    )
    nvcc = make_toolkit(tmp_path / "cuda", **toolkit)
    chosen, obstacle = prepare(tmp_path, nvcc)
    assert chosen == "" and remedy in obstacle.remedy
    with pytest.raises(InputError, match=f"^--device cuda: .*{reason}".rstrip("$")) as error:
        prepare_device("cuda")
    assert str(error.value).endswith(f"; {obstacle.remedy}, or use --device cpu")
    prepare_device("auto")
    err = capsys.readouterr().err
    assert (
        err.startswith(f"warning: the GPU is not used: {obstacle.reason}; ")
        and err.count("\n") == 1
    )
    prepare_device("cpu")
    assert capsys.readouterr().err == ""


def test_all_toolkits_are_tried_and_the_first_is_blamed(tmp_path, machine):
    """A script that is named nvcc, as ccache's, hides none."""
    wrapper = make_program(
        tmp_path / "wrappers/nvcc", "Cuda compilation tools, release 12.4, V12.4.99"
    )
    broken = make_program(tmp_path / "broken/bin/nvcc", "segmentation fault")
    good = make_toolkit(tmp_path / "cuda")
    assert prepare(tmp_path, wrapper, broken, good) == (str(good), None)
    del machine["nvcc_path"]
    chosen, obstacle = prepare(tmp_path, broken, wrapper)
    assert chosen == "" and obstacle.reason == f"{broken} --version fails"


def test_a_link_to_a_toolkit_is_followed(tmp_path, machine):
    nvcc = make_toolkit(tmp_path / "cuda")
    link = tmp_path / "links/nvcc"
    link.parent.mkdir()
    link.symlink_to(nvcc)
    assert prepare(tmp_path, link) == (str(link), None)


def test_cuda_11_may_have_cudnn_under_its_number(tmp_path, machine):
    names = [name for name in LIBRARIES if "cudnn" in name]
    nvcc = make_toolkit(tmp_path / "cuda", version="11.8", lacking=names)
    for name in names:
        (tmp_path / "cuda/lib64" / f"{name}.8").touch()
    assert prepare(tmp_path, nvcc) == (str(nvcc), None)


def test_an_empty_folder_is_no_cuda_of_jittors(tmp_path, machine):
    """A download that failed leaves it, and Jittor would try again at the import."""
    (tmp_path / "jtcuda").mkdir()
    nvcc = make_toolkit(tmp_path / "cuda")
    assert prepare(tmp_path, nvcc) == (str(nvcc), None)
    assert not (tmp_path / "jtcuda").exists()


@pytest.mark.parametrize(
    "driver, name", [((12, 4), "cuda12.2_cudnn8_linux"), ((11, 4), "cuda11.2_cudnn8_linux")]
)
def test_jittors_own_cuda_comes_first_where_it_is_whole(
    tmp_path, machine, monkeypatch, driver, name
):
    monkeypatch.setattr(cuda, "_driver_version", lambda: driver)
    own = make_toolkit(tmp_path / "jtcuda" / name, version=name[4:8])
    assert prepare(tmp_path, make_toolkit(tmp_path / "cuda", version=name[4:8])) == (str(own), None)
    own.unlink()
    del machine["nvcc_path"]
    chosen, obstacle = prepare(tmp_path)
    assert (
        chosen == ""
        and f"{tmp_path}/jtcuda is incomplete" in obstacle.reason
        and obstacle.remedy.startswith("remove that folder")
    )


def test_no_toolkit(tmp_path, machine, monkeypatch):
    monkeypatch.setattr(cuda, "_system_toolkits", lambda: [])
    chosen, obstacle = prepare(tmp_path)
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
def test_where_there_is_no_gpu_nothing_is_said_unless_cuda_is_asked_for(
    tmp_path, machine, monkeypatch, capsys, visible, reason
):
    if visible is None:
        monkeypatch.setattr(cuda, "_has_gpu", lambda: False)
    else:
        machine["CUDA_VISIBLE_DEVICES"] = visible
    assert prepare(tmp_path, make_toolkit(tmp_path / "cuda"))[0] == ""
    prepare_device("auto")
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match=f"--device cuda: .*{reason}.*; use --device cpu"):
        prepare_device("cuda")


def test_what_the_user_set_stays(tmp_path, machine):
    machine.update(nvcc_path="/my/nvcc", use_cutt="1", use_cutlass="1", use_nccl="1")
    cuda.prepare(tmp_path / "jtcuda")
    assert [machine[name] for name in ("nvcc_path", "use_cutt", "use_cutlass", "use_nccl")] == [
        "/my/nvcc",
        "1",
        "1",
        "1",
    ]


def test_cpu_imports_no_cuda(tmp_path, machine):
    prepare(tmp_path, make_toolkit(tmp_path / "cuda"))
    prepare_device("cpu")
    assert machine["nvcc_path"] == ""


@pytest.mark.parametrize(
    "gpus, version, flags",
    [
        ([80], "12.4", None),
        ([90], "12.4", None),
        ([90], "11.2", "-code=compute_86"),
        ([120], "12.4", "-code=compute_90"),
        ([120, 80], "12.4", "-code=compute_80"),
    ],
)
def test_a_gpu_newer_than_the_compiler_gets_code_that_the_driver_translates(
    tmp_path, machine, monkeypatch, gpus, version, flags
):
    monkeypatch.setattr(cuda, "_compute_capabilities", lambda: gpus)
    prepare(tmp_path, make_toolkit(tmp_path / "cuda", version=version))
    assert machine.get("nvcc_flags", "").strip() == (flags or "")


@pytest.mark.parametrize(
    "reachable, there, visible, shown, said",
    [
        (True, False, None, None, "compiles it, once per machine"),
        (False, True, None, None, ""),
        (False, False, None, "1", "NCCL is missing"),
        (False, False, "5,7", "7", "NCCL is missing"),
    ],
)
def test_several_processes_need_nccl_or_are_shown_a_gpu_each(
    tmp_path, machine, monkeypatch, capsys, reachable, there, visible, shown, said
):
    machine.update(
        OMPI_COMM_WORLD_SIZE="4", OMPI_COMM_WORLD_RANK="0", OMPI_COMM_WORLD_LOCAL_RANK="3"
    )
    if visible:
        machine["CUDA_VISIBLE_DEVICES"] = visible
    monkeypatch.setattr(cuda, "_compute_capabilities", lambda: [80, 80])
    prepare(tmp_path, make_toolkit(tmp_path / "cuda"))
    assert "use_nccl" not in machine
    library = tmp_path / "nccl/nccl-2.8.4-1/build/lib/libnccl.so"
    if there:
        library.parent.mkdir(parents=True)
        library.touch()
    cuda.prepare_processes(tmp_path / "nccl", lambda address: reachable)
    assert machine.get("CUDA_VISIBLE_DEVICES") == (shown or visible)
    assert machine.get("use_nccl") == ("0" if shown else None)
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == bool(said)


def test_what_a_gpu_holds_is_freed_between_batches_when_it_is_most_of_its_memory(monkeypatch):
    held, freed = 0, []

    class FakeJittor:
        flags = SimpleNamespace(use_cuda=1)

        @staticmethod
        def get_mem_info():
            return SimpleNamespace(total_cuda_ram=40 << 30, total_cuda_used=held << 30)

        @staticmethod
        def gc():
            freed.append(held)

    monkeypatch.setattr("util.backend.jt", FakeJittor)
    memory = step_memory.StepMemory()
    for held in (1, 20, 35, 37, 5):
        memory.tidy()
    assert freed == [37]


@pytest.mark.parametrize("count", [0, -1])
def test_a_toolkit_without_a_visible_gpu_is_said(monkeypatch, capsys, count):
    """As on a machine of one GPU where CUDA_VISIBLE_DEVICES names a second."""
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


def test_without_a_gpu_device_cuda_ends_at_once():
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("nvcc_path", None)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "main.py", "--demo", "--device", "cuda"],
        cwd=REPO,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 1 and "Jittor" not in done.stdout and len(lines) == 1, lines
    assert lines[0].startswith("error: --device cuda: ") and lines[0].endswith("use --device cpu")
    assert " jittor_utils\n" not in done.stderr


def test_the_acceptance_says_that_there_is_no_gpu(tmp_path):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("nvcc_path", None)
    done = subprocess.run(
        [sys.executable, "-m", "tests.cuda", "--out", str(tmp_path / "out")],
        cwd=REPO,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert (
        done.stderr.startswith("tests.cuda needs a GPU: --device cuda: ")
        and not (tmp_path / "out").exists()
    )
