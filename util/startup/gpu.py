"""Query NVIDIA's driver without cuInit, which takes seconds and breaks CUDA in forked children."""

import ctypes
from pathlib import Path
from typing import NamedTuple

DEVICES = ("nvidia[0-9]*", "dxg", "nvhost-gpu")  # in /dev: a GPU of a PC, of WSL, of a Jetson


class GPU(NamedTuple):
    name: str
    capability: int  # compute capability, 80 for 8.0
    memory: int  # bytes


def has_gpu():
    """Return True if there is a GPU and its driver."""
    if not any(next(Path("/dev").glob(pattern), None) for pattern in DEVICES):
        return False
    return get_driver_version() is not None


def get_driver_version():
    """Return the newest CUDA that the driver supports, (major, minor), or None without a driver."""
    driver = _load("libcuda.so.1")
    if driver is None:
        return None
    number = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(number))
    return number.value // 1000, number.value % 1000 // 10


def get_driver_release():
    """Return the driver's release, such as "580.159.04", or None without its NVML library."""
    nvml = _load("libnvidia-ml.so.1")
    if nvml is None:
        return None
    release = ctypes.create_string_buffer(80)
    nvml.nvmlInit_v2()
    nvml.nvmlSystemGetDriverVersion(release, len(release))
    nvml.nvmlShutdown()
    return release.value.decode()


def get_gpus():
    """Return a list of all GPUs (GPU); [] without the driver's NVML library."""
    nvml = _load("libnvidia-ml.so.1")
    if nvml is None:
        return []
    count, device, major, minor = ctypes.c_uint(), ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(96), (ctypes.c_ulonglong * 3)()  # total, free, used
    nvml.nvmlInit_v2()
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    gpus = []
    for index in range(count.value):
        nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device))
        nvml.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor))
        nvml.nvmlDeviceGetName(device, name, len(name))
        nvml.nvmlDeviceGetMemoryInfo(device, memory)
        gpus.append(GPU(name.value.decode(), 10 * major.value + minor.value, memory[0]))
    nvml.nvmlShutdown()
    return gpus


def _load(name):
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None
