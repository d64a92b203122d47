"""Draw detections, ground truth, mistakes and attention maps."""

import colorsys
import io
import math
from functools import lru_cache

import matplotlib
import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

GRID = (4, 3)  # columns and rows of predictions.png
CELL_SIZE = 400  # pixels; longer side of its images
HEADER_HEIGHT = 32  # pixels
FRAME_WIDTH = 3  # pixels
TEXT_HEIGHT = 15  # pixels
MIN_SCORE = 0.5  # detections with a lower score are not drawn in predictions.png
MIN_SIDE = 600  # pixels; smaller images are enlarged to it, so that labels are legible
MASK_OPACITY = 0.5
MIN_CAPTION_WIDTH = 240  # pixels
MISTAKE_SIDE = 640  # pixels; longer side of an image with its mistakes
# The colours of datasets.matching.MISTAKES.
MISTAKE_COLOURS = {
    "missed": (255, 80, 80),
    "class": (255, 165, 0),
    "localization": (250, 235, 60),
    "duplicate": (90, 190, 255),
    "background": (240, 110, 240),
}
MAX_POINTS = 4  # query points of the encoder attention maps
MAX_ATTENTION_MAPS = 20  # detections whose attention is drawn
# Bundled with matplotlib.
DEJAVU_SANS = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"


