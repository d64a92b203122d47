"""Choosing a CUDA toolkit among fake ones, and NCCL."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_cuda import (
    make_cuda_wheels,
    make_cudnn,
    make_cudnn_wheel,
    make_program,
    make_toolkit,
    make_wheel,
    write,
)

from util import doctor
from util.errors import InputError
from util.startup import cuda, gpu, toolkit
from util.startup.prepare import prepare_device

OPENED_BY_JITTOR = """
    libcudart.so libcublas.so libcublasLt.so libcudnn.so libcudnn_ops_infer.so
    libcudnn_ops_train.so libcudnn_cnn_infer.so libcudnn_cnn_train.so libcurand.so libcufft.so
    libcusparse.so
""".split()
INSTALL, WHEELS = "jittor_utils.install_cuda", "-m pip install -r requirements-cuda.txt"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Fake a GPU of compute capability 8.0, a driver for CUDA 13.0, and g++ 12; no toolkit.

    Returns the environment variables.
    """
    compiler = make_program(tmp_path / "g++", "12")
    variables = {"HOME": str(tmp_path), "PATH": str(tmp_path / "bin"), "cc_path": str(compiler)}
    monkeypatch.setattr(os, "environ", variables)
    monkeypatch.setattr(toolkit, "SYSTEM", tmp_path / "usr")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(gpu, "has_gpu", lambda: True)
    set_gpus(monkeypatch, 80)
    set_driver(monkeypatch, 13, 0)
    monkeypatch.setattr(cuda, "obstacle", None)
    return variables


def set_driver(monkeypatch, *version):
    monkeypatch.setattr(gpu, "get_driver_version", lambda: version)


def set_gpus(monkeypatch, *capabilities):
    gpus = [gpu.GPU("Fake", capability, 40 << 30) for capability in capabilities]
    monkeypatch.setattr(gpu, "get_gpus", lambda: gpus)


def choose(tmp_path, *nvccs):
    """Return the nvcc that is chosen if these are on PATH, and the obstacle.

    Checks the CUDA home that Jittor gets.
    """
    os.environ.pop("nvcc_path", None)
    os.environ["PATH"] = os.pathsep.join(str(nvcc.parent) for nvcc in nvccs)
    cuda.choose_toolkit(tmp_path / "cache")
    if not os.environ["nvcc_path"]:
        return None, cuda.obstacle
    home = Path(os.environ["nvcc_path"]).parent.parent
    assert all((home / "lib64" / name).is_file() for name in OPENED_BY_JITTOR)
    for name in ("cuda_runtime.h", "cudnn.h", "npp.h"):
        assert (home / "include" / name).read_text().startswith("//")
    return Path(os.readlink(home / "bin/nvcc.toolkit")), cuda.obstacle


def test_a_complete_toolkit_is_chosen_and_nothing_downloaded(tmp_path, machine):
    nvcc = make_toolkit(tmp_path / "cuda")
    assert choose(tmp_path, nvcc) == (nvcc, None)
    assert [machine[name] for name in ("use_cutlass", "use_cutt", "use_nccl")] == ["0"] * 3
    assert "nvcc_flags" not in machine


def test_the_compiler_of_the_staged_home_is_the_toolkits_with_cpp17(tmp_path, machine):
    nvcc = make_toolkit(tmp_path / "cuda", "13.2", "9.28.1")
    nvcc.write_text('#!/bin/sh\necho "release 13.2, [$*]"\necho sm_80\n')
    choose(tmp_path, nvcc)
    done = subprocess.run([machine["nvcc_path"], "-std=c++14", "a b"], capture_output=True)
    assert done.stdout == b"release 13.2, [-std=c++17 a b]\nsm_80\n"


def make_debians_toolkit(tmp_path):
    """nvcc, headers and libraries in /usr, as Debian's package nvidia-cuda-toolkit has them."""
    return make_toolkit(tmp_path / "usr", lib="lib/x86_64-linux-gnu")


def make_conda_toolkit(tmp_path):
    nvcc = make_toolkit(tmp_path / "conda", lib="targets/x86_64-linux/lib")
    (tmp_path / "conda/include").rename(tmp_path / "conda/targets/x86_64-linux/include")
    return nvcc


