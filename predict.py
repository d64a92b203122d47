"""Detect objects in image files and draw them (`--predict`), or call `predict` from a program."""

import json
import math
import os
import random
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from tqdm import tqdm

import datasets.transforms as T
from checks import find_images
from datasets.coco import NORMALIZE
from datasets.images import load_image
from datasets.transforms import EVAL_SIZE, MAX_SIZE
from models.attention import record_attention
from models.detr import PostProcess
from models.segmentation import PostProcessSegm, encode_mask
from util.backend import jt
from util.errors import InputError, escape_unprintable
from util.files import atomic_write
from util.pictures import draw_attention, draw_detections, find_unreadable_names
from util.signals import StopRequest
from util.step_memory import StepMemory

# Longest stem of a result's file name, in bytes: file systems allow 255, and `atomic_write` adds
# some while it writes.
MAX_STEM = 200


def predict(
    model,
    images: list,
    threshold: float = 0.7,
    size: int = EVAL_SIZE,
    max_size: int = MAX_SIZE,
    attention: bool = False,
) -> list[dict]:
    """Detect objects in images of any sizes, one at a time.

    Args:
        model: a DETR, with or without masks; it is set to evaluation mode.
        images: paths, PIL images, or uint8 arrays [H, W, 3]; files and PIL images are rotated as
            their EXIF orientation says.
        threshold: minimum score of a detection.
        size, max_size: shorter side after resizing, and limit of the longer side, in pixels.
        attention: also return attention maps, see `models.attention.record_attention`.

    Returns one dictionary of NumPy arrays per image, with its n detections sorted by descending
    score:
        scores: float32 [n]
        labels: int64 [n], category ids
        boxes: float32 [n, 4], x0, y0, x1, y1 in pixels of the image
        masks: bool [n, H, W], if the model has a mask head
        decoder_attention: float32 [n, h, w], with `attention`
        encoder_attention: float32 [h, w, h, w], from each feature-map cell to every cell, with
            `attention` if the model has an encoder

    Raises InputError for a file that cannot be read, and ValueError if images is a single path.
    """
    if isinstance(images, (str, Path)):
        raise ValueError(f"images is {str(images)!r}: give a list of images")
    model.eval()
    detr = getattr(model, "detr", model)
    transform = T.Compose([T.RandomResize([size], max_size), NORMALIZE])
    results = []
    for image in images:
        image = load_image(image)
        no_target = {"boxes": np.zeros((0, 4), np.float32), "area": np.zeros(0, np.float32)}
        array, _ = transform(image, no_target, random.Random(0))
        watching = record_attention(detr.transformer) if attention else nullcontext({})
        with jt.no_grad(), watching as maps:
            outputs = model([array])
            [result] = PostProcess()(outputs, [(image.height, image.width)])
        best = np.argsort(-result["scores"], kind="stable")
        best = best[result["scores"][best] >= threshold]
        result = {name: values[best] for name, values in result.items()}
        result["labels"] = result["labels"].astype(np.int64)
        if "pred_masks" in outputs:
            masks, input_size = outputs["pred_masks"].numpy()[0][best], array.shape[1:]
            image_size = (image.height, image.width)
            masks = PostProcessSegm().compute_masks(masks, input_size, input_size, image_size)
            result["masks"] = np.empty((len(best), *image_size), bool)
            for i, mask in enumerate(masks):
                result["masks"][i] = mask
        if attention:
            h, w = feature_map_size(maps["decoder"].shape[2], *array.shape[1:])
            result["decoder_attention"] = maps["decoder"][0][best].reshape(-1, h, w)
            if "encoder" in maps:
                result["encoder_attention"] = maps["encoder"][0].reshape(h, w, h, w)
        results.append(result)
    return results


def feature_map_size(length, height, width):
    """Return (h, w) of the feature map with `length` positions of a height x width image.

    The backbone's stride is 32 or 16.
    """
    for stride in (32, 16):
        h, w = math.ceil(height / stride), math.ceil(width / stride)
        if h * w == length:
            return h, w
    raise ValueError(f"no feature map of a {height}x{width} image has {length} positions")


