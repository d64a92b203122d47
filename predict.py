"""Pictures in, pictures out: what `--predict` does with its paths."""

import glob
import json
import os
import time
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from datasets.coco import IMAGE_SUFFIXES
from util import launch
from util.errors import InputError, printable
from util.files import files_below, replacing
from util.step_memory import StepMemory

# Bytes of a name before _detections.jpg: file systems take 255, and some are for what `replacing`
# adds while it writes.
MAX_STEM = 200


def faults_of_predict(args):
    """Yields a line for each fault of the flags that go with --predict."""
    if launch.get_world_size() > 1:
        yield "--predict runs in one process: start it without mpirun"
    if args.eval:
        yield "--predict and --eval are two different things to do: give one of them"
    if not args.resume:
        yield "--predict needs trained weights: give them with --resume"
    if not args.output_dir:
        yield "--predict needs a folder for its pictures: give --output_dir"


def find_pictures(paths, output_dir):
    """The files of paths, each once: files, folders with all below them, globs (`**`, too).

    Raises InputError for a path that stands for nothing, and for a folder that the results are
    written into.
    """
    found = {}
    for path in paths:
        if Path(path).is_dir():
            if Path(output_dir).resolve().is_relative_to(Path(path).resolve()):
                raise InputError(
                    f"--output_dir {output_dir} lies in {path}, where its pictures would be found "
                    "the next time: give another folder"
                )
            matches = [
                file
                for file in files_below(Path(path))
                if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
            ]
        elif Path(path).exists():
            matches = [Path(path)]
        else:
            matches = [
                Path(name)
                for name in sorted(glob.glob(path, recursive=True))
                if Path(name).is_file()
            ]
        if not matches:
            what = "no picture in this folder" if Path(path).is_dir() else "no such file"
            raise InputError(
                f"--predict {path}: {what}; give files, folders, or globs in quotation marks"
            )
        found.update(dict.fromkeys(matches))
    return list(found)


def predict_pictures(model, args, names):
    """Predicts on pictures: draws each into --output_dir, prints a line, writes JSON.

    names: dictionary category id -> name. A picture that cannot be read, or that fails in any other
    way, costs only itself.
    Raises InputError at the end, when all others are done, where there was such a picture.
    """
    from datasets.coco import read_picture
    from engine import predict
    from util.pictures import draw_attention, draw_detections, unreadable_names

    if missing := unreadable_names(names):
        print(
            f"no font of this machine has the characters of {', '.join(missing[:5])}: ids are "
            "drawn instead; install one, for example fonts-noto-cjk"
        )
    # The shapes are not resized in their training.
    size = args.shapes_size if args.dataset_file == "shapes" else args.eval_size
    folder, files = Path(args.output_dir), find_pictures(args.predict, args.output_dir)
    targets, bad, boxes, segments = unique_names(files), [], [], []
    memory = StepMemory()
    begin = time.time()
    with tqdm(files, desc="predicting", unit="picture", disable=None) as bar:
        for number, (path, target) in enumerate(zip(bar, targets), 1):
            start = time.time()
            try:
                image = read_picture(path)
                [result] = predict(
                    model,
                    [image],
                    threshold=args.threshold,
                    size=size,
                    max_size=args.max_size,
                    attention=args.attention,
                )
                pictures = {"detections": draw_detections(image, result, names)}
                if args.attention:
                    pictures["attention"] = draw_attention(image, result, names)
                found = list_detections(number, str(path), result, names)
                masks = add_masks(found, result["masks"]) if "masks" in result else []
            except Exception as error:  # reported here and at the end
                reason = str(error)
                if not isinstance(error, InputError):
                    reason = printable(f"{type(error).__name__}: {error}")[:500]
                bad.append(reason if str(path) in reason else f"{path}: {reason}")
                bar.write(printable(f"left out: {bad[-1]}"))
                continue
            finally:
                memory.tidy()
            for kind, picture in pictures.items():
                save(picture, folder / f"{target}_{kind}.jpg")
            boxes += found
            segments += masks
            seconds = f"{time.time() - start:.2f} s"
            bar.write(printable(f"{path}: {describe(found)}; {seconds}; {target}_detections.jpg"))
    results = {"bbox": boxes, "segm": segments} if args.masks else {"bbox": boxes}
    for name, content in results.items():
        with replacing(folder / f"detections_{name}.json") as file:
            file.write(json.dumps(content).encode())
    succeeded = len(files) - len(bad)
    print(
        f"{count(len(boxes), 'detection')} in {count(succeeded, 'picture')}, "
        f"{time.time() - begin:.1f} s; the results are in {folder}"
    )
    if bad:
        raise InputError(
            f"{len(bad)} of {count(len(files), 'picture')} failed, {succeeded} succeeded; the "
            f"first: {bad[0]}"
        )


def unique_names(files):
    """A name for each file's results: its stem, with a number where several have the same."""
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
    with replacing(path) as file:
        picture.save(file, format="JPEG", quality=92)


def list_detections(number, path, result, names):
    """One picture's detections in COCO's result format, with the names of its file and of classes.

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


def add_masks(found, masks):
    """The detections with `segmentation`, compressed RLE, in place of `bbox`."""
    rles = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return [
        {
            **{key: value for key, value in detection.items() if key != "bbox"},
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
        }
        for detection, rle in zip(found, rles)
    ]


def describe(found):
    """The number of detections and the first three: `2 detections (cat 0.99, dog 0.87)`."""
    number = count(len(found), "detection")
    if not found:
        return number
    words = [f"{detection['category_name']} {detection['score']:.2f}" for detection in found[:3]]
    if len(found) > 3:
        words.append("…")
    return f"{number} ({', '.join(words)})"


def count(number, what):
    """`1 picture`, `2 pictures`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
