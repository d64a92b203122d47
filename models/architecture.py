"""Describe a model's architecture and infer it from a state dict."""

from typing import NamedTuple

from util.errors import InputError

# Backbones made of blocks of two 3x3 convolutions, which cannot be dilated.
BASIC_BLOCK_BACKBONES = ("resnet18", "resnet34", "tiny")
# Residual blocks in each of the four stages.
DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
    "tiny": (1, 1, 1, 1),
}
MAX_LEARNED_POSITIONS = 50  # rows and columns of the learned position encoding


def get_stage_channels(backbone):
    """Return the output channels of a backbone's four stages."""
    width = 16 if backbone == "tiny" else 64 if backbone in BASIC_BLOCK_BACKBONES else 256
    return [width, 2 * width, 4 * width, 8 * width]


def get_max_learned_side(backbone, dilation):
    """Return the longest image side, in pixels, that the learned position encoding supports."""
    return MAX_LEARNED_POSITIONS * (16 if dilation or backbone == "tiny" else 32)


class Architecture(NamedTuple):
    """Flags that determine a model's weights and outputs, named as in main.py.

    num_classes: highest category id + 1.
    """

    backbone: str
    backbone_norm: str  # "group", or "frozen", which in evaluation is the same as "batch"
    dilation: bool
    position_embedding: str
    enc_layers: int
    dec_layers: int
    dim_feedforward: int
    hidden_dim: int
    nheads: int
    num_queries: int
    pre_norm: bool
    masks: bool
    num_classes: int


def get_architecture(args, num_classes):
    """Build the Architecture from main.py's flags."""
    flags = {name: getattr(args, name) for name in Architecture._fields if name != "num_classes"}
    return Architecture(**flags, num_classes=num_classes)


def infer_architecture(checkpoint, source, dilation=False, nheads=8):
    """Return the Architecture of a checkpoint that `load_checkpoint` read.

    dilation, nheads: used if the checkpoint has no flags, like the original's weights; they cannot
    be inferred from weights alone.
    Raises InputError, which names source, if the weights are not a DETR's or are incompatible with
    dilation or nheads.
    """
    state = checkpoint["model"]
    flags = checkpoint.get("args")
    if isinstance(flags, dict):
        dilation, nheads = flags.get("dilation", dilation), flags.get("nheads", nheads)
    shapes = {name.removeprefix("detr."): value.shape for name, value in state.items()}
    has_statistics = "backbone.0.body.bn1.running_mean" in shapes
    try:
        architecture = Architecture(
            backbone=_infer_backbone(shapes, source),
            backbone_norm="frozen" if has_statistics else "group",
            dilation=dilation,
            position_embedding="learned" if "backbone.1.row_embed.weight" in shapes else "sine",
            enc_layers=_count_modules(shapes, "transformer.encoder.layers."),
            dec_layers=_count_modules(shapes, "transformer.decoder.layers."),
            dim_feedforward=shapes["transformer.decoder.layers.0.linear1.weight"][0],
            hidden_dim=shapes["query_embed.weight"][1],
            nheads=nheads,
            num_queries=shapes["query_embed.weight"][0],
            pre_norm="transformer.encoder.norm.weight" in shapes,
            masks=any(name.startswith("mask_head.") for name in state),
            num_classes=shapes["class_embed.bias"][0] - 1,
        )
    except (KeyError, IndexError) as error:
        raise InputError(
            f"{source}: not the weights of a DETR ({error} is missing); give a DETR's checkpoint"
        ) from error
    if nheads < 1 or architecture.hidden_dim % nheads:
        raise InputError(
            f"{source}: hidden size {architecture.hidden_dim} is not divisible by {nheads} heads; "
            "give the --nheads that it was trained with"
        )
    if dilation and architecture.backbone in BASIC_BLOCK_BACKBONES:
        raise InputError(
            f"{source}: backbone {architecture.backbone} cannot be dilated; leave --dilation out"
        )
    return architecture


def _infer_backbone(shapes, source):
    blocks = tuple(_count_modules(shapes, f"backbone.0.body.layer{i}.") for i in range(1, 5))
    is_basic = "backbone.0.body.layer1.0.conv3.weight" not in shapes
    for name, depths in DEPTHS.items():
        if depths == blocks and (name in BASIC_BLOCK_BACKBONES) == is_basic:
            return name
    raise InputError(
        f"{source}: not the weights of a DETR (its backbone has {blocks} blocks); give a DETR's "
        "checkpoint"
    )


def _count_modules(shapes, prefix):
    """Count the modules prefix0., prefix1., …"""
    rest = (name.removeprefix(prefix) for name in shapes if name.startswith(prefix))
    return len({name.split(".")[0] for name in rest})
