"""Pictures of detections: beside the ground truth, alone, and of where the model looks."""

import colorsys
import io
import math
from functools import lru_cache

import matplotlib
import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

GRID = (4, 3)  # columns and rows of the predictions
CELL_SIZE = 400  # side of a cell in pixels, into which an image is enlarged or shrunk
HEADER_HEIGHT = 32  # height in pixels of the line that explains the picture
FRAME_WIDTH = 3  # width of a detection's frame in pixels
TEXT_HEIGHT = 15  # height of a label's text in pixels
MIN_SCORE = 0.5  # detections below are not drawn
MIN_PICTURE_SIDE = 600  # smaller pictures are enlarged to it, so that labels are legible
MASK_OPACITY = 0.5  # share of the colour in a mask
MIN_CAPTION_WIDTH = 240  # pixels
MISTAKE_SIDE = 640  # longer side of an image with its mistakes
# The colours that datasets.mistakes.KINDS are drawn in.
MISTAKE_COLOURS = {
    "missed": (255, 80, 80),
    "wrong class": (255, 165, 0),
    "wrong place": (250, 235, 60),
    "twice": (90, 190, 255),
    "nothing there": (240, 110, 240),
}
MAX_POINTS = 4  # from which the encoder's attention is drawn
MAX_ATTENTION_MAPS = 20  # detections whose attention is drawn


