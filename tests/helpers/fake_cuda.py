"""CUDA toolkits, cuDNN and wheels that are empty files, to test what start-up finds."""

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
CODES = {
    11: "sm_52 sm_70 sm_80 sm_86",
    12: "sm_52 sm_70 sm_80 sm_90",
    13: "sm_75 sm_80 sm_90 sm_120",
}


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
