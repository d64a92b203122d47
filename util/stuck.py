"""Notice a training run that does not learn.

The thresholds were measured on the shapes, see docs/own_data.md: of healthy and broken runs, from
scratch and fine-tuned, only the broken ones cross them.
"""

import numpy as np

from util import launch
from util.errors import warn

MIN_AP = 0.01  # a run whose AP is higher learns
MIN_IMAGES = 4_000  # with objects; before that, nothing is said
MIN_SCORE_STD, MIN_BOX_STD = 0.01, 0.03
SAME_BOX_STD = 0.001
# The original's class_error averages 92.4 over its first 118,000 images, and 85.6 over the next.
MAX_CLASS_ERROR, MIN_IMAGES_CLASS_ERROR = 95, 100_000
MAX_CLASS_GAP = 20  # validation minus training class_error, percentage points
# Validation over training loss_bbox. While a model has learned little, dropout of 0.1 alone makes
# the validation loss up to 2.1 times as high (of the original, 1.8 times).
MAX_BOX_RATIO, MAX_BOX_RATIO_WITH_DROPOUT = 1.2, 2.25

# For the likely causes.
ORIGINAL_STEP = 16  # images per step of the original's training command: 8 processes x 2
FEW_IMAGES = 10_000
MIN_LR, MAX_LR = 3e-5, 1e-3


class PredictionSpread:
    """Standard deviation of each query's box and score over images, averaged over the queries.

    Near 0 if each query predicts the same for every image, the usual state of a DETR that does not
    learn.
    """

    def __init__(self):
        self.count = 0
        self.sums = self.squares = 0

    def update(self, results, orig_sizes):
        """Add a batch.

        results: what `models.detr.PostProcess` returns; orig_sizes: [B, 2], height and width of
        each image in pixels, to which the boxes refer.
        """
        for result, (height, width) in zip(results, orig_sizes):
            boxes = result["boxes"] / np.array([width, height, width, height])
            values = np.concatenate([boxes, result["scores"][:, None]], axis=1)
            self.count += 1
            self.sums = self.sums + values
            self.squares = self.squares + values**2

    def compute(self):
        """Return box_std, relative to the images' sizes, and score_std; NaN for 1 image or none."""
        if self.count < 2:
            return np.nan, np.nan
        variance = self.squares / self.count - (self.sums / self.count) ** 2
        std = np.sqrt(np.maximum(variance, 0)).mean(0)
        return float(std[:4].mean()), float(std[4])