def make_toolkit_and_systems_cudnn(tmp_path):
    make_cudnn(tmp_path / "usr/include", tmp_path / "usr/lib/x86_64-linux-gnu", "9.12.0")
    return make_toolkit(tmp_path / "cuda", "13.0", None)


def make_toolkit_and_cudnn_wheel(tmp_path):
    make_cudnn_wheel(tmp_path / "site", 12, "8.9.7")
    return make_toolkit(tmp_path / "cuda", "12.2", None)


def make_toolkit_with_an_old_cudnn(tmp_path):
    make_cudnn_wheel(tmp_path / "site", 12, "9.28.1")
    return make_toolkit(tmp_path / "cuda", "12.2", "7.6.5")


@pytest.mark.parametrize(
    "make",
    [
        lambda path: make_cuda_wheels(path / "site"),
        lambda path: make_toolkit(path / "cuda", "13.0", "9.12.0"),
        lambda path: make_toolkit(path / "cuda", "12.4", "9.1.0"),
        lambda path: make_toolkit(path / "cuda", "11.8", "8.6.0"),
        make_debians_toolkit,
        make_conda_toolkit,
        make_toolkit_and_systems_cudnn,
        make_toolkit_and_cudnn_wheel,
        make_toolkit_with_an_old_cudnn,
    ],
)
def test_a_toolkit_that_jittor_does_not_know_is_made_to_fit(tmp_path, machine, make):
    nvcc = make(tmp_path)
    assert choose(tmp_path, nvcc) == (nvcc, None)
    home = Path(machine["nvcc_path"]).parent.parent
    has_new_cub = (home / "include/cccl").exists()
    assert (home / "include/cub/cub.cuh").exists() != (nvcc.parent == tmp_path / "usr/bin")
    assert (home / "include/cub").is_symlink() != has_new_cub or nvcc.parent == tmp_path / "usr/bin"


@pytest.mark.parametrize(
    "arguments, gpus, driver, reason, remedy",
    [
        (
            dict(version="13.0", cudnn=None),
            [80],
            (13, 0),
            r"there is no cuDNN for .*bin/nvcc \(CUDA 13\.0\)",
            "-m pip install --no-deps nvidia-cudnn-cu13==9.",
        ),
        (
            dict(cudnn=None),
            [80],
            (12, 4),
            r"there is no cuDNN for .*bin/nvcc \(CUDA 12\.4\)",
            "-m pip install --no-deps nvidia-cudnn-cu12==8.9.7.29",
        ),
        (
            dict(cudnn="7.6.5"),
            [80],
            (12, 4),
            r"cuDNN 7\.6\.5 in .*include does not fit .*bin/nvcc \(CUDA 12\.4\)",
            "-m pip install --no-deps nvidia-cudnn-cu12==8.9.7.29",
        ),
        (
            dict(version="12.8", codes="sm_80 sm_90 sm_120"),
            [120],
            (13, 0),
            r"cuDNN 8\.9\.7 in .*include does not fit .*bin/nvcc \(CUDA 12\.8\)",
            "-m pip install --no-deps nvidia-cudnn-cu12==9.",
        ),
        (
            dict(version="10.2", codes="sm_70"),
            [70],
            (12, 4),
            r"bin/nvcc \(CUDA 10\.2\) does not fit: Jittor works with CUDA 11, 12 and 13",
            INSTALL,
        ),
        (
            dict(lacking=["cufft.h", "libcusparse.so"]),
            [80],
            (13, 0),
            r"\(CUDA 12\.4\) lacks cufft\.h, libcusparse\.so;",
            WHEELS,
        ),
        (
            dict(gcc=11),
            [80],
            (13, 0),
            r"\(CUDA 12\.4\) does not work with .*/g\+\+ 12;",
            "install g++-11 and set cc_path=g++-11",
        ),
        (
            dict(),
            [80],
            (11, 8),
            "the driver supports at most CUDA 11.8",
            f"update the driver, or `{sys.executable} -m {INSTALL}`",
        ),
        (
            dict(version="13.0", cudnn="9.12.0"),
            [80],
            (12, 4),
            "the driver supports at most CUDA 12.4",
            f"update the driver to 580 or newer, or `{sys.executable} -m {INSTALL}`",
        ),
        (
            dict(version="13.0", cudnn="9.12.0"),
            [70],
            (13, 0),
            r"\(CUDA 13\.0\) does not support GPUs of compute capability 7\.0",
            INSTALL,
        ),
        (
            dict(),
            [80, 120],
            (13, 0),
            r"\(CUDA 12\.4\) does not support GPUs of compute capability 12\.0",
            WHEELS,
        ),
    ],
)
def test_an_obstacle_is_one_line_with_a_remedy(
    tmp_path, machine, monkeypatch, capsys, arguments, gpus, driver, reason, remedy
):
    set_driver(monkeypatch, *driver)
    set_gpus(monkeypatch, *gpus)
    chosen, obstacle = choose(tmp_path, make_toolkit(tmp_path / "cuda", **arguments))
    assert chosen is None and remedy in obstacle.remedy
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
    assert choose(tmp_path, wrapper, broken, good) == (good, None)
    chosen, obstacle = choose(tmp_path, broken, wrapper)
    assert chosen is None and obstacle.reason == f"{broken} --version fails"


