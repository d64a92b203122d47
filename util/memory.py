"""Control the C library's freed memory and Python's garbage collector."""

import contextlib
import ctypes
import gc
import platform


def keep_freed_memory():
    """Let glibc keep freed memory for the next step, to avoid page faults."""
    if platform.libc_ver()[0] == "glibc":
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_threshold, 2**30)
        libc.mallopt(m_trim_threshold, -1)  # never


def return_freed_memory():
    """Return the C library's freed memory to the operating system (malloc_trim)."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def without_garbage_collector():
    """Disable garbage collection while millions of objects are allocated."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
