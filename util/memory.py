"""The memory that a process holds: freed memory in the C library and in Jittor's allocator, and
Python's garbage collector.
"""

import contextlib
import ctypes
import gc
import platform


def keep_freed_memory():
    """Lets glibc keep freed memory for the next step, instead of fetching it again page by page."""
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, -1)  # never


def return_freed_memory():
    """Returns the C library's freed memory to the system."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def without_garbage_collector():
    """For making millions of objects, at all of which the collector would look again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