def test_wheels_come_before_other_toolkits_unless_they_do_not_fit(tmp_path, machine, monkeypatch):
    nvcc, wheels = make_toolkit(tmp_path / "cuda"), make_cuda_wheels(tmp_path / "site")
    assert choose(tmp_path, nvcc) == (wheels, None)
    set_driver(monkeypatch, 12, 4)
    assert choose(tmp_path, nvcc) == (nvcc, None)
    set_driver(monkeypatch, 13, 0)
    set_gpus(monkeypatch, 70)
    assert choose(tmp_path, nvcc) == (nvcc, None)


def test_wheels_without_a_compiler_do_not_count(tmp_path, machine):
    """Such as those that PyTorch installs."""
    make_cuda_wheels(tmp_path / "site").unlink()
    chosen, obstacle = choose(tmp_path)
    assert chosen is None and obstacle.reason == "there is no CUDA toolkit (nvcc)"
    assert obstacle.remedy.startswith(f"`{sys.executable} {WHEELS}` installs")


def test_a_link_to_nvcc_is_followed(tmp_path, machine):
    nvcc = make_toolkit(tmp_path / "cuda")
    link = tmp_path / "links/nvcc"
    link.parent.mkdir()
    link.symlink_to(nvcc)
    assert choose(tmp_path, link) == (nvcc, None)


def test_uninstalled_wheels_are_not_used(tmp_path, machine):
    """Links to them are dead, and made again once they are back."""
    site = tmp_path / "site"
    nvcc = make_cuda_wheels(site)
    assert choose(tmp_path) == (nvcc, None)
    shutil.rmtree(site)
    assert choose(tmp_path)[1].reason == "there is no CUDA toolkit (nvcc)"
    make_cuda_wheels(site)
    library = Path(machine["HOME"], "site/nvidia/cu13/lib/libcufft.so.13")
    library.rename(library.with_name("libcufft.so.13.1"))
    assert choose(tmp_path) == (nvcc, None)


def test_environments_do_not_share_a_staged_home(tmp_path, machine, monkeypatch):
    make_cuda_wheels(tmp_path / "site")
    choose(tmp_path)
    first = machine["nvcc_path"]
    monkeypatch.syspath_prepend(tmp_path / "other")
    nvcc = make_cuda_wheels(tmp_path / "other")
    assert choose(tmp_path) == (nvcc, None)
    assert machine["nvcc_path"] != first and Path(first).is_file()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, machine):
    make_cuda_wheels(tmp_path / "site")
    write(tmp_path / "cache")
    with pytest.raises(InputError, match="cache/detr_cuda: cannot be written"):
        choose(tmp_path)


