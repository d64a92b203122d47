"""The page of the report: complete, self-contained, for any number of classes."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from test_report import evaluate, make_prediction, make_truth

from datasets.matching import MISTAKES
from datasets.report import make_report
from util.pictures import MISTAKE_COLOURS
from util.report import charts
from util.report.page import make_page


class Reader(HTMLParser):
    """Collect a page's text, tags, and what it would load; fail if tags do not match."""

    UNCLOSED = {"meta", "img", "br"}

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.loaded, self.text = [], [], [], ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.open += [] if tag in self.UNCLOSED else [tag]
        self.loaded += [value for name, value in attributes if name in ("src", "xlink:href")]

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.UNCLOSED:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def make(classes, *detections, objects=((1, 10, 10, 50, 50),)):
    coco = make_truth(*objects, names=classes)
    report = make_report(evaluate(coco, {1: make_prediction(*detections)}))
    return report, make_page(report, [b"jpeg"] * len(report["worst_images"]))


@pytest.mark.parametrize("count", [1, 3, 11, 80, 250])
def test_any_number_of_classes(count):
    names = [f"class {number}" for number in range(count)]
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 50, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(20, 50, (count, 2))], 1)
    objects = [(label, *box) for label, box in enumerate(boxes, 1)]
    # Every tenth class is confused with the next one, except the first class.
    labels = [label % count + 1 if label % 10 == 5 else label for label in range(1, count + 1)]
    detections = [(0.5 + 0.001 * i, labels[i], *boxes[i]) for i in range(count)]
    report, page = make(names, *detections, objects=objects)
    reader = Reader(page)
    assert reader.tags.count("svg") == 5
    svgs = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    for svg in svgs:
        ElementTree.fromstring(svg)
        assert charts.INK not in svg
    assert all(each.startswith(("data:image/", "#")) for each in reader.loaded)
    assert "<script" not in page and "<link" not in page
    for name in names:
        assert name in reader.text
    assert svgs[-1].count(">class ") == 2 * min(count, charts.MAX_MATRIX_CLASSES)
    if count > 10:
        assert f"--threshold {report['all_classes']['threshold']:.4f}" in reader.text
        assert ">class 5<" in svgs[-1], "a confused class is shown"
    assert page == make_page(report, [b"jpeg"] * len(report["worst_images"]))


def test_names_are_text_only(recwarn):
    names = ["<b>&", "$x_1$", "_hidden", "狗", '"quoted" ${summary}']
    detections = [(0.9, 2, 10, 10, 50, 50), (0.8, 5, 60, 60, 90, 90)]
    objects = [(label, 10 * label, 10, 50, 50) for label in range(1, 6)]
    _, page = make(names, *detections, objects=objects)
    reader = Reader(page)
    assert reader.tags.count("b") == 6 + 1, "the metrics above and the threshold"
    for name in names:
        # two charts with curves, two sides of the matrix, and the table
        assert reader.text.count(name) >= 5, name
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_a_file_name_that_is_not_utf_8_is_escaped():
    report, _ = make(["cat"], (0.9, 1, 10, 10, 90, 90))
    report["worst_images"][0]["file_name"] = "caf\udce9.jpg"
    page = make_page(report, [b"jpeg"]).encode().decode()
    assert r"caf\udce9.jpg: 1 mistake" in Reader(page).text


def test_long_names_are_cut_in_charts_only(recwarn):
    name = ("a name that says everything " * 4).strip()
    report, page = make([name, "cat"], (0.9, 1, 10, 10, 50, 50))
    assert page.count(name) == 1 and page.count("a name that says everyt…") == 4
    assert not [warning for warning in recwarn if "layout" in str(warning.message)]


def test_a_threshold_between_two_close_scores_keeps_them_apart():
    detections = [(0.9995, 1, 10, 10, 50, 50), (0.9975, 1, 60, 60, 90, 90)]
    _, page = make(["cat"], *detections)
    assert "--threshold 0.9985<" in page


def test_without_objects_or_detections():
    for objects, detections in (((), ()), ((), [(0.5, 1, 0, 0, 9, 9)]), ([(1, 0, 0, 9, 9)], ())):
        report, page = make(["cat"], *detections, objects=objects)
        reader = Reader(page)
        assert f"1 image, {len(objects)} object" in reader.text
        assert ("<b>–</b>AP50" in page) == (not objects)
        assert len(report["worst_images"]) == (1 if objects or detections else 0)


def test_every_kind_of_mistake_has_a_colour():
    assert list(MISTAKE_COLOURS) == list(MISTAKES)
