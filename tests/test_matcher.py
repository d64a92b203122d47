"""The matching is optimal for any number of objects."""

from itertools import permutations

import numpy as np
import pytest
from scipy.special import softmax

from models.matcher import HungarianMatcher
from util.box_ops import box_cxcywh_to_xyxy, generalized_box_iou

QUERIES, CLASSES = 5, 4


def random_case(seed, objects):
    """Return logits [1, Q, K + 1], boxes [1, Q, 4] and a target."""
    random = np.random.default_rng(seed)
    target = {
        "labels": random.integers(0, CLASSES, objects),
        "boxes": random.uniform(0.2, 0.8, (objects, 4)).astype(np.float32),
    }
    logits = random.standard_normal((1, QUERIES, CLASSES + 1), np.float32) * 2
    return logits, random.uniform(0.2, 0.8, (1, QUERIES, 4)).astype(np.float32), target


def match(matcher, logits, boxes, targets):
    """Match a single layer."""
    [pairs] = matcher(logits[None], boxes[None], targets)
    return pairs


def get_costs(logits, boxes, target, weights):
    """Return the paper's cost of each pair, [Q, n], computed pair by pair."""
    return np.array(
        [
            [
                weights[0] * -prob[label]
                + weights[1] * np.abs(box - other).sum()
                - weights[2]
                * generalized_box_iou(box_cxcywh_to_xyxy(box), box_cxcywh_to_xyxy(other))
                for label, other in zip(target["labels"], target["boxes"])
            ]
            for prob, box in zip(softmax(logits[0], -1), boxes[0])
        ]
    )


@pytest.mark.parametrize("weights", [(1, 5, 2), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
@pytest.mark.parametrize("objects", [1, 3, 5])
def test_total_cost_is_minimal(objects, weights):
    for seed in range(5):
        logits, boxes, target = random_case(seed, objects)
        [(queries, matched)] = match(HungarianMatcher(*weights), logits, boxes, [target])
        costs = get_costs(logits, boxes, target, weights)
        orders = permutations(range(QUERIES), objects)
        minimum = min(costs[list(order), range(objects)].sum() for order in orders)
        assert sorted(matched) == list(range(objects)) and len(set(queries)) == objects
        assert costs[queries, matched].sum() == pytest.approx(minimum, abs=1e-6)


def test_images_are_matched_separately():
    cases = [random_case(seed, objects) for seed, objects in ((0, 2), (1, 0), (2, 7))]
    matcher = HungarianMatcher(1, 5, 2)
    logits, boxes = (np.concatenate([case[i] for case in cases]) for i in (0, 1))
    together = match(matcher, logits, boxes, [case[2] for case in cases])
    # no object, and more objects than queries
    assert [len(queries) for queries, _ in together] == [2, 0, QUERIES]
    for pair, (*predictions, target) in zip(together, cases):
        np.testing.assert_array_equal(pair, match(matcher, *predictions, [target])[0])


def test_layers_are_matched_separately():
    matcher, target = HungarianMatcher(1, 5, 2), random_case(0, 3)[2]
    cases = [random_case(seed, 3)[:2] for seed in range(4)]
    logits, boxes = (np.stack([case[i] for case in cases]) for i in (0, 1))
    layers = matcher(logits, boxes, [target])
    assert len(layers) == 4
    for [pair], case in zip(layers, cases):
        np.testing.assert_array_equal(pair, match(matcher, *case, [target])[0])


def test_nan_predictions_are_matched():
    """The engine stops at their loss."""
    logits, boxes, target = random_case(0, 3)
    logits = np.full_like(logits, np.nan)
    [(queries, objects)] = match(HungarianMatcher(1, 5, 2), logits, boxes, [target])
    assert sorted(objects) == [0, 1, 2] and len(set(queries)) == 3


def test_weights_must_not_all_be_zero():
    with pytest.raises(ValueError, match="cost_class, cost_bbox and cost_giou are all 0"):
        HungarianMatcher(0, 0, 0)
