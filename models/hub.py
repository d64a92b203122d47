"""The original's models by name, to use in your own programs (original: `hubconf.py`).

`pretrained=True` loads the original's weights, downloaded once into the user's cache. Instead of
True it can be what `models.load_checkpoint` takes, such as "hf://facebook/detr-resnet-50" or a
path. Without it all weights are random.
"""

from util.errors import InputError

from .backbone import Backbone, Joiner
from .detr import DETR
from .position_encoding import PositionEmbeddingSine
from .segmentation import DETRsegm, PostProcessPanoptic
from .transformer import Transformer
from .weights.architecture import architecture_of
from .weights.checkpoint import load_checkpoint
from .weights.model import load_model_state

WEIGHTS = "https://dl.fbaipublicfiles.com/detr/"


def detr_resnet50(pretrained=False, num_classes=91):
    """DETR R50 with 6 encoder and 6 decoder layers. num_classes: highest category id + 1."""
    return _detr("resnet50", num_classes, weights=_source(pretrained, "detr-r50-e632da11.pth"))


def detr_resnet50_dc5(pretrained=False, num_classes=91):
    """DETR R50 with dilation instead of stride in the last stage."""
    weights = _source(pretrained, "detr-r50-dc5-f0fb7ef5.pth")
    return _detr("resnet50", num_classes, dilation=True, weights=weights)


def detr_resnet101(pretrained=False, num_classes=91):
    """DETR R101."""
    return _detr("resnet101", num_classes, weights=_source(pretrained, "detr-r101-2c7b67e5.pth"))


def detr_resnet101_dc5(pretrained=False, num_classes=91):
    """DETR R101 with dilation instead of stride in the last stage."""
    weights = _source(pretrained, "detr-r101-dc5-a2e86def.pth")
    return _detr("resnet101", num_classes, dilation=True, weights=weights)


def detr_resnet50_panoptic(
    pretrained=False, num_classes=250, threshold=0.85, return_postprocessor=False
):
    """DETR R50 with masks of things and stuff.

    threshold: lowest score of a segment. With return_postprocessor the result is
    (model, PostProcessPanoptic), with COCO's things.
    """
    weights = _source(pretrained, "detr-r50-panoptic-00ce5173.pth")
    model = _detr("resnet50", num_classes, masks=True, weights=weights)
    return _with_postprocessor(model, num_classes, threshold) if return_postprocessor else model


def detr_resnet50_dc5_panoptic(
    pretrained=False, num_classes=250, threshold=0.85, return_postprocessor=False
):
    """As `detr_resnet50_panoptic`, with dilation."""
    weights = _source(pretrained, "detr-r50-dc5-panoptic-da08f1b1.pth")
    model = _detr("resnet50", num_classes, dilation=True, masks=True, weights=weights)
    return _with_postprocessor(model, num_classes, threshold) if return_postprocessor else model


def detr_resnet101_panoptic(
    pretrained=False, num_classes=250, threshold=0.85, return_postprocessor=False
):
    """As `detr_resnet50_panoptic`, of R101."""
    weights = _source(pretrained, "detr-r101-panoptic-40021d53.pth")
    model = _detr("resnet101", num_classes, masks=True, weights=weights)
    return _with_postprocessor(model, num_classes, threshold) if return_postprocessor else model


def _source(pretrained, name):
    """Where the weights are: None, the original's file of that name, or what pretrained names."""
    if pretrained is True:
        return WEIGHTS + name
    return pretrained or None


def _detr(backbone, num_classes, dilation=False, masks=False, weights=None):
    """weights: what `load_checkpoint` takes, or None for random weights."""
    body = Backbone(backbone, train_backbone=True, dilation=dilation, return_interm_layers=masks)
    joined = Joiner(body, PositionEmbeddingSine(128))
    model = DETR(joined, Transformer(), num_classes, num_queries=100)
    if masks:
        model = DETRsegm(model)
    if weights:
        checkpoint = load_checkpoint(weights)
        # Weights with and without dilation fit each other's models, and mean something else.
        found = architecture_of(checkpoint, weights, dilation)
        if (found.dilation, found.nheads) != (dilation, 8):
            raise InputError(
                f"{weights}: was trained with dilation {found.dilation} and {found.nheads} heads, "
                f"and this model has {dilation} and 8; take another model or other weights"
            )
        load_model_state(model, checkpoint["model"], weights)
    return model


def _with_postprocessor(model, num_classes, threshold):
    is_thing = {class_id: class_id <= 90 for class_id in range(num_classes)}
    return model, PostProcessPanoptic(is_thing, threshold)
