"""The report of an evaluation as one HTML page that needs nothing else (its frame: the file
report_page.html beside this one).
"""

import base64
import io
import warnings
from html import escape
from pathlib import Path
from string import Template

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from util.errors import printable
from util.pictures import MISTAKE_COLOURS

TEMPLATE = Path(__file__).with_suffix(".html")
COLOURED_CLASSES = 10  # as many have a colour and a name in the curves; more are thin lines
MATRIX_CLASSES = 80  # as many have a row and a column in the matrix of confused classes
CONFUSED_PAIRS = 20
CHART_NAME = 24  # letters of a class's name in charts
INK = "#010203"  # stands for the page's own text colour, which is light or dark
BLUE = (0.26, 0.54, 0.96)
HITS, MISSES = "#2a9d5c", "#e05d44"
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "report",  # the same report is the same file
    "text.parse_math": False,  # a class may be called $x$
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    **dict.fromkeys(
        ["text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"], INK
    ),
}


def make_page(report, pictures):
    """The page, a string.

    report: what `datasets.quality.make_report` returns; pictures: for each of its worst images a
    JPEG, bytes.
    """
    classes, confusion = report["classes"], np.array(report["confusion"])
    names = [row["name"] for row in classes]
    return Template(TEMPLATE.read_text()).substitute(
        images=count(report["images"], "image", "images"),
        objects=count(report["objects"]["all"], "object", "objects"),
        number_of_classes=count(len(classes), "class", "classes"),
        iou=report["iou"],
        tiles=tiles(report),
        threshold=threshold_text(report["all_classes"]["threshold"]),
        precision=to_svg(lambda axes: draw_precision(axes, report)),
        f1=to_svg(lambda axes: draw_f1(axes, report)),
        sizes=to_svg(lambda axes: draw_sizes(axes, report)),
        scores=to_svg(lambda axes: draw_scores(axes, report)),
        shown=f"the {MATRIX_CLASSES} classes with the most mistakes"
        if len(classes) > MATRIX_CLASSES
        else "all classes",
        confusion=draw_confusion(confusion, names),
        confused=confused_table(confusion, names),
        mistakes=mistake_table(report["mistakes"]),
        pictures="".join(map(picture_of, report["worst_images"], pictures)),
        classes=class_table(classes),
    )


def count(number, one, many):
    return f"{number:,} {one if number == 1 else many}"


def figure_text(value):
    return "–" if value is None else f"{value:.3f}"


def threshold_text(value):
    """With more digits than a figure, as it lies between two scores that may be close."""
    return f"{value:.4f}"


def short(name):
    """A class's name as charts have room for."""
    return name if len(name) <= CHART_NAME else name[: CHART_NAME - 1] + "…"


def tiles(report):
    """The main figures, large."""
    shown = {name: report["AP"]["bbox"][name] for name in ("AP", "AP50", "AP75")}
    if "segm" in report["AP"]:
        shown["AP of masks"] = report["AP"]["segm"]["AP"]
    shown.update({name: report["all_classes"][name] for name in ("precision", "recall", "F1")})
    return "".join(f"<div><b>{figure_text(value)}</b>{name}</div>" for name, value in shown.items())


def table(header, rows):
    """An HTML table. Its cells are HTML already."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def confused_table(confusion, names):
    """The pairs of classes that are confused most often."""
    pairs = confusion[:-1, :-1].copy()
    np.fill_diagonal(pairs, 0)
    objects = confusion.sum(0)
    most = np.argsort(-pairs, axis=None, kind="stable")[:CONFUSED_PAIRS]
    rows = [
        [
            escape(names[there]),
            escape(names[detected]),
            f"{pairs[detected, there]:,}",
            f"{pairs[detected, there] / objects[there]:.1%}",
        ]
        for detected, there in zip(*np.unravel_index(most, pairs.shape))
        if pairs[detected, there]
    ]
    if not rows:
        return "<p>No object was taken for one of another class.</p>"
    return table(["most often: objects of", "taken for", "number", "of the class"], rows)


def class_table(classes):
    names = ("AP", "AP50", "precision", "recall", "F1")
    rows = sorted(classes, key=lambda row: (row["AP"] is None, row["AP"]))
    return table(
        ["class", "id", "objects", "detections", "threshold", *names],
        [
            [
                escape(row["name"]),
                row["id"],
                f"{row['objects']:,}",
                f"{row['detections']:,}",
                threshold_text(row["threshold"]),
                *(bar(row[name]) for name in names),
            ]
            for row in rows
        ],
    )


def bar(value):
    """A figure from 0 to 1, over a bar as long."""
    share = 0 if value is None else value
    return f'<div class="bar" style="--share: {share:.1%}">{figure_text(value)}</div>'


def mistake_table(mistakes):
    """How many of each kind, with the colour that they are drawn in."""
    rows = []
    for kind, each in mistakes.items():
        colour = f"rgb{MISTAKE_COLOURS[kind]}"
        mark = f'<span class="kind" style="background: {colour}"></span>'
        rows.append([mark + kind, f"{each['count']:,}", escape(each["meaning"])])
    return table(["kind", "number", "meaning"], rows)


def picture_of(image, jpeg):
    source = base64.b64encode(jpeg).decode()
    name = escape(printable(image["file_name"]))
    text = f"{name}: {count(len(image['mistakes']), 'mistake', 'mistakes')}"
    return (
        f'<figure><img src="data:image/jpeg;base64,{source}" alt="{text}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def to_svg(draw, size=(7, 4.2)):
    """A chart as an SVG element. draw: draws into Axes; size: width and height in inches."""
    file = io.StringIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # Matplotlib's font may lack the characters of a class; the browser draws them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def draw_lines(axes, x, report, key):
    """A line of report's `key` for each class that has objects, and one for all together."""
    classes = [row for row in report["classes"] if row["objects"]]
    few = len(classes) <= COLOURED_CLASSES
    lines = []
    for number, row in enumerate(classes):
        style = dict(color=f"C{number}", lw=1.5) if few else dict(color=BLUE, lw=0.7, alpha=0.45)
        lines += axes.plot(x, row[key], **style)
    names = [short(row["name"]) for row in classes] if few else ["each class"]
    shown = lines[: len(names)]
    if len(report["classes"]) > 1:
        shown += axes.plot(x, report["all_classes"][key], color=INK, lw=2.5)
        names.append("all classes")
    legend = axes.legend(shown, names, loc="center left", bbox_to_anchor=(1, 0.5))
    for line in legend.get_lines():
        line.set(alpha=1, lw=2)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(color=INK, alpha=0.12)


