"""Files that no honest program writes, in the four forms of a checkpoint. What they would run
leaves a mark, a new file.

python -m tests.tools.hostile     runs `python -m models.weights` on each, and prints a table of
what it said, took and used
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.helpers.hostile_files import files, special

ROOT = Path(__file__).resolve().parents[2]


# In between, because the system counts to a process's memory that of the one it was forked from.
MEASURE = """import resource, subprocess, sys
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"""


def read(path, folder):
    """Converts path in a process of its own: exit code, what it said, seconds, GB of memory."""
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
    """Yields (kind, name, exit code, what was said, seconds, GB, whether the mark is there) for
    each file.
    """
    mark = folder / "mark"
    kinds = {kind: {name: folder / "file" for name in group} for kind, group in files(mark).items()}
    kinds["no file to read"] = special(folder)
    contents = files(mark)
    for kind, group in kinds.items():
        for name, path in group.items():
            if kind in contents:
                path.write_bytes(contents[kind][name])
            yield kind, name, *read(path, folder), mark.exists()


def main():
    print("| kind | file | seconds | GB | what it says |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        rows = list(read_all(Path(folder)))
    for kind, name, code, said, seconds, memory, marked in rows:
        fine = (
            code == 1
            and said.startswith("error: ")
            and said.rstrip("\n").isprintable()
            and not marked
            and seconds < 10
            and memory < 1
        )
        print(
            f"| {kind} | {name} | {seconds:.1f} | {memory:.2f} | "
            f"{said.strip().replace(folder, '')[:150]} | {'' if fine else 'WRONG'}"
        )
    print(
        f"{len(rows)} files of {len({row[0] for row in rows})} kinds: at most "
        f"{max(row[4] for row in rows):.1f} s and {max(row[5] for row in rows):.2f} GB; run: "
        f"{sum(row[6] for row in rows)}"
    )


if __name__ == "__main__":
    main()
