"""Plot and tabulate runs from their log.txt, this project's or the original's:

    python -m util.plot_utils RUN_DIR [RUN_DIR…] [--out FILE.png] [--table] [--reference]

Counterpart of `util/plot_utils.py` in the original.
"""

import argparse
import json
import math
import operator
import warnings
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from util.best import COCO_METRICS
from util.errors import InputError, escape_unprintable
from util.launch import job
from util.pictures import find_font
from util.reference import LR_DROP, describe_ap, load_reference

LOSSES = {  # name -> title, unit
    "loss": ("loss, weighted sum of all layers", "loss, no unit"),
    "loss_ce": ("loss_ce, last layer", "loss, no unit"),
    "loss_bbox": ("loss_bbox, last layer", "loss, no unit"),
    "loss_giou": ("loss_giou, last layer", "loss, no unit"),
    "class_error": ("class_error of matched queries", "percent"),
}
GREY = "0.6"
METRICS = ("AP", "AP50", "AP75")


def read_log(run):
    """Return the lines of log.txt, sorted by epoch. run: a folder with log.txt, or its path.

    Lines without an epoch, as in the logs of the original's model zoo, are numbered from 0. Epochs
    without evaluation have no `test_…`. A truncated last line is ignored. Raises InputError.
    """
    path = Path(run) / "log.txt" if Path(run).is_dir() else Path(run)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); give the output folder of a training"
        ) from error
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            entry["train_loss"], entry.get("test_coco_eval_bbox", range(12))[11]
            operator.index(entry.get("epoch", 0))
            entries.append(entry)
        except (ValueError, LookupError, TypeError) as error:
            if number == len(lines) and isinstance(error, ValueError):
                break
            raise InputError(
                f"{path}: line {number} is not that of an epoch ({error}); remove it"
            ) from error
    unnumbered = [number for number, entry in enumerate(entries, 1) if "epoch" not in entry]
    if 0 < len(unnumbered) < len(entries):
        raise InputError(f"{path}: line {unnumbered[0]} has no epoch, but others have; remove it")
    logs = {entry.setdefault("epoch", number): entry for number, entry in enumerate(entries)}
    return [logs[epoch] for epoch in sorted(logs)]


def select_evaluated(logs):
    """Return the log entries of evaluated epochs."""
    return [log for log in logs if "test_coco_eval_bbox" in log]


def get_metric(log, name):
    """Return one of COCO_METRICS from the log entry of an evaluated epoch."""
    return log["test_coco_eval_bbox"][COCO_METRICS.index(name)]


