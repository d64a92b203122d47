"""Load any checkpoint's model, or a published model by name (original: `hubconf.py`)."""

from pathlib import Path

from util.errors import InputError

from .architecture import Architecture, infer_architecture
from .detr import DETR, PostProcess, build_detr
from .segmentation import DETRsegm, PostProcessPanoptic, get_coco_things
from .weights.checkpoint import load_checkpoint
from .weights.model import load_model_state
from .weights.names import get_class_names

WEIGHTS_URL = "https://dl.fbaipublicfiles.com/detr/"
DETR_R50 = Architecture(
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


def load_detr(
    source: str | Path, dilation: bool = False, nheads: int = 8
) -> tuple[DETR | DETRsegm, dict[int, str]]:
    """Load a model of any architecture and the names of its classes.

    source: what `load_checkpoint` takes: a checkpoint of this program, the original's weights, a
    transformers model folder, hf://…; dilation, nheads: used if the checkpoint does not store them.
    Returns (model, category id -> name); if the checkpoint has no names but its class count matches
    a published model, COCO's are used. Raises InputError.
    """
    checkpoint = load_checkpoint(source)
    model = build_detr(infer_architecture(checkpoint, source, dilation, nheads))
    load_model_state(model, checkpoint["model"], source)
    return model, get_class_names(checkpoint, source)


def _box_model(file, **flags):
    def build(
        pretrained: bool | str | Path = False,
        num_classes: int = 91,
        return_postprocessor: bool = False,
    ) -> DETR | tuple[DETR, PostProcess]:
        """Build a published DETR, and with return_postprocessor its PostProcess.

        pretrained: True loads the original's weights, downloaded once into the user's cache; or
        what `load_checkpoint` takes, such as "hf://facebook/detr-resnet-50"; False leaves the
        weights random. num_classes: highest category id + 1. Raises InputError.
        """
        model = _build(DETR_R50._replace(num_classes=num_classes, **flags), pretrained, file)
        return (model, PostProcess()) if return_postprocessor else model

    return build


def _panoptic_model(file, **flags):
    def build(
        pretrained: bool | str | Path = False,
        num_classes: int = 250,
        threshold: float = 0.85,
        return_postprocessor: bool = False,
    ) -> DETRsegm | tuple[DETRsegm, PostProcessPanoptic]:
        """Build a published DETR with masks, and with return_postprocessor its PostProcessPanoptic.

        As `detr_resnet50`; threshold: minimum score of a segment.
        """
        architecture = DETR_R50._replace(num_classes=num_classes, masks=True, **flags)
        model = _build(architecture, pretrained, file)
        postprocessor = PostProcessPanoptic(get_coco_things(num_classes), threshold)
        return (model, postprocessor) if return_postprocessor else model

    return build


def _build(architecture, pretrained, file):
    model = build_detr(architecture)
    if pretrained:
        source = WEIGHTS_URL + file if pretrained is True else pretrained
        checkpoint = load_checkpoint(source)
        # Dilation does not change the shapes of weights, so the wrong ones would load.
        trained = infer_architecture(checkpoint, source, architecture.dilation)
        if (trained.dilation, trained.nheads) != (architecture.dilation, architecture.nheads):
            raise InputError(
                f"{source}: was trained with dilation {trained.dilation} and {trained.nheads} "
                f"heads, but this model has {architecture.dilation} and {architecture.nheads}; use "
                "another model or other weights"
            )
        load_model_state(model, checkpoint["model"], source)
    return model


# dc5: dilation instead of stride in the last stage
detr_resnet50 = _box_model("detr-r50-e632da11.pth")
detr_resnet50_dc5 = _box_model("detr-r50-dc5-f0fb7ef5.pth", dilation=True)
detr_resnet101 = _box_model("detr-r101-2c7b67e5.pth", backbone="resnet101")
detr_resnet101_dc5 = _box_model("detr-r101-dc5-a2e86def.pth", backbone="resnet101", dilation=True)
detr_resnet50_panoptic = _panoptic_model("detr-r50-panoptic-00ce5173.pth")
detr_resnet50_dc5_panoptic = _panoptic_model("detr-r50-dc5-panoptic-da08f1b1.pth", dilation=True)
detr_resnet101_panoptic = _panoptic_model("detr-r101-panoptic-40021d53.pth", backbone="resnet101")
