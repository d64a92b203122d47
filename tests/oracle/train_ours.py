"""Prepare a training for both frameworks, or run it in this project (see training.py):

python tests/oracle/train_ours.py --prepare [--seed N] [--flags "…"] [--detector NPZ] FOLDER
python tests/oracle/train_ours.py [--evaluate SHAPES_FOLDER] [--evaluate_from EPOCH] FOLDER RUN

Under mpirun, rank r of n takes images r, r + n, … of each batch.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers"), str(ROOT / "tests" / "oracle")]

import numpy as np  # noqa: E402
import training  # noqa: E402

from arguments import parse_args  # noqa: E402
from util import launch  # noqa: E402
from util.startup.prepare import prepare_device  # noqa: E402


def prepare(options):
    import tiny

    from datasets import build_dataset
    from datasets.classes import NUM_CLASSES
    from datasets.loader import DataLoader
    from datasets.shapes import make_shapes_transforms
    from engine import get_dropout_seed
    from models.weights.model import model_state
    from util.backend import jt

    args = parse_args(["--demo", "--seed", str(options.seed), *options.flags.split()])
    dataset = build_dataset("train", args)
    dataset.transforms = make_shapes_transforms("train")
    # Large numbers: Jittor's random numbers of the seeds k and 2 k correlate by 0.5.
    jt.set_global_seed(get_dropout_seed(args.seed, epoch=0, step=0, index=0, accum_steps=1))
    (options.folder / "epochs").mkdir(parents=True)
    weights = model_state(tiny.build(args)[0])
    if options.detector:
        with np.load(options.detector) as detector:
            names = {name: name.removeprefix("detr.") for name in weights}
            weights.update({n: detector[key] for n, key in names.items() if key in detector})
    np.savez(options.folder / "weights.npz", **weights)
    flags = {**vars(args), "classes": NUM_CLASSES[args.dataset_file], "device": "cpu"}
    (options.folder / "flags.json").write_text(json.dumps(flags))
    loader = DataLoader(
        dataset, args.batch_size, shuffle=True, drop_last=True, num_workers=0, seed=args.seed
    )
    for epoch in range(args.epochs):
        loader.set_epoch(epoch)
        batches = [remove_padding(*batch) for [batch] in loader]
        training.save_epoch(options.folder / "epochs" / f"{epoch:03}.npz", batches)


def remove_padding(samples, targets):
    sizes = [target["size"] for target in targets]
    return [image[:, :h, :w] for image, (h, w) in zip(samples.tensors, sizes)], targets


def train(options):
    import tiny

    from datasets import build_dataset, get_coco_api_from_dataset
    from datasets.loader import DataLoader
    from datasets.shapes import make_shapes_transforms
    from engine import evaluate, train_one_epoch
    from models.weights.model import load_model_state, model_state
    from util.misc import nested_tensor_from_arrays
    from util.optim import StepLR, build_optimizer

    args = argparse.Namespace(**json.loads((options.folder / "flags.json").read_text()))
    model, criterion, postprocessors = tiny.build(args)
    with np.load(options.folder / "weights.npz") as arrays:
        load_model_state(model, dict(arrays), "weights.npz")
    optimizer = build_optimizer(model, args)
    scheduler = StepLR(optimizer, args.lr_drop)
    rank, world_size = launch.get_rank(), launch.get_world_size()
    if rank == 0:
        options.run.mkdir(parents=True)
    if options.evaluate:
        args.coco_path = args.coco_panoptic_path = str(options.evaluate)
        dataset = build_dataset("val", args)
        dataset.transforms = make_shapes_transforms("val")
        loader = DataLoader(
            dataset, args.batch_size, num_workers=0, seed=0, rank=rank, world_size=world_size
        )
    for epoch, path in enumerate(sorted((options.folder / "epochs").iterdir())):
        batches = tiny.Batches(
            [
                (nested_tensor_from_arrays(images), targets)
                for images, targets in training.load_epoch(path, rank, world_size)
            ]
        )
        train_stats = train_one_epoch(
            model, criterion, batches, optimizer, epoch, args.seed, args.clip_max_norm
        )
        scheduler.step()
        test_stats = {}
        if options.evaluate and epoch >= options.evaluate_from:
            coco = get_coco_api_from_dataset(dataset)
            test_stats, _ = evaluate(model, criterion, postprocessors, loader, coco)
        if rank == 0:
            training.log_epoch(options.run, epoch, train_stats, test_stats)
    if rank == 0:
        np.savez(options.run / "weights.npz", **model_state(model))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--flags", default="", help="more flags of main.py, for --prepare")
    parser.add_argument("--detector", type=Path, help="weights.npz of a run to start from")
    parser.add_argument("--evaluate", type=Path, help="folder of shapes to evaluate on")
    parser.add_argument("--evaluate_from", type=int, default=0, help="first epoch to evaluate")
    options = parser.parse_args()
    prepare_device("cpu")
    with launch.job():
        (prepare if options.prepare else train)(options)
