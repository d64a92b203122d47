"""Images with detections, mistakes and attention maps."""

import itertools
import json

import numpy as np
import pytest
import tiny
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from datasets.annotations import get_class_names
from util import pictures
from util.pictures import CELL_SIZE, HEADER_HEIGHT, plot_predictions


def detection(image_id, bbox, score, category_id=1):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """(COCO, image folder) of six black images of 100x50 pixels, the first with one object."""
    folder = tmp_path_factory.mktemp("images")
    images = [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 50} for i in range(1, 7)]
    for image in images:
        Image.new("RGB", (100, 50)).save(folder / image["file_name"])
    coco = COCO()
    coco.dataset = {
        "images": images,
        "categories": [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 5, 30, 20], "area": 600}
        ],
    }
    coco.createIndex()
    return coco, folder


def draw(coco, tmp_path, results):
    coco, folder = coco

    def read_image(number):
        return Image.open(folder / coco.imgs[number]["file_name"]).convert("RGB")

    names = get_class_names(coco.cats.values())
    plot_predictions(coco, read_image, results, names, tmp_path / "predictions.png")
    with Image.open(tmp_path / "predictions.png") as page:
        return np.asarray(page.convert("RGB")).astype(int)


def get_cell(page, number):
    row, column = divmod(number, 4)
    top, left = HEADER_HEIGHT + row * CELL_SIZE, column * CELL_SIZE
    return page[top : top + CELL_SIZE, left : left + CELL_SIZE]


def is_coloured(pixels):
    return np.ptp(pixels, axis=2) > 60


@pytest.mark.parametrize("name", [7, "dog\n", "dog\r"])
def test_a_class_with_a_strange_name(coco, tmp_path, monkeypatch, name):
    monkeypatch.setitem(coco[0].cats[7], "name", name)
    page = draw(coco, tmp_path, [detection(1, [50, 10, 40, 30], 0.9, category_id=7)])
    assert is_coloured(get_cell(page, 0)).any()


def test_each_image_has_a_cell_with_its_frames(coco, tmp_path):
    results = [detection(i, [50, 10, 40, 30], 0.9 if i == 2 else 0.1) for i in range(1, 7)]
    page = draw(coco, tmp_path, results)
    assert page.shape == (HEADER_HEIGHT + 2 * CELL_SIZE, 4 * CELL_SIZE, 3)
    scale = (CELL_SIZE - 4) / 100
    truth = get_cell(page, 0)
    upper_edge = truth[int(5 * scale) : int(5 * scale) + 2, round(12 * scale) : round(38 * scale)]
    assert (upper_edge == 255).any(0).all()
    assert not is_coloured(truth).any(), "the score is too low"
    bottom, left, right = (round(value * scale) for value in (40, 52, 88))
    lower_edge = get_cell(page, 1)[bottom - 1 : bottom + 1, left:right]
    assert is_coloured(lower_edge).any(0).all()


def test_each_class_is_drawn_in_its_colour(coco, tmp_path):
    colours = []
    for category_id in (1, 7):
        page = draw(coco, tmp_path, [detection(2, [50, 10, 40, 30], 0.9, category_id)])
        pixels = get_cell(page, 0)
        colours.append(tuple(np.median(pixels[is_coloured(pixels)], axis=0)))
    assert colours[0] != colours[1]


@pytest.mark.parametrize(
    "bbox", [[-5, -5, 120, 70], [99, 49, 30, 30], [10, 10, 0, 0], [300, 300, 5, 5], [5, 5, -3, -3]]
)
def test_odd_boxes_and_unlisted_classes_are_drawn_too(coco, tmp_path, bbox):
    draw(coco, tmp_path, [detection(1, bbox, 0.9, category_id=5)])


def test_images_of_all_shapes_fit(tmp_path):
    folder = tiny.make_coco(tmp_path)
    coco = COCO()
    coco.dataset = json.loads((folder / "annotations" / "instances_val2017.json").read_text())
    coco.createIndex()
    results = [detection(i, [0, 0, 9, 9], 1) for i in coco.imgs]
    page = draw((coco, folder / "val2017"), tmp_path, results)
    assert page.shape == (HEADER_HEIGHT + CELL_SIZE, 4 * CELL_SIZE, 3)


def make_result(boxes, labels, size=None):
    boxes = np.float32(boxes).reshape(-1, 4)
    result = {
        "boxes": boxes,
        "labels": np.array(labels),
        "scores": np.linspace(0.99, 0.7, len(boxes)).astype(np.float32),
    }
    if size:
        result["masks"] = np.ones((len(boxes), size[1], size[0]), bool)
    return result


