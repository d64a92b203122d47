"""Pictures of detections beside the ground truth."""
import colorsys

from PIL import Image, ImageDraw, ImageFont

from datasets.coco import read_listed_image

GRID = (4, 3)  # columns and rows of the predictions
CELL = 400  # side of a cell in pixels, into which an image is enlarged or shrunk
HEADER = 32  # height in pixels of the line that explains the picture
LINE = 3  # width of a detection's frame in pixels
SCORE = 0.5  # detections below are not drawn


def plot_predictions(coco, img_folder, results, path):
    """Draws the first images of `results`, with ground truth and detections, as one picture.

    coco: pycocotools COCO with the ground truth; results: detections in COCO's result format; path: a path or a binary file.
    """
    columns, rows = GRID
    detections = {}
    for result in results:
        detections.setdefault(result["image_id"], []).append(result)
    shown = sorted(detections)[:columns * rows]
    rows = -(-len(shown) // columns)
    picture = Image.new("RGB", (columns * CELL, HEADER + rows * CELL), "white")
    count = sum(d["score"] >= SCORE for image_id in shown for d in detections[image_id])
    ImageDraw.Draw(picture).text((8, HEADER / 2), f"white: ground truth; colour: the {count} detections with a score of "
                                 f"{SCORE} or more", fill="black", font=_font(18), anchor="lm")
    for number, image_id in enumerate(shown):
        place = (number % columns * CELL, HEADER + number // columns * CELL)
        picture.paste(_draw_cell(coco, img_folder, image_id, detections[image_id]), place)
    picture.save(path, format="png")


def _draw_cell(coco, img_folder, image_id, detections):
    """One image, enlarged or shrunk to fit into a cell, with its frames."""
    image = read_listed_image(img_folder, coco.imgs[image_id])
    scale = (CELL - 4) / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for annotation in coco.imgToAnns[image_id]:
        left, top, right, bottom = _corners(annotation["bbox"], scale)
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="black", width=3)  # seen on any ground
        draw.rectangle((left, top, right, bottom), outline="white", width=1)
    kept = sorted((d for d in detections if d["score"] >= SCORE), key=lambda d: d["score"])
    for detection in kept:
        draw.rectangle(_corners(detection["bbox"], scale), outline=_colour(detection["category_id"]), width=LINE)
    for detection in kept:  # over all frames
        category_id = detection["category_id"]
        name = coco.cats.get(category_id, {}).get("name", category_id)
        _label(draw, image.size, _corners(detection["bbox"], scale)[:2], f"{name} {detection['score']:.2f}",
               _colour(category_id))
    return image


def _corners(bbox, scale):
    """x, y, width, height -> the corners of the frame in the enlarged image."""
    x, y, width, height = (value * scale for value in bbox)
    return x, y, x + max(width, 0), y + max(height, 0)


def _label(draw, size, corner, text, colour):
    """Text on its colour above the corner, moved where it would leave the image."""
    font = _font(15)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    x = min(max(corner[0], 0), max(size[0] - right - 4, 0))
    y = min(max(corner[1] - bottom - 3, 0), max(size[1] - bottom - 3, 0))
    draw.rectangle((x, y, x + right + 4, y + bottom + 3), fill=colour)
    draw.text((x + 2, y + 1), text, fill="black", font=font)


def _colour(category_id):
    """A bright colour of the class's own."""
    hue = category_id * 0.618034 % 1
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.55, 1))


def _font(size):
    return ImageFont.load_default(size)
