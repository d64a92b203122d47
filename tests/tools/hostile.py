"""Run `python -m models.weights` on hostile files in the four formats of a checkpoint:

    python -m tests.tools.hostile

Prints a table of time, memory and message. Code that ran would leave a mark, a new file.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.helpers.hostile_files import files, special

ROOT = Path(__file__).resolve().parents[2]

# A process in between: a child's peak memory includes that of the process it was forked from.
MEASURE = """import resource, subprocess, sys
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"""


def read(path, folder):
    """Convert path in a separate process; return exit code, message, seconds and GB of memory."""
    start = time.time()
    command = [sys.executable, "-m", "models.weights", path, folder / "out.pth"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    code, kilobytes = map(int, done.stdout.split())
    return code, done.stderr, time.time() - start, kilobytes / 2**20


def read_all(folder):
    """Yield (kind, name, exit code, message, seconds, GB, whether code ran) of each file."""
    mark, path = folder / "mark", folder / "file"
    for kind, group in files(mark).items():
        for name, content in group.items():
            path.write_bytes(content)
            yield kind, name, *read(path, folder), mark.exists()
    for name, path in special(folder).items():
        yield "no file to read", name, *read(path, folder), mark.exists()


def main():
    print("| kind | file | seconds | GB | message |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        rows = list(read_all(Path(folder)))
    for kind, name, code, message, seconds, memory, code_ran in rows:
        refused = code == 1 and message.startswith("error: ") and message.rstrip("\n").isprintable()
        passed = refused and not code_ran and seconds < 10 and memory < 1
        print(
            f"| {kind} | {name} | {seconds:.1f} | {memory:.2f} | "
            f"{message.strip().replace(folder, '')[:150]} | {'' if passed else 'WRONG'}"
        )
    kinds, _, _, _, seconds, memory, code_ran = zip(*rows)
    print(
        f"{len(rows)} files of {len(set(kinds))} kinds: at most {max(seconds):.1f} s and "
        f"{max(memory):.2f} GB; code ran: {sum(code_ran)}"
    )


if __name__ == "__main__":
    main()