def test_a_staging_that_was_interrupted_is_repeated(tmp_path, machine, monkeypatch):
    """For example by a full disk."""
    nvcc = make_cuda_wheels(tmp_path / "site")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(InputError, match="No space left on device"):
        patch.setattr(os, "symlink", fail)
        choose(tmp_path)
    assert choose(tmp_path) == (nvcc, None)
    assert not list((tmp_path / "cache/detr_cuda").glob("staging"))


def test_an_empty_folder_of_jittors_cuda_is_removed(tmp_path, machine):
    """A failed download leaves it, and Jittor's import would try again."""
    (tmp_path / "cache/jtcuda").mkdir(parents=True)
    nvcc = make_toolkit(tmp_path / "cuda")
    assert choose(tmp_path, nvcc) == (nvcc, None)
    assert not (tmp_path / "cache/jtcuda").exists()


@pytest.mark.parametrize(
    "driver, name", [((12, 4), "cuda12.2_cudnn8_linux"), ((11, 4), "cuda11.2_cudnn8_linux")]
)
def test_jittors_cuda_comes_first_unless_it_is_incomplete(
    tmp_path, machine, monkeypatch, driver, name
):
    set_driver(monkeypatch, *driver)
    own = make_toolkit(tmp_path / "cache/jtcuda" / name, version=name[4:8])
    assert choose(tmp_path, make_toolkit(tmp_path / "cuda", version=name[4:8])) == (own, None)
    own.unlink()
    chosen, obstacle = choose(tmp_path)
    assert chosen is None and f"{tmp_path}/cache/jtcuda is incomplete" in obstacle.reason
    assert obstacle.remedy.startswith("remove that folder")


@pytest.mark.parametrize("driver, remedy", [((13, 0), WHEELS), ((12, 9), INSTALL)])
def test_no_toolkit(tmp_path, machine, monkeypatch, driver, remedy):
    set_driver(monkeypatch, *driver)
    chosen, obstacle = choose(tmp_path)
    assert chosen is None and obstacle.reason == "there is no CUDA toolkit (nvcc)"
    assert (
        obstacle.remedy.startswith(f"`{sys.executable} ")
        and f"{remedy}` installs" in obstacle.remedy
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
        monkeypatch.setattr(gpu, "has_gpu", lambda: False)
    else:
        machine["CUDA_VISIBLE_DEVICES"] = visible
    assert choose(tmp_path, make_toolkit(tmp_path / "cuda"))[0] is None
    prepare_device("auto")
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match=f"--device cuda: .*{reason}.*; use --device cpu"):
        prepare_device("cuda")


def test_variables_of_the_user_stay(tmp_path, machine, monkeypatch):
    set_gpus(monkeypatch, 120)
    make_cuda_wheels(tmp_path / "site")
    given = dict(use_cutt="1", use_cutlass="1", use_nccl="1", nvcc_flags="-G")
    machine.update(given)
    choose(tmp_path)
    assert {name: machine[name] for name in given} == given


def test_the_users_nvcc_comes_first_and_needs_no_gpu(tmp_path, machine, monkeypatch):
    make_cuda_wheels(tmp_path / "site")
    monkeypatch.setattr(gpu, "has_gpu", lambda: False)
    set_driver(monkeypatch, 12, 4)
    nvcc = make_toolkit(tmp_path / "cuda")
    machine["nvcc_path"] = str(nvcc)
    cuda.choose_toolkit(tmp_path / "cache")
    staged = machine["nvcc_path"]
    assert Path(staged).with_name("nvcc.toolkit").resolve() == nvcc and cuda.obstacle is None
    cuda.choose_toolkit(tmp_path / "cache")  # in a child process
    assert machine["nvcc_path"] == staged
    machine["nvcc_path"] = "/my/nvcc"
    cuda.choose_toolkit(tmp_path / "cache")
    assert machine["nvcc_path"] == "" and cuda.obstacle.reason == "/my/nvcc --version fails"


def test_device_cpu_does_not_load_cuda(tmp_path, machine):
    choose(tmp_path, make_toolkit(tmp_path / "cuda"))
    prepare_device("cpu")
    assert machine["nvcc_path"] == ""


