"""Fixtures of the tests that run the original in its own interpreter (made by
tests/oracle/make_env.sh).
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
# The original's interpreter: DETR_ORACLE_PYTHON, or what make_env.sh made.
ORACLE_PYTHON = os.environ.get(
    "DETR_ORACLE_PYTHON", str(HERE.parents[1] / ".venv-oracle" / "bin" / "python")
)
rows = []


@pytest.fixture(scope="session")
def oracle_python():
    """Path of the original's interpreter."""
    assert Path(ORACLE_PYTHON).exists(), (
        f"{ORACLE_PYTHON} is missing: run tests/oracle/make_env.sh, or set DETR_ORACLE_PYTHON"
    )
    return ORACLE_PYTHON


@pytest.fixture(scope="session")
def original(oracle_python, tmp_path_factory):
    """original("run_model.py", "resnet18", …) runs a script of this folder and returns what it
    wrote, as a dictionary.
    """
    folder = tmp_path_factory.mktemp("original")

    def run(script, *arguments, out="out.npz"):
        path = folder / out
        subprocess.run(
            [oracle_python, "-W", "ignore", str(HERE / script), *map(str, arguments), str(path)],
            check=True,
        )
        with np.load(path) as data:
            result = dict(data)
        path.unlink()
        return result

    return run


@pytest.fixture
def measured():
    """measured(part, configuration, difference, tolerance): one row of the table printed at the
    end; asserts it.
    """

    def row(part, configuration, difference, tolerance):
        rows.append((part, configuration, float(difference), tolerance))
        assert difference <= tolerance, (
            f"{part}, {configuration}: {difference:.2e} is more than {tolerance:.0e}"
        )

    return row


def pytest_xdist_auto_num_workers():
    """None: the models are large, and the table is collected in one process."""
    return 0


def pytest_terminal_summary(terminalreporter):
    if not rows:
        return
    terminalreporter.section("measured against the original")
    terminalreporter.line("| part | configuration | largest difference | tolerance |")
    terminalreporter.line("| --- | --- | --- | --- |")
    for part, configuration, difference, tolerance in rows:
        terminalreporter.line(f"| {part} | {configuration} | {difference:.1e} | {tolerance:.0e} |")
