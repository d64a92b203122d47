"""The original's models by name, to use in your own programs (original: `hubconf.py`).

`pretrained=True` loads the original's weights, downloaded once into the user's cache. Instead of
True it can be what `models.weights.load_checkpoint` takes, such as "hf://facebook/detr-resnet-50"
or a path. Without it all weights are random. `load_detr` loads any other checkpoint.
"""

from util.errors import InputError

from .architecture import Architecture, architecture_of
from .backbone import Backbone, Joiner
from .detr import DETR, PostProcess
from .position_encoding import build_position_encoding
from .segmentation import DETRsegm, PostProcessPanoptic
from .transformer import Transformer
from .weights.checkpoint import load_checkpoint
from .weights.model import load_model_state
from .weights.names import names_of

WEIGHTS = "https://dl.fbaipublicfiles.com/detr/"
R50 = Architecture(
    backbone="resnet50",
    backbone_norm="frozen",
    dilation=False,
    position_embedding="sine",
    enc_layers=6,
    dec_layers=6,
    dim_feedforward=2048,
    hidden_dim=256,
    nheads=8,
    num_queries=100,
    pre_norm=False,
    masks=False,
    num_classes=91,
)


def load_detr(source, dilation=False, nheads=8):
    """The model of a checkpoint, whatever it is built like, and the names of its classes.

    source: what `load_checkpoint` takes: a checkpoint of this program, the original's weights, a
    folder of transformers, hf://…; dilation, nheads: what weights alone do not tell.
    Returns (model, names), a dictionary category id -> name; COCO's where the weights come without
    and have as many classes as a published model, else {}. Raises InputError.
    """
    checkpoint = load_checkpoint(source)
    architecture = architecture_of(checkpoint, source, dilation, nheads)
    model = _build(architecture)
    load_model_state(model, checkpoint["model"], source)
    return model, names_of(checkpoint, source)


def detr_resnet50(pretrained=False, num_classes=91, return_postprocessor=False):
    """DETR R50 with 6 encoder and 6 decoder layers. num_classes: highest category id + 1.

    With return_postprocessor the result of this and the next three is (model, PostProcess).
    """
    model = _detr("resnet50", num_classes, weights=_source(pretrained, "detr-r50-e632da11.pth"))
    return (model, PostProcess()) if return_postprocessor else model


def detr_resnet50_dc5(pretrained=False, num_classes=91, return_postprocessor=False):
    """DETR R50 with dilation instead of stride in the last stage."""
    weights = _source(pretrained, "detr-r50-dc5-f0fb7ef5.pth")
    model = _detr("resnet50", num_classes, dilation=True, weights=weights)
    return (model, PostProcess()) if return_postprocessor else model


def detr_resnet101(pretrained=False, num_classes=91, return_postprocessor=False):
    """DETR R101."""
    model = _detr("resnet101", num_classes, weights=_source(pretrained, "detr-r101-2c7b67e5.pth"))
    return (model, PostProcess()) if return_postprocessor else model


def detr_resnet101_dc5(pretrained=False, num_classes=91, return_postprocessor=False):
    """DETR R101 with dilation instead of stride in the last stage."""
    weights = _source(pretrained, "detr-r101-dc5-a2e86def.pth")
    model = _detr("resnet101", num_classes, dilation=True, weights=weights)
    return (model, PostProcess()) if return_postprocessor else model


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
    architecture = R50._replace(
        backbone=backbone, num_classes=num_classes, dilation=dilation, masks=masks
    )
    model = _build(architecture)
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


def _build(architecture):
    """A model with random weights. architecture: an Architecture."""
    body = Backbone(
        architecture.backbone,
        train_backbone=True,
        dilation=architecture.dilation,
        norm=architecture.backbone_norm,
        return_interm_layers=architecture.masks,
    )
    transformer = Transformer(
        architecture.hidden_dim,
        architecture.nheads,
        architecture.enc_layers,
        architecture.dec_layers,
        architecture.dim_feedforward,
        normalize_before=architecture.pre_norm,
    )
    backbone = Joiner(body, build_position_encoding(architecture))
    model = DETR(backbone, transformer, architecture.num_classes, architecture.num_queries)
    return DETRsegm(model) if architecture.masks else model


def _with_postprocessor(model, num_classes, threshold):
    is_thing = {class_id: class_id <= 90 for class_id in range(num_classes)}
    return model, PostProcessPanoptic(is_thing, threshold)