def plot_predictions(coco, read_image, results, names, path):
    """Draw the first images of `results`, with ground truth and detections, into one PNG.

    coco: pycocotools' COCO with the ground truth; read_image: image id -> PIL image; results:
    detections in COCO's result format; names: dictionary category id -> name; path: a path or a
    binary file.
    """
    columns, rows = GRID
    detections = {}
    for result in results:
        detections.setdefault(result["image_id"], []).append(result)
    shown = sorted(detections)[: columns * rows]
    rows = math.ceil(len(shown) / columns)
    page = Image.new("RGB", (columns * CELL_SIZE, HEADER_HEIGHT + rows * CELL_SIZE), "white")
    count = sum(d["score"] >= MIN_SCORE for image_id in shown for d in detections[image_id])
    key = f"white: ground truth; colour: the {count} detections with a score of {MIN_SCORE} or more"
    font = _load_font(" ", 18)
    ImageDraw.Draw(page).text((8, HEADER_HEIGHT / 2), key, fill="black", font=font, anchor="lm")
    for number, image_id in enumerate(shown):
        corner = (number % columns * CELL_SIZE, HEADER_HEIGHT + number // columns * CELL_SIZE)
        image, annotations = read_image(image_id), coco.imgToAnns[image_id]
        page.paste(_draw_cell(image, annotations, detections[image_id], names), corner)
    page.save(path, format="png")


def _draw_cell(image, annotations, detections, names):
    """Return an image that fits into a cell, with ground truth and detections."""
    scale = (CELL_SIZE - 4) / max(image.size)
    image = _resize(image, scale)
    _draw_ground_truth(image, annotations, scale)
    drawn = sorted((d for d in detections if d["score"] >= MIN_SCORE), key=lambda d: -d["score"])
    boxes = [_get_corners(detection["bbox"], scale) for detection in drawn]
    labels = [detection["category_id"] for detection in drawn]
    scores = [detection["score"] for detection in drawn]
    _draw_boxes(image, boxes, labels, scores, names, FRAME_WIDTH, TEXT_HEIGHT)
    return image


def draw_detections(image, result, names):
    """Return the image with its detections' masks, boxes, names and scores; enlarged if small.

    image: PIL, RGB; result: what `predict.predict` returns for it; names: dictionary category id ->
    name.
    """
    scale = max(1, MIN_SIDE / max(image.size))
    image = image.copy() if scale == 1 else _resize(image, scale)
    frame_width, text_height = max(3, max(image.size) // 300), max(14, max(image.size) // 55)
    labels = result["labels"].tolist()
    if "masks" in result:
        _draw_masks(image, result["masks"], labels)
    boxes = [[value * scale for value in box] for box in result["boxes"].tolist()]
    _draw_boxes(image, boxes, labels, result["scores"].tolist(), names, frame_width, text_height)
    return image


def draw_mistakes(image, annotations, mistakes, names):
    """Return the image, resized, with ground truth (thin white boxes) and the detector's mistakes.

    image: PIL, RGB; annotations: its objects in COCO's format; mistakes: dictionaries with the
    fields of `datasets.matching.Mistake`; names: dictionary category id -> name.
    """
    scale = MISTAKE_SIDE / max(image.size)
    image = _resize(image, scale)
    _draw_ground_truth(image, annotations, scale)
    draw = ImageDraw.Draw(image)
    boxes = [[value * scale for value in mistake["box"]] for mistake in mistakes]
    for box, mistake in zip(boxes, mistakes):
        _draw_frame(draw, box, MISTAKE_COLOURS[mistake["kind"]], FRAME_WIDTH)
    labels = Labels(draw, image.size, TEXT_HEIGHT)
    for box, mistake in zip(boxes, mistakes):
        name = _get_name(names, mistake["label"])
        if mistake["truth"] is not None:
            name += f", is {_get_name(names, mistake['truth'])}"
        score = "" if mistake["score"] is None else f" {mistake['score']:.2f}"
        labels.add(box, name, score, MISTAKE_COLOURS[mistake["kind"]])
    return image


def draw_attention(image, result, names):
    """Return a page of attention maps, as in figures 3 and 6 of the paper.

    Encoder self-attention from a few points, and decoder cross-attention of each detection; each
    map is scaled to its maximum. Arguments as in `draw_detections`.
    """
    scale = CELL_SIZE / max(image.size)
    small = _resize(image, scale)
    grey = small.convert("L").convert("RGB")
    cells = []
    if "encoder_attention" in result:
        points = _choose_points(result["boxes"], image.size)
        overview = small.copy()
        for number, (x, y) in enumerate(points, 1):
            _draw_point(overview, x * overview.width, y * overview.height, number)
        cells.append((overview, f"encoder: from the points 1 to {len(points)}"))
        h, w = result["encoder_attention"].shape[:2]
        for number, (x, y) in enumerate(points, 1):
            weights = result["encoder_attention"][min(int(y * h), h - 1), min(int(x * w), w - 1)]
            cell = _draw_weights(grey, weights)
            _draw_point(cell, x * cell.width, y * cell.height, number)
            cells.append((cell, f"encoder: from point {number}"))
    keys = ("boxes", "labels", "scores")
    detections = zip(result["decoder_attention"], *(result[key].tolist() for key in keys))
    for weights, box, label, score in list(detections)[:MAX_ATTENTION_MAPS]:
        cell = _draw_weights(grey, weights)
        box = [value * scale for value in box]
        _draw_frame(ImageDraw.Draw(cell), box, _get_colour(label), 2)
        cells.append((cell, f"decoder: {_get_name(names, label)} {score:.2f}"))
    columns = max(1, min(len(cells), GRID[0] + 1))
    rows = max(1, math.ceil(len(cells) / columns))
    width, height = max(small.width + 8, MIN_CAPTION_WIDTH), small.height + HEADER_HEIGHT
    page = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(page)
    for number, (cell, caption) in enumerate(cells):
        left, top = number % columns * width, number // columns * height
        page.paste(cell, (left + 4, top + HEADER_HEIGHT))
        font = _load_font(caption, TEXT_HEIGHT)
        caption = _shorten(draw, caption, font, width - 10)
        corner = (left + 6, top + HEADER_HEIGHT / 2)
        draw.text(corner, caption, fill="black", font=font, anchor="lm")
    return page


def encode_jpeg(image):
    """Return a PIL image as the bytes of a JPEG."""
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=85)
    return file.getvalue()


def find_unreadable_names(names):
    """Return the class names that no font of this machine can show; their ids are drawn instead."""
    return [name for name in names.values() if not _is_readable(name)]


def find_font(text):
    """Return the path of a font that can draw the text, DejaVu Sans if possible.

    Also DejaVu Sans if no font has all of them, as for names in two scripts; missing glyphs appear
    as boxes.
    """
    return _find_font(frozenset(text)) or DEJAVU_SANS


def _resize(image, scale):
    size = [max(1, round(side * scale)) for side in image.size]
    return image.resize(size, Image.Resampling.BICUBIC)


def _draw_ground_truth(image, annotations, scale):
    draw = ImageDraw.Draw(image)
    for annotation in annotations:  # white on black is visible on any background
        left, top, right, bottom = _get_corners(annotation["bbox"], scale)
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="black", width=3)
        draw.rectangle((left, top, right, bottom), outline="white", width=1)


