"""What a run leaves in its output folder, under the original's names."""
import json
from pathlib import Path

from datasets.panoptic_eval import PanopticEvaluator
from util import dist
from util.checkpoint import model_state, optimizer_state, save_checkpoint
from util.files import replacing, training_files
from util.pictures import plot_predictions
from util.plot_utils import plot_curves, read_log


class OutputFolder:
    """The folder given as --output_dir; an empty path, or another process than the main one, writes nothing.

    Raises InputError for a log.txt that is there and cannot be continued.
    """

    def __init__(self, path, overwrite=False):
        self.path = Path(path)
        self.active = bool(path) and dist.is_main_process()
        if not self.active:
            return
        if overwrite:
            for old in training_files(self.path):
                old.unlink()
        self.logs = read_log(self.path) if (self.path / "log.txt").exists() else []

    def save_training(self, model, optimizer, lr_scheduler, args, epoch, step=0, **more):
        """Writes checkpoint.pkl, and checkpointNNNN.pkl before each drop of the learning rate and every 100 epochs.

        epoch: the last epoch that was trained to its end; step: batches of the next one that were trained since; more: plain
        containers to save with them.
        """
        if self.active:
            names = ["checkpoint.pkl"]
            if step == 0 and ((epoch + 1) % args.lr_drop == 0 or (epoch + 1) % 100 == 0):
                names.append(f"checkpoint{epoch:04}.pkl")
            state = {"model": model_state(model), "optimizer": optimizer_state(optimizer), "lr_scheduler": lr_scheduler.state_dict(),
                     "epoch": epoch, "step": step, "processes": dist.get_world_size(), "args": vars(args), **more}
            for name in names:
                save_checkpoint(state, self.path / name)
        dist.barrier()  # nobody goes on, or ends the run, before the checkpoint is there

    def save_evaluation(self, evaluator, dataset, names):
        """Writes the detections in COCO's result format, pycocotools' precision and recall arrays under `names`, and
        predictions.png with the first images of the data set.
        """
        if not self.active:
            return
        for iou_type, results in evaluator.results.items():
            with replacing(self.path / f"detections_{iou_type}.json") as file:
                file.write(json.dumps(results).encode())
        accumulated = evaluator.coco_eval["bbox"].eval
        accumulated = {**accumulated, "params": vars(accumulated["params"])}
        for name in names:
            (self.path / name).parent.mkdir(exist_ok=True)
            save_checkpoint(accumulated, self.path / name)
        with replacing(self.path / "predictions.png") as file:
            plot_predictions(evaluator.coco_gt, dataset.img_folder, evaluator.results["bbox"], file)

    def panoptic_evaluator(self, dataset):
        """A PanopticEvaluator that writes its predictions into panoptic_eval/."""
        folder = self.path / "panoptic_eval" if self.active else None
        return PanopticEvaluator(dataset.ann_file, dataset.ann_folder, folder)

    def lacks(self, epoch):
        """Whether log.txt should have a line of this epoch and has none: the main process's answer, in all."""
        return dist.broadcast(self.active and all(line["epoch"] != epoch for line in self.logs))

    def log_epoch(self, train_stats, test_stats, epoch, n_parameters):
        """Draws curves.png and adds one JSON line to log.txt: train_…, test_…, epoch, n_parameters."""
        if not self.active:
            return
        line = {**{f"train_{name}": value for name, value in train_stats.items()},
                **{f"test_{name}": value for name, value in test_stats.items()},
                "epoch": epoch, "n_parameters": n_parameters}
        self.logs = sorted([old for old in self.logs if old["epoch"] != epoch] + [line], key=lambda line: line["epoch"])
        with replacing(self.path / "curves.png") as file:
            plot_curves({self.path.resolve().name: self.logs}, file)
        with replacing(self.path / "log.txt") as file:  # last, because the line says that the epoch needs nothing more
            file.write("".join(json.dumps(line) + "\n" for line in self.logs).encode())
