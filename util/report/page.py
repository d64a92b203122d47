"""Fill page.html with tables, charts and images."""

import base64
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from util.errors import escape_unprintable
from util.pictures import MISTAKE_COLOURS

from . import charts
from .charts import count, format_metric, to_svg

TEMPLATE = Path(__file__).with_suffix(".html")
MAX_CONFUSED_PAIRS = 20


def make_page(report: dict, images: list[bytes]) -> str:
    """Build the report's HTML.

    report: what `datasets.report.make_report` returns; images: a JPEG for each of its worst images.
    """
    classes, confusion = report["classes"], np.array(report["confusion"])
    names = [row["name"] for row in classes]
    limit = charts.MAX_MATRIX_CLASSES
    shown = f"the {limit} classes with the most mistakes" if len(classes) > limit else "all classes"
    return Template(TEMPLATE.read_text()).substitute(
        images=count(report["images"], "image"),
        objects=count(report["objects"]["all"], "object"),
        number_of_classes=count(len(classes), "class", "classes"),
        iou=report["iou"],
        tiles=make_tiles(report),
        threshold=format_threshold(report["all_classes"]["threshold"]),
        precision=to_svg(charts.draw_precision, report),
        f1=to_svg(charts.draw_f1, report),
        sizes=to_svg(charts.draw_sizes, report),
        scores=to_svg(charts.draw_scores, report),
        shown=shown,
        confusion=charts.draw_confusion(confusion, names),
        confused=make_confusion_table(confusion, names),
        mistakes=make_mistake_table(report["mistakes"]),
        pictures="".join(map(make_figure, report["worst_images"], images)),
        classes=make_class_table(classes),
    )


def make_tiles(report):
    """Make the tiles that show the main metrics."""
    shown = {name: report["AP"]["bbox"][name] for name in ("AP", "AP50", "AP75")}
    if "segm" in report["AP"]:
        shown["AP of masks"] = report["AP"]["segm"]["AP"]
    shown.update({name: report["all_classes"][name] for name in ("precision", "recall", "F1")})
    return "".join(
        f"<div><b>{format_metric(value)}</b>{name}</div>" for name, value in shown.items()
    )


def make_table(header, rows):
    """Make an HTML table; cells are HTML and not escaped."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def make_confusion_table(confusion, names):
    """Make a table of the pairs of classes that are confused most often."""
    pairs = confusion[:-1, :-1].copy()
    np.fill_diagonal(pairs, 0)
    objects = confusion.sum(0)
    most = np.argsort(-pairs, axis=None, kind="stable")[:MAX_CONFUSED_PAIRS]
    rows = [
        [
            escape(names[true]),
            escape(names[detected]),
            f"{pairs[detected, true]:,}",
            f"{pairs[detected, true] / objects[true]:.1%}",
        ]
        for detected, true in zip(*np.unravel_index(most, pairs.shape))
        if pairs[detected, true]
    ]
    if not rows:
        return "<p>No object was taken for one of another class.</p>"
    return make_table(["most often: objects of", "taken for", "number", "of the class"], rows)


def make_class_table(classes):
    names = ("AP", "AP50", "precision", "recall", "F1")
    rows = [
        [
            escape(row["name"]),
            row["id"],
            f"{row['objects']:,}",
            f"{row['detections']:,}",
            format_threshold(row["threshold"]),
            *(make_bar(row[name]) for name in names),
        ]
        for row in sorted(classes, key=lambda row: (row["AP"] is None, row["AP"]))
    ]
    return make_table(["class", "id", "objects", "detections", "threshold", *names], rows)


def make_bar(value):
    """Make a table cell with a metric in 0..1 and a bar of proportional length."""
    return f'<div class="bar" style="--share: {value or 0:.1%}">{format_metric(value)}</div>'


def make_mistake_table(mistakes):
    """Make a table of mistake types with counts and colours."""
    rows = []
    for kind, each in mistakes.items():
        colour = f"rgb{MISTAKE_COLOURS[kind]}"
        mark = f'<span class="kind" style="background: {colour}"></span>'
        rows.append([mark + kind, f"{each['count']:,}", escape(each["meaning"])])
    return make_table(["kind", "number", "meaning"], rows)


def make_figure(image, jpeg):
    source = base64.b64encode(jpeg).decode()
    name = escape(escape_unprintable(image["file_name"]))
    text = f"{name}: {count(len(image['mistakes']), 'mistake')}"
    return (
        f'<figure><img src="data:image/jpeg;base64,{source}" alt="{text}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def format_threshold(value):
    """Format a threshold, with more digits than a metric: it may lie between two close scores."""
    return f"{value:.4f}"
