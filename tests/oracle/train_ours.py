"""Prepares a training for both frameworks, or runs it in this project (see training.py):

python tests/oracle/train_ours.py --prepare steps --coco_path PATH [--rate X] FOLDER
python tests/oracle/train_ours.py --prepare demo [--seed N] [--flags "…"] [--detector NPZ] FOLDER
python tests/oracle/train_ours.py [--evaluate SHAPES_FOLDER] [--evaluate_from EPOCH]
    [--states FOLDER] FOLDER RUN
python tests/oracle/train_ours.py --gradients BATCHES FOLDER OUT

Under mpirun, process r of n takes the images r, r + n, … of each batch.
"""

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers"), str(ROOT / "tests" / "oracle")]

import numpy as np  # noqa: E402
import training  # noqa: E402

import main as program  # noqa: E402
from util import launch  # noqa: E402
from util.startup.prepare import prepare_device  # noqa: E402

STEPS, STEPS_PER_EPOCH, SHORT_SIDE = 30, 10, 320
MOST_STATES = 20


def prepare(options):
    import tiny

    from datasets import build_dataset
    from datasets import transforms as T
    from datasets.classes import NUM_CLASSES
    from datasets.coco import NORMALIZE
    from datasets.loader import DataLoader
    from datasets.shapes import make_shapes_transforms
    from engine import seed_of_batch
    from models.weights.model import model_state
    from util.backend import jt

    if options.prepare == "demo":
        flags = options.flags.split()
        args = program.parse_args(["--demo", "--seed", str(options.seed), *flags])
        dataset, epochs, batches = build_dataset("train", args), args.epochs, None
        dataset.transforms = make_shapes_transforms("train")
    else:
        args = program.parse_args(
            [
                "--coco_path",
                options.coco_path,
                *"--dropout 0 --backbone_weights none --lr".split(),
                str(1e-4 * options.rate),
                "--lr_backbone",
                str(1e-5 * options.rate),
                "--lr_drop",
                "2",
                "--seed",
                str(options.seed),
            ]
        )
        dataset = build_dataset("train", args)
        dataset.transforms = T.Compose(
            [T.RandomHorizontalFlip(), T.RandomResize([SHORT_SIDE], max_size=640), NORMALIZE]
        )
        epochs, batches = STEPS // STEPS_PER_EPOCH, STEPS_PER_EPOCH
    # A large number, see util/backend.py's set_seed, and not its own: trainings were done with it.
    jt.set_global_seed(seed_of_batch(args.seed, 0, 0))
    (options.folder / "epochs").mkdir(parents=True)
    weights = model_state(tiny.build(args)[0])
    if options.detector:
        with np.load(options.detector) as detector:
            weights.update({name: detector[name.removeprefix("detr.")] for name in weights
                            if name.removeprefix("detr.") in detector})  # fmt: skip
    np.savez(options.folder / "weights.npz", **weights)
    flags = {**vars(args), "classes": NUM_CLASSES[args.dataset_file], "device": "cpu"}
    (options.folder / "flags.json").write_text(json.dumps(flags))
    loader = DataLoader(
        dataset, args.batch_size, shuffle=True, drop_last=True, num_workers=0, seed=args.seed
    )
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        taken = [unpad(*batch) for _, batch in zip(range(batches or len(loader)), loader)]
        training.save_epoch(options.folder / "epochs" / f"{epoch:03}.npz", taken)


def unpad(samples, targets):
    return [
        image[:, : t["size"][0], : t["size"][1]] for image, t in zip(samples.tensors, targets)
    ], targets


class Loader:
    """Stored batches, in place of the data loader."""

    def __init__(self, batches):
        """batches: iterable of (images, targets)"""
        from util.misc import nested_tensor_from_arrays

        self.batches = [(nested_tensor_from_arrays(images), targets) for images, targets in batches]

    def set_epoch(self, epoch, start=0):
        pass

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


class Recording:
    """A criterion that keeps the losses it computes."""

    def __init__(self, criterion):
        self.criterion = criterion
        self.weight_dict = criterion.weight_dict
        self.average_boxes = criterion.average_boxes
        self.losses = []

    def __call__(self, *inputs):
        losses = self.criterion(*inputs)
        self.losses.append(losses)
        return losses

    def take(self):
        """The weighted losses of the last call, floats."""
        losses = self.losses.pop()
        weighted = {
            name: float(losses[name].item()) * weight
            for name, weight in self.weight_dict.items()
            if name in losses
        }
        return {"loss": sum(weighted.values()), **weighted}


def build_model(folder):
    """The flags, the model with its first weights, criterion and postprocessors of a folder."""
    import tiny

    from models.weights.model import load_model_state

    args = argparse.Namespace(**json.loads((folder / "flags.json").read_text()))
    model, criterion, postprocessors = tiny.build(args)
    with np.load(folder / "weights.npz") as arrays:
        load_model_state(model, dict(arrays), "weights.npz")
    return args, model, criterion, postprocessors


