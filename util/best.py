"""Which epoch of a training is the best so far, by one of the evaluation's figures."""

# The 12 figures of COCO in their order; AR1 is the recall with one detection in each image.
COCO_FIGURES = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"),
)
# --best -> where the figure is in what `engine.evaluate` returns
FIGURES = {
    "AP": ("coco_eval_bbox", COCO_FIGURES.index("AP")),
    "AP50": ("coco_eval_bbox", COCO_FIGURES.index("AP50")),
    "AP75": ("coco_eval_bbox", COCO_FIGURES.index("AP75")),
    "segm_AP": ("coco_eval_masks", COCO_FIGURES.index("AP")),
    "PQ": ("PQ_all", "pq"),
}


class Best:
    """The best epoch so far.

    figure: one of FIGURES. value, epoch: the highest one and its epoch, None before the first
    evaluation; waited: evaluations since then.
    """

    def __init__(self, figure):
        self.figure = figure
        self.value = self.epoch = None
        self.waited = 0

    def find(self, stats):
        """The figure in an evaluation's results."""
        key, place = FIGURES[self.figure]
        return stats[key][place]

    def update(self, epoch, value):
        """Takes an evaluation into account. Returns whether it is the best one so far.

        Of the best epoch itself, too, which is evaluated again where its checkpoint is resumed.
        """
        if self.value is not None and epoch != self.epoch and value <= self.value:
            self.waited += 1
            return False
        self.value, self.epoch, self.waited = value, epoch, 0
        return True

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, state):
        """Continues with what `state_dict` returned, unless that is of another figure."""
        if state["figure"] == self.figure:
            vars(self).update(state)
