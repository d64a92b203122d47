"""Commands in processes of their own, from the repository's root."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

REPO = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    **os.environ,
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMP_NUM_THREADS": "1",
}


def mpirun(processes, *command):
    """A command under mpirun, as a process group of its own; its standard error goes with its
    output.
    """
    start = (
        ["mpirun", "-np", processes, "--oversubscribe", "--bind-to", "none"]
        if processes > 1
        else []
    )
    return subprocess.Popen(
        [str(word) for word in [*start, sys.executable, *command]],
        cwd=REPO,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(process, seconds=1000):
    """(exit code, output) of a process of `mpirun`, after which none of the job's is left."""
    output, _ = process.communicate(timeout=seconds)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    return process.returncode, output


def part(name, processes, out, *flags):
    """What run_ours.py writes."""
    code, output = finish(mpirun(processes, "tests/helpers/run_ours.py", name, out, *flags))
    assert code == 0, output[-2000:]
    with np.load(out) as data:
        return dict(data)
