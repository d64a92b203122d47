"""Bipartite matching between predictions and ground-truth objects (paper, section 3.1)."""

import numpy as np
from scipy.optimize import linear_sum_assignment

from util.box_ops import box_cxcywh_to_xyxy, generalized_box_iou


class HungarianMatcher:
    """Match queries to ground-truth objects with minimum total cost, in each image.

    cost = cost_class * -p(class) + cost_bbox * |box - target box|_1 + cost_giou * -GIoU
    Runs on the host, in NumPy and SciPy, without gradients.
    """

    def __init__(self, cost_class=1, cost_bbox=1, cost_giou=1):
        if cost_class == cost_bbox == cost_giou == 0:
            raise ValueError("cost_class, cost_bbox and cost_giou are all 0; give one above 0")
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou

    def __call__(self, logits, boxes, targets):
        """Match the predictions of each decoder layer to the targets of the batch.

        logits float32 [L, B, Q, K + 1] and boxes float32 [L, B, Q, 4] (cxcywh, 0..1) as NumPy
        arrays; targets: list of B dicts with `labels` int [n] and `boxes` float32 [n, 4].

        Returns a list of B pairs (query indices, target indices), int64 [min(Q, n)] each, for each
        layer.
        """
        prob = np.exp(logits - logits.max(-1, keepdims=True))
        prob /= prob.sum(-1, keepdims=True)
        samples = zip(prob.swapaxes(0, 1), boxes.swapaxes(0, 1), targets)
        return list(zip(*(self._match(*sample) for sample in samples)))

    def _match(self, prob, boxes, target):
        """Match the predictions of each layer for an image: prob [L, Q, K + 1], boxes [L, Q, 4]."""
        l1 = np.abs(boxes[:, :, None] - target["boxes"]).sum(-1)
        corners = box_cxcywh_to_xyxy(boxes)[:, :, None], box_cxcywh_to_xyxy(target["boxes"])
        giou = generalized_box_iou(*corners)
        p = prob[:, :, target["labels"]]
        costs = self.cost_bbox * l1 - self.cost_class * p - self.cost_giou * giou
        # A diverged model has NaN costs. Any matching is fine: the loss is NaN too, which stops
        # training.
        return [linear_sum_assignment(cost) for cost in np.nan_to_num(costs)]
