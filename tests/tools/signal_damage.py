"""Send signals while oneDNN multiplies, and check every product:

    python -m tests.tools.signal_damage [--seconds 600] [--how process|thread|both|child]
        [--threads 2] [--rate 2000] [--product bmm]

oneDNN 2.6 keeps a heap address in the stack pointer while it multiplies (its issue 4845), so the
frame of a signal handler can overwrite arrays. A second process sends signals to this process, to
its main thread, or to both in turn; or it has children whose end this process is told of. A Python
handler receives them. Small arrays beside the products would be hit, too.
"""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import time

# Sends signals until its standard input closes. A grandchild is adopted by this process.
SENDER = """
import ctypes, os, select, signal, sys, time
pid, how, period = int(sys.argv[1]), sys.argv[2], 1 / float(sys.argv[3])
syscall = ctypes.CDLL(None).syscall
tgkill = {"x86_64": 234, "aarch64": 131}[os.uname().machine]
while not select.select([0], [], [], 0)[0]:
    if how in ("thread", "both"):
        syscall(tgkill, pid, pid, signal.SIGALRM)  # the main thread's id is that of the process
    if how in ("process", "both"):
        os.kill(pid, signal.SIGUSR2)  # to another thread if the main one is handling one
    if how == "child":
        if os.fork() == 0:
            os.fork()
            os._exit(0)
        os.wait()
    time.sleep(period)
"""


def main(seconds, how, rate, product):
    """Return the numbers of products, of signals received, and of products that changed.

    product: "bmm" or "linear" of util/ops, or "matmul", Jittor's own.
    """
    import numpy as np

    from util import ops
    from util.backend import jt

    rng = np.random.default_rng(0)
    multiply = {"bmm": ops.bmm, "linear": ops.linear, "matmul": jt.nn.matmul_transpose}[product]
    shapes = ((4, 80, 512), (4, 512, 128)) if product == "bmm" else ((320, 512), (128, 512))
    a, b = (jt.array(rng.standard_normal(shape).astype("float32")) for shape in shapes)

    def start_small_arrays():
        return sum(
            (jt.array(rng.standard_normal(300).astype("float32")) * 2).sum() for _ in range(20)
        )

    first = multiply(a, b).numpy()
    start_small_arrays().numpy()  # compiles
    received = 0

    def handle(number, _):
        nonlocal received
        received += 1
        while number == signal.SIGCHLD and os.waitpid(-1, os.WNOHANG)[0]:
            pass

    for number in (signal.SIGALRM, signal.SIGUSR2, signal.SIGCHLD):
        signal.signal(number, handle)
        signal.siginterrupt(number, False)  # as StopRequest does
    adopt_orphans = 36  # PR_SET_CHILD_SUBREAPER in sys/prctl.h
    ctypes.CDLL(None).prctl(adopt_orphans, 1)
    sender = subprocess.Popen(
        [sys.executable, "-c", SENDER, str(os.getpid()), how, str(rate)], stdin=subprocess.PIPE
    )
    begin, products, wrong = time.time(), 0, 0
    while time.time() < begin + seconds:
        total = start_small_arrays()
        if not np.array_equal(multiply(a, b).numpy(), first):
            wrong += 1
            if wrong == 1:
                print(f"the first wrong product after {time.time() - begin:.1f} s", flush=True)
        total.numpy()
        products += 1
    sender.stdin.close()
    sender.wait()
    return products, received, wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--how", default="process", choices=["process", "thread", "both", "child"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rate", type=float, default=2000, help="signals a second, at most")
    parser.add_argument("--product", default="bmm", choices=["bmm", "linear", "matmul"])
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    products, received, wrong = main(options.seconds, options.how, options.rate, options.product)
    print(
        f"{options.product}, {options.how}, {options.threads} threads: {products} products, "
        f"{received} signals, {wrong} products wrong"
    )
    sys.exit(wrong > 0)
