"""This project against the original under PyTorch, on this machine's CPU, or with --device cuda on
its GPU:

    python -m tests.oracle.benchmark [--pairs 5] [--rows forward train …] [--device cuda]
    [--busy 3] [--coco_path PATH] [--out FILE.json]

Each measurement is a process of its own; the two frameworks take turns (A B A B), with the same
weights, images and number of threads. Prints a table of medians, spread (smallest to largest) and
their ratio, and writes all figures as JSON. Run nothing beside it. Where the original's interpreter
is: see conftest.py.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from . import bench_rows
from .conftest import HERE, ORACLE_PYTHON

PEERS = {f"peers-{row}": row for row in bench_rows.PEERS}
ON_CPU = [*bench_rows.DATA, "eval", *PEERS, "operators", "compilations"]
ALL = [*bench_rows.MODELS, *ON_CPU]
LARGE = ["loader"]  # with --coco_path of COCO's size: half an hour


def run(python, script, row, environment=None, **options):
    """The figures that one process prints last."""
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    result = subprocess.run(
        [python, "-W", "ignore", str(HERE / script), row, *flags],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
        check=True,
    )
    return json.loads(result.stdout.splitlines()[-1])


@contextlib.contextmanager
def busy(count):
    """So many processes that do nothing but use a core each, beside the block."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def save_weights(path):
    """The recipe's R50 as a checkpoint of the original."""
    source = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); import bench_original as b, torch; "
        f"torch.save({{'model': b.build('forward')[0].state_dict()}}, {str(path)!r})"
    )
    subprocess.run([ORACLE_PYTHON, "-W", "ignore", "-c", source], check=True)


def spread(values, unit=1000, digits=0):
    """The median, and the smallest and largest value in brackets."""
    median, low, high = (
        f"{value * unit:.{digits}f}"
        for value in (statistics.median(values), min(values), max(values))
    )
    return f"{median} ({low}–{high})"


def table_row(title, ours, theirs, unit=1000, digits=0):
    """Markdown: medians and spread of both, and the ratio of the medians."""
    ratio = statistics.median(ours) / statistics.median(theirs)
    ours, theirs = spread(ours, unit, digits), spread(theirs, unit, digits)
    return f"| {title} | {ours} | {theirs} | **{ratio:.2f}** |"


def peers(row, rounds):
    """This project and each of the row's peers, which take turns: a table with the ratio of the
    medians, and all seconds.
    """
    scripts = {
        "ours": (sys.executable, "bench_ours.py", {}),
        "original": (ORACLE_PYTHON, "bench_original.py", {}),
        **{
            name: (ORACLE_PYTHON, "bench_peers.py", {"peer": name})
            for name in bench_rows.PEERS[row]
        },
    }
    seconds = {name: [] for name in scripts}
    for _ in range(rounds):
        for name, (python, script, options) in scripts.items():
            seconds[name].append(run(python, script, row, **options)["seconds"])
    lines = [
        f"| {bench_rows.MODELS[row][0]} | ms | ours / theirs |",
        "| --- | --- | --- |",
        f"| this project | {spread(seconds['ours'])} | |",
    ]
    for name, title in {"original": "PyTorch", **bench_rows.PEERS[row]}.items():
        ratio = statistics.median(seconds["ours"]) / statistics.median(seconds[name])
        lines.append(f"| {title} | {spread(seconds[name])} | **{ratio:.2f}** |")
    return "\n".join(lines), seconds


def compilations():
    """How many operators are compiled, with an empty Jittor home: a sentence, and the figures."""
    with tempfile.TemporaryDirectory() as home:
        figures = run(sys.executable, "bench_ours.py", "compilations", {"JITTOR_HOME": home})
    text = (
        f"Operators compiled by two training steps and evaluations: {figures['first']}, in "
        f"{figures['seconds']:.0f} s, and Jittor's core before that in {figures['core']:.0f} s; in "
        f"30 more of other image sizes: {figures['later']}."
    )
    return text, figures


