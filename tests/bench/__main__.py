"""This project against the original in PyTorch, on this machine's CPU or GPU:

    python -m tests.bench [--pairs 5] [--rows forward train …] [--device cuda]
    [--busy 3] [--coco_path PATH] [--out FILE.json]

Each measurement is a separate process; the two frameworks take turns (A B A B), with the same
weights, images and number of threads. Prints medians, the smallest and largest value, and the ratio
of the medians; writes all figures as JSON. Run nothing beside it.
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

from tests.oracle.conftest import ORACLE_PYTHON

from . import rows

HERE = Path(__file__).resolve().parent
INTERPRETERS = {"ours": sys.executable, "original": ORACLE_PYTHON, "peers": ORACLE_PYTHON}
PEERS = {f"peers-{row}": row for row in rows.PEERS}
ON_CPU = [*rows.DATA, "eval", *PEERS, "operators", "compilations"]
ALL = [*rows.MODELS, *ON_CPU]
LARGE = ["loader"]  # half an hour, with --coco_path of COCO's size


def run(script, row, environment=None, **options):
    """Run one row in a process and return its figures. script: a key of INTERPRETERS."""
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    result = subprocess.run(
        [INTERPRETERS[script], "-W", "ignore", str(HERE / f"{script}.py"), row, *flags],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
        check=True,
    )
    return json.loads(result.stdout.splitlines()[-1])


@contextlib.contextmanager
def keep_busy(count):
    """Keep that many cores busy with other processes."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def save_weights(path):
    """Save the recipe's R50 as a checkpoint of the original."""
    source = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); import original, torch; "
        f"torch.save({{'model': original.build('forward')[0].state_dict()}}, {str(path)!r})"
    )
    subprocess.run([ORACLE_PYTHON, "-W", "ignore", "-c", source], check=True)


def format_spread(values, unit=1000, digits=0):
    """Format the median, and the smallest and largest value in brackets."""
    figures = statistics.median(values), min(values), max(values)
    median, low, high = (f"{value * unit:.{digits}f}" for value in figures)
    return f"{median} ({low}–{high})"


def format_row(title, ours, theirs, unit=1000, digits=0):
    """Format a row of the table: both spreads, and the ratio of the medians."""
    ratio = statistics.median(ours) / statistics.median(theirs)
    spreads = (format_spread(values, unit, digits) for values in (ours, theirs))
    return f"| {title} | {' | '.join(spreads)} | **{ratio:.2f}** |"


def compare_peers(row, rounds):
    """Measure this project and the row's peers in turns; return a table and all seconds."""
    peers = rows.PEERS[row]
    seconds = {name: [] for name in ("ours", "original", *peers)}
    for _ in range(rounds):
        for name, values in seconds.items():
            figures = run("peers", row, peer=name) if name in peers else run(name, row)
            values.append(figures["seconds"])
    lines = [
        f"| {rows.MODELS[row].title} | ms | ours / theirs |",
        "| --- | --- | --- |",
        f"| this project | {format_spread(seconds['ours'])} | |",
    ]
    for name, title in {"original": "PyTorch", **peers}.items():
        ratio = statistics.median(seconds["ours"]) / statistics.median(seconds[name])
        lines.append(f"| {title} | {format_spread(seconds[name])} | **{ratio:.2f}** |")
    return "\n".join(lines), seconds


def count_compilations():
    """Count the operators compiled with an empty Jittor home; return a sentence and the figures."""
    with tempfile.TemporaryDirectory() as home:
        figures = run("ours", "compilations", {"JITTOR_HOME": home})
    text = (
        f"Operators compiled by two training steps and evaluations: {figures['first']}, in "
        f"{figures['seconds']:.0f} s, and Jittor's core before that in {figures['core']:.0f} s; in "
        f"30 more of other image sizes: {figures['later']}."
    )
    return text, figures