def draw_precision(axes, report):
    draw_lines(axes, report["recalls"], report, "precision_at_recalls")
    axes.set(xlabel="recall", ylabel="precision")


def draw_f1(axes, report):
    draw_lines(axes, report["thresholds"], report, "F1_at_thresholds")
    axes.axvline(report["all_classes"]["threshold"], color=INK, lw=1, ls=":")
    axes.set(xlabel="threshold", ylabel="F1")


def draw_sizes(axes, report):
    """Bars of AP for small, medium and large objects, of boxes and of masks."""
    sizes = ("small", "medium", "large")
    width = 0.8 / len(report["AP"])
    for number, (kind, name) in enumerate((("bbox", "boxes"), ("segm", "masks"))):
        if kind not in report["AP"]:
            continue
        values = [report["AP"][kind][f"AP_{size}"] for size in sizes]
        places = np.arange(3) + (number - (len(report["AP"]) - 1) / 2) * width
        axes.bar(
            places, [value or 0 for value in values], width * 0.95, color=f"C{number}", label=name
        )
        for place, value in zip(places, values):
            axes.text(place, (value or 0) + 0.01, figure_text(value), ha="center")
    axes.set_xticks(
        range(3),
        [f"{size}\n{count(report['objects'][size], 'object', 'objects')}" for size in sizes],
    )
    axes.set(ylim=(0, 1.05), ylabel="AP")
    if len(report["AP"]) > 1:
        axes.legend()


def draw_scores(axes, report):
    """How many detections score how much, those that found an object and the others."""
    hits, misses = report["scores"]["hits"], report["scores"]["misses"]
    edges = np.linspace(0, 1, len(hits) + 1)
    middles, width = (edges[:-1] + edges[1:]) / 2, edges[1] * 0.42
    axes.bar(middles - width / 2, hits, width, color=HITS, label="found an object")
    axes.bar(middles + width / 2, misses, width, color=MISSES, label="did not")
    axes.axvline(report["all_classes"]["threshold"], color=INK, lw=1, ls=":")
    axes.set_yscale("symlog", linthresh=1)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set(xlim=(0, 1), ylim=(0, None), xlabel="score", ylabel="detections")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)


def draw_confusion(confusion, names):
    """The matrix of confused classes, an SVG element."""
    shares = normalise(confusion)
    if len(names) > MATRIX_CLASSES:
        mistakes = confusion.sum(0) + confusion.sum(1) - 2 * confusion.diagonal()
        shown = np.sort(np.argsort(-mistakes[:-1], kind="stable")[:MATRIX_CLASSES])
        names = [names[index] for index in shown]
        shown = np.append(shown, len(confusion) - 1)
        shares, confusion = (matrix[shown][:, shown] for matrix in (shares, confusion))
    size = len(confusion)
    cell = min(0.8, max(0.125, 5 / size))

    def draw(axes):
        pixels = np.empty((size, size, 4))
        pixels[..., :3] = BLUE
        # Shares of a few percent should be seen, too.
        pixels[..., 3] = 0.85 * np.sqrt(shares)
        axes.imshow(pixels, interpolation="none")
        if size <= 16:
            for y, x in np.argwhere(confusion):
                axes.text(x, y, f"{confusion[y, x]:,}", ha="center", va="center", fontsize=8)
        small = dict(fontsize=6.5 if size > 30 else 9)
        axes.set_xticks(range(size), [*map(short, names), "no object"], rotation=90, **small)
        axes.set_yticks(range(size), [*map(short, names), "not found"], **small)
        axes.set(xlabel="what is there", ylabel="what was detected")
        axes.tick_params(length=0)
        edges, ends = np.arange(size + 1) - 0.5, (-0.5, size - 0.5)
        axes.hlines(edges, *ends, color=INK, alpha=0.1, lw=0.5)
        axes.vlines(edges, *ends, color=INK, alpha=0.1, lw=0.5)

    return to_svg(draw, (cell * size + 1.6, cell * size + 1.6))


def normalise(confusion):
    """Each column's parts of its sum."""
    return confusion / np.maximum(confusion.sum(0), 1)
