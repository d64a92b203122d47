"""Box formats and generalised IoU, in NumPy (matcher) and Jittor (loss)."""

import numpy as np
import pytest

from util.backend import jt
from util.box_ops import box_cxcywh_to_xyxy, generalized_box_iou

BOX = (0, 0, 2, 2)
# (other box, generalised IoU with BOX): IoU - (enclosing box - union) / enclosing box
KNOWN = [
    ((0, 0, 2, 2), 1),
    ((1, 1, 3, 3), 1 / 7 - 2 / 9),
    ((0.5, 0.5, 1.5, 1.5), 1 / 4),
    ((2, 0, 4, 2), 0),
    ((2, 2, 4, 4), -1 / 2),
    ((5, 0, 6, 2), -1 / 2),
    ((1, 1, 1, 1), 0),
]


def random_boxes(*shape):
    """Return xyxy boxes with an area, float32 [..., 4]."""
    corners = np.random.default_rng(0).uniform(0, 1, (*shape, 2, 2)).astype(np.float32)
    return np.concatenate([corners.min(-2), corners.max(-2) + 0.01], -1)


@pytest.mark.parametrize("library", [np.float32, jt.array])
def test_conversion(library):
    corners = box_cxcywh_to_xyxy(library(np.float32([[5, 4, 6, 2], [0.5, 0.5, 0, 1]])))
    np.testing.assert_array_equal(np.array(corners), [[2, 3, 8, 5], [0.5, 0, 0.5, 1]])


@pytest.mark.parametrize("library", [np.float32, jt.array])
@pytest.mark.parametrize("box, expected", KNOWN)
def test_known_values(library, box, expected):
    one, other = library(np.float32([BOX])), library(np.float32([box]))
    np.testing.assert_allclose(np.array(generalized_box_iou(one, other)), [expected], atol=1e-6)
    np.testing.assert_allclose(np.array(generalized_box_iou(other, one)), [expected], atol=1e-6)


def test_all_pairs_by_broadcasting_in_both_libraries():
    boxes1, boxes2 = random_boxes(7), random_boxes(12)[7:]
    pairs = generalized_box_iou(boxes1[:, None], boxes2)
    assert pairs.shape == (7, 5)
    for i, j in np.ndindex(pairs.shape):
        assert pairs[i, j] == pytest.approx(generalized_box_iou(boxes1[i], boxes2[j]), abs=1e-6)
    jittor_pairs = generalized_box_iou(jt.array(boxes1)[:, None], jt.array(boxes2)[None])
    np.testing.assert_allclose(jittor_pairs.numpy(), pairs, atol=1e-6)
