"""Signals and crashes in a process that has imported Jittor."""

import re
import signal

import pytest
from processes import run_python


# "both": two signals in a row, of which the second may interrupt a computing thread
@pytest.mark.parametrize("how, product", [("both", "bmm"), ("both", "linear"), ("child", "bmm")])
def test_signals_do_not_corrupt_products(how, product):
    flags = ["--seconds", 2, "--how", how, "--product", product]
    done = run_python("-m", "tests.tools.signal_damage", *flags)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-2000:]
    summary = re.search(r" products, (\d+) signals, 0 products wrong", output)
    assert int(summary[1]) > 20, output


@pytest.mark.parametrize("module", ["models.hub", "datasets.loader"])
def test_a_program_that_imports_a_module_keeps_its_signals(module):
    """Ctrl-C raises KeyboardInterrupt, a killed child does not end it, children block no signal."""
    done = run_python(
        "-c",
        # a shell lets what it starts with & ignore it
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"import {module}, os, subprocess\n"
        "print(subprocess.run(['sh', '-c', 'kill -9 $$']).returncode)\n"
        "print(subprocess.run(['grep', 'SigBlk', '/proc/self/status'], capture_output=True, "
        "text=True).stdout.split()[1])\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')",
    )
    output = done.stdout + done.stderr
    assert done.stdout.splitlines()[-3:] == ["-9", "0" * 16, "interrupted"], output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_a_child_of_a_training(number):
    """Even while it waits in a read, as the idle processes of a multiprocessing.Pool do."""
    done = run_python(
        "-c",
        "import os, signal\n"
        "from util.signals import StopRequest\n"
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
        "reader, writer = os.pipe()\n"
        "ready, told = os.pipe()\n"
        "with StopRequest() as stop:\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os.write(told, b'.')\n"
        "        os.read(reader, 1)\n"
        "        os._exit(0)\n"
        "    os.read(ready, 1)\n"
        f"    os.kill(child, {int(number)})\n"
        "    signal.alarm(20)\n"
        "    status = os.waitpid(child, 0)[1]\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print(os.WTERMSIG(status), stop.received.name)",
    )
    assert done.stdout == f"{int(number)} SIGTERM\n", done.stderr


def test_earlier_handlers_stay():
    done = run_python(
        "-c",
        "import os, signal\n"
        "received = []\n"
        "for number in (signal.SIGCHLD, signal.SIGINT):\n"
        "    signal.signal(number, lambda number, _: received.append(number))\n"
        "import models.hub\n"
        "received.clear()\n"
        "for number in (signal.SIGCHLD, signal.SIGINT):\n"
        "    os.kill(os.getpid(), number)\n"
        "print(*map(int, received))",
    )
    output = done.stdout + done.stderr
    assert done.stdout.splitlines()[-1:] == [f"{int(signal.SIGCHLD)} {int(signal.SIGINT)}"], output


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL])
def test_a_crash_ends_the_process_by_its_signal(number):
    done = run_python(
        "-c",
        "import models.hub, atexit, os\n"
        "atexit.register(print, 'at exit')\n"
        f"os.kill(os.getpid(), {int(number)})\n"
        "print('alive')",
    )
    assert done.returncode == -number
    assert "at exit" not in done.stdout and "alive" not in done.stdout
    assert "Fatal Python error" in done.stderr and 'File "<string>", line 3' in done.stderr
