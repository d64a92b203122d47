"""The best checkpoint, patience, and epochs without evaluation."""

import json
import os
import signal
import subprocess
import sys

import pytest
import tiny
from interrupt import assert_same_training
from processes import REPO
from same import assert_same

import engine
from arguments import parse_args
from main import main
from models.weights.checkpoint import load_checkpoint
from util.best import Best
from util.errors import InputError


def test_the_highest_value_counts_and_the_first_of_equal_ones():
    best = Best("AP50")
    values = [0.1, 0.3, 0.3, 0.2, 0.4]
    assert [best.update(epoch, value) for epoch, value in enumerate(values)] == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert (best.value, best.epoch, best.waited) == (0.4, 4, 0)
    assert best.find({"coco_eval_bbox": [0.1, 0.2, 0.3]}) == 0.2
    again, other = Best("AP50"), Best("AP")
    again.load_state_dict(best.state_dict())
    other.load_state_dict(best.state_dict())
    assert vars(again) == vars(best) and other.value is None
    assert not again.update(5, 0.4) and again.waited == 1
    assert again.update(4, 0.4) and (again.epoch, again.waited) == (4, 0), "its own epoch again"


@pytest.fixture
def figures(monkeypatch):
    """figures(AP of each evaluation, in turn): what the trainings that follow seem to reach."""

    def install(*values):
        values = list(values)

        def evaluate(*arguments, **options):
            stats, evaluator = original(*arguments, **options)
            stats["coco_eval_bbox"] = [values.pop(0), *stats["coco_eval_bbox"][1:]]
            return stats, evaluator

        monkeypatch.setattr(engine, "evaluate", evaluate)
        return values

    original = engine.evaluate
    return install


def run(coco, output, *flags):
    tiny.train(
        "--batch_size 2 --num_workers 0", "--coco_path", coco, "--output_dir", output, *flags
    )


def log(folder):
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


def test_the_best_epoch_is_kept_and_patience_ends_the_training(coco, tmp_path, figures, capfd):
    figures(0.1, 0.3, 0.2, 0.3)
    run(coco, tmp_path, "--epochs 9 --patience 2")
    printed = capfd.readouterr().out
    assert "AP has not improved for 2 evaluations: training stops. Best: 0.3000" in printed
    assert [line["test_best_epoch"] for line in log(tmp_path)] == [0, 1, 1, 1]
    best = load_checkpoint(tmp_path / "checkpoint_best.pkl")
    assert (best["epoch"], best["step"]) == (1, 0)
    assert best["best"] == {"figure": "AP", "value": 0.3, "epoch": 1, "waited": 0}
    assert load_checkpoint(tmp_path / "checkpoint.pkl")["epoch"] == 3


def test_the_figure_of_the_best_checkpoint_is_the_logs(coco, tmp_path, capfd):
    run(coco, tmp_path / "out", "--epochs 2 --lr 0.001 --best AP50")
    best = load_checkpoint(tmp_path / "out" / "checkpoint_best.pkl")
    value = best["best"]["value"]
    assert value == log(tmp_path / "out")[best["epoch"]]["test_coco_eval_bbox"][1]
    main(
        parse_args(
            ["--eval", "--coco_path", str(coco), "--num_workers", "0", "--device", "cpu"]
            + ["--resume", str(tmp_path / "out" / "checkpoint_best.pkl")]
        )
    )
    found = capfd.readouterr().out.split("IoU=0.50      | area=   all | maxDets=100 ] =")[-1]
    assert float(found.split()[0]) == pytest.approx(value, abs=5e-4)


@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_resumed_training_knows_the_best_one_before(coco, tmp_path, figures, first):
    figures(0.1, 0.3, 0.2, 0.25, 0.3)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(coco, whole, "--epochs 4")
    figures(0.1, 0.3, 0.2, 0.25)
    run(coco, parts, "--epochs", first)
    run(coco, parts, "--epochs 4", "--resume", parts / "checkpoint.pkl")
    assert [line["test_best_epoch"] for line in log(parts)] == [0, 1, 1, 1]
    assert_same_training(parts, whole)
    bests = [load_checkpoint(folder / "checkpoint_best.pkl") for folder in (parts, whole)]
    assert bests[0]["best"] == bests[1]["best"] and bests[0]["epoch"] == 1


