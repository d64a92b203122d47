"""New processes that prepare for Jittor's import, with a home folder of the test."""

from processes import run_python

PREPARE = "from util.startup.prepare import prepare; prepare()\n"
REPORT = (
    PREPARE + "import os; print({name: os.environ.get(name) for name in ('nvcc_path', 'use_mkl')})"
)


def start(home, code, **variables):
    unset = dict.fromkeys(("nvcc_path", "use_mkl", "python_config_path"))
    folders = dict(HOME=home, JITTOR_HOME=home, PYTHONDONTWRITEBYTECODE="1")
    return run_python("-c", code, **{**unset, **folders, **variables})


def run(home, code=REPORT, **variables):
    """Run code, and return (what it prints, as a Python value; stderr)."""
    done = start(home, code, **variables)
    assert done.returncode == 0, done.stderr
    return eval(done.stdout), done.stderr


def fail(home, code, **variables):
    """Run code that has to fail, and return the one line that it prints."""
    done = start(home, code, **variables)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    return done.stderr