class StuckDetector:
    """Warn once if a run is stuck.

    Args:
        args: the parsed flags.
        step_size: number of images per step, of all processes.
        num_images: number of training images with objects.
    """

    def __init__(self, args, step_size, num_images):
        self.args, self.step_size, self.num_images = args, step_size, num_images
        self.losses = {}  # epoch -> training loss, since this process started
        self.last = None  # training and validation metrics of the last evaluated epoch
        self.has_warned = False

    def check(self, epoch, train_stats, test_stats):
        """Warn with the most likely causes if the run is stuck. Call after each epoch.

        epoch: counts from 0; train_stats, test_stats: of `engine`; test_stats is {} without an
        evaluation.
        """
        self.losses[epoch] = train_stats["loss"]
        if not test_stats:
            return
        before, self.last = self.last, (train_stats, test_stats)
        ap = test_stats["coco_eval_bbox"][0]  # -1 without ground truth
        images = (epoch + 1) * self.num_images
        if self.has_warned or not 0 <= ap < MIN_AP or images < MIN_IMAGES:
            return
        symptom, is_gap = self._find_symptom(epoch, images, before)
        if symptom is None:
            return
        self.has_warned = True
        if launch.is_main_process():
            causes = list_causes(self.args, is_gap, self.step_size, self.num_images)
            warn(
                f"this run does not learn: AP is {ap:.4f} after {images:,} images with objects, "
                f"and {symptom}. The most likely causes:"
                + "".join(f"\n  {number}. {cause}" for number, cause in enumerate(causes, 1))
            )

    def _find_symptom(self, epoch, images, before):
        """Return what shows that the run is stuck, or None. before: metrics, as self.last.

        Also return whether it learns the training data, but not the validation data.
        """
        train, test = self.last
        box_std, score_std = test["box_std"], test["score_std"]
        is_small = box_std < MIN_BOX_STD and score_std < MIN_SCORE_STD
        if box_std < SAME_BOX_STD or is_small:
            return (
                "the predictions are nearly the same for all images (standard deviation of boxes "
                f"{box_std:.4f}, of scores {score_std:.4f})"
            ), False
        if train["class_error"] > MAX_CLASS_ERROR and images >= MIN_IMAGES_CLASS_ERROR:
            return f"class_error is still {train['class_error']:.0f}%", False
        for name in ("loss_bbox", "class_error"):
            # In two evaluations, because validation metrics vary.
            if before and self._is_apart(name, *before) and self._is_apart(name, train, test):
                return (
                    f"{name} is {train[name]:.2f} on the training data, but {test[name]:.2f} on "
                    "the validation data"
                ), True
        half = (epoch + 1) // 2
        first, second = self._average_loss(half // 2, half), self._average_loss(half, epoch + 1)
        if second >= first:
            return (
                "the training loss has not fallen while the number of images doubled "
                f"({first:.2f}, now {second:.2f})"
            ), False
        return None, False

    def _is_apart(self, name, train, test):
        """Return whether a metric is much worse on the validation data."""
        if name == "class_error":
            return test[name] > train[name] + MAX_CLASS_GAP
        max_ratio = MAX_BOX_RATIO_WITH_DROPOUT if self.args.dropout > 0 else MAX_BOX_RATIO
        return test[name] > max_ratio * train[name]

    def _average_loss(self, start, end):
        """Return the training loss of epochs start to end - 1; NaN if one is unknown."""
        return np.mean([self.losses.get(epoch, np.nan) for epoch in range(start, end)] or np.nan)


def list_causes(args, is_gap, step_size, num_images):
    """Return the three most likely causes, each with its remedy, the most likely first.

    args, step_size, num_images: as in StuckDetector; is_gap: whether the run learns the training
    data, but not the validation data.
    """
    is_from_scratch = not args.initial_weights
    has_few_images = is_from_scratch and num_images < FEW_IMAGES
    few_images = (
        f"{num_images:,} images are few to train from scratch: start from COCO's weights with "
        "--finetune"
    )
    causes = [
        (is_gap and has_few_images, few_images),
        (
            is_gap,
            "the two annotation files differ in their class ids or boxes: look at predictions.png",
        ),
        (args.lr > MAX_LR, f"--lr {args.lr:g} is too high: the original's is 1e-4"),
        (
            args.backbone_weights == "none" and args.backbone_norm == "frozen" and is_from_scratch,
            "the backbone's first layers are random and do not train: leave out --backbone_weights "
            "none, or use --backbone_norm group",
        ),
        (
            len(args.freeze) > 0,
            f"--freeze {' '.join(args.freeze)} keeps weights that do not fit the images",
        ),
        (
            step_size < ORIGINAL_STEP and is_from_scratch,
            f"too few images per step ({step_size}): the original has {ORIGINAL_STEP}; use "
            "--accum_steps",
        ),
        (args.lr < MIN_LR, f"--lr {args.lr:g} is low: the original's is 1e-4"),
        (has_few_images and not is_gap, few_images),
        (True, "the annotations are wrong: run `python -m datasets.check` with the data's flags"),
        (True, "the model cannot learn these data at all: test it with --overfit 8"),
        (True, "training takes longer: the original needs 300 epochs on COCO"),
    ]
    return [text for is_likely, text in causes if is_likely][:3]
