"""Trains this project and the original from the same weights on the same batches, with many seeds:

    python -m tests.oracle.equivalence [--studies boxes …] [--resume] [--report]

What is trained, with how many seeds, and what is concluded from it was fixed before the results
were looked at: STUDIES here, and docs/alignment/plan.md. Each finished training is a line of
docs/alignment/equivalence.jsonl; --resume goes on after them, --report draws the report only. Two
seeds train at once, on one thread each; those whose batches two processes share, one at a time.
"""

import argparse
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import NamedTuple, Optional

import numpy as np

from tests.helpers.processes import ENVIRONMENT
from util.best import COCO_METRICS
from util.plot_utils import read_log, select_evaluated

from .conftest import HERE
from .panoptic_shapes import write_panoptic_shapes
from .report import FRAMEWORKS, ROOT, run, shake

RESULTS = ROOT / "docs" / "alignment" / "equivalence.jsonl"
# Detectors that the original trained, and the panoptic shapes.
CACHE = Path("~/.cache/detr-jittor/equivalence").expanduser()
PANOPTIC_SHAPES = CACHE / "panoptic"
DETECTOR_SEED = 100
DEMO = "--shapes_val 2000"  # 22 epochs, the learning rate drops after 18
# GroupNorm has no statistics, which processes would have to share.
GROUP_NORM = f"{DEMO} --backbone_norm group"


class Study(NamedTuple):
    """seeds: of the weights, the order of the images and their flips. arms: what is trained: this
    project ("ours"), the original, and the original from weights that differ in their last bit
    ("perturbed"). flags: of main.py; those with {panoptic} have sky and ground behind the shapes.
    evaluate_from: the figures are the means over the evaluations from this epoch on. bound: what
    counts as equivalent, in points of `figure`, or None for a study that is too small to decide.
    detector: of DETECTORS, to start from; the original trains it once. processes: that share each
    batch.
    """

    seeds: range
    arms: tuple
    flags: str
    evaluate_from: int
    bound: Optional[float]
    detector: str = ""
    processes: int = 1
    figure: str = "AP"


PQ = ("PQ", "SQ", "RQ")
ALL = ("ours", "original", "perturbed")
PANOPTIC = "--dataset_file coco_panoptic --coco_path {panoptic} --coco_panoptic_path {panoptic}"
MASK_HEAD = "--masks --frozen_weights detector --epochs 3 --lr_drop 2"
GO_ON = "--epochs 4 --lr_drop 2"
DETECTORS = {"boxes": DEMO, "panoptic": PANOPTIC, "group": GROUP_NORM}  # flags
STUDIES = {
    "boxes": Study(range(1, 17), ALL, DEMO, 19, 0.5),
    "boxes, second round": Study(range(101, 141), ALL, DEMO, 19, 0.5),
    "dropout": Study(
        range(1, 25), ALL[:2], f"{DEMO} --dropout 0.1 {GO_ON}", 2, 0.7, detector="boxes"
    ),
    "masks": Study(range(1, 9), ALL[:2], f"{DEMO} {MASK_HEAD}", 2, 0.7, detector="boxes"),
    "panoptic": Study(
        range(1, 9), ALL[:2], f"{PANOPTIC} {MASK_HEAD}", 2, 0.7, detector="panoptic", figure="PQ"
    ),
    "processes": Study(range(1, 5), ALL, GROUP_NORM, 19, None, processes=2),
    "processes, from a detector": Study(
        range(1, 17), ALL[:2], f"{GROUP_NORM} {GO_ON}", 2, 0.7, detector="group", processes=2
    ),
}


def prepare(folder, seed, flags, *more):
    command = [sys.executable, HERE / "train_ours.py", "--prepare", "demo", "--seed", seed]
    flags = flags.format(panoptic=PANOPTIC_SHAPES)
    run(*command, "--flags", flags, *more, folder, env=ENVIRONMENT)


def validation_data(flags):
    """The folder of the images to evaluate on, which is drawn if need be."""
    from arguments import parse_args
    from datasets import build_dataset

    args = parse_args(["--demo", *DEMO.split()])
    shapes = build_dataset("val", args).img_folder.parent
    if "{panoptic}" not in flags:
        return shapes
    if not PANOPTIC_SHAPES.exists():
        with tempfile.TemporaryDirectory(dir=shapes.parent) as folder:
            write_panoptic_shapes(shapes, Path(folder) / "panoptic")
            CACHE.mkdir(parents=True, exist_ok=True)
            (Path(folder) / "panoptic").rename(PANOPTIC_SHAPES)
    return PANOPTIC_SHAPES


