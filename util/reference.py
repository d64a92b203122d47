"""Compare a training run on COCO with the original's published R50 run.

original_log.csv: training loss and class error, validation loss, AP and AP50 of each of its 500
epochs, from the log of the original's model zoo. It took 64 images per step, and dropped its
learning rate after 400 epochs.
"""

import csv
import functools
import math
from pathlib import Path

LR_DROP = 400
NUM_IMAGES = 118_287  # of COCO's train2017, 1,021 of which have no boxes and are sometimes left out
NUM_WITHOUT_BOXES = 1_021
# The original's AP varies from one epoch to the next with a standard deviation of 0.005: two runs
# differ by less than 0.015 in 98 of 100 epochs. In the first epochs, that is all of the AP.
TOLERANCE, MIN_TOLERANCE = 0.015, 0.005


@functools.lru_cache
def load_reference():
    """Return the original's epochs, in the form of log.txt (see `plot_utils.read_log`)."""
    with open(Path(__file__).with_name("original_log.csv"), newline="") as file:
        rows = [{name: float(text) for name, text in row.items()} for row in csv.DictReader(file)]
    return [
        {
            "epoch": int(row["epoch"]) - 1,
            "train_loss": row["train_loss"],
            "train_class_error": row["train_class_error"],
            "test_loss": row["test_loss"],
            "test_coco_eval_bbox": [row["AP"], row["AP50"], math.nan],  # AP75 is not in the log
        }
        for row in rows
    ]


def is_coco(num_images, classes):
    """Return whether training data are COCO's train2017. classes: category id -> name."""
    ids = classes.keys()
    has_ids = len(ids) == 80 and min(ids) == 1 and max(ids) == 90 and classes[1] == "person"
    return has_ids and NUM_IMAGES - NUM_WITHOUT_BOXES <= num_images <= NUM_IMAGES


def describe_ap(epoch, ap, lr_drop, is_comparable):
    """Describe a run's AP, beside the original's after as many epochs if they are comparable.

    epoch: counts from 0; lr_drop: the run's --lr_drop, after which it is comparable only if it is
    the original's; is_comparable: whether the run has the original's data and settings.
    """
    result = f"AP {ap:.3f}"
    if not is_comparable:
        return result
    logs = load_reference()
    end = len(logs) if lr_drop == LR_DROP else min(lr_drop, LR_DROP)
    if epoch >= end:
        return result
    original = [log["test_coco_eval_bbox"][0] for log in logs[: epoch + 1]]
    epochs = f"{epoch + 1} epoch" + "s" * (epoch > 0)
    if ap >= original[-1] - min(TOLERANCE, max(MIN_TOLERANCE, original[-1] / 2)):
        verdict = "on track"
    else:
        behind = epoch - max((i for i, value in enumerate(original) if value <= ap), default=-1)
        verdict = f"{behind} epoch{'s' * (behind > 1)} behind"
    return f"{result} (the original after {epochs}: {original[-1]:.3f}, {verdict})"
