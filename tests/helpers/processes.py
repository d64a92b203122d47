"""Run Python in new processes, from the repository's root."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

REPO = Path(__file__).resolve().parents[2]
ENVIRONMENT = {  # under mpirun
    **os.environ,
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMP_NUM_THREADS": "1",
}


def run_python(*arguments, timeout=120, **variables):
    """Run Python and return the subprocess.CompletedProcess with its output as text.

    variables: changes of the environment; None removes a variable.
    """
    environment = {**os.environ, **variables}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=REPO,
        env={name: str(value) for name, value in environment.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def start_mpi(processes, *arguments, **variables):
    """Start Python under mpirun in a new process group; stderr goes with its output.

    Without mpirun if there is one process.
    """
    command = ["mpirun", "-np", processes, "--oversubscribe", "--bind-to", "none"]
    command = [*(command if processes > 1 else ()), sys.executable, *arguments]
    return subprocess.Popen(
        list(map(str, command)),
        cwd=REPO,
        env={**ENVIRONMENT, **variables},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(process, timeout=1000):
    """Wait for a process of `start_mpi`; return (exit code, output). Its group has to be empty."""
    output, _ = process.communicate(timeout=timeout)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    return process.returncode, output


def run_mpi(processes, *arguments, timeout=1000):
    """Run Python under mpirun; return its output. It has to exit with 0."""
    code, output = finish(start_mpi(processes, *arguments), timeout)
    assert code == 0, output[-2000:]
    return output


def run_part(part, processes, out, *flags):
    """Run a part of run_ours.py; return the arrays that it saves to out."""
    run_mpi(processes, "tests/helpers/run_ours.py", part, out, *flags)
    with np.load(out) as data:
        return dict(data)
