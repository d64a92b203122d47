"""Signals: stop a run cleanly on Ctrl-C or a signal from Slurm.

During oneDNN's sgemm, a signal handler must not run on the thread's stack (see HandlerStack in
util/ops/gemm.h). Handlers set with Python's `signal.signal` run on a separate stack if the thread
has one; handlers set in C have to request it.
"""

import ctypes
import functools
import os
import platform
import signal
import sys
from contextlib import contextmanager

from util import dist, launch

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Within its `with` block, the first of SIGNALS requests a stop; a second one acts at once.

    Processes forked within the block keep the previous handlers.

    received: the signal, or None.
    """

    active = None  # the instance whose block is running

    def __init__(self):
        self.received = None

    def __enter__(self):
        StopRequest.active = self
        self.previous = {number: signal.signal(number, self._handle_signal) for number in SIGNALS}
        for number in SIGNALS:
            # Jittor treats EINTR as an error while it waits for another process that compiles.
            signal.siginterrupt(number, False)
        return self

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        StopRequest.active = None

    def _handle_signal(self, number, _frame):
        self.received = signal.Signals(number)
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if launch.is_main_process():
            # Not print: the signal may have interrupted another print.
            os.write(2, f"{self.received.name}: the run stops after this step\n".encode())

    def agree(self):
        """Return the signal that any process has received, or None. A collective."""
        numbers = dist.all_gather_floats([self.received or 0])[:, 0]
        if not numbers.any():
            return None
        self.received = signal.Signals(int(numbers[numbers > 0][0]))
        return self.received

    def exit(self, message):
        """Print a message and exit with code 128 + the signal's number."""
        if launch.is_main_process():
            print(f"stopped by {self.received.name}: {message}", file=sys.stderr, flush=True)
        sys.exit(128 + self.received)


def _restore_handlers_in_child():
    if StopRequest.active:
        StopRequest.active.__exit__()


# Process pools (such as panopticapi's) terminate workers with SIGTERM. With siginterrupt(False), a
# worker's blocking read would be restarted instead.
os.register_at_fork(after_in_child=_restore_handlers_in_child)


@contextmanager
def block_signals_in_children():
    """Block SIGNALS in children forked within the block, which Slurm and terminals send them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@functools.cache
def die_with_parent():
    """Have the kernel kill this process when its parent dies (Linux only)."""
    if platform.system() == "Linux":
        pr_set_pdeathsig = 1  # sys/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
