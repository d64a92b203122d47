"""The model, its loss and its postprocessing."""
import util  # noqa: F401  prepares the process before the first import of jittor
import jittor as jt
from util.signals import take_back_from_jittor

from .detr import build
from .hub import (detr_resnet50, detr_resnet50_dc5, detr_resnet50_dc5_panoptic, detr_resnet50_panoptic, detr_resnet101,
                  detr_resnet101_dc5, detr_resnet101_panoptic)

__all__ = ["build_model", "detr_resnet50", "detr_resnet50_dc5", "detr_resnet50_dc5_panoptic", "detr_resnet50_panoptic",
           "detr_resnet101", "detr_resnet101_dc5", "detr_resnet101_panoptic"]

take_back_from_jittor()


def build_model(args):
    """model, criterion, postprocessors for the parsed flags of `main.py`."""
    built = build(args)
    jt.sync_all()  # draws the initial weights now, with the seed set before, and not at the first step with that of dropout
    return built
