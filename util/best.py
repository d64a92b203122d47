"""Track the best epoch by a validation metric."""

# COCO's 12 metrics in their order; AR1 is the recall with one detection per image.
COCO_METRICS = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"),
)
# --best -> key and index of the metric in the stats of `engine.evaluate`
METRICS = {
    "AP": ("coco_eval_bbox", COCO_METRICS.index("AP")),
    "AP50": ("coco_eval_bbox", COCO_METRICS.index("AP50")),
    "AP75": ("coco_eval_bbox", COCO_METRICS.index("AP75")),
    "segm_AP": ("coco_eval_masks", COCO_METRICS.index("AP")),
    "PQ": ("PQ_all", "pq"),
}


class Best:
    """The best epoch so far.

    figure: the metric, one of METRICS; value, epoch: the highest value and its epoch, None before
    the first evaluation; waited: evaluations since then.
    """

    def __init__(self, figure):
        self.figure = figure
        self.value = self.epoch = None
        self.waited = 0

    def find(self, stats):
        """Return the metric's value in the stats of an evaluation."""
        key, index = METRICS[self.figure]
        return stats[key][index]

    def update(self, epoch, value):
        """Record an evaluation; return True if it is the best so far.

        Also True for the best epoch itself, which is re-evaluated when its checkpoint is resumed.
        """
        if self.value is not None and epoch != self.epoch and value <= self.value:
            self.waited += 1
            return False
        self.value, self.epoch, self.waited = value, epoch, 0
        return True

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, state):
        """Restore `state_dict`, unless it was saved for another metric."""
        if state["figure"] == self.figure:
            vars(self).update(state)
