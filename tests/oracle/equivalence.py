"""Trains this project and the original from the same weights on the same batches, with many seeds:

    python -m tests.oracle.equivalence [--studies boxes …] [--resume] [--report]

What is trained, with how many seeds, and what is concluded from it was fixed before the results
were looked at: STUDIES here, and docs/alignment/plan.md. Each finished training is a line of
docs/alignment/equivalence.jsonl; --resume goes on after them, --report draws the report only. Two
seeds train at once, on one thread each.
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
from typing import NamedTuple

import numpy as np

from util.plot_utils import evaluated, read_log

from .conftest import HERE, ORACLE_PYTHON
from .report import ROOT, shake

RESULTS = ROOT / "docs" / "alignment" / "equivalence.jsonl"
# The weights of a detector that the original trained, for the mask heads.
DETECTOR = Path("~/.cache/detr-jittor/equivalence/detector.npz").expanduser()
DETECTOR_SEED = 100
DEMO = "--shapes_val 2000"  # 22 epochs, the learning rate drops after 18
GROUP_NORM = "--backbone_norm group"  # has no statistics, which processes would have to share


class Study(NamedTuple):
    """seeds: of the weights, the order of the images and their flips. arms: what is trained: this
    project ("ours"), the original, and the original from weights that differ in their last bit
    ("perturbed"). flags: of main.py. evaluate_from: the figures are the means over the evaluations
    from this epoch on. bound: what counts as equivalent, in points of AP. on_detector: trains a
    mask head on DETECTOR. processes: that share each batch.
    """

    seeds: range
    arms: tuple
    flags: str
    evaluate_from: int
    bound: float
    on_detector: bool = False
    processes: int = 1


ALL = ("ours", "original", "perturbed")
MASKS = "--masks --frozen_weights detector --epochs 3 --lr_drop 2 --shapes_val 2000"
STUDIES = {
    "boxes": Study(range(1, 17), ALL, DEMO, 19, 0.5),
    "dropout": Study(range(1, 9), ALL[:2], f"{DEMO} --dropout 0.1", 19, 0.7),
    "masks": Study(range(1, 9), ALL[:2], MASKS, 2, 0.7, on_detector=True),
    "processes": Study(range(1, 5), ALL[:2], f"{DEMO} {GROUP_NORM}", 19, 0.7, processes=2),
}


def prepare(folder, seed, flags, *more):
    command = [sys.executable, HERE / "train_ours.py", "--prepare", "demo", "--seed", seed]
    call(*command, "--flags", flags, *more, folder)


def train_detector(shapes):
    """Writes DETECTOR, unless it is there."""
    if DETECTOR.exists():
        return
    with tempfile.TemporaryDirectory(dir=os.environ.get("DETR_WORK")) as work:
        work = Path(work)
        prepare(work / "prepared", DETECTOR_SEED, DEMO)
        train("original", work / "prepared", work / "run", shapes, evaluate_from=99)
        DETECTOR.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(work / "run" / "weights.npz", DETECTOR)


def train(arm, folder, out, shapes, evaluate_from, processes=1):
    """One training. folder: filled by train_ours.py --prepare; out: the run's folder."""
    command = [ORACLE_PYTHON, "-W", "ignore", HERE / "train_original.py"]
    if arm == "ours":
        command = [sys.executable, HERE / "train_ours.py"]
    elif arm == "perturbed":
        folder = shake(folder)
    if processes > 1 and arm == "ours":
        mpirun = ["mpirun", "-np", processes, "--oversubscribe", "--bind-to", "none"]
        command = [*mpirun, *command]
    elif processes > 1:
        command += ["--processes", processes, "--port", free_port()]
    call(*command, "--evaluate", shapes, "--evaluate_from", evaluate_from, folder, out)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def call(*command):
    subprocess.run(
        [str(word) for word in command],
        check=True,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        },
    )


def figures_of(run):
    """What is compared, from a run's log.txt."""
    logs = read_log(run)
    kind = "masks" if "test_coco_eval_masks" in logs[-1] else "bbox"
    stats = np.array([log[f"test_coco_eval_{kind}"] for log in evaluated(logs)]).mean(0)
    return {
        "AP": stats[0],
        "AP50": stats[1],
        "AP75": stats[2],
        "loss on the validation set": np.mean([log["test_loss"] for log in evaluated(logs)]),
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


def run_seed(name, seed, shapes, results):
    """Trains what is missing of one seed."""
    study = STUDIES[name]
    arms = [arm for arm in study.arms if results.find(name, seed, arm) is None]
    if not arms:
        return
    with tempfile.TemporaryDirectory(dir=os.environ.get("DETR_WORK")) as work:
        folder = Path(work) / "prepared"
        flags = ["--detector", DETECTOR] if study.on_detector else []
        prepare(folder, seed, study.flags, *flags)
        for arm in arms:
            start = time.time()
            out = Path(work) / arm
            train(arm, folder, out, shapes, study.evaluate_from, study.processes)
            seconds = round(time.time() - start)
            results.add(
                {"study": name, "seed": seed, "arm": arm, **figures_of(out), "seconds": seconds}
            )
            shutil.rmtree(out)


def validation_shapes():
    """The folder of the images to evaluate on, which it draws if need be."""
    from arguments import parse_args
    from datasets import build_dataset

    args = parse_args(["--demo", *DEMO.split()])
    return build_dataset("val", args).img_folder.parent


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
    if not options.report:
        shapes = validation_shapes()
        if any(STUDIES[name].on_detector for name in options.studies):
            train_detector(shapes)
        with ThreadPoolExecutor(2) as pool:
            jobs = [
                pool.submit(run_seed, name, seed, shapes, results)
                for name in options.studies
                for seed in STUDIES[name].seeds[: options.seeds]
            ]
            for job in jobs:
                job.result()
    from .equivalence_report import write_report

    write_report(results.rows, STUDIES)


if __name__ == "__main__":
    main()