def train_detector(name, data):
    """The weights of a detector, which is trained if need be: the path of an npz file."""
    path = CACHE / f"detector-{name}.npz"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=os.environ.get("DETR_WORK")) as work:
            work = Path(work)
            prepare(work / "prepared", DETECTOR_SEED, DETECTORS[name])
            train("original", work / "prepared", work / "run", data, evaluate_from=99)
            CACHE.mkdir(parents=True, exist_ok=True)
            shutil.move(work / "run" / "weights.npz", path)
    return path


def train(arm, folder, out, shapes, evaluate_from, processes=1):
    """One training. folder: filled by train_ours.py --prepare; out: the run's folder."""
    python, script = FRAMEWORKS["DETR-Jittor" if arm == "ours" else "original"]
    command = [python, "-W", "ignore", HERE / script]
    if arm == "perturbed":
        folder = shake(folder)
    if processes > 1 and arm == "ours":
        mpirun = ["mpirun", "-np", processes, "--oversubscribe", "--bind-to", "none"]
        command = [*mpirun, *command]
    elif processes > 1:
        command += ["--processes", processes, "--port", free_port()]
    evaluate = ["--evaluate", shapes, "--evaluate_from", evaluate_from]
    run(*command, *evaluate, folder, out, env=ENVIRONMENT)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def figures_of(folder):
    """What is compared, from the log.txt of a training's folder."""
    logs = read_log(folder)
    last = select_evaluated(logs)
    figures = {}
    if "test_PQ_all" in last[0]:
        figures = {name: np.mean([log["test_PQ_all"][name.lower()] for log in last]) for name in PQ}
    kind = "masks" if "test_coco_eval_masks" in last[0] else "bbox"
    stats = np.mean([log[f"test_coco_eval_{kind}"] for log in last], axis=0)
    return {
        **figures,
        **dict(zip(COCO_METRICS[:3], stats)),
        "loss on the validation set": np.mean([log["test_loss"] for log in last]),
        "loss of the first epoch": logs[0]["train_loss"],
    }


class Results:
    """The finished trainings, a file of JSON lines."""

    def __init__(self, path):
        self.path = path
        self.lock = Lock()
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = [json.loads(line) for line in lines]

    def find(self, study, seed, arm):
        key = {"study": study, "seed": seed, "arm": arm}
        return next((row for row in self.rows if key.items() <= row.items()), None)

    def add(self, row):
        with self.lock:
            self.rows.append(row)
            with open(self.path, "a") as file:
                file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def run_seed(name, seed, data, detector, results):
    """Trains what is missing of one seed. detector: the path of its weights, or None."""
    study = STUDIES[name]
    arms = [arm for arm in study.arms if results.find(name, seed, arm) is None]
    if not arms:
        return
    with tempfile.TemporaryDirectory(dir=os.environ.get("DETR_WORK")) as work:
        folder = Path(work) / "prepared"
        prepare(folder, seed, study.flags, *(["--detector", detector] if detector else []))
        for arm in arms:
            start = time.time()
            out = Path(work) / arm
            train(arm, folder, out, data, study.evaluate_from, study.processes)
            seconds = round(time.time() - start)
            results.add(
                {"study": name, "seed": seed, "arm": arm, **figures_of(out), "seconds": seconds}
            )
            shutil.rmtree(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--seeds", type=int, help="at most so many of each study")
    parser.add_argument("--resume", action="store_true", help="keep the finished trainings")
    parser.add_argument("--report", action="store_true", help="train nothing")
    options = parser.parse_args()
    if RESULTS.exists() and not (options.resume or options.report):
        parser.error(f"{RESULTS} has results: go on with --resume, or remove it")
    results = Results(RESULTS)
    for name in [] if options.report else options.studies:
        study = STUDIES[name]
        data = validation_data(study.flags)
        detector = train_detector(study.detector, data) if study.detector else None
        with ThreadPoolExecutor(2 // study.processes) as pool:
            jobs = [
                pool.submit(run_seed, name, seed, data, detector, results)
                for seed in study.seeds[: options.seeds]
            ]
            for job in jobs:
                job.result()
    from .equivalence_report import write_report

    write_report(results.rows, STUDIES)


if __name__ == "__main__":
    main()
