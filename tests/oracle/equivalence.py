"""Train this project and the original from the same weights on the same batches, with many seeds:

    python -m tests.oracle.equivalence [--studies boxes …] [--resume] [--report]

STUDIES and docs/alignment/plan.md hold what was fixed before the results were looked at. Each
finished training is a line of docs/alignment/equivalence.jsonl: --resume trains what is missing,
--report only writes the report. Two seeds train at once, on one thread each; if two processes share
each batch, one seed at a time.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import NamedTuple, Optional

import numpy as np

from tests.helpers.processes import ENVIRONMENT, REPO
from util.best import COCO_METRICS
from util.plot_utils import read_log, select_evaluated

from .conftest import HERE, ORACLE_PYTHON
from .equivalence_report import write_report
from .panoptic_shapes import write_panoptic_shapes

RESULTS = REPO / "docs" / "alignment" / "equivalence.jsonl"
# Detectors that the original trained, and the panoptic shapes.
CACHE = Path("~/.cache/detr-jittor/equivalence").expanduser()
PANOPTIC_SHAPES = CACHE / "panoptic"
DETECTOR_SEED = 100
DEMO = "--shapes_val 2000"  # 22 epochs, the learning rate drops after 18
GROUP_NORM = f"{DEMO} --backbone_norm group"  # no statistics for processes to share


class Study(NamedTuple):
    """Trainings with many seeds and the bound that decides them.

    seeds: of the weights, the order of the images and their flips.
    arms: "ours", "original" and "perturbed", the original from weights that differ in the last bit.
    flags: of main.py; {panoptic} is the folder of shapes with sky and ground behind them.
    evaluate_from: first epoch to evaluate; figures are means over the evaluations.
    bound: of equivalence, in points of `figure`; None if the study is too small to decide.
    detector: one of DETECTORS to start from, trained once by the original.
    processes: number of processes that share each batch.
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
FINE_TUNE = "--epochs 4 --lr_drop 2"
DETECTORS = {"boxes": DEMO, "panoptic": PANOPTIC, "group": GROUP_NORM}  # flags
STUDIES = {
    "boxes": Study(range(1, 17), ALL, DEMO, 19, 0.5),
    "boxes, second round": Study(range(101, 141), ALL, DEMO, 19, 0.5),
    "dropout": Study(
        range(1, 25), ALL[:2], f"{DEMO} --dropout 0.1 {FINE_TUNE}", 2, 0.7, detector="boxes"
    ),
    "masks": Study(range(1, 9), ALL[:2], f"{DEMO} {MASK_HEAD}", 2, 0.7, detector="boxes"),
    "panoptic": Study(
        range(1, 9), ALL[:2], f"{PANOPTIC} {MASK_HEAD}", 2, 0.7, detector="panoptic", figure="PQ"
    ),
    "processes": Study(range(1, 5), ALL, GROUP_NORM, 19, None, processes=2),
    "processes, from a detector": Study(
        range(1, 17), ALL[:2], f"{GROUP_NORM} {FINE_TUNE}", 2, 0.7, detector="group", processes=2
    ),
}


def run(*command):
    command = [str(word) for word in command]
    subprocess.run(command, check=True, cwd=REPO, env=ENVIRONMENT, stdout=subprocess.DEVNULL)


def prepare(folder, seed, flags, *options):
    """Write a seed's weights and batches into folder. options: more of train_ours.py's."""
    flags = flags.format(panoptic=PANOPTIC_SHAPES)
    command = [sys.executable, HERE / "train_ours.py", "--prepare", "--seed", seed]
    run(*command, "--flags", flags, *options, folder)


def perturb(folder):
    """Copy a prepared folder, with each weight one bit up or down at random; return the copy."""
    copy = folder / "perturbed"
    copy.mkdir()
    (copy / "epochs").symlink_to(folder / "epochs")
    shutil.copy(folder / "flags.json", copy)
    rng = np.random.default_rng(0)
    weights = {}
    with np.load(folder / "weights.npz") as arrays:
        for name, value in arrays.items():
            towards = np.where(rng.random(value.shape) < 0.5, -np.inf, np.inf)
            weights[name] = np.nextafter(value, towards.astype(value.dtype))
    np.savez(copy / "weights.npz", **weights)
    return copy


def prepare_validation_data(flags):
    """Return the folder of the images to evaluate on; draw them if they are missing."""
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


def train_detector(name, shapes):
    """Return the npz file of a detector's weights; train the detector if it is missing."""
    path = CACHE / f"detector-{name}.npz"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=os.environ.get("DETR_WORK")) as work:
            work = Path(work)
            prepare(work / "prepared", DETECTOR_SEED, DETECTORS[name])
            train("original", work / "prepared", work / "run", shapes, evaluate_from=99)
            CACHE.mkdir(parents=True, exist_ok=True)
            shutil.move(work / "run" / "weights.npz", path)
    return path


def train(arm, folder, out, shapes, evaluate_from, processes=1):
    """Train one arm on a prepared folder; write the run into the folder out."""
    if arm == "ours":
        command = [sys.executable, "-W", "ignore", HERE / "train_ours.py"]
        if processes > 1:
            mpirun = ["mpirun", "-np", processes, "--oversubscribe", "--bind-to", "none"]
            command = [*mpirun, *command]
    else:
        command = [ORACLE_PYTHON, "-W", "ignore", HERE / "train_original.py"]
        if arm == "perturbed":
            folder = perturb(folder)
        if processes > 1:
            command += ["--processes", processes, "--port", find_free_port()]
    run(*command, "--evaluate", shapes, "--evaluate_from", evaluate_from, folder, out)


def find_free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def read_figures(folder):
    """Return the figures to compare from the log.txt of a run: name -> float."""
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


def train_missing(name, seed, shapes, detector, results):
    """Train the arms of a seed that have no results. detector: the path of its weights, or None."""
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
            train(arm, folder, out, shapes, study.evaluate_from, study.processes)
            row = {"study": name, "seed": seed, "arm": arm, **read_figures(out)}
            results.add({**row, "seconds": round(time.time() - start)})
            shutil.rmtree(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--seeds", type=int, help="number of seeds of each study, at most")
    parser.add_argument("--resume", action="store_true", help="train what is missing")
    parser.add_argument("--report", action="store_true", help="only write the report")
    options = parser.parse_args()
    if RESULTS.exists() and not (options.resume or options.report):
        parser.error(f"{RESULTS} has results: continue with --resume, or remove the file")
    results = Results(RESULTS)
    for name in [] if options.report else options.studies:
        study = STUDIES[name]
        shapes = prepare_validation_data(study.flags)
        detector = train_detector(study.detector, shapes) if study.detector else None
        with ThreadPoolExecutor(2 // study.processes) as pool:
            jobs = [
                pool.submit(train_missing, name, seed, shapes, detector, results)
                for seed in study.seeds[: options.seeds]
            ]
            for job in jobs:
                job.result()
    write_report(results.rows, STUDIES)


if __name__ == "__main__":
    main()