def predict_files(model, args, names):
    """Run --predict: for each image, draw its detections into --output_dir and print a line.

    Also write all detections as JSON, in COCO's result format. Report images that fail and continue
    with the others.

    A signal such as Ctrl-C ends the run after the current image, with the results up to it.

    names: dictionary category id -> name. Raises InputError at the end if an image failed.
    """
    if missing := find_unreadable_names(names):
        print(
            f"no font of this machine has the characters of {', '.join(missing[:5])}: ids are "
            "drawn instead; install one, for example fonts-noto-cjk"
        )
    options = args.threshold, args.eval_size, args.max_size, args.attention
    folder, files = Path(args.output_dir), find_images(args.predict, args.output_dir)
    targets, failures, boxes, segments = unique_names(files), [], [], []
    memory, stop = StepMemory(), StopRequest()
    succeeded, begin = 0, time.time()
    with stop, tqdm(files, desc="predicting", unit="image", disable=None) as bar:
        for number, (path, target) in enumerate(zip(bar, targets), 1):
            if stop.received:
                break
            start = time.time()
            try:
                image = load_image(path)
                [result] = predict(model, [image], *options)
                drawn = {"detections": draw_detections(image, result, names)}
                if args.attention:
                    drawn["attention"] = draw_attention(image, result, names)
                detections = list_detections(number, str(path), result, names)
                masks = add_masks(detections, result["masks"]) if "masks" in result else []
            except Exception as error:  # reported here and at the end
                reason = str(error)
                if not isinstance(error, InputError):
                    reason = escape_unprintable(f"{type(error).__name__}: {error}")[:500]
                failures.append(reason if str(path) in reason else f"{path}: {reason}")
                bar.write(escape_unprintable(f"left out: {failures[-1]}"))
                continue
            finally:
                memory.tidy()
            for kind, picture in drawn.items():
                save(picture, folder / f"{target}_{kind}.jpg")
            boxes += detections
            segments += masks
            succeeded += 1
            text = describe(detections)
            seconds = f"{time.time() - start:.2f} s"
            bar.write(escape_unprintable(f"{path}: {text}; {seconds}; {target}_detections.jpg"))
    results = {"bbox": boxes, "segm": segments} if args.masks else {"bbox": boxes}
    for name, content in results.items():
        with atomic_write(folder / f"detections_{name}.json") as file:
            file.write(json.dumps(content).encode())
    print(
        f"{count(len(boxes), 'detection')} in {count(succeeded, 'image')}, "
        f"{time.time() - begin:.1f} s; the results are in {folder}"
    )
    if stop.received:
        stop.exit(f"{succeeded + len(failures)} of {count(len(files), 'image')} done")
    if failures:
        raise InputError(
            f"{len(failures)} of {count(len(files), 'image')} failed, {succeeded} succeeded; the "
            f"first: {failures[0]}"
        )


def unique_names(files):
    """Return the base name of each file's results: its stem, numbered if several have the same."""
    names, used = [], set()
    for file in files:
        stem = file.stem
        while len(os.fsencode(stem)) > MAX_STEM:
            stem = stem[:-1]
        name, number = stem, 2
        while name in used:
            name, number = f"{stem}-{number}", number + 1
        used.add(name)
        names.append(name)
    return names


def save(picture, path):
    with atomic_write(path) as file:
        picture.save(file, format="JPEG", quality=92)


def list_detections(number, path, result, names):
    """Return one image's detections in COCO's result format, with file and class names.

    number: the file's number in this run, used as image id.
    """
    boxes, labels, scores = (result[key].tolist() for key in ("boxes", "labels", "scores"))
    return [
        {
            "image_id": number,
            "file_name": path,
            "category_id": label,
            "category_name": names.get(label, f"class {label}"),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": score,
        }
        for (x0, y0, x1, y1), label, score in zip(boxes, labels, scores)
    ]


def add_masks(detections, masks):
    """Return the detections with `segmentation`, a compressed RLE, in place of `bbox`."""
    rles = [encode_mask(mask) for mask in masks]
    return [
        {
            **{key: value for key, value in detection.items() if key != "bbox"},
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
        }
        for detection, rle in zip(detections, rles)
    ]


def describe(detections):
    """Return the number of detections and the first three: `2 detections (cat 0.99, dog 0.87)`."""
    number = count(len(detections), "detection")
    if not detections:
        return number
    words = [f"{each['category_name']} {each['score']:.2f}" for each in detections[:3]]
    if len(detections) > 3:
        words.append("…")
    return f"{number} ({', '.join(words)})"


def count(number, what):
    """Return `1 image`, `2 images`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
