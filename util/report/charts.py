"""Draw the report's charts as SVG."""

import io
import warnings

import matplotlib
import numpy as np
from matplotlib.figure import Figure

MAX_COLOURED_CLASSES = 10  # with a colour and a name each in the curves; more are thin lines
MAX_MATRIX_CLASSES = 80  # with a row and a column in the confusion matrix
MAX_NAME_LENGTH = 24  # characters of a class name
INK = "#010203"  # placeholder for the page's text colour (light or dark mode)
BLUE = (0.26, 0.54, 0.96)
GREEN, RED = "#2a9d5c", "#e05d44"
STYLE = {
    "svg.fonttype": "none",  # keep text as text, not outlines
    "svg.hashsalt": "report",  # makes the output deterministic
    "text.parse_math": False,  # a class may be called $x$
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    **dict.fromkeys(
        ["text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"], INK
    ),
}


def count(number, one, many=None):
    """Return `1 image`, `2 images`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def format_metric(value):
    return "–" if value is None else f"{value:.3f}"


def shorten(name):
    return name if len(name) <= MAX_NAME_LENGTH else name[: MAX_NAME_LENGTH - 1] + "…"


def to_svg(draw, *args, size=(7, 4.2)):
    """Render the chart drawn by `draw(axes, *args)` as SVG. size: width and height in inches."""
    file = io.StringIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # Matplotlib's font may lack the characters of a class name; the browser draws them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots(), *args)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def draw_precision(axes, report):
    draw_lines(axes, report["recalls"], report, "precision_at_recalls")
    axes.set(xlabel="recall", ylabel="precision")


def draw_f1(axes, report):
    draw_lines(axes, report["thresholds"], report, "F1_at_thresholds")
    axes.axvline(report["all_classes"]["threshold"], color=INK, lw=1, ls=":")
    axes.set(xlabel="threshold", ylabel="F1")


def draw_lines(axes, x, report, key):
    """Draw a line of the report's `key` for each class with objects, and one for all classes."""
    classes = [row for row in report["classes"] if row["objects"]]
    few = len(classes) <= MAX_COLOURED_CLASSES
    lines = []
    for number, row in enumerate(classes):
        style = dict(color=f"C{number}", lw=1.5) if few else dict(color=BLUE, lw=0.7, alpha=0.45)
        lines += axes.plot(x, row[key], **style)
    names = [shorten(row["name"]) for row in classes] if few else ["each class"]
    shown = lines[: len(names)]
    if len(report["classes"]) > 1:
        shown += axes.plot(x, report["all_classes"][key], color=INK, lw=2.5)
        names.append("all classes")
    legend = axes.legend(shown, names, loc="center left", bbox_to_anchor=(1, 0.5))
    for line in legend.get_lines():
        line.set(alpha=1, lw=2)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(color=INK, alpha=0.12)


def draw_sizes(axes, report):
    """Draw bars of AP for small, medium and large objects, of boxes and of masks."""
    metrics, sizes = report["AP"], ("small", "medium", "large")
    width = 0.8 / len(metrics)
    for number, kind in enumerate(kind for kind in ("bbox", "segm") if kind in metrics):
        values = [metrics[kind][f"AP_{size}"] for size in sizes]
        positions = np.arange(3) + (number - (len(metrics) - 1) / 2) * width
        heights = [value or 0 for value in values]
        label = {"bbox": "boxes", "segm": "masks"}[kind]
        axes.bar(positions, heights, width * 0.95, color=f"C{number}", label=label)
        for position, height, value in zip(positions, heights, values):
            axes.text(position, height + 0.01, format_metric(value), ha="center")
    ticks = [f"{size}\n{count(report['objects'][size], 'object')}" for size in sizes]
    axes.set_xticks(range(3), ticks)
    axes.set(ylim=(0, 1.05), ylabel="AP")
    if len(metrics) > 1:
        axes.legend()


def draw_scores(axes, report):
    """Draw a histogram of the scores of true and of false positives."""
    hits, misses = report["scores"]["hits"], report["scores"]["misses"]
    edges = np.linspace(0, 1, len(hits) + 1)
    middles, width = (edges[:-1] + edges[1:]) / 2, edges[1] * 0.42
    axes.bar(middles - width / 2, hits, width, color=GREEN, label="found an object")
    axes.bar(middles + width / 2, misses, width, color=RED, label="did not")
    axes.axvline(report["all_classes"]["threshold"], color=INK, lw=1, ls=":")
    axes.set_yscale("symlog", linthresh=1)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set(xlim=(0, 1), ylim=(0, None), xlabel="score", ylabel="detections")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)


def draw_confusion(confusion, names):
    """Draw the confusion matrix as SVG, of the classes with the most mistakes if it is large."""
    fractions = confusion / np.maximum(confusion.sum(0), 1)  # of each column
    if len(names) > MAX_MATRIX_CLASSES:
        mistakes = confusion.sum(0) + confusion.sum(1) - 2 * confusion.diagonal()
        shown = np.sort(np.argsort(-mistakes[:-1], kind="stable")[:MAX_MATRIX_CLASSES])
        names = [names[index] for index in shown]
        shown = np.append(shown, len(confusion) - 1)
        fractions, confusion = (matrix[shown][:, shown] for matrix in (fractions, confusion))
    size = len(confusion)
    cell = min(0.8, max(0.125, 5 / size))

    def draw(axes):
        pixels = np.empty((size, size, 4))
        pixels[..., :3] = BLUE
        pixels[..., 3] = 0.85 * np.sqrt(fractions)  # the root makes a few percent visible
        axes.imshow(pixels, interpolation="none")
        if size <= 16:
            for y, x in np.argwhere(confusion):
                axes.text(x, y, f"{confusion[y, x]:,}", ha="center", va="center", fontsize=8)
        small = dict(fontsize=6.5 if size > 30 else 9)
        axes.set_xticks(range(size), [*map(shorten, names), "no object"], rotation=90, **small)
        axes.set_yticks(range(size), [*map(shorten, names), "not found"], **small)
        axes.set(xlabel="what is there", ylabel="what was detected")
        axes.tick_params(length=0)
        edges, ends = np.arange(size + 1) - 0.5, (-0.5, size - 0.5)
        axes.hlines(edges, *ends, color=INK, alpha=0.1, lw=0.5)
        axes.vlines(edges, *ends, color=INK, alpha=0.1, lw=0.5)

    return to_svg(draw, size=(cell * size + 1.6, cell * size + 1.6))