def _get_corners(bbox, scale):
    """Return x0, y0, x1, y1 of a COCO box in the resized image."""
    x, y, width, height = (value * scale for value in bbox)
    return x, y, x + max(width, 0), y + max(height, 0)


def _draw_boxes(image, boxes, labels, scores, names, frame_width, text_height):
    """Draw the frames, the first on top, and then the labels above all frames."""
    draw = ImageDraw.Draw(image)
    for box, label in reversed(list(zip(boxes, labels))):
        _draw_frame(draw, box, _get_colour(label), frame_width)
    drawn = Labels(draw, image.size, text_height)
    for box, label, score in zip(boxes, labels, scores):
        drawn.add(box, _get_name(names, label), f" {score:.2f}", _get_colour(label))


def _draw_frame(draw, box, colour, width):
    """Draw a frame with a thin dark edge, which makes it visible on any background."""
    x0, y0, x1, y1 = box[0], box[1], max(box[0], box[2]), max(box[1], box[3])
    edge = max(1, width // 3)
    outer = x0 - edge, y0 - edge, x1 + edge, y1 + edge
    draw.rectangle(outer, outline="black", width=width + 2 * edge)
    draw.rectangle((x0, y0, x1, y1), outline=colour, width=width)


def _draw_masks(image, masks, labels):
    """Overlay masks bool [n, H, W], given at the size before enlarging, on the image, in place."""
    for mask, label in reversed(list(zip(masks, labels))):
        mask = Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST)
        tables = [
            int(value * (1 - MASK_OPACITY) + part * MASK_OPACITY)
            for part in _get_colour(label)
            for value in range(256)
        ]
        image.paste(image.point(tables), mask=mask)


def _draw_weights(grey, weights):
    """Overlay attention weights float32 [h, w] on the grey image."""
    heat = Image.fromarray(weights / max(weights.max(), 1e-12))
    heat = np.asarray(heat.resize(grey.size, Image.Resampling.BILINEAR))[:, :, None]
    colours = matplotlib.colormaps["inferno"](heat[:, :, 0])[:, :, :3] * 255
    opacity = 0.35 + 0.5 * heat
    pixels = np.asarray(grey) * (1 - opacity) + colours * opacity
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def _choose_points(boxes, size):
    """Return up to MAX_POINTS points (x, y) in 0..1 that are not close to each other.

    The centres of the best detections come first, then points between the middle and the corners.
    """
    centres = [
        ((x0 + x1) / 2 / size[0], (y0 + y1) / 2 / size[1]) for x0, y0, x1, y1 in boxes.tolist()
    ]
    points = []
    for x, y in centres + [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)]:
        x, y = min(max(x, 0), 1), min(max(y, 0), 1)
        if all(max(abs(x - other_x), abs(y - other_y)) > 0.15 for other_x, other_y in points):
            points.append((x, y))
    return points[:MAX_POINTS]