def operators():
    """This project's operators beside Jittor's: a table, and the milliseconds."""
    figures = run(sys.executable, "bench_ours.py", "operators")
    figures.pop("memory")
    lines = ["| operator, forward and back, ms | own | Jittor's |", "| --- | --- | --- |"]
    for name, (own, plain) in figures.items():
        lines.append(f"| {name} | {own:.1f} | {plain:.1f} |")
    return "\n".join(lines), figures


def rows_of(row, device, pairs):
    """The table's rows for a row's pairs of figures (ours, theirs)."""

    def values(key):
        return [[side[key] for side in pair] for pair in zip(*pairs)]

    if row == "loader":
        for key, title in bench_rows.LOADER.items():
            yield table_row(title, *values(key), 1, 0 if key == "images_per_second" else 2)
        return
    if row == "eval":
        yield table_row(f"{bench_rows.EVAL}, s", *values("seconds"), 1, 1)
        yield table_row(f"{bench_rows.START}, s", *values("start"), 1, 1)
    else:
        title = bench_rows.MODELS[row][0] if row in bench_rows.MODELS else bench_rows.DATA[row]
        yield table_row(
            f"{title}, ms", *values("seconds"), digits=0 if pairs[0][0]["seconds"] > 0.1 else 1
        )
    if row not in bench_rows.DATA and device == "cpu":  # on a GPU it would be the host's
        yield table_row("its peak memory, GB", *values("memory"), 1, 2)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", nargs="+", choices=[*ALL, *LARGE], help="default: all but loader")
    parser.add_argument(
        "--device", default="cpu", choices=["cpu", "cuda"], help="with cuda, the models' rows only"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--busy", type=int, default=0, help="busy processes beside it")
    parser.add_argument(
        "--coco_path",
        default="../shared/data/coco_tiny",
        help="a folder like COCO's, of 80 images or so",
    )
    parser.add_argument("--out", type=Path, default=Path("benchmark.json"))
    args = parser.parse_args()
    args.rows = args.rows or ([*bench_rows.MODELS] if args.device == "cuda" else ALL)
    if args.device == "cuda" and (rows := set(args.rows) & {*ON_CPU, *LARGE}):
        parser.error(f"rows for the CPU only: {', '.join(sorted(rows))}")
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    measured, lines, remarks = {}, [], []
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pth"
        if "eval" in args.rows:
            save_weights(weights)
        for row in args.rows:
            args.out.write_text(json.dumps(measured, indent=1))
            if row == "compilations":
                remark, measured[row] = compilations()
                remarks.append(remark)
                continue
            if row == "operators":
                remark, measured[row] = operators()
                remarks.append(remark)
                continue
            if row in PEERS:
                run(sys.executable, "bench_ours.py", PEERS[row])  # compiles
                with busy(args.busy):
                    remark, measured[row] = peers(PEERS[row], args.pairs)
                print(remark, flush=True)
                remarks.append(remark)
                continue
            options = (
                {"device": args.device}
                if row in bench_rows.MODELS
                else {"coco_path": args.coco_path, "weights": weights}
            )
            if row not in LARGE:
                run(sys.executable, "bench_ours.py", row, **options)  # compiles
            measured[row] = []
            for _ in range(args.pairs):
                with busy(args.busy):
                    ours = run(sys.executable, "bench_ours.py", row, **options)
                    theirs = run(ORACLE_PYTHON, "bench_original.py", row, **options)
                measured[row].append((ours, theirs))
            found = list(rows_of(row, args.device, measured[row]))
            print("\n".join(found), flush=True)
            lines += found
            if "transfers" in measured[row][0][0]:
                remarks.append(
                    f"Transfers from the device in a {bench_rows.MODELS[row][0].split(',')[0]}: "
                    f"{measured[row][0][0]['transfers']}."
                )
    args.out.write_text(json.dumps(measured, indent=1))
    where = "GPU" if args.device == "cuda" else f"{args.threads} threads"
    if args.busy:
        where += f", {args.busy} busy processes"
    if lines:
        lines[:0] = [
            f"| {where}, {args.pairs} pairs | this project | PyTorch | ratio |",
            "| --- | --- | --- | --- |",
        ]
        remarks.insert(0, "\n".join(lines))
    print("\n" + "\n\n".join(remarks))


if __name__ == "__main__":
    main()