@pytest.mark.parametrize(
    "gpus, flags",
    [([80], ""), ([90], ""), ([120], "-code=sm_120"), ([121, 80], "-code=sm_120"), ([], "")],
)
def test_code_is_compiled_for_gpus_that_jittor_does_not_know(
    tmp_path, machine, monkeypatch, gpus, flags
):
    set_gpus(monkeypatch, *gpus)
    make_cuda_wheels(tmp_path / "site")
    choose(tmp_path)
    assert machine.get("nvcc_flags", "").strip() == flags


def make_nccl(tmp_path, where):
    """Make NCCL as a wheel, as a package of the system, or as Jittor compiles it."""
    if where == "wheel":
        folder = tmp_path / "site/nvidia/nccl"
        files = [write(folder / "include/nccl.h"), write(folder / "lib/libnccl.so.2")]
        make_wheel(tmp_path / "site", "nvidia-nccl-cu12", "nvidia/nccl")
    elif where == "system":
        library = tmp_path / "usr/lib/x86_64-linux-gnu/libnccl.so"
        files = [write(tmp_path / "usr/include/nccl.h"), write(library)]
    else:
        build = tmp_path / "cache/nccl/nccl-2.8.4-1/build"
        files = [write(build / "include/nccl.h"), write(build / "lib/libnccl.so")]
    return files


@pytest.fixture
def processes(machine, monkeypatch):
    """The last of four processes on two GPUs."""
    variables = dict(zip(("SIZE", "RANK", "LOCAL_RANK"), "403"))
    machine.update({f"OMPI_COMM_WORLD_{name}": value for name, value in variables.items()})
    set_gpus(monkeypatch, 80, 80)
    return machine


@pytest.mark.parametrize("where", ["wheel", "system", "jittor"])
def test_nccl_is_found(tmp_path, processes, capsys, where):
    files = make_nccl(tmp_path, where)
    choose(tmp_path, make_toolkit(tmp_path / "cuda"))
    cuda.assign_gpus(tmp_path / "cache")
    header = Path(processes["nccl_include_path"], "nccl.h")
    library = Path(processes["nccl_lib_path"], "libnccl.so")
    assert [header.resolve(), library.resolve()] == files
    assert "use_nccl" not in processes and "CUDA_VISIBLE_DEVICES" not in processes
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("visible, expected", [(None, "1"), ("5,7", "7")])
def test_without_nccl_each_process_sees_one_gpu(tmp_path, processes, capsys, visible, expected):
    """Jittor would download NCCL."""
    if visible:
        processes["CUDA_VISIBLE_DEVICES"] = visible
    choose(tmp_path, make_toolkit(tmp_path / "cuda"))
    cuda.assign_gpus(tmp_path / "cache")
    assert (processes["use_nccl"], processes["CUDA_VISIBLE_DEVICES"]) == ("0", expected)
    err = capsys.readouterr().err
    assert err.startswith("warning: NCCL is missing, so gradients are averaged on the CPU")
    assert "-m pip install --no-deps nvidia-nccl-cu12==" in err and err.count("\n") == 1


def test_the_doctor_lists_what_is_used_and_what_is_not(tmp_path, machine):
    system, wheels = (
        make_toolkit(tmp_path / "cuda", cudnn=None),
        make_cuda_wheels(tmp_path / "site"),
    )
    machine.update(PATH=str(system.parent), NVIDIA_TF32_OVERRIDE="0")
    found = dict(doctor.examine())
    assert found["GPUs"] == ["Fake, compute capability 8.0, 40 GiB"]
    fitting, unfit, choice = found["CUDA"]
    assert fitting.startswith(f"fits: {wheels} (CUDA 13.2), cuDNN 9.28.1 in ")
    assert unfit == f"not used: there is no cuDNN for {system} (CUDA 12.4)"
    assert choice == f"--device auto takes the GPU, with {wheels}"
    assert found["NCCL"] == ["missing: nvidia-nccl-cu13==2.32.3"]
    assert "NVIDIA_TF32_OVERRIDE=0" in found["variables"]
    assert not (tmp_path / "cache").exists(), "it writes nothing"
