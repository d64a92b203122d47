"""The comparison with the original's log."""

import json
import math

import pytest

from arguments import apply_checkpoint_args, has_original_settings, parse_args
from util.plot_utils import main as plot
from util.plot_utils import make_table, read_log
from util.reference import describe_ap, is_coco, load_reference

COCO_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def get_ap(epoch):
    return load_reference()[epoch]["test_coco_eval_bbox"][0]


def test_the_log_ends_with_the_published_result():
    logs = load_reference()
    assert [log["epoch"] for log in logs] == list(range(500))
    assert logs[-1]["test_coco_eval_bbox"][:2] == [0.4203, 0.624]
    assert logs[0]["test_coco_eval_bbox"][0] == 0.0007


def test_the_originals_own_log_is_on_track():
    texts = [describe_ap(epoch, get_ap(epoch), 400, True) for epoch in range(500)]
    assert all(text.endswith(", on track)") for text in texts)
    assert texts[0] == "AP 0.001 (the original after 1 epoch: 0.001, on track)"
    assert texts[9] == "AP 0.118 (the original after 10 epochs: 0.118, on track)"


def test_a_run_three_epochs_late_is_told_so_while_it_matters():
    texts = [describe_ap(epoch, get_ap(epoch - 3), 400, True) for epoch in range(3, 500)]
    assert texts[6] == "AP 0.061 (the original after 10 epochs: 0.118, 3 epochs behind)"
    assert all(text.endswith("3 epochs behind)") for text in texts[:15])
    # Later, three epochs are less than the noise, except at the drop of the learning rate.
    later = [text for text in texts[97:397] if "behind" in text]
    assert len(later) < 0.02 * 300


def test_a_run_that_does_not_learn_is_behind_from_the_second_epoch_on():
    texts = [describe_ap(epoch, 0.0007, 400, True) for epoch in range(500)]
    assert "on track" in texts[0]
    assert all("behind" in text for text in texts[1:])
    assert texts[119] == "AP 0.001 (the original after 120 epochs: 0.344, 119 epochs behind)"


def test_it_says_nothing_where_it_does_not_apply():
    assert describe_ap(9, 0.1, 400, False) == "AP 0.100"
    assert describe_ap(500, 0.4, 400, True) == "AP 0.400"
    # After a drop that the original did not have, its curve is another one.
    assert "original" in describe_ap(199, 0.36, 200, True)
    assert describe_ap(200, 0.40, 200, True) == "AP 0.400"
    assert describe_ap(400, 0.38, 450, True) == "AP 0.380"


def test_coco_is_recognized():
    classes = {i: "person" if i == 1 else str(i) for i in COCO_IDS}
    assert is_coco(118_287, classes) and is_coco(117_266, classes)
    assert not is_coco(5_000, classes)
    assert not is_coco(118_287, {i: str(i) for i in range(80)})
    assert not is_coco(118_287, {1: "person"})


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("", True),
        ("--batch_size 4 --accum_steps 8 --epochs 150 --lr_drop 100 --output_dir x", True),
        ("--seed 1 --num_workers 0 --eval_interval 5 --patience 3 --num_classes 91", True),
        ("--lr 2e-4", False),
        ("--backbone resnet101", False),
        ("--dilation", False),
        ("--finetune weights.pth", False),
        ("--backbone_weights none", False),
        ("--masks", False),
        ("--no_aux_loss", False),
        ("--img_scales 480 512", False),
        ("--dataset_file coco_panoptic --coco_panoptic_path x", False),
        ("--overfit 8", False),
    ],
)
def test_only_the_originals_settings_are_compared(flags, expected):
    assert has_original_settings(parse_args(["--coco_path", "coco", *flags.split()])) == expected


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("", True),
        ("--finetune weights.pth", False),
        ("--resume weights.pth", False),
        ("--backbone_weights none", False),
    ],
)
def test_a_resumed_run_is_compared_if_it_was_before(flags, expected):
    before = parse_args(["--coco_path", "coco", *flags.split()])
    checkpoint = {"model": {}, "args": vars(before), "optimizer": {"groups": []}}
    args = parse_args("--coco_path coco --resume checkpoint.pkl".split())
    apply_checkpoint_args(args, checkpoint, "checkpoint.pkl")
    assert has_original_settings(args) == expected
    # Its weights alone start another run.
    args = parse_args("--coco_path coco --resume weights.pkl".split())
    apply_checkpoint_args(args, {**checkpoint, "optimizer": None}, "weights.pkl")
    assert not has_original_settings(args)


def write_log(folder, epochs, get_log):
    folder.mkdir()
    lines = [json.dumps(get_log(epoch)) + "\n" for epoch in range(epochs)]
    (folder / "log.txt").write_text("".join(lines))
    return folder


def make_log(epoch, late=0, lr=1e-4):
    log = load_reference()[max(epoch - late, 0)]
    metrics = [*log["test_coco_eval_bbox"][:2], *[0.0] * 10]
    return {**log, "epoch": epoch, "test_coco_eval_bbox": metrics, "train_lr": lr}


def test_the_table_compares_logs_with_the_original(tmp_path, capsys, monkeypatch):
    on_track = write_log(tmp_path / "run", 10, make_log)
    late = write_log(tmp_path / "late", 10, lambda epoch: make_log(epoch, late=3))
    words = ["plot_utils", str(on_track), str(late), "--table", "--reference"]
    monkeypatch.setattr("sys.argv", words)
    plot()
    out = capsys.readouterr().out.splitlines()
    assert out[-2] == "run: AP 0.118 (the original after 10 epochs: 0.118, on track)"
    assert out[-1] == "late: AP 0.061 (the original after 10 epochs: 0.118, 3 epochs behind)"


def test_after_a_drop_of_the_learning_rate_the_table_compares_no_more(tmp_path):
    def get_log(epoch):
        return make_log(epoch, lr=1e-4 if epoch < 8 else 1e-5)

    logs = read_log(write_log(tmp_path / "run", 10, get_log))
    assert make_table({"run": logs}, with_reference=True).endswith("run: AP 0.118")
    evaluated_never = [{**log, "test_coco_eval_bbox": None} for log in logs]
    for log in evaluated_never:
        del log["test_coco_eval_bbox"]
    assert make_table({"run": evaluated_never}, with_reference=True).endswith("run: no evaluation")
    assert math.isnan(load_reference()[0]["test_coco_eval_bbox"][2])  # AP75 is unknown
