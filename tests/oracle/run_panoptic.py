"""Make the original's panoptic images and compute their quality, in its own interpreter:

    ORACLE_PYTHON tests/oracle/run_panoptic.py [--images ROOT --save WEIGHTS.pth] FOLDER OUT.npz

Predictions come from recipe.make_panoptic_outputs; with --images they are those of
recipe.make_panoptic_detector for the validation images in ROOT, and the weights are saved. FOLDER
gets ground truth that the predictions match in part (gt.json and gt/). OUT.npz holds `quality`
[3, 4], pq, sq, rq and n of all, things and stuff, and of each image `png/ID`, its segment ids, and
`segments/ID` as JSON.
"""

import argparse
import contextlib
import io
import json
from pathlib import Path

import numpy as np
import recipe
import run_model
import torch
from detr.datasets.coco_panoptic import build as build_dataset
from detr.datasets.panoptic_eval import PanopticEvaluator
from detr.models.segmentation import PostProcessPanoptic
from detr.util.misc import collate_fn
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image


def perturb(ids, segments):
    """Return ground truth that differs from a prediction: ids [h, w], 0 is unlabelled, and
    segments_info. Everything is shifted; segments are merged, left out, split, and made a crowd.
    """
    ids = np.roll(ids + 1, 2, axis=1)
    segments = [dict(segment, id=segment["id"] + 1, iscrowd=0) for segment in segments]
    ids[ids == segments[1]["id"]] = segments[0]["id"]
    ids[ids == segments[2]["id"]] = 0
    middle = int(np.argwhere(ids == segments[3]["id"])[:, 1].mean())
    ids[(ids == segments[3]["id"]) & (np.arange(ids.shape[1]) < middle)] = 1000
    segments.append(dict(segments[3], id=1000))
    segments[4]["iscrowd"] = 1
    for segment in segments:
        segment["area"] = int((ids == segment["id"]).sum())
    return ids, [segment for segment in segments if segment["area"]]


def process_outputs():
    """Return the panoptic results of the recipe's outputs: image id -> result."""
    outputs, *sizes = recipe.make_panoptic_outputs()
    outputs = {name: torch.from_numpy(array) for name, array in outputs.items()}
    process = PostProcessPanoptic({i: i <= 90 for i in range(250)})
    results = process(outputs, *([tuple(size) for size in each.tolist()] for each in sizes))
    return dict(enumerate(results))


@torch.no_grad()
def process_images(root, weights_path):
    """Return the panoptic results of the whole model: image id -> result."""
    model, _, postprocessors = run_model.build("panoptic", recipe.make_panoptic_detector)
    torch.save({"model": model.state_dict()}, weights_path)
    model.eval()
    args = argparse.Namespace(coco_path=root, coco_panoptic_path=root, masks=True)
    dataset = build_dataset("val", args)
    results = {}
    for samples, targets in torch.utils.data.DataLoader(dataset, 2, collate_fn=collate_fn):
        sizes = (torch.stack([target[key] for target in targets]) for key in ("size", "orig_size"))
        ids = [target["image_id"].item() for target in targets]
        results.update(zip(ids, postprocessors["panoptic"](model(samples), *sizes)))
    return results


def main(options):
    results = process_images(options.images, options.save) if options.images else process_outputs()
    (options.folder / "gt").mkdir()
    out, predictions, annotations = {}, [], []
    for image_id, result in results.items():
        png = np.asarray(Image.open(io.BytesIO(result["png_string"])), np.uint32)
        ids = rgb2id(png).astype(np.int64)
        out[f"png/{image_id}"] = ids
        out[f"segments/{image_id}"] = np.array(json.dumps(result["segments_info"]))
        names = {"image_id": image_id, "file_name": f"{image_id:012}.png"}
        predictions.append({**result, **names})
        ids, segments = perturb(ids, result["segments_info"])
        Image.fromarray(id2rgb(ids)).save(options.folder / "gt" / names["file_name"])
        annotations.append({**names, "segments_info": segments})
    categories = [{"id": i, "isthing": int(i <= 90)} for i in range(250)]
    path = options.folder / "gt.json"
    path.write_text(json.dumps({"annotations": annotations, "categories": categories}))
    evaluator = PanopticEvaluator(
        str(path), str(options.folder / "gt"), str(options.folder / "original")
    )
    evaluator.update(predictions)
    with contextlib.redirect_stdout(io.StringIO()):
        quality = evaluator.summarize()
    parts, figures = ("All", "Things", "Stuff"), ("pq", "sq", "rq", "n")
    out["quality"] = np.array([[quality[part][key] for key in figures] for part in parts])
    np.savez(options.out, **out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("out")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--save", type=Path)
    main(parser.parse_args())
