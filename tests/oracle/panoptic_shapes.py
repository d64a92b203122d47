"""The demo's shapes in front of two stuff classes, sky and ground, as a COCO panoptic folder."""

import json

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from models.segmentation import id2rgb

SKY, GROUND = 91, 92  # category ids; COCO's things end at 90
STUFF = {SKY: "sky", GROUND: "ground"}
NOISE = 4  # standard deviation of grey levels


def write_panoptic_shapes(shapes, root):
    """Write the folder root from `shapes`, a folder of the shapes (both Path)."""
    (root / "annotations").mkdir(parents=True)
    for part in ("train2017", "val2017"):
        content = json.loads((shapes / "annotations" / f"instances_{part}.json").read_text())
        (root / part).mkdir()
        (root / f"panoptic_{part}").mkdir()
        annotations = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            annotations[annotation["image_id"]].append(annotation)
        segments = []
        for image in content["images"]:
            pixels = np.asarray(Image.open(shapes / part / image["file_name"]).convert("RGB"))
            drawn, ids, infos = draw(pixels, annotations[image["id"]], image["id"])
            name = f"{image['id']:012}"
            image["file_name"] = f"{name}.jpg"  # the original requires it
            Image.fromarray(drawn).save(root / part / image["file_name"], quality=95)
            Image.fromarray(id2rgb(ids)).save(root / f"panoptic_{part}" / f"{name}.png")
            names = {"image_id": image["id"], "file_name": f"{name}.png"}
            segments.append({**names, "segments_info": infos})
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
        things = [{**category, "isthing": 1} for category in content["categories"]]
        stuff = [{"id": i, "name": name, "isthing": 0} for i, name in STUFF.items()]
        content.update(annotations=segments, categories=things + stuff)
        (root / "annotations" / f"panoptic_{part}.json").write_text(json.dumps(content))


def draw(pixels, annotations, seed):
    """Draw sky and ground behind the shapes; return the image, segment ids and segments_info.

    pixels: uint8 [h, w, 3]; annotations: of the shapes, from back to front.
    """
    height, width = pixels.shape[:2]
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    horizon = height * rng.uniform(0.25, 0.75) + rng.uniform(-0.3, 0.3) * (x - width / 2)
    ids = np.where(y < horizon, 1, 2)
    colours = np.array([[0, 0, 0], [150, 190, 235], [105, 85, 60]]) + rng.uniform(-25, 25, (3, 1))
    categories = {1: SKY, 2: GROUND}
    for number, annotation in enumerate(annotations, 3):
        rles = coco_mask.frPyObjects(annotation["segmentation"], height, width)
        ids[coco_mask.decode(rles)[:, :, 0] == 1] = number
        categories[number] = annotation["category_id"]
    behind = colours[np.minimum(ids, 2)] + rng.normal(0, NOISE, (height, width, 1))
    drawn = np.where((ids < 3)[:, :, None], behind.round().clip(0, 255), pixels).astype(np.uint8)
    segments_info = []
    for number, category in categories.items():
        mask = ids == number
        if mask.any():
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            x0, y0 = int(columns[0]), int(rows[0])
            box = [x0, y0, int(columns[-1]) + 1 - x0, int(rows[-1]) + 1 - y0]
            info = {"id": number, "category_id": category, "iscrowd": 0}
            segments_info.append({**info, "area": int(mask.sum()), "bbox": box})
    return drawn, ids, segments_info
