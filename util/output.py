"""Write a run's output files, named as in the original."""

import json
import math
from itertools import chain, islice
from pathlib import Path

from util import dist, launch
from util.files import atomic_write, find_training_files, make_folder
from util.jittor_file import write_jittor_file
from util.pictures import GRID, draw_mistakes, encode_jpeg, plot_predictions
from util.plot_utils import plot_curves, read_log
from util.report.page import make_page


class OutputFolder:
    """The folder of --output_dir. Only the main process writes, and nothing without --output_dir.

    overwrite: delete the previous run in it; tensorboard: also log for TensorBoard;
    with_reference: also draw the curves of the original's log.
    Raises InputError if its log.txt cannot be continued or a folder cannot be created.
    """

    def __init__(self, path, overwrite=False, tensorboard=False, with_reference=False):
        self.path = Path(path)
        self.tensorboard, self.with_reference = tensorboard, with_reference
        self.tensorboard_log = None
        self.active = bool(path) and launch.is_main_process()
        if not self.active:
            return
        if overwrite:
            for old in find_training_files(self.path):
                old.unlink()
        self.logs = read_log(self.path) if (self.path / "log.txt").exists() else []
        if tensorboard:
            make_folder(self.path / "tensorboard")

    def save_args(self, args, commit):
        """Write args.json: the flags, the program's commit, and the number of processes."""
        if not self.active:
            return
        content = {"args": vars(args), "commit": commit, "processes": launch.get_world_size()}
        with atomic_write(self.path / "args.json") as file:
            file.write(json.dumps(content, indent=2).encode())

    def save_checkpoint(self, state, lr_drop):
        """Write checkpoint.pkl, and a copy before each learning-rate drop and every 100 epochs.

        state: TrainingState. The copy is checkpointNNNN.pkl with the epoch's number.
        """
        if self.active:
            content = state.state_dict()
            epochs = content["epoch"] + 1
            names = ["checkpoint.pkl"]
            if content["step"] == 0 and (epochs % lr_drop == 0 or epochs % 100 == 0):
                names.append(f"checkpoint{content['epoch']:04}.pkl")
            for name in names:
                write_jittor_file(content, self.path / name)
        dist.barrier()  # no process continues or exits before the checkpoint is written

    def save_best(self, state):
        """Write checkpoint_best.pkl. state: TrainingState."""
        if self.active:
            write_jittor_file(state.state_dict(), self.path / "checkpoint_best.pkl")
        dist.barrier()

    def save_evaluation(self, evaluator, dataset, report, names):
        """Write detections in COCO's result format, metrics, predictions.png and the report.

        evaluator: CocoEvaluator; report: a function that returns the evaluator's report, see
        `datasets.report.make_report`; names: files for pycocotools' precision and recall arrays.
        """
        if not self.active:
            return
        for iou_type in evaluator.coco_eval:
            with atomic_write(self.path / f"detections_{iou_type}.json") as file:
                write_list(filter(None, evaluator.results(iou_type)), file)
        coco_gt, accumulated = evaluator.coco_gt, evaluator.coco_eval["bbox"].eval
        accumulated = {**accumulated, "params": vars(accumulated["params"])}
        for name in names:
            make_folder((self.path / name).parent)
            write_jittor_file(accumulated, self.path / name)
        some = chain.from_iterable(islice(filter(None, evaluator.results("bbox")), math.prod(GRID)))
        with atomic_write(self.path / "predictions.png") as file:
            plot_predictions(coco_gt, dataset.read_image_by_id, some, dataset.classes, file)
        self._save_report(report(evaluator), dataset, coco_gt)

    def _save_report(self, report, dataset, coco_gt):
        names = {row["id"]: row["name"] for row in report["classes"]}
        pictures = []
        for image in report["worst_images"]:
            annotations = coco_gt.imgToAnns[image["image_id"]]
            picture = dataset.read_image_by_id(image["image_id"])
            picture = draw_mistakes(picture, annotations, image["mistakes"], names)
            pictures.append(encode_jpeg(picture))
        page = make_page(report, pictures)
        make_folder(self.path / "report")
        for name, text in (("report.json", json.dumps(report)), ("report.html", page)):
            with atomic_write(self.path / "report" / name) as file:
                file.write(text.encode())

    def get_panoptic_folder(self):
        """Return the folder for predicted panoptic PNGs, or None if nothing is written."""
        return self.path / "panoptic_eval" if self.active else None

    def find_logged_stats(self, epoch, train_stats):
        """Return an epoch's metrics from log.txt on all ranks; {} if it was not evaluated.

        None if log.txt has no entry for the epoch, or its losses differ from train_stats because
        another run resumed from the same checkpoint wrote it.
        """
        found = {}
        if self.active:
            found = None
            losses = {f"train_{name}": value for name, value in train_stats.items()}
            for line in self.logs:
                if line["epoch"] == epoch and losses.items() <= line.items():
                    found = {
                        name.removeprefix("test_"): value
                        for name, value in line.items()
                        if name.startswith("test_")
                    }
        return dist.broadcast(found)

    def log_epoch(self, train_stats, test_stats, epoch, n_parameters):
        """Draw curves.png and add a JSON line to log.txt: train_…, test_…, epoch, n_parameters.

        test_stats: {} for an epoch without evaluation.
        """
        if not self.active:
            return
        line = {
            **{f"train_{name}": value for name, value in train_stats.items()},
            **{f"test_{name}": value for name, value in test_stats.items()},
            "epoch": epoch,
            "n_parameters": n_parameters,
        }
        # Lines of later epochs are from an earlier run that resumed from the same checkpoint.
        self.logs = [old for old in self.logs if old["epoch"] < epoch] + [line]
        with atomic_write(self.path / "curves.png") as file:
            plot_curves({self.path.resolve().name: self.logs}, file, self.with_reference)
        if self.tensorboard:
            self.log_to_tensorboard(line, with_picture=bool(test_stats))
        # Last, because the line means that the epoch is complete.
        with atomic_write(self.path / "log.txt") as file:
            file.write("".join(json.dumps(line) + "\n" for line in self.logs).encode())

    def log_to_tensorboard(self, line, with_picture):
        """Add an epoch to tensorboard/. line: the epoch's log.txt entry."""
        from util.tensorboard_log import TensorBoardLog  # an optional package

        if self.tensorboard_log is None:
            self.tensorboard_log = TensorBoardLog(self.path / "tensorboard", line["epoch"])
        picture = self.path / "predictions.png" if with_picture else None
        self.tensorboard_log.add_epoch(line, picture)


def write_list(parts, file):
    """Stream lists into a binary file as one JSON list.

    parts: an iterable of non-empty lists.
    """
    file.write(b"[")
    for number, part in enumerate(parts):
        file.write((", " * (number > 0) + json.dumps(part)[1:-1]).encode())
    file.write(b"]")