def plot_predictions(coco, read_image, results, names, path):
    """Draws the first images of `results`, with ground truth and detections, as one picture.

    coco: pycocotools COCO with the ground truth; read_image: gives the PIL image of an image id;
    results: detections in COCO's result format; names: dictionary category id -> name; path: a
    path or a binary file.
    """
    columns, rows = GRID
    detections = {}
    for result in results:
        detections.setdefault(result["image_id"], []).append(result)
    shown = sorted(detections)[: columns * rows]
    rows = math.ceil(len(shown) / columns)
    picture = Image.new("RGB", (columns * CELL_SIZE, HEADER_HEIGHT + rows * CELL_SIZE), "white")
    count = sum(d["score"] >= MIN_SCORE for image_id in shown for d in detections[image_id])
    ImageDraw.Draw(picture).text(
        (8, HEADER_HEIGHT / 2),
        f"white: ground truth; colour: the {count} detections with a score of {MIN_SCORE} or more",
        fill="black",
        font=_font(" ", 18),
        anchor="lm",
    )
    for number, image_id in enumerate(shown):
        place = (number % columns * CELL_SIZE, HEADER_HEIGHT + number // columns * CELL_SIZE)
        cell = _draw_cell(
            read_image(image_id), coco.imgToAnns[image_id], detections[image_id], names
        )
        picture.paste(cell, place)
    picture.save(path, format="png")


def draw_detections(image, result, names):
    """The picture with the masks, boxes, names and scores of its detections.

    Small pictures are enlarged.

    image: PIL, RGB; result: what `engine.predict` returns for it; names: dictionary category id ->
    name.
    """
    scale = max(1, MIN_PICTURE_SIDE / max(image.size))
    image = image.copy() if scale == 1 else _resize(image, scale)
    line, text = max(3, max(image.size) // 300), max(14, max(image.size) // 55)
    labels = result["labels"].tolist()
    if "masks" in result:
        image = _tint(image, result["masks"], [_colour(label) for label in labels])
    draw = ImageDraw.Draw(image)
    boxes = [[value * scale for value in box] for box in result["boxes"].tolist()]
    for box, label in reversed(list(zip(boxes, labels))):  # the highest score on top
        _frame(draw, box, _colour(label), line)
    labels_drawn = Labels(draw, image.size, text)
    for box, label, score in zip(boxes, labels, result["scores"].tolist()):
        labels_drawn.add(box, _name(names, label), f" {score:.2f}", _colour(label))
    return image


def draw_mistakes(image, annotations, mistakes, names):
    """The picture, enlarged or shrunk, with all objects thin and white, and a detector's mistakes.

    image: PIL, RGB; annotations: its objects in COCO's format; mistakes: list of dictionaries of a
    `datasets.mistakes.Mistake`; names: dictionary category id -> name.
    """
    scale = MISTAKE_SIDE / max(image.size)
    image = _resize(image, scale)
    draw = ImageDraw.Draw(image)
    for annotation in annotations:
        _truth(draw, _corners(annotation["bbox"], scale))
    boxes = [[value * scale for value in mistake["box"]] for mistake in mistakes]
    for box, mistake in zip(boxes, mistakes):
        _frame(draw, box, MISTAKE_COLOURS[mistake["kind"]], FRAME_WIDTH)
    labels = Labels(draw, image.size, TEXT_HEIGHT)
    for box, mistake in zip(boxes, mistakes):
        name = _name(names, mistake["label"])
        if mistake["truth"] is not None:
            name += f", is {_name(names, mistake['truth'])}"
        score = "" if mistake["score"] is None else f" {mistake['score']:.2f}"
        labels.add(box, name, score, MISTAKE_COLOURS[mistake["kind"]])
    return image


def draw_attention(image, result, names):
    """A page for one picture with attention maps, as figures 3 and 6 of the paper.

    They show where the encoder looks from some points, and the decoder for each detection.

    The brightest place of each map is its largest weight. Arguments as in `draw_detections`.
    """
    scale = CELL_SIZE / max(image.size)
    small = _resize(image, scale)
    grey = small.convert("L").convert("RGB")
    cells = []
    if "encoder_attention" in result:
        points = _points(result["boxes"], image.size)
        overview = small.copy()
        for number, (x, y) in enumerate(points, 1):
            _point(overview, x * overview.width, y * overview.height, number)
        cells.append((overview, f"encoder: from the points 1 to {len(points)}"))
        h, w = result["encoder_attention"].shape[:2]
        for number, (x, y) in enumerate(points, 1):
            cell = _heat(
                grey, result["encoder_attention"][min(int(y * h), h - 1), min(int(x * w), w - 1)]
            )
            _point(cell, x * cell.width, y * cell.height, number)
            cells.append((cell, f"encoder: from point {number}"))
    keys = ("boxes", "labels", "scores")
    detections = zip(result["decoder_attention"], *(result[key].tolist() for key in keys))
    for heat, box, label, score in list(detections)[:MAX_ATTENTION_MAPS]:
        cell = _heat(grey, heat)
        _frame(ImageDraw.Draw(cell), [value * scale for value in box], _colour(label), 2)
        cells.append((cell, f"decoder: {_name(names, label)} {score:.2f}"))
    columns = max(1, min(len(cells), GRID[0] + 1))
    rows = max(1, math.ceil(len(cells) / columns))
    width, height = max(small.width + 8, MIN_CAPTION_WIDTH), small.height + HEADER_HEIGHT
    page = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(page)
    for number, (cell, caption) in enumerate(cells):
        left, top = number % columns * width, number // columns * height
        page.paste(cell, (left + 4, top + HEADER_HEIGHT))
        _caption(draw, (left + 6, top + HEADER_HEIGHT / 2), caption, width - 10)
    return page


def jpeg_of(image):
    """A PIL image as the bytes of a JPEG."""
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=85)
    return file.getvalue()


def unreadable_names(names):
    """The names that no font of this machine can show; their ids are drawn instead."""
    return [name for name in names.values() if not _is_readable(name)]


def _resize(image, scale):
    size = [max(1, round(side * scale)) for side in image.size]
    return image.resize(size, Image.Resampling.BICUBIC)


def _points(boxes, size):
    """Up to MAX_POINTS places (x, y) in 0..1 that are not close to each other.

    The centres of the detections with the highest scores come first, then places between the middle
    and the corners.
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


def _point(image, x, y, number):
    draw, radius = ImageDraw.Draw(image), 11
    x, y = (min(max(value, radius), side - 1 - radius) for value, side in zip((x, y), image.size))
    draw.ellipse(
        (x - radius, y - radius, x + radius, y + radius), fill="white", outline="black", width=2
    )
    draw.text((x, y), str(number), fill="black", font=_font("0", TEXT_HEIGHT), anchor="mm")


def _heat(grey, weights):
    """The grey picture with attention weights float32 [h, w] over it."""
    heat = Image.fromarray(weights / max(weights.max(), 1e-12)).resize(
        grey.size, Image.Resampling.BILINEAR
    )
    heat = np.asarray(heat)[:, :, None]
    colours = matplotlib.colormaps["inferno"](heat[:, :, 0])[:, :, :3] * 255
    share = 0.35 + 0.5 * heat
    return Image.fromarray(
        (np.asarray(grey) * (1 - share) + colours * share).round().clip(0, 255).astype(np.uint8)
    )


def _tint(image, masks, colours):
    """The picture with masks bool [n, H, W] in their colours; they are enlarged with it."""
    pixels = np.asarray(image).copy()
    for mask, colour in reversed(list(zip(masks, colours))):
        mask = np.asarray(Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST))
        pixels[mask] = (pixels[mask] * (1 - MASK_OPACITY) + np.array(colour) * MASK_OPACITY).astype(
            np.uint8
        )
    return Image.fromarray(pixels)


def _draw_cell(image, annotations, detections, names):
    """One image, enlarged or shrunk to fit into a cell, with its frames."""
    scale = (CELL_SIZE - 4) / max(image.size)
    image = _resize(image, scale)
    draw = ImageDraw.Draw(image)
    for annotation in annotations:
        _truth(draw, _corners(annotation["bbox"], scale))
    kept = sorted((d for d in detections if d["score"] >= MIN_SCORE), key=lambda d: -d["score"])
    boxes = [_corners(detection["bbox"], scale) for detection in kept]
    colours = [_colour(detection["category_id"]) for detection in kept]
    for box, colour in reversed(list(zip(boxes, colours))):  # the highest score on top
        _frame(draw, box, colour, FRAME_WIDTH)
    labels = Labels(draw, image.size, TEXT_HEIGHT)
    for box, colour, detection in zip(boxes, colours, kept):  # over all frames
        name = _name(names, detection["category_id"])
        labels.add(box, name, f" {detection['score']:.2f}", colour)
    return image


def _corners(bbox, scale):
    """x, y, width, height -> the corners of the frame in the enlarged image."""
    x, y, width, height = (value * scale for value in bbox)
    return x, y, x + max(width, 0), y + max(height, 0)


def _frame(draw, box, colour, line):
    """A frame with a thin dark edge, which is seen on any ground."""
    x0, y0, x1, y1 = box[0], box[1], max(box[0], box[2]), max(box[1], box[3])
    edge = max(1, line // 3)
    draw.rectangle(
        (x0 - edge, y0 - edge, x1 + edge, y1 + edge), outline="black", width=line + 2 * edge
    )
    draw.rectangle((x0, y0, x1, y1), outline=colour, width=line)


def _truth(draw, box):
    """The frame of an object: white on black is seen on any ground."""
    left, top, right, bottom = box
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="black", width=3)
    draw.rectangle((left, top, right, bottom), outline="white", width=1)


class Labels:
    """Draws labels that do not cover each other where there is room, and always in the image.

    size: width and height of the image; height: of the text, pixels.
    """

    def __init__(self, draw, size, height):
        self.draw, self.size, self.height = draw, size, height
        self.drawn = []  # their rectangles

    def add(self, box, name, score, colour):
        """Draws name and score at a corner of the box. A name too long for the image is cut."""
        pad = max(2, self.height // 6)
        height = self.height
        font = _font(name + score, height)
        width = self.draw.textlength(name + score, font=font) + 2 * pad
        while width > self.size[0] and height > 8:  # first smaller, then shorter
            height -= 1
            font = _font(name + score, height)
            width = self.draw.textlength(name + score, font=font) + 2 * pad
        while width > self.size[0] and len(name) > 1:
            name = name.rstrip("…")[:-1] + "…"
            width = self.draw.textlength(name + score, font=font) + 2 * pad
        tall = sum(font.getmetrics()) + pad
        x, y = self._place(box, width, tall)
        self.drawn.append((x, y, x + width, y + tall))
        self.draw.rectangle((x, y, x + width - 1, y + tall - 1), fill=colour)
        middle = (x + pad, y + tall / 2)
        self.draw.text(middle, name + score, fill="black", font=font, anchor="lm")

    def _place(self, box, width, height):
        """Left and top of a label: above the box, in it, or below it, where no label is yet."""
        right_most, lowest = max(self.size[0] - width, 0), max(self.size[1] - height, 0)
        left = min(max(box[0], 0), right_most)
        right = min(max(box[2] - width, 0), right_most)
        places = []
        for y in (box[1] - height, box[1], box[3], box[3] - height):
            y = min(max(y, 0), lowest)
            places += [(left, y), (right, y)]
        for x, y in places:
            if not any(
                x < x1 and y < y1 and x + width > x0 and y + height > y0
                for x0, y0, x1, y1 in self.drawn
            ):
                return x, y
        return places[0]


def _caption(draw, place, text, width):
    font = _font(text, TEXT_HEIGHT)
    while draw.textlength(text, font=font) > width and len(text) > 1:
        text = text.rstrip("…")[:-1] + "…"
    draw.text(place, text, fill="black", font=font, anchor="lm")


def _name(names, number):
    """The class's name, or its id where it has none or no font has its characters."""
    name = names.get(number, f"class {number}")
    return name if _is_readable(name) else f"class {number}"


def _is_readable(name):
    """Whether a font has the characters of the name and of a score."""
    return _font_for(_characters(f"{name} 0123456789.")) is not None


def _colour(category_id):
    """A bright colour of the class's own."""
    hue = category_id * 0.618034 % 1
    saturation, value = ((0.6, 1), (0.85, 1), (0.4, 1), (0.75, 0.85))[category_id // 5 % 4]
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))


def font_file(text):
    """The path of DejaVu Sans, or of another font of the machine if only that has the characters.

    DejaVu Sans as well where no font has all of them, such as those of names in two scripts. It
    draws boxes for what it lacks.
    """
    return _font_for(_characters(text)) or _own_font()


def _font(text, size):
    return ImageFont.truetype(font_file(text), size)


def _characters(text):
    return "".join(sorted(set(text)))


def _own_font():
    """DejaVu Sans, which comes with matplotlib."""
    return f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"


@lru_cache(maxsize=None)
def _font_for(characters):
    """The path of a font that has the characters, or None."""
    paths = (_own_font(), *sorted(font_manager.findSystemFonts()))
    return next((path for path in paths if _has(path, characters)), None)


def _has(path, characters):
    """Whether the font has the characters: it does not draw the box of a missing one for them."""
    try:
        font = ImageFont.truetype(path, TEXT_HEIGHT)
        missing = bytes(font.getmask("\U0010ffff"))
        return all(c.isspace() or bytes(font.getmask(c)) != missing for c in characters)
    except OSError:  # a bitmap font, or a damaged one
        return False
