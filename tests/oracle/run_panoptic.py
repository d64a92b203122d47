"""The original's panoptic images, and their quality. Its own interpreter runs this file:

    ORACLE_PYTHON tests/oracle/run_panoptic.py [--images ROOT --save WEIGHTS.pth] FOLDER OUT.npz

Predictions come from recipe.make_panoptic_outputs; with --images from the weights of
recipe.make_panoptic_detector, which are saved too, for the validation images in ROOT. Writes into
FOLDER ground truth that the predictions meet in part (gt.json and gt/): segments merged, split,
shifted and left out. OUT.npz holds `quality` [3, 4], pq, sq, rq and n of all, things and stuff, and
for every image `png/ID`, its segment ids, and `segments/ID` as JSON.
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


def spoil(ids, segments):
    """Ground truth that differs from a prediction: ids [h, w], where 0 is nothing, and
    segments_info.
    """
    ids, kept = (
        np.roll(ids + 1, 2, axis=1),
        [dict(segment, id=segment["id"] + 1, iscrowd=0) for segment in segments],
    )
    ids[ids == kept[1]["id"]] = kept[0]["id"]  # merged
    ids[ids == kept[2]["id"]] = 0  # left out
    middle = int(np.argwhere(ids == kept[3]["id"])[:, 1].mean())
    ids[(ids == kept[3]["id"]) & (np.arange(ids.shape[1]) < middle)] = 1000  # split
    kept.append(dict(kept[3], id=1000))
    kept[4]["iscrowd"] = 1
    kept = [segment for segment in kept if (ids == segment["id"]).any()]
    for segment in kept:
        segment["area"] = int((ids == segment["id"]).sum())
    return ids, kept


def process_outputs():
    """image id -> what PostProcessPanoptic makes of the recipe's outputs."""
    outputs, sizes, target_sizes = recipe.make_panoptic_outputs()
    process = PostProcessPanoptic({i: i <= 90 for i in range(250)})
    return dict(
        enumerate(
            process(
                {name: torch.from_numpy(array) for name, array in outputs.items()},
                [tuple(size) for size in sizes.tolist()],
                [tuple(size) for size in target_sizes.tolist()],
            )
        )
    )


@torch.no_grad()
def process_images(root, weights_path):
    """image id -> what the whole model makes of the image."""
    model, _, postprocessors = run_model.build("panoptic")
    weights = recipe.make_panoptic_detector(
        {name: p.shape for name, p in model.state_dict().items()}
    )
    model.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
    torch.save({"model": model.state_dict()}, weights_path)
    model.eval()
    dataset = build_dataset(
        "val", argparse.Namespace(coco_path=root, coco_panoptic_path=root, masks=True)
    )
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
        ids = rgb2id(np.asarray(Image.open(io.BytesIO(result["png_string"])), np.uint32)).astype(
            np.int64
        )
        out[f"png/{image_id}"], out[f"segments/{image_id}"] = (
            ids,
            np.array(json.dumps(result["segments_info"])),
        )
        names = {"image_id": image_id, "file_name": f"{image_id:012}.png"}
        predictions.append({**result, **names})
        ids, segments = spoil(ids, result["segments_info"])
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
    out["quality"] = np.array(
        [
            [quality[part][key] for key in ("pq", "sq", "rq", "n")]
            for part in ("All", "Things", "Stuff")
        ]
    )
    np.savez(options.out, **out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("out")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--save", type=Path)
    main(parser.parse_args())
