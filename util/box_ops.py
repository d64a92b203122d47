"""Box formats and generalised IoU, for NumPy arrays (matcher) and Jittor Vars (loss) alike."""

import numpy as np

from util import ops
from util.backend import jt


def _library(x):
    return jt if isinstance(x, jt.Var) else np


def _unbind(boxes):
    """Return the four coordinates [...] of boxes [..., 4]."""
    if isinstance(boxes, jt.Var):
        return ops.unbind(boxes, boxes.ndim - 1)
    return [boxes[..., i] for i in range(4)]


def _stack(coordinates):
    """Invert `_unbind`."""
    if isinstance(coordinates[0], jt.Var):
        return ops.stack(coordinates, coordinates[0].ndim)
    return np.stack(coordinates, -1)


def box_cxcywh_to_xyxy(boxes):
    """Convert [..., 4] centre x, centre y, width, height to [..., 4] left, top, right, bottom."""
    cx, cy, w, h = _unbind(boxes)
    return _stack([cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h])


def generalized_box_iou(boxes1, boxes2):
    """Return the generalised IoU (https://giou.stanford.edu) of xyxy boxes, in [-1, 1].

    Elementwise with broadcasting, [..., 4] and [..., 4] -> [...]: for all pairs of [N, 4] and
    [M, 4] pass `boxes1[:, None]` and `boxes2`. The enclosing box must have non-zero area; otherwise
    the result is not finite.
    """
    lib = _library(boxes1)
    (x0, y0, x1, y1), (u0, v0, u1, v1) = _unbind(boxes1), _unbind(boxes2)
    inter = lib.maximum(lib.minimum(x1, u1) - lib.maximum(x0, u0), 0.0) * lib.maximum(
        lib.minimum(y1, v1) - lib.maximum(y0, v0), 0.0
    )
    union = (x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - inter
    hull = (lib.maximum(x1, u1) - lib.minimum(x0, u0)) * (lib.maximum(y1, v1) - lib.minimum(y0, v0))
    return inter / union - (hull - union) / hull
