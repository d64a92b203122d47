"""Signals and crashes in a process that has imported Jittor."""

import re
import signal
import subprocess
import sys

import pytest
from processes import REPO


def run(source, *flags):
    return subprocess.run(
        [sys.executable, *flags, "-c", source],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=120,
    )


# "both": two signals in a row, of which the second may go to a thread that computes
@pytest.mark.parametrize("how, product", [("both", "bmm"), ("both", "linear"), ("child", "bmm")])
def test_signals_do_not_damage_products(how, product):
    command = [
        sys.executable,
        *"-m tests.tools.signal_damage --seconds 2 --how".split(),
        how,
        "--product",
        product,
    ]
    done = subprocess.run(
        command, cwd=REPO, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert int(re.search(r" products, (\d+) signals, 0 products wrong", done.stdout)[1]) > 20, (
        done.stdout
    )


@pytest.mark.parametrize("module", ["models.hub", "datasets.loader"])
def test_a_program_of_ones_own_keeps_its_signals(module):
    """Ctrl-C is KeyboardInterrupt, the death of a child is no reason to quit, and a child hears all
    signals.
    """
    done = run(
        # a shell has what it starts with & ignore it
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"import {module}, os, subprocess\n"
        "print(subprocess.run(['sh', '-c', 'kill -9 $$']).returncode)\n"
        "print(subprocess.run(['grep', 'SigBlk', '/proc/self/status'], capture_output=True, "
        "text=True).stdout.split()[1])\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')"
    )
    assert done.stdout.splitlines()[-3:] == ["-9", "0" * 16, "interrupted"], (
        done.stdout + done.stderr
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_child_of_a_training_ends_at_a_signal(number):
    """Also while it waits for something to read, as the idle processes of a multiprocessing.Pool
    do.
    """
    done = run(
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
        "    print(os.WTERMSIG(status), stop.received.name)"
    )
    assert done.stdout == f"{int(number)} SIGTERM\n", done.stderr


def test_handlers_that_were_there_before_are_kept():
    done = run(
        "import os, signal\n"
        "heard = []\n"
        "for number in (signal.SIGCHLD, signal.SIGINT):\n"
        "    signal.signal(number, lambda number, _: heard.append(number))\n"
        "import models.hub\n"
        "heard.clear()\n"
        "for number in (signal.SIGCHLD, signal.SIGINT):\n"
        "    os.kill(os.getpid(), number)\n"
        "print(*map(int, heard))"
    )
    assert done.stdout.splitlines()[-1:] == [f"{int(signal.SIGCHLD)} {int(signal.SIGINT)}"], (
        done.stdout + done.stderr
    )


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL])
def test_a_crash_ends_the_process_by_its_signal(number):
    done = run(
        "import models.hub, atexit, os\n"
        "atexit.register(print, 'at exit')\n"
        f"os.kill(os.getpid(), {int(number)})\n"
        "print('alive')"
    )
    assert (
        done.returncode == -number and "at exit" not in done.stdout and "alive" not in done.stdout
    )
    assert "Fatal Python error" in done.stderr and 'File "<string>", line 3' in done.stderr
