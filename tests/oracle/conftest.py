"""Fixtures of the tests that run the original in its own interpreter (tests/oracle/make_env.sh)."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
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
def run_script(oracle_python):
    """run_script("run_model.py", …) runs a script of this folder in the original's interpreter."""

    def run(script, *arguments):
        command = [oracle_python, "-W", "ignore", HERE / script, *arguments]
        subprocess.run([str(word) for word in command], check=True)

    return run


@pytest.fixture(scope="session")
def original(run_script, tmp_path_factory):
    """original("run_model.py", "resnet18", …) runs a script and returns the arrays it writes."""
    path = tmp_path_factory.mktemp("original") / "out.npz"

    def run(script, *arguments):
        run_script(script, *arguments, path)
        with np.load(path) as data:
            arrays = dict(data)
        path.unlink()
        return arrays

    return run


@pytest.fixture
def measured():
    """measured(part, configuration, difference, tolerance) asserts a row of the final table."""

    def row(part, configuration, difference, tolerance):
        rows.append((part, configuration, float(difference), tolerance))
        assert difference <= tolerance, (
            f"{part}, {configuration}: {difference:.2e} is more than {tolerance:.0e}"
        )

    return row


@pytest.fixture
def evaluations(monkeypatch):
    """The metrics of every call of engine.evaluate."""
    import engine

    calls, evaluate = [], engine.evaluate

    def spy(*args, **options):
        stats, coco_evaluator = evaluate(*args, **options)
        calls.append(stats)
        return stats, coco_evaluator

    monkeypatch.setattr(engine, "evaluate", spy)
    return calls


def pytest_xdist_auto_num_workers():
    """Run in one process: the models are large, and one table collects all rows."""
    return 0


def pytest_terminal_summary(terminalreporter):
    if not rows:
        return
    terminalreporter.section("measured against the original")
    terminalreporter.line("| part | configuration | largest difference | tolerance |")
    terminalreporter.line("| --- | --- | --- | --- |")
    for part, configuration, difference, tolerance in rows:
        terminalreporter.line(f"| {part} | {configuration} | {difference:.1e} | {tolerance:.0e} |")