# A training whose second epoch is better than its first, killed while it writes the better one.
KILLED = """
import os, signal, sys
sys.path.insert(0, "tests/helpers")
import engine, tiny
values, evaluate, fsync = [0.1, 0.3], engine.evaluate, os.fsync

def better(*arguments, **options):
    stats, evaluator = evaluate(*arguments, **options)
    stats["coco_eval_bbox"][0] = values.pop(0)
    return stats, evaluator

def killed(handle):
    if not values and "checkpoint_best" in os.readlink(f"/proc/self/fd/{handle}"):
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(handle)

engine.evaluate, os.fsync = better, killed
tiny.train(*sys.argv[1:])
"""


def test_killed_while_the_best_one_is_written_both_are_intact(coco, tmp_path, figures):
    flags = ["--batch_size 2 --num_workers 0", "--coco_path", coco]
    command = [sys.executable, "-c", KILLED, *map(str, flags)]
    done = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "killed"), "--epochs 2"],
        cwd=REPO,
        env=os.environ | {"PYTHONPATH": "."},  # as many threads: the last bits depend on them
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list((tmp_path / "killed").glob(".checkpoint_best*")), "half written, beside it"
    epochs = [
        load_checkpoint(tmp_path / "killed" / f"{name}.pkl")["epoch"]
        for name in ("checkpoint", "checkpoint_best")
    ]
    assert epochs == [1, 0]
    figures(0.3)
    run(coco, tmp_path / "killed", "--resume", tmp_path / "killed" / "checkpoint.pkl")
    figures(0.1, 0.3)
    run(coco, tmp_path / "whole", "--epochs 2")
    assert_same_training(tmp_path / "killed", tmp_path / "whole")
    bests = [
        load_checkpoint(tmp_path / name / "checkpoint_best.pkl") for name in ("killed", "whole")
    ]
    assert_same(bests[0]["model"], bests[1]["model"])
    assert bests[0]["epoch"] == 1
    assert not list((tmp_path / "killed").glob(".checkpoint_best*"))


def test_a_training_that_patience_ended_stays_ended(coco, tmp_path, figures, capfd):
    figures(0.3, 0.2)
    run(coco, tmp_path, "--epochs 9 --patience 1")
    capfd.readouterr()
    run(coco, tmp_path, "--resume", tmp_path / "checkpoint.pkl")
    assert "training stops" in capfd.readouterr().out and len(log(tmp_path)) == 2
    figures(0.1)
    run(coco, tmp_path, "--epochs 3 --patience 5", "--resume", tmp_path / "checkpoint.pkl")
    assert len(log(tmp_path)) == 3


def test_epochs_between_evaluations_have_a_line_without_figures(coco, tmp_path, figures):
    rest = figures(0.1, 0.2, 0.3)
    run(coco, tmp_path, "--epochs 5 --eval_interval 2")
    assert rest == [], "after 2, 4, and the last one"
    assert ["test_coco_eval_bbox" in line for line in log(tmp_path)] == [
        False,
        True,
        False,
        True,
        True,
    ]
    assert all("train_loss" in line for line in log(tmp_path))
    assert (tmp_path / "curves.png").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--best segm_AP", "--best segm_AP: give --masks as well"),
        (
            "--best PQ --masks --hidden_dim 128 --nheads 8",
            "--best PQ: give --masks and --dataset_file coco_panoptic as well",
        ),
        ("--patience -1", "--patience is -1"),
        ("--eval_interval 0", "--eval_interval is 0"),
    ],
)
def test_flags_that_do_not_go_together(coco, flags, message):
    with pytest.raises(InputError, match=message):
        main(tiny.arguments(flags, "--coco_path", coco))
