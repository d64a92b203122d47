"""Ending a run in good order when the machine is taken away, as Slurm and Ctrl-C announce it."""
import os
import signal
import sys

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Inside its `with` block the first of SIGNALS only asks the run to stop; a second one acts at once, as usual.

    received: the signal, or None.
    """

    def __init__(self):
        self.received = None

    def __enter__(self):
        self.before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _remember(self, number, _frame):
        self.received = signal.Signals(number)
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        os.write(2, f"{self.received.name}: the run stops after this step\n".encode())  # print may be interrupted in print

    def exit(self, message):
        """Ends the process with one line and the exit code that shells give to the signal, 128 + its number."""
        print(f"stopped by {self.received.name}: {message}", file=sys.stderr, flush=True)
        sys.exit(128 + self.received)