def plot_curves(runs, path, with_reference=False):
    """Plot losses, class error, AP, AP50 and AP75 over the epochs.

    runs: name -> what `read_log` returns, one colour for each; path: a path or a binary file;
    with_reference: add the original's run on COCO, in grey.
    """
    figure = Figure(figsize=(17, 7.5), layout="constrained")
    panels = figure.subplots(2, 4).ravel()
    last = max(logs[-1]["epoch"] for logs in runs.values())
    first = min(logs[0]["epoch"] for logs in runs.values())
    marker = "." if last - first < 60 else ""
    colored = {f"C{i}": logs for i, logs in enumerate(runs.values())}
    if with_reference:
        colored[GREY] = [log for log in load_reference() if first <= log["epoch"] <= last]

    def plot(axes, style, color, logs, get_value):
        epochs = [log["epoch"] for log in logs]
        values = [get_value(log) for log in logs]
        zorder = 1 if color == GREY else 2  # behind
        axes.plot(epochs, values, style, color=color, marker=marker, zorder=zorder)

    def name_axes(axes, title, unit):
        axes.set(title=title, xlabel="epoch", ylabel=unit, xlim=(first - 0.5, last + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)

    for axes, (name, (title, unit)) in zip(panels, LOSSES.items()):
        for color, logs in colored.items():
            plot(axes, "-", color, logs, lambda log: log.get(f"train_{name}"))
            evaluated = select_evaluated(logs)
            plot(axes, "--", color, evaluated, lambda log: log.get(f"test_{name}"))
        if 0 < axes.dataLim.ymax < float("inf"):
            axes.set_ylim(0, 1.05 * axes.dataLim.ymax)
        name_axes(axes, title, unit)
    for axes, name in zip(panels[len(LOSSES) :], METRICS):
        for color, logs in colored.items():
            plot(axes, "--", color, select_evaluated(logs), lambda log: get_metric(log, name))
        if not any(map(select_evaluated, runs.values())):
            axes.text(0.5, 0.5, "no evaluation", transform=axes.transAxes, ha="center")
        axes.set_ylim(0, 1)
        name_axes(axes, f"COCO box {name}, validation", f"{name}, from 0 to 1")
    lines = [Line2D([], [], color=color, linewidth=3) for color in colored]
    lines += [Line2D([], [], color="black", linestyle=style) for style in ("-", "--")]
    original = ["the original on COCO"] * with_reference
    names = [*map(escape_unprintable, runs), *original, "training", "validation"]
    font = FontProperties(fname=find_font("".join(names)))
    figure.legend(lines, names, loc="outside lower center", ncols=4, prop=font)
    with warnings.catch_warnings():  # if no font has the characters of a name
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(path, dpi=100, format="png")


def make_table(runs, with_reference=False):
    """Return a Markdown table of each run's epochs, last and best AP, AP50 and AP75.

    For every further run, also list the difference to the first; "-" without an evaluation.
    with_reference: add a line per run that compares its last AP with the original's on COCO.
    """
    columns = [f"{kind} {name}" for name in METRICS for kind in ("last", "best")]
    rows = [["run", "epochs", *columns], ["---"] * (2 + len(columns))]
    values = {}
    for name, logs in runs.items():
        evaluated = select_evaluated(logs)
        history = [[get_metric(log, metric) for log in evaluated] for metric in METRICS]
        ends = [(each[-1], max(each)) if each else (math.nan, math.nan) for each in history]
        values[name] = [value for pair in ends for value in pair]
        rows.append([name, len(logs), *format_cells(values[name], ".3f")])
    first, *others = runs
    for name in others:
        differences = [a - b for a, b in zip(values[name], values[first])]
        rows.append([f"{name} − {first}", "", *format_cells(differences, "+.3f")])
    lines = ["|" + "".join(f" {cell} |" if cell else " |" for cell in row) for row in rows]
    if with_reference:
        lines += ["", *(f"{name}: {compare_last(logs)}" for name, logs in runs.items())]
    return "\n".join(lines)


def compare_last(logs):
    """Describe the last evaluated epoch's AP beside the original's on COCO."""
    evaluated = select_evaluated(logs)
    if not evaluated:
        return "no evaluation"
    rates = [log.get("train_lr", 0) for log in logs]
    dropped = (log["epoch"] for log, rate in zip(logs, rates) if rate < rates[0] / 2)
    lr_drop = next(dropped, LR_DROP)
    return describe_ap(evaluated[-1]["epoch"], get_metric(evaluated[-1], "AP"), lr_drop, True)


def format_cells(values, spec):
    return ["-" if math.isnan(value) else format(value, spec) for value in values]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="folder with log.txt")
    parser.add_argument("--out", help="PNG file to write")
    parser.add_argument("--table", action="store_true", help="print a Markdown table")
    text = "compare with the original's R50 on COCO"
    parser.add_argument("--reference", action="store_true", help=text)
    args = parser.parse_args()
    if not (args.out or args.table):
        parser.error("give --out FILE.png, --table, or both")
    names = [Path(run).name for run in args.runs]
    names = names if len(set(names)) == len(names) else args.runs
    runs = dict(zip(names, map(read_log, args.runs)))
    for name, logs in runs.items():
        if not logs:
            raise InputError(f"{name}: its log.txt has no epoch yet")
    if args.table:
        print(make_table(runs, args.reference))
    if args.out:
        try:
            plot_curves(runs, args.out, args.reference)
        except OSError as error:
            raise InputError(f"--out {args.out}: cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    with job():
        main()
