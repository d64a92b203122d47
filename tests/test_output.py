"""What a run leaves in its output folder."""

import json

import numpy as np
import pytest

from util import launch
from util.errors import InputError
from util.jittor_file import read_jittor_file
from util.output import OutputFolder

LOSSES = {"loss": 2.0, "loss_ce": 1.0, "loss_bbox": 0.2, "loss_giou": 0.4}
FIGURES = {**LOSSES, "coco_eval_bbox": [0.5] * 12}


class State:
    """A TrainingState."""

    def __init__(self, epoch, step):
        self.epoch, self.step = epoch, step

    def state_dict(self):
        weights = {"weight": np.ones(3, np.float32)}
        return {"model": weights, "epoch": self.epoch, "step": self.step}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "epoch, step, lr_drop, kept",
    [
        (0, 0, 200, []),
        (199, 0, 200, ["checkpoint0199.pkl"]),
        (99, 0, 200, ["checkpoint0099.pkl"]),
        (2, 0, 3, ["checkpoint0002.pkl"]),
        (2, 7, 3, []),  # within the epoch after the drop
    ],
)
def test_checkpoints_before_drops_and_every_100_epochs_are_kept(
    tmp_path, epoch, step, lr_drop, kept
):
    OutputFolder(tmp_path).save_checkpoint(State(epoch, step), lr_drop)
    assert names(tmp_path) == ["checkpoint.pkl", *kept]
    for name in names(tmp_path):
        assert read_jittor_file(tmp_path / name)["epoch"] == epoch


def test_the_log_has_a_line_for_each_epoch_in_their_order(tmp_path):
    output = OutputFolder(tmp_path)
    # The last epoch 1 resumes from the checkpoint of epoch 0.
    for epoch, loss in ((0, 4.0), (1, 3.0), (2, 2.8), (1, 2.5)):
        losses = {**LOSSES, "loss": loss}
        assert output.find_logged_stats(epoch, losses) is None, "not there, or of other losses"
        output.log_epoch(losses, FIGURES, epoch, 42)
        assert output.find_logged_stats(epoch, losses) == FIGURES
    lines = [json.loads(line) for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert [(line["epoch"], line["train_loss"]) for line in lines] == [(0, 4.0), (1, 2.5)]
    assert lines[0]["test_coco_eval_bbox"] == [0.5] * 12 and lines[0]["n_parameters"] == 42
    assert names(tmp_path) == ["curves.png", "log.txt"]
    assert OutputFolder(tmp_path).logs == lines, "a resumed run continues it"


def test_a_log_that_cannot_be_continued_is_an_error_at_the_start(tmp_path):
    (tmp_path / "log.txt").write_text("shopping list\n")
    with pytest.raises(InputError, match="log.txt: line 1 is not that of an epoch"):
        OutputFolder(tmp_path)


def test_overwrite_removes_a_training_and_nothing_else(tmp_path):
    for name in ("checkpoint.pkl", "log.txt", "detections_bbox.json", "notes.md"):
        (tmp_path / name).touch()
    OutputFolder(tmp_path, overwrite=True)
    assert names(tmp_path) == ["detections_bbox.json", "notes.md"]


@pytest.mark.parametrize("is_main", [True, False])
def test_without_a_folder_and_in_other_processes_nothing_is_written(tmp_path, monkeypatch, is_main):
    monkeypatch.setattr(launch, "is_main_process", lambda: is_main)
    monkeypatch.chdir(tmp_path)
    output = OutputFolder("" if is_main else tmp_path)
    output.save_checkpoint(None, 200)
    output.save_best(None)
    output.save_evaluation(None, None, None, ["eval.pkl"])
    output.log_epoch({}, {}, 0, 42)
    assert output.get_panoptic_folder() is None and output.find_logged_stats(0, {}) == {}
    assert names(tmp_path) == []
