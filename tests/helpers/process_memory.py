"""Memory of running processes."""

import contextlib
from pathlib import Path


def proportional_memory(pids):
    """Memory of processes and all their children, GB; a page that n processes share counts 1 / n.

    pids: numbers of processes. One that has ended counts as nothing.
    """
    kilobytes, waiting = 0, list(pids)
    while waiting:
        pid = waiting.pop()
        folder = Path("/proc") / str(pid)
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            waiting += (folder / "task" / str(pid) / "children").read_text().split()
            for line in (folder / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    kilobytes += int(line.split()[1])
    return kilobytes / 2**20
