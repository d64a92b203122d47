"""The warning about a run that does not learn, with metrics as measured on the shapes."""

import numpy as np
import pytest

from arguments import parse_args
from util.stuck import PredictionSpread, StuckDetector

TRAIN = {"loss": 7.5, "class_error": 70.0, "loss_bbox": 1.3}
TEST = {"class_error": 72.0, "loss_bbox": 1.4, "box_std": 0.08, "score_std": 0.06}


def check(*epochs, flags="", num_images=500, step_size=16):
    """Run the detector over epochs, (training metrics, validation metrics or None, AP)."""
    args = parse_args(["--coco_path", "coco", "--batch_size", "16", *flags.split()])
    detector = StuckDetector(args, step_size, num_images)
    for epoch, (train, test, ap) in enumerate(epochs):
        metrics = {} if test is None else {**TEST, **test, "coco_eval_bbox": [ap] + [0.0] * 11}
        detector.check(epoch, {**TRAIN, **train}, metrics)


def falling(count, test=None, ap=0.002, **train):
    """Epochs whose training loss falls by 4% each."""
    return [({"loss": 10 * 0.96**epoch, **train}, test or {}, ap) for epoch in range(count)]


def results(boxes, scores):
    return [{"boxes": each, "scores": score} for each, score in zip(boxes, scores)]


def test_spread_is_the_standard_deviation_over_images():
    rng = np.random.default_rng(0)
    boxes, scores = rng.random((6, 15, 4)), rng.random((6, 15))
    sizes = rng.integers(50, 200, (6, 2))
    pixels = boxes * sizes[:, None, [1, 0, 1, 0]]
    spread = PredictionSpread()
    spread.update(results(pixels[:4], scores[:4]), sizes[:4])
    spread.update(results(pixels[4:], scores[4:]), sizes[4:])
    expected = boxes.std(0).mean(), scores.std(0).mean()
    np.testing.assert_allclose(spread.compute(), expected, rtol=1e-6)


def test_equal_predictions_have_no_spread():
    spread = PredictionSpread()
    box, score = np.float32([[0.1, 0.2, 0.7, 0.8]] * 3), np.float32([0.3] * 3)
    for height, width in ((480, 640), (333, 500)):
        scale = np.float32([width, height, width, height])
        spread.update(results([box * scale], [score]), [(height, width)])
    assert max(spread.compute()) < 1e-6


def test_one_image_has_no_spread():
    spread = PredictionSpread()
    assert np.isnan(spread.compute()).all()
    spread.update(results(np.ones([1, 3, 4]), np.ones([1, 3])), [(10, 10)])
    assert np.isnan(spread.compute()).all()


@pytest.mark.parametrize(
    "epochs",
    [
        falling(12),  # slow, but it learns
        falling(12, {"box_std": 0.001, "score_std": 0.001}, ap=0.011),  # AP rises
        falling(12, {"box_std": 0.001, "score_std": 0.02}),  # different scores, as at the start
        falling(7, {"box_std": 0.001, "score_std": 0.001}),  # too early to tell
        falling(12, class_error=99.0),  # as the original in its first epoch
        falling(12, {"loss_bbox": 2.8}),  # as dropout does, of 0.1 by default
        # In one evaluation only.
        [*falling(8), *falling(9, {"class_error": 99})[8:], *falling(12)[9:]],
        # 500 images per epoch: the loss varies, but it falls.
        [({"loss": loss}, {}, 0.001) for loss in (12.2, 9.69, 9.24, 9.09, 8.85, 8.98, 8.86, 9.15)],
        falling(12, {"box_std": 0.001, "score_std": 0.001}, ap=-1),  # no ground truth
        [({"loss": 7.5}, None, 0)] * 12,  # without evaluation
        [({"loss": 7.5}, {}, 0.05)] * 12,  # converged
    ],
)
def test_no_false_alarm(epochs, capsys):
    check(*epochs)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "epochs, num_images, symptom",
    [
        (falling(8, {"box_std": 0.004, "score_std": 0.003}), 500, "nearly the same for all images"),
        ([({"loss": 7.9}, {}, 0.002)] * 8, 500, "has not fallen while the number of images doub"),
        (falling(8, {"box_std": 0.0004}), 500, "nearly the same for all images"),
        (falling(8, {"loss_bbox": 3.0}), 500, "loss_bbox is 1.30 on the training data, but 3.00"),
        (falling(8, {"class_error": 99}, class_error=60.0), 500, "class_error is 60.00 on the tra"),
        (falling(2, class_error=97.0), 60_000, "class_error is still 97%"),
    ],
)
def test_stuck_runs_are_named_once(epochs, num_images, symptom, capsys):
    check(*epochs, *epochs[-1:] * 3, num_images=num_images)
    err = capsys.readouterr().err
    assert err.count("warning: this run does not learn: AP is 0.002") == 1
    assert symptom in err and f"after {num_images * len(epochs):,} images with objects" in err
    assert err.count("\n  ") == 3  # causes


def test_it_waits_for_enough_images_with_objects(capsys):
    check(*[({}, {"box_std": 0, "score_std": 0}, 0.0)] * 12, num_images=25)
    assert capsys.readouterr().err == ""


STUCK = [({}, {"box_std": 0, "score_std": 0}, 0.0)] * 8


@pytest.mark.parametrize(
    "flags, step_size, first",
    [
        ("--lr 0.01", 16, "--lr 0.01 is too high"),
        ("--backbone_weights none", 16, "the backbone's first layers are random"),
        ("--finetune x --freeze backbone transformer", 16, "--freeze backbone transformer keeps"),
        ("", 2, "too few images per step (2): the original has 16; use --accum_steps"),
        ("--lr 1e-6", 16, "--lr 1e-06 is low"),
        ("", 16, "500 images are few to train from scratch"),
        ("--finetune x", 2, "the annotations are wrong: run `python -m datasets.check`"),
    ],
)
def test_the_most_likely_cause_comes_first(flags, step_size, first, capsys):
    check(*STUCK, flags=flags, step_size=step_size)
    assert f"\n  1. {first}" in capsys.readouterr().err


def test_different_training_and_validation_data_point_to_the_annotations(capsys):
    check(*falling(8, {"loss_bbox": 2.1}), flags="--dropout 0")  # dropout hides such a difference
    err = capsys.readouterr().err
    assert "\n  1. 500 images are few" in err and "\n  2. the two annotation files differ" in err
    check(*falling(8, {"loss_bbox": 3.0}), flags="--finetune x")
    assert "\n  1. the two annotation files differ" in capsys.readouterr().err


def test_only_the_main_process_warns(monkeypatch, capsys):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    check(*STUCK)
    assert capsys.readouterr().err == ""
