"""What a run leaves in its output folder, under the original's names."""

import json
import math
from itertools import chain, islice
from pathlib import Path

from util import dist, launch
from util.files import make_folder, replacing, training_files
from util.jittor_file import write_jittor_file
from util.pictures import GRID, draw_mistakes, jpeg_of, plot_predictions
from util.plot_utils import plot_curves, read_log
from util.report_page import make_page


class OutputFolder:
    """The folder of --output_dir. Nothing is written where it is empty, or by other processes.

    overwrite: remove the training that is in it; tensorboard: log for TensorBoard, too.
    Raises InputError for a log.txt that is there and cannot be continued, and where a folder cannot
    be made.
    """

    def __init__(self, path, overwrite=False, tensorboard=False):
        self.path = Path(path)
        self.tensorboard = tensorboard
        self.tensorboard_log = None
        self.active = bool(path) and launch.is_main_process()
        if not self.active:
            return
        if overwrite:
            for old in training_files(self.path):
                old.unlink()
        self.logs = read_log(self.path) if (self.path / "log.txt").exists() else []
        if tensorboard:
            make_folder(self.path / "tensorboard")

    def save_training(self, make_state, lr_drop):
        """Writes checkpoint.pkl, and some as checkpointNNNN.pkl, too.

        Those before each drop of the learning rates, and every 100 epochs.

        make_state: gives what to save, a dictionary of plain containers and arrays. Its `epoch` is
        the last one that was trained to its end, its `step` the number of steps of the next one
        that were trained since.
        """
        if self.active:
            state = make_state()
            epochs = state["epoch"] + 1
            names = ["checkpoint.pkl"]
            if state["step"] == 0 and (epochs % lr_drop == 0 or epochs % 100 == 0):
                names.append(f"checkpoint{state['epoch']:04}.pkl")
            for name in names:
                write_jittor_file(state, self.path / name)
        dist.barrier()  # nobody goes on, or ends the run, before the checkpoint is there

    def save_best(self, make_state):
        """Writes checkpoint_best.pkl. make_state: as for `save_training`."""
        if self.active:
            write_jittor_file(make_state(), self.path / "checkpoint_best.pkl")
        dist.barrier()

    def save_evaluation(self, evaluator, dataset, names):
        """Writes the detections in COCO's result format, figures, and predictions.png.

        names: of the files for pycocotools' precision and recall arrays.
        """
        if not self.active:
            return
        for iou_type in evaluator.coco_eval:
            with replacing(self.path / f"detections_{iou_type}.json") as file:
                write_list(filter(None, evaluator.results(iou_type)), file)
        accumulated = evaluator.coco_eval["bbox"].eval
        accumulated = {**accumulated, "params": vars(accumulated["params"])}
        for name in names:
            make_folder((self.path / name).parent)
            write_jittor_file(accumulated, self.path / name)
        some = chain.from_iterable(islice(filter(None, evaluator.results("bbox")), math.prod(GRID)))
        with replacing(self.path / "predictions.png") as file:
            plot_predictions(evaluator.coco_gt, dataset.read_by_id, some, dataset.classes, file)

    def save_report(self, report, dataset, coco_gt):
        """Writes report/report.json and report.html.

        report: what `datasets.quality.make_report` returns.
        """
        names = {row["id"]: row["name"] for row in report["classes"]}
        pictures = []
        for image in report["worst_images"]:
            annotations = coco_gt.imgToAnns[image["image_id"]]
            picture = dataset.read_by_id(image["image_id"])
            picture = draw_mistakes(picture, annotations, image["mistakes"], names)
            pictures.append(jpeg_of(picture))
        page = make_page(report, pictures)
        make_folder(self.path / "report")
        for name, text in (("report.json", json.dumps(report)), ("report.html", page)):
            with replacing(self.path / "report" / name) as file:
                file.write(text.encode())

    def panoptic_folder(self):
        """Where the predicted panoptic PNGs go, or None where nothing is written."""
        return self.path / "panoptic_eval" if self.active else None

    def logged_figures(self, epoch, train_stats):
        """What log.txt has of an epoch's evaluation, {} where there was none.

        None where it lacks the epoch, or has it with other losses than train_stats: of a training
        that went on from the same checkpoint before. In all processes what the main process has.
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
        """Draws curves.png and adds a JSON line to log.txt: train_…, test_…, epoch, n_parameters.

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
        # Lines of later epochs are of a training that went on from the same checkpoint before.
        self.logs = [old for old in self.logs if old["epoch"] < epoch] + [line]
        with replacing(self.path / "curves.png") as file:
            plot_curves({self.path.resolve().name: self.logs}, file)
        if self.tensorboard:
            self.log_to_tensorboard(line, with_picture=bool(test_stats))
        # Last, because the line says that the epoch needs nothing more.
        with replacing(self.path / "log.txt") as file:
            file.write("".join(json.dumps(line) + "\n" for line in self.logs).encode())

    def log_to_tensorboard(self, line, with_picture):
        """Adds an epoch to tensorboard/. line: that of log.txt."""
        from util.tensorboard_log import TensorBoardLog

        if self.tensorboard_log is None:
            self.tensorboard_log = TensorBoardLog(self.path / "tensorboard", line["epoch"])
        picture = self.path / "predictions.png" if with_picture else None
        self.tensorboard_log.add_epoch(line, picture)


def write_list(parts, file):
    """Writes lists as one JSON list to a binary file, without holding all of it in memory.

    parts: an iterable of lists that are not empty.
    """
    file.write(b"[")
    for number, part in enumerate(parts):
        file.write((", " * (number > 0) + json.dumps(part)[1:-1]).encode())
    file.write(b"]")
