"""The loss in edge cases: no objects, perfect predictions, boxes of one pixel; and its names."""

import numpy as np
import pytest

from models.detr import SetCriterion
from models.matcher import HungarianMatcher
from util.backend import jt

CLASSES, QUERIES = 4, 6
NAMES = {"loss_ce", "loss_bbox", "loss_giou", "cardinality_error"}


def make_criterion(eos_coef=0.1):
    return SetCriterion(CLASSES, HungarianMatcher(1, 5, 2), {}, eos_coef)


def random_outputs(images=2, layers=1):
    """Return outputs like DETR's, with layers - 1 auxiliary outputs."""
    jt.set_global_seed(0)
    outputs = [
        {
            "pred_logits": jt.randn(images, QUERIES, CLASSES + 1),
            "pred_boxes": jt.rand(images, QUERIES, 4) * 0.5 + 0.2,
        }
        for _ in range(layers)
    ]
    return {**outputs[-1], "aux_outputs": outputs[:-1]} if layers > 1 else outputs[0]


def make_target(*objects):
    """Return the target of (label, box) pairs."""
    return {
        "labels": np.array([label for label, _ in objects], np.int64),
        "boxes": np.array([box for _, box in objects], np.float32).reshape(-1, 4),
    }


def assert_finite_gradients(losses, outputs):
    total = losses["loss_ce"] + losses["loss_bbox"] + losses["loss_giou"]
    for gradient in jt.grad(total, [outputs["pred_logits"], outputs["pred_boxes"]]):
        assert np.isfinite(gradient.numpy()).all()


def test_batch_without_objects():
    outputs = random_outputs()
    losses = make_criterion()(outputs, [make_target(), make_target()])
    assert losses["loss_bbox"].item() == losses["loss_giou"].item() == 0
    assert losses["class_error"] == 100, "as in the original"
    log_prob = jt.nn.log_softmax(outputs["pred_logits"], dim=-1).numpy()
    assert losses["loss_ce"].item() == pytest.approx(-log_prob[..., CLASSES].mean(), rel=1e-5)
    predicted = (outputs["pred_logits"].numpy().argmax(-1) != CLASSES).sum(-1)
    assert losses["cardinality_error"] == pytest.approx(predicted.mean())
    assert_finite_gradients(losses, outputs)


def test_perfect_prediction():
    targets = [make_target((2, [0.5, 0.5, 0.4, 0.2]), (0, [0.2, 0.3, 0.1, 0.1])), make_target()]
    logits = np.zeros((2, QUERIES, CLASSES + 1), np.float32)
    logits[..., CLASSES] = 30
    boxes = np.tile(np.float32([0.7, 0.7, 0.2, 0.2]), (2, QUERIES, 1))
    for query, (label, box) in zip((4, 1), zip(targets[0]["labels"], targets[0]["boxes"])):
        logits[0, query, [label, CLASSES]] = 30, 0
        boxes[0, query] = box
    outputs = {"pred_logits": jt.array(logits), "pred_boxes": jt.array(boxes)}
    losses = {name: float(loss) for name, loss in make_criterion()(outputs, targets).items()}
    assert losses == {name: pytest.approx(0, abs=1e-5) for name in NAMES | {"class_error"}}


def test_class_error_counts_the_matched_queries():
    targets = [
        make_target((2, [0.5, 0.5, 0.4, 0.2]), (0, [0.2, 0.3, 0.1, 0.1]), (3, [0.8, 0.3, 0.1, 0.1]))
    ]
    logits = np.zeros((1, QUERIES, CLASSES + 1), np.float32)
    logits[..., 2] = 5  # the class of one object of three
    losses = make_criterion()({**random_outputs(1), "pred_logits": jt.array(logits)}, targets)
    assert losses["class_error"] == pytest.approx(200 / 3)
    assert losses["cardinality_error"] == QUERIES - 3


@pytest.mark.parametrize("eos_coef", [0.1, 1, 0])
def test_eos_coef_weights_the_unmatched_queries(eos_coef):
    box = [0.5, 0.5, 0.4, 0.2]
    boxes = np.tile(np.float32([0.1, 0.1, 0.1, 0.1]), (1, QUERIES, 1))
    boxes[0, 3] = box  # matches query 3
    logits = np.zeros((1, QUERIES, CLASSES + 1), np.float32)
    logits[0, 3, 1] = 1
    logits[0, 0, CLASSES] = 2
    outputs = {"pred_logits": jt.array(logits), "pred_boxes": jt.array(boxes)}
    losses = make_criterion(eos_coef)(outputs, [make_target((1, box))])
    log_sum = np.log(np.exp(logits[0]).sum(-1))
    matched = log_sum[3] - 1
    unmatched = log_sum[[0, 1, 2, 4, 5]].sum() - 2
    expected = (matched + eos_coef * unmatched) / (1 + eos_coef * (QUERIES - 1))
    assert losses["loss_ce"].item() == pytest.approx(expected, rel=1e-5)


def test_names_are_the_originals():
    targets = [make_target((1, [0.5, 0.5, 0.4, 0.2])), make_target()]
    assert set(make_criterion()(random_outputs(), targets)) == NAMES | {"class_error"}
    suffixed = {f"{name}_{i}" for name in NAMES for i in range(5)}
    losses = make_criterion()(random_outputs(layers=6), targets)
    assert set(losses) == NAMES | {"class_error"} | suffixed


def test_each_layer_is_matched_and_scored_separately():
    targets = [
        make_target((1, [0.5, 0.5, 0.4, 0.2]), (2, [0.3, 0.3, 0.2, 0.2])),
        make_target((3, [0.6, 0.6, 0.3, 0.3])),
    ]
    outputs = random_outputs(layers=3)
    together = make_criterion()(outputs, targets)
    for suffix, layer in zip(("_0", "_1", ""), [*outputs.pop("aux_outputs"), outputs]):
        separate = make_criterion()(layer, targets)
        for name in NAMES:
            expected = pytest.approx(float(separate[name]), rel=1e-5)
            assert float(together[name + suffix]) == expected


@pytest.mark.parametrize("predicted", [1 / 1333, 0.0], ids=["one pixel", "no size"])
def test_boxes_of_one_pixel(predicted):
    pixel = 1 / 1333
    outputs = random_outputs(1)
    boxes = np.full((1, QUERIES, 4), predicted, np.float32)
    boxes[..., :2] = np.linspace(0.1, 0.9, QUERIES)[:, None]
    outputs["pred_boxes"] = jt.array(boxes)
    target = make_target((1, [0.1, 0.1, pixel, pixel]), (2, [0.2, 0.9, pixel, pixel]))
    losses = make_criterion()(outputs, [target])
    assert 0.5 < losses["loss_giou"].item() < 2
    assert np.isfinite([losses["loss_ce"].item(), losses["loss_bbox"].item()]).all()
    assert_finite_gradients(losses, outputs)
