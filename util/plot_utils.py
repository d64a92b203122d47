"""Curves and tables of training runs, from their log.txt (this project's or the original's):

    python -m util.plot_utils RUN_DIR [RUN_DIR…] [--out FILE.png] [--table]

Source: the role of `util/plot_utils.py` of the original.
"""

import argparse
import json
import operator
import sys
import warnings
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from util.best import COCO_FIGURES
from util.errors import InputError
from util.pictures import font_file

LOSSES = {
    "loss": "loss, weighted sum of all layers",
    "loss_ce": "loss_ce, last layer",
    "loss_bbox": "loss_bbox, last layer",
    "loss_giou": "loss_giou, last layer",
}
IN_TABLE = ("AP", "AP50", "AP75")


def read_log(run):
    """The lines of a run, a folder with log.txt or such a file, sorted by epoch.

    Epochs without evaluation have no `test_…`. A last line that was cut off while it was written is
    left out. Raises InputError.
    """
    path = Path(run) / "log.txt" if Path(run).is_dir() else Path(run)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); give a folder that a training wrote"
        ) from error
    logs = {}
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            logs[operator.index(entry["epoch"])] = entry
            entry["train_loss"], entry.get("test_coco_eval_bbox", range(12))[11]
        except (ValueError, LookupError, TypeError) as error:
            if number == len(lines) and isinstance(error, ValueError):
                break
            raise InputError(
                f"{path}: line {number} is not that of an epoch ({error}); remove it"
            ) from error
    return [logs[epoch] for epoch in sorted(logs)]


def evaluated(logs):
    """The lines of epochs with evaluation."""
    return [log for log in logs if "test_coco_eval_bbox" in log]


def coco_figure(log, name):
    """One of COCO_FIGURES in a line of an epoch with evaluation."""
    return log["test_coco_eval_bbox"][COCO_FIGURES.index(name)]


def plot_curves(runs, path):
    """Draws losses, AP and AP50 over the epochs.

    runs: name -> what `read_log` returns, one colour for each; path: a path or a binary file.
    """
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    panels = figure.subplots(2, 3).ravel()
    last = max(logs[-1]["epoch"] for logs in runs.values())
    first = min(logs[0]["epoch"] for logs in runs.values())
    style = {"marker": "." if last - first < 60 else ""}
    for axes, (name, title) in zip(panels, LOSSES.items()):
        for i, logs in enumerate(runs.values()):
            for part, line, lines in (("train", "-", logs), ("test", "--", evaluated(logs))):
                axes.plot(
                    [log["epoch"] for log in lines],
                    [log.get(f"{part}_{name}") for log in lines],
                    f"C{i}{line}",
                    **style,
                )
        if 0 < axes.dataLim.ymax < float("inf"):
            axes.set_ylim(0, 1.05 * axes.dataLim.ymax)
        _name_axes(axes, title, "loss, no unit", first, last)
    for axes, name in zip(panels[len(LOSSES) :], ("AP", "AP50")):
        for i, logs in enumerate(runs.values()):
            axes.plot(
                [log["epoch"] for log in evaluated(logs)],
                [coco_figure(log, name) for log in evaluated(logs)],
                f"C{i}--",
                **style,
            )
        axes.set_ylim(0, 1)
        _name_axes(axes, f"COCO box {name}, validation", f"{name}, from 0 to 1", first, last)
    lines = [Line2D([], [], color=f"C{i}", linewidth=3) for i in range(len(runs))]
    lines += [Line2D([], [], color="black", linestyle=style) for style in ("-", "--")]
    names = [*runs, "training", "validation"]
    font = FontProperties(fname=font_file("".join(names)))
    figure.legend(lines, names, loc="outside lower center", ncols=4, prop=font)
    with warnings.catch_warnings():  # where no font has the characters of a name
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(path, dpi=100, format="png")


def _name_axes(axes, title, unit, first, last):
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.set_ylabel(unit)
    axes.set_xlim(first - 0.5, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def table(runs):
    """A Markdown table of each run's epochs, last and best AP, AP50 and AP75.

    From the second run on with the difference from the first.
    """
    lines = [
        "| run | epochs | "
        + " | ".join(f"{kind} {name}" for name in IN_TABLE for kind in ("last", "best"))
        + " |",
        "| --- | --- |" + " --- |" * (2 * len(IN_TABLE)),
    ]
    values = {}
    for name, logs in runs.items():
        figures = [[coco_figure(log, name) for log in evaluated(logs)] for name in IN_TABLE]
        values[name] = [value for figure in figures for value in (figure[-1], max(figure))]
        lines.append(
            f"| {name} | {len(logs)} | "
            + " | ".join(f"{value:.3f}" for value in values[name])
            + " |"
        )
    first = next(iter(runs))
    for name in list(runs)[1:]:
        differences = [a - b for a, b in zip(values[name], values[first])]
        lines.append(
            f"| {name} − {first} | | " + " | ".join(f"{value:+.3f}" for value in differences) + " |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="folder with log.txt")
    parser.add_argument("--out", help="picture to draw, PNG")
    parser.add_argument("--table", action="store_true", help="print a Markdown table")
    args = parser.parse_args()
    if not (args.out or args.table):
        parser.error("give --out FILE.png, --table, or both")
    names = [Path(run).name for run in args.runs]
    names = names if len(set(names)) == len(names) else args.runs
    runs = dict(zip(names, map(read_log, args.runs)))
    for name, logs in runs.items():
        if not evaluated(logs):
            raise InputError(f"{name}: its log.txt holds no epoch with evaluation yet")
    if args.table:
        print(table(runs))
    if args.out:
        try:
            plot_curves(runs, args.out)
        except OSError as error:
            raise InputError(f"--out {args.out}: cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