def save_gradients(options):
    """Those of each of the first batches, at the first weights."""
    from engine import weighted_sum
    from util.backend import jt

    _, model, criterion, _ = build_model(options.folder)
    model.train()
    trainable = {name: p for name, p in model.named_parameters() if not p.is_stop_grad()}
    sizes = {name: p.numel() for name, p in sorted(trainable.items())}
    gradients = training.Gradients(options.run, options.gradients, sizes, np.float32)
    batches = Loader(training.load_epoch(options.folder / "epochs" / "000.npz"))
    for _, (samples, targets) in zip(range(options.gradients), batches):
        losses = criterion(model(samples.to_jittor()), targets)
        loss, _ = weighted_sum(losses, criterion.weight_dict)
        found = jt.grad(loss, [trainable[name] for name in sizes])
        gradients.add([gradient.numpy() for gradient in found])


def train(options):
    from datasets import build_dataset, get_coco_api_from_dataset
    from datasets.loader import DataLoader
    from datasets.panoptic_eval import PanopticEvaluator
    from datasets.shapes import make_shapes_transforms
    from engine import evaluate, train_one_epoch
    from models.weights.model import model_state
    from util.optim import StepLR

    args, model, criterion, postprocessors = build_model(options.folder)
    optimizer = program.build_optimizer(model, args)
    scheduler = StepLR(optimizer, args.lr_drop)
    recorder = training.Recorder(options.run if launch.is_main_process() else None)
    recording = Recording(criterion)
    states = States(options.states, model, optimizer) if options.states else None
    panoptic_evaluator = None
    if options.evaluate:
        args.coco_path = args.coco_panoptic_path = str(options.evaluate)
        dataset = build_dataset("val", args)
        dataset.transforms = make_shapes_transforms("val")
        loader = DataLoader(
            dataset,
            args.batch_size,
            num_workers=0,
            seed=0,
            rank=launch.get_rank(),
            world_size=launch.get_world_size(),
        )
    for epoch, path in enumerate(sorted((options.folder / "epochs").iterdir())):
        batches = Loader(training.load_epoch(path, launch.get_rank(), launch.get_world_size()))
        averages = train_one_epoch(
            model,
            recording,
            Steps(batches, recording, recorder),
            optimizer,
            epoch,
            args.seed,
            args.clip_max_norm,
            after_step=states,
        )
        scheduler.step()
        stats = {}
        if options.evaluate and epoch >= options.evaluate_from:
            if "panoptic" in postprocessors:
                panoptic_evaluator = PanopticEvaluator(
                    dataset.get_ground_truth, dataset.ann_folder, None
                )
            stats, _ = evaluate(
                model,
                criterion,
                postprocessors,
                loader,
                get_coco_api_from_dataset(dataset),
                panoptic_evaluator,
            )
        recorder.epoch(epoch, averages, stats)
    if launch.is_main_process():
        recorder.save(model_state(model))


class States:
    """Saves the state after each step (see `Steps` in training.py) as FOLDER/NNNNNN.npz, counted
    from 1, as a callback of the engine. Waits while nobody takes the files away.
    """

    def __init__(self, folder, model, optimizer):
        self.folder, self.model, self.optimizer = folder, model, optimizer

    def __call__(self, _step, _logger):
        from models.weights.model import model_state
        from models.weights.training import optimizer_state

        while len(list(self.folder.iterdir())) > MOST_STATES:
            time.sleep(0.01)
        state = optimizer_state(self.optimizer)
        arrays = {f"weights/{name}": value for name, value in model_state(self.model).items()}
        for name, averages in state["state"].items():
            arrays[f"exp_avg/{name}"] = averages["exp_avg"]
            arrays[f"exp_avg_sq/{name}"] = averages["exp_avg_sq"]
        number = self.optimizer.n_step
        unfinished = self.folder / "unfinished.npz"
        rates = [group["lr"] for group in state["groups"]]
        np.savez(unfinished, step=number, rates=rates, **arrays)
        unfinished.rename(self.folder / f"{number:06}.npz")


class Steps:
    """Passes batches on, and after each step its losses to the recorder."""

    def __init__(self, batches, recording, recorder):
        self.batches, self.recording, self.recorder = batches, recording, recorder

    def set_epoch(self, epoch, start=0):
        pass

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            yield batch
            self.recorder.step(self.recording.take())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--prepare", choices=["steps", "demo"])
    parser.add_argument("--coco_path")
    parser.add_argument(
        "--rate", type=float, default=1, help="factor of the original's learning rates"
    )
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--flags", default="", help="of main.py, for --prepare demo")
    parser.add_argument("--detector", type=Path, help="weights.npz of a run to start from")
    parser.add_argument("--evaluate", type=Path)
    parser.add_argument("--evaluate_from", type=int, default=0, help="the first epoch to evaluate")
    parser.add_argument("--states", type=Path, help="write the state after each step there")
    parser.add_argument("--gradients", type=int, metavar="BATCHES")
    options = parser.parse_args()
    prepare_device("cpu")
    with launch.job():
        if options.prepare:
            prepare(options)
        elif options.gradients:
            save_gradients(options)
        else:
            train(options)
