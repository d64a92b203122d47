"""Choosing a CUDA toolkit among fake ones, with or without a GPU, and using the GPU."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import run_python

from util import backend, doctor, step_memory
from util.backend import jt, select_device
from util.errors import InputError
from util.startup import cuda, gpu, nccl, toolkit
from util.startup.prepare import prepare_device

# Written down again, so that a mistake in toolkit.py fails.
LIBRARIES = """
    libcudart.so libcublas.so libcublasLt.so libcurand.so libcufft.so libcusparse.so
""".split()
CUDNN_LIBRARIES = {
    8: """
        libcudnn.so.8 libcudnn_ops_infer.so.8 libcudnn_ops_train.so.8 libcudnn_cnn_infer.so.8
        libcudnn_cnn_train.so.8
    """.split(),
    9: "libcudnn.so.9 libcudnn_ops.so.9 libcudnn_cnn.so.9 libcudnn_graph.so.9".split(),
}
HEADERS = "cuda_runtime.h cublas.h curand.h cufft.h cusparse.h cub/cub.cuh".split()
OPENED_BY_JITTOR = """
    libcudart.so libcublas.so libcublasLt.so libcudnn.so libcudnn_ops_infer.so
    libcudnn_ops_train.so libcudnn_cnn_infer.so libcudnn_cnn_train.so libcurand.so libcufft.so
    libcusparse.so
""".split()
CODES = {
    11: "sm_52 sm_70 sm_80 sm_86",
    12: "sm_52 sm_70 sm_80 sm_90",
    13: "sm_75 sm_80 sm_90 sm_120",
}
INSTALL, WHEELS = "jittor_utils.install_cuda", "-m pip install -r requirements-cuda.txt"


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def make_program(path, *lines):
    """Make a program that prints lines; return its path."""
    write(path, "#!/bin/sh\n" + "".join(f"echo {line}\n" for line in lines)).chmod(0o755)
    return path


def make_cudnn(headers, libraries, version="8.9.7"):
    numbers = zip(("MAJOR", "MINOR", "PATCHLEVEL"), version.split("."))
    lines = "".join(f"#define CUDNN_{name} {number}\n" for name, number in numbers)
    write(headers / "cudnn_version.h", lines)
    write(headers / "cudnn.h")
    for name in CUDNN_LIBRARIES.get(int(version.split(".")[0]), ()):
        write(libraries / name)


def make_toolkit(home, version="12.4", cudnn="8.9.7", gcc=13, lacking=(), lib="lib64", codes=None):
    """Make a toolkit of empty files, cudnn: version or None; return its nvcc."""
    major, headers = int(version.split(".")[0]), home / "include"
    for name in set(HEADERS) - set(lacking):
        write(headers / ("cccl" if major == 13 and "cub" in name else ".") / name)
    for name in set(LIBRARIES) - set(lacking):
        write(home / lib / f"{name}.{major}")
    if cudnn:
        make_cudnn(headers, home / lib, cudnn)
    write(
        headers / "crt/host_config.h",
        f"#if __GNUC__ > {gcc}\n"
        f"#error -- unsupported GNU version! gcc versions later than {gcc} are not supported!\n"
        "#endif\n",
    )
    release = f"Cuda compilation tools, release {version}, V{version}.99"
    return make_program(home / "bin/nvcc", release, *(codes or CODES[major]).split())


def make_wheel(site, name, folder):
    """Write the metadata of an installed wheel whose files are those in a folder of site."""
    files = [path for path in (site / folder).rglob("*") if path.is_file()]
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    write(info / "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    write(info / "RECORD", "".join(f"{path.relative_to(site)},,\n" for path in files))


def make_cuda_wheels(site, codes=None):
    """Make CUDA 13 as pip installs it, with cuDNN 9 beside it; return its nvcc."""
    nvcc = make_toolkit(site / "nvidia/cu13", "13.2", None, 15, lib="lib", codes=codes)
    make_wheel(site, "nvidia-cuda-nvcc", "nvidia/cu13")
    make_cudnn_wheel(site)
    return nvcc


def make_cudnn_wheel(site, cuda=13, version="9.28.1"):
    make_cudnn(site / "nvidia/cudnn/include", site / "nvidia/cudnn/lib", version)
    make_wheel(site, f"nvidia-cudnn-cu{cuda}", "nvidia/cudnn")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Fake a GPU of compute capability 8.0, a driver for CUDA 13.0, and g++ 12; no toolkit.

    Returns the environment variables.
    """
    compiler = make_program(tmp_path / "g++", "12")
    variables = {"HOME": str(tmp_path), "PATH": str(tmp_path / "bin"), "cc_path": str(compiler)}
    monkeypatch.setattr(os, "environ", variables)
    monkeypatch.setattr(toolkit, "SYSTEM", tmp_path / "usr")
    monkeypatch.setattr(nccl, "SYSTEM", tmp_path / "usr")
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
