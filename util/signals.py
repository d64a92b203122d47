"""Signals: the orderly end of a run, as Slurm and Ctrl-C ask for it; and crashes.

While oneDNN multiplies, a handler must not run on the stack of its thread (see HandlerStack in
util/ops/kernels.h). Handlers set with Python's `signal.signal` run on a stack of their own, where
the thread has one; handlers set in C have to ask for that.
"""

import ctypes
import faulthandler
import functools
import os
import platform
import signal
import sys
import threading
from contextlib import contextmanager

from util import dist

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
TAKEN_BY_JITTOR = (
    signal.SIGINT,
    signal.SIGCHLD,
    signal.SIGQUIT,
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
)


def take_back_from_jittor():
    """Undoes what the import of Jittor did to this process's signals. In the main thread only.

    Jittor's handlers run on the stack of the thread that a signal interrupts. They quit the process
    at Ctrl-C and when a child is killed. At a crash they call `exit`, which under MPI waits for the
    other processes, which wait for this one. Python's handlers, or the default ones, are in place
    again afterwards, and a crash ends the process with Python's traceback.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    faulthandler.disable()
    for number in TAKEN_BY_JITTOR:
        python_handler = signal.getsignal(number)  # Python does not know of Jittor's
        signal.signal(number, python_handler or signal.SIG_DFL)
    standard_error = 2  # sys.stderr may have been replaced by something that is not a file
    faulthandler.enable(standard_error)


class StopRequest:
    """In its `with` block, the first of SIGNALS asks the run to stop; a second one acts at once.

    Processes forked within the block do not take part: signals act on them as before the block.

    received: the signal, or None.
    """

    active = None  # the one whose block this process is in

    def __init__(self):
        self.received = None

    def __enter__(self):
        StopRequest.active = self
        self.before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        for number in SIGNALS:
            # Where Jittor waits for another process that compiles, it takes EINTR for a fault.
            signal.siginterrupt(number, False)
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
        StopRequest.active = None

    def _remember(self, number, _frame):
        self.received = signal.Signals(number)
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if dist.is_main_process():
            # Not print: the signal may have interrupted another print.
            os.write(2, f"{self.received.name}: the run stops after this step\n".encode())

    def agree(self):
        """The signal that any process has received, or None. All processes have to call it."""
        numbers = dist.all_gather_numbers([self.received or 0])[:, 0]
        if not numbers.any():
            return None
        self.received = signal.Signals(int(numbers[numbers > 0][0]))
        return self.received

    def exit(self, message):
        """Ends the process with one line and the exit code of the signal, 128 + its number."""
        if dist.is_main_process():
            print(f"stopped by {self.received.name}: {message}", file=sys.stderr, flush=True)
        sys.exit(128 + self.received)


def _leave_stop_request():
    if StopRequest.active:
        StopRequest.active.__exit__()


# The end of a pool (panopticapi has one) is a SIGTERM to its processes, which wait in reads that
# siginterrupt(False) lets go on.
os.register_at_fork(after_in_child=_leave_stop_request)


@contextmanager
def children_ignore():
    """Processes forked within the block ignore SIGNALS, which Slurm and terminals send to all."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@functools.cache
def die_with_parent():
    """Has the system kill this process when its parent ends, however that happens (on Linux)."""
    if platform.system() == "Linux":
        set_parent_death_signal = 1  # sys/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