@pytest.mark.parametrize("size", [(100, 100), (1, 1), (640, 480), (6000, 400), (90, 2000)])
@pytest.mark.parametrize(
    "name",
    ["cat", "a name that is much longer than any image of ordinary size is wide, and then some"],
)
def test_labels_stay_in_the_image_and_apart(size, name, monkeypatch):
    drawn = []
    original = pictures.Labels.add

    def add(labels, *label):
        original(labels, *label)
        drawn.append((labels.size, labels.drawn[-1]))

    monkeypatch.setattr(pictures.Labels, "add", add)
    w, h = size
    boxes = [
        [0, 0, w, h],
        [-5, -5, w / 2, h / 2],
        [w - 3, h - 3, w + 9, h + 9],
        [w / 3, h / 3, w / 2, h / 2],
    ]
    names = dict.fromkeys((1, 2, 3), name)
    result = make_result(boxes, [1, 2, 3, 1], size)
    image = pictures.draw_detections(Image.new("RGB", size, "grey"), result, names)
    assert max(image.size) >= 600
    assert abs(image.width / image.height - w / h) <= 0.02 * w / h + 1 / image.height
    for (width, height), (x0, y0, x1, y1) in drawn:
        assert x0 >= 0 and y0 >= 0 and y1 <= height
        assert x1 <= width or width < 60, "an image of a few pixels has no room for a score"
    assert len(drawn) == 4


def test_labels_of_neighbours_do_not_cover_each_other():
    boxes = [[200, 200, 400, 400], [202, 202, 400, 400], [204, 200, 398, 402]]
    labels = pictures.Labels(ImageDraw.Draw(Image.new("RGB", (640, 480))), (640, 480), 15)
    for box in boxes:
        labels.add(box, "cat", " 0.90", (255, 255, 255))
    assert len(labels.drawn) == 3
    for a, b in itertools.combinations(labels.drawn, 2):
        assert not (a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3])


def test_colours_of_classes_differ():
    colours = [pictures._get_colour(number) for number in range(250)]
    assert len(set(colours)) == 250
    differences = np.abs(np.diff(colours, axis=0)).max(1)
    assert differences.min() > 60, "neighbouring ids"
    assert min(map(max, colours)) > 200, "black text is legible"


def test_names_without_a_font_become_ids(monkeypatch):
    monkeypatch.setattr(pictures.font_manager, "findSystemFonts", lambda: [])
    pictures._find_font.cache_clear()
    names = {1: "cat", 2: "猫", 3: "naïve"}
    assert pictures.find_unreadable_names(names) == ["猫"]
    shown = [pictures._get_name(names, class_id) for class_id in (1, 2, 3, 4)]
    assert shown == ["cat", "class 2", "naïve", "class 4"]
    result = make_result([[1, 1, 40, 40]], [2])
    assert pictures.draw_detections(Image.new("RGB", (50, 50)), result, names).size == (600, 600)
    pictures._find_font.cache_clear()


def make_font(path, characters):
    """Make a TrueType font of squares that has only these characters."""
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, 700), (600, 700), (600, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square = pen.glyph()
    glyphs = {f"square{number}": character for number, character in enumerate(characters)}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *glyphs])
    builder.setupCharacterMap({ord(character): name for name, character in glyphs.items()})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), **dict.fromkeys(glyphs, square)})
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *glyphs], (700, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


def test_names_that_no_single_font_can_show(tmp_path, monkeypatch):
    """Two scripts in one label, and a font without digits."""
    fonts = [
        make_font(tmp_path / "a.ttf", "猫 .,is0123456789"),
        make_font(tmp_path / "b.ttf", "개 .,is0123456789"),
        make_font(tmp_path / "c.ttf", "犬"),
    ]
    monkeypatch.setattr(pictures.font_manager, "findSystemFonts", lambda: fonts)
    pictures._find_font.cache_clear()
    names = {1: "猫", 2: "개", 3: "犬"}
    assert pictures.find_unreadable_names(names) == ["犬"]
    mistakes = [
        {"kind": "class", "label": 1, "box": [1, 1, 40, 40], "score": 0.5, "truth": 2},
        {"kind": "missed", "label": 3, "box": [1, 1, 40, 40], "score": None, "truth": None},
    ]
    image = pictures.draw_mistakes(Image.new("RGB", (50, 50)), [], mistakes, names)
    assert image.size == (640, 640)
    pictures._find_font.cache_clear()


@pytest.mark.parametrize("count", [0, 1, 30])
def test_a_page_of_attention(count):
    result = make_result([[10, 10, 40, 40]] * count, [1] * count)
    result.update(
        decoder_attention=np.random.default_rng(0).random((count, 3, 4), np.float32),
        encoder_attention=np.random.default_rng(1).random((3, 4, 3, 4), np.float32),
    )
    image = Image.new("RGB", (400, 300))
    page = pictures.draw_attention(image, result, {1: "cat"})
    cells = 5 + min(count, 20)
    assert page.size == (5 * 408, -(-cells // 5) * 332)
    del result["encoder_attention"]
    page = pictures.draw_attention(image, result, {1: "cat"})
    assert page.width in (240, 408, 5 * 408)


def test_points_are_apart():
    boxes = np.float32([[0, 0, 100, 100], [2, 2, 100, 100], [200, 200, 300, 300], [-50, -50, 2, 2]])
    expected = [(0.125, 0.125), (0.625, 0.625), (0.75, 0.25), (0.25, 0.75)]
    assert pictures._choose_points(boxes, (400, 400)) == expected