def _draw_point(image, x, y, number):
    draw, radius = ImageDraw.Draw(image), 11
    x, y = (min(max(value, radius), side - 1 - radius) for value, side in zip((x, y), image.size))
    circle = x - radius, y - radius, x + radius, y + radius
    draw.ellipse(circle, fill="white", outline="black", width=2)
    draw.text((x, y), str(number), fill="black", font=_load_font("0", TEXT_HEIGHT), anchor="mm")


class Labels:
    """Draw labels that do not cover each other if there is room, and never leave the image.

    size: width and height of the image; height: text height; in pixels.
    """

    def __init__(self, draw, size, height):
        self.draw, self.size, self.height = draw, size, height
        self.drawn = []  # rectangles x0, y0, x1, y1

    def add(self, box, name, score, colour):
        """Draw name and score at a corner of the box. A name too long for the image is cut."""
        pad = max(2, self.height // 6)
        room = self.size[0] - 2 * pad
        height = self.height
        font = _load_font(name + score, height)
        while self.draw.textlength(name + score, font=font) > room and height > 8:
            height -= 1
            font = _load_font(name + score, height)
        name = _shorten(self.draw, name, font, room, score)
        width = self.draw.textlength(name + score, font=font) + 2 * pad
        tall = sum(font.getmetrics()) + pad
        x, y = self._find_room(box, width, tall)
        self.drawn.append((x, y, x + width, y + tall))
        self.draw.rectangle((x, y, x + width - 1, y + tall - 1), fill=colour)
        middle = (x + pad, y + tall / 2)
        self.draw.text(middle, name + score, fill="black", font=font, anchor="lm")

    def _find_room(self, box, width, height):
        """Return the top-left corner of a free spot for a label above, inside or below the box."""
        right_most, lowest = max(self.size[0] - width, 0), max(self.size[1] - height, 0)
        left = min(max(box[0], 0), right_most)
        right = min(max(box[2] - width, 0), right_most)
        corners = []
        for y in (box[1] - height, box[1], box[3], box[3] - height):
            y = min(max(y, 0), lowest)
            corners += [(left, y), (right, y)]
        for x, y in corners:
            if not any(
                x < x1 and y < y1 and x + width > x0 and y + height > y0
                for x0, y0, x1, y1 in self.drawn
            ):
                return x, y
        return corners[0]


def _shorten(draw, text, font, width, suffix=""):
    """Return the text, cut so that it fits into the width (pixels) together with the suffix."""
    while draw.textlength(text + suffix, font=font) > width and len(text) > 1:
        text = text.rstrip("…")[:-1] + "…"
    return text


def _get_name(names, class_id):
    """Return the class's name, or its id if it has none or no font has its characters."""
    name = names.get(class_id, f"class {class_id}")
    return name if _is_readable(name) else f"class {class_id}"


def _get_colour(category_id):
    """Return a bright colour, different for each class."""
    hue = category_id * 0.618034 % 1
    saturation, value = ((0.6, 1), (0.85, 1), (0.4, 1), (0.75, 0.85))[category_id // 5 % 4]
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))


def _load_font(text, size):
    return ImageFont.truetype(find_font(text), size)


def _is_readable(name):
    """Return True if a font has the characters of the name and of a score."""
    return _find_font(frozenset(f"{name} 0123456789.")) is not None


@lru_cache(maxsize=None)
def _find_font(characters):
    """Return the path of a font that has the characters, or None."""
    paths = (DEJAVU_SANS, *sorted(font_manager.findSystemFonts()))
    return next((path for path in paths if _has_glyphs(path, characters)), None)


def _has_glyphs(path, characters):
    """Return True if the font has a glyph for every character."""
    try:
        font = ImageFont.truetype(path, TEXT_HEIGHT)
        missing = bytes(font.getmask("\U0010ffff"))
        return all(c.isspace() or bytes(font.getmask(c)) != missing for c in characters)
    except OSError:  # a bitmap font, or a damaged one
        return False
