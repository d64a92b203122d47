"""The original's models by name, to use in your own programs (original: `hubconf.py`).

`pretrained` loads the original's weights, downloaded once into the user's cache; without it all
weights are random.
"""

from .backbone import Backbone, Joiner
from .detr import DETR
from .position_encoding import PositionEmbeddingSine
from .segmentation import DETRsegm, PostProcessPanoptic
from .transformer import Transformer
from .weights.checkpoint import load_checkpoint
from .weights.model import load_model_state

WEIGHTS = "https://dl.fbaipublicfiles.com/detr/"


def detr_resnet50(pretrained=False, num_classes=91):
    """DETR R50 with 6 encoder and 6 decoder layers. num_classes: highest category id + 1."""
    return _detr("resnet50", False, num_classes, pretrained and "detr-r50-e632da11.pth")


def detr_resnet50_dc5(pretrained=False, num_classes=91):
    """DETR R50 with dilation instead of stride in the last stage."""
    return _detr("resnet50", True, num_classes, pretrained and "detr-r50-dc5-f0fb7ef5.pth")


def detr_resnet101(pretrained=False, num_classes=91):
    """DETR R101."""
    return _detr("resnet101", False, num_classes, pretrained and "detr-r101-2c7b67e5.pth")


def detr_resnet101_dc5(pretrained=False, num_classes=91):
    """DETR R101 with dilation instead of stride in the last stage."""
    return _detr("resnet101", True, num_classes, pretrained and "detr-r101-dc5-a2e86def.pth")


def detr_resnet50_panoptic(
    pretrained=False, num_classes=250, threshold=0.85, return_postprocessor=False
):
    """DETR R50 with masks of things and stuff.

    threshold: least score of a segment. With return_postprocessor the result is (model,
    PostProcessPanoptic), with COCO's things.
    """
    return _panoptic(
        "resnet50",
        False,
        num_classes,
        pretrained and "detr-r50-panoptic-00ce5173.pth",
        threshold,
        return_postprocessor,
    )


def detr_resnet50_dc5_panoptic(
    pretrained=False, num_classes=250, threshold=0.85, return_postprocessor=False
):
    """As `detr_resnet50_panoptic`, with dilation."""
    return _panoptic(
        "resnet50",
        True,
        num_classes,
        pretrained and "detr-r50-dc5-panoptic-da08f1b1.pth",
        threshold,
        return_postprocessor,
    )


def detr_resnet101_panoptic(
    pretrained=False, num_classes=250, threshold=0.85, return_postprocessor=False
):
    """As `detr_resnet50_panoptic`, of R101."""
    return _panoptic(
        "resnet101",
        False,
        num_classes,
        pretrained and "detr-r101-panoptic-40021d53.pth",
        threshold,
        return_postprocessor,
    )


def _detr(backbone, dilation, num_classes, weights, masks=False):
    body = Backbone(backbone, train_backbone=True, dilation=dilation, return_interm_layers=masks)
    joined = Joiner(body, PositionEmbeddingSine(128))
    model = DETR(joined, Transformer(), num_classes, num_queries=100)
    if masks:
        model = DETRsegm(model)
    if weights:
        load_model_state(model, load_checkpoint(WEIGHTS + weights)["model"], WEIGHTS + weights)
    return model


def _panoptic(backbone, dilation, num_classes, weights, threshold, return_postprocessor):
    model = _detr(backbone, dilation, num_classes, weights, masks=True)
    if return_postprocessor:
        return model, PostProcessPanoptic({i: i <= 90 for i in range(num_classes)}, threshold)
    return model