def compare_operators():
    """Measure our operators and Jittor's; return a table and the milliseconds."""
    figures = run("ours", "operators")
    del figures["memory"]
    lines = ["| operator, forward and backward, ms | ours | Jittor's |", "| --- | --- | --- |"]
    lines += [f"| {name} | {own:.1f} | {plain:.1f} |" for name, (own, plain) in figures.items()]
    return "\n".join(lines), figures


def format_rows(row, device, pairs):
    """Yield the table's rows for a row's pairs of figures (ours, theirs)."""

    def get(key):
        return [[side[key] for side in pair] for pair in zip(*pairs)]

    if row == "loader":
        for key, title in rows.LOADER.items():
            yield format_row(title, *get(key), 1, 0 if key == "images_per_second" else 2)
        return
    if row == "eval":
        yield format_row(f"{rows.EVAL}, s", *get("seconds"), 1, 1)
        yield format_row(f"{rows.START}, s", *get("start"), 1, 1)
    else:
        title = rows.MODELS[row].title if row in rows.MODELS else rows.DATA[row]
        digits = 0 if pairs[0][0]["seconds"] > 0.1 else 1
        yield format_row(f"{title}, ms", *get("seconds"), digits=digits)
    if row not in rows.DATA and device == "cpu":  # on a GPU it would be the host's memory
        yield format_row("its peak memory, GB", *get("memory"), 1, 2)


def compare(row, args, weights):
    """Measure both frameworks in turns; return the pairs of figures."""
    if row in rows.MODELS:
        options = {"device": args.device}
    else:
        options = {"coco_path": args.coco_path, "weights": weights}
    if row not in LARGE:
        run("ours", row, **options)  # compiles
    pairs = []
    for _ in range(args.pairs):
        with keep_busy(args.busy):
            pairs.append((run("ours", row, **options), run("original", row, **options)))
    return pairs


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", nargs="+", choices=[*ALL, *LARGE], help="default: all but loader")
    parser.add_argument(
        "--device", default="cpu", choices=["cpu", "cuda"], help="with cuda, only the models' rows"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--busy", type=int, default=0, help="number of busy processes beside it")
    parser.add_argument(
        "--coco_path",
        default="../shared/data/coco_tiny",
        help="folder in COCO's layout with about 80 images",
    )
    parser.add_argument("--out", type=Path, default=Path("benchmark.json"))
    args = parser.parse_args()
    args.rows = args.rows or ([*rows.MODELS] if args.device == "cuda" else ALL)
    if args.device == "cuda" and (cpu_rows := set(args.rows) & {*ON_CPU, *LARGE}):
        parser.error(f"rows for the CPU only: {', '.join(sorted(cpu_rows))}")
    return args


def main():
    args = parse()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    measured, lines, remarks = {}, [], []
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pth"
        if "eval" in args.rows:
            save_weights(weights)
        for row in args.rows:
            if row == "compilations":
                remark, measured[row] = count_compilations()
                remarks.append(remark)
            elif row == "operators":
                remark, measured[row] = compare_operators()
                remarks.append(remark)
            elif row in PEERS:
                run("ours", PEERS[row])  # compiles
                with keep_busy(args.busy):
                    remark, measured[row] = compare_peers(PEERS[row], args.pairs)
                print(remark, flush=True)
                remarks.append(remark)
            else:
                measured[row] = compare(row, args, weights)
                formatted = list(format_rows(row, args.device, measured[row]))
                print("\n".join(formatted), flush=True)
                lines += formatted
                if "transfers" in (ours := measured[row][0][0]):
                    title = rows.MODELS[row].title.split(",")[0]
                    remarks.append(f"Transfers from the device in a {title}: {ours['transfers']}.")
            args.out.write_text(json.dumps(measured, indent=1))
    where = "GPU" if args.device == "cuda" else f"{args.threads} threads"
    if args.busy:
        where += f", {args.busy} busy processes"
    if lines:
        header = f"| {where}, {args.pairs} pairs | this project | PyTorch | ratio |"
        remarks.insert(0, "\n".join([header, "| --- | --- | --- | --- |", *lines]))
    print("\n" + "\n\n".join(remarks))


if __name__ == "__main__":
    main()
