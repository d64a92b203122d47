"""Memory of running processes."""

import contextlib
from pathlib import Path


def proportional_memory(pids):
    """Return the memory of processes and all their children, GB; 0 for those that have ended.

    A page that n processes share counts as 1 / n.
    """
    kilobytes, queue = 0, list(pids)
    while queue:
        pid = queue.pop()
        folder = Path("/proc") / str(pid)
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            queue += (folder / "task" / str(pid) / "children").read_text().split()
            for line in (folder / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    kilobytes += int(line.split()[1])
    return kilobytes / 2**20
