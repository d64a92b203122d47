"""Architectures: what the models are made of, and how to read it from their weights."""

from typing import NamedTuple

from util.errors import InputError

# Backbones whose blocks have two convolutions and cannot be dilated.
BASIC_BLOCKS = ("resnet18", "resnet34", "tiny")
# Blocks in each of a backbone's four stages.
DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
    "tiny": (1, 1, 1, 1),
}
LEARNED_CELLS = 50  # rows and columns for which position_embedding "learned" has a vector


def stage_channels(backbone):
    """Channels of the maps of a backbone's four stages."""
    width = 16 if backbone == "tiny" else 64 if backbone in BASIC_BLOCKS else 256
    return [width, 2 * width, 4 * width, 8 * width]


def largest_learned_side(backbone, dilation):
    """The longest side of an image, in pixels, for position_embedding "learned"."""
    return LEARNED_CELLS * (16 if dilation or backbone == "tiny" else 32)


class Architecture(NamedTuple):
    """The flags that a model's weights and outputs depend on, under main.py's names.

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


def architecture_of(checkpoint, source, dilation=False, nheads=8):
    """The Architecture of a checkpoint as `load_checkpoint` returns it.

    dilation, nheads: what weights without a training's flags, as the original's, do not tell.
    Raises InputError, which names source, where the weights are not those of a DETR, or these two
    do not fit them.
    """
    state = checkpoint["model"]
    flags = checkpoint.get("args")
    if isinstance(flags, dict):
        dilation, nheads = flags.get("dilation", dilation), flags.get("nheads", nheads)
    masks = any(name.startswith("mask_head.") for name in state)
    shapes = {name.removeprefix("detr."): value.shape for name, value in state.items()}
    try:
        hidden_dim = shapes["query_embed.weight"][1]
        architecture = Architecture(
            backbone=_backbone(shapes),
            backbone_norm=_norm(shapes),
            dilation=dilation,
            position_embedding="learned" if "backbone.1.row_embed.weight" in shapes else "sine",
            enc_layers=_count(shapes, "transformer.encoder.layers."),
            dec_layers=_count(shapes, "transformer.decoder.layers."),
            dim_feedforward=shapes["transformer.decoder.layers.0.linear1.weight"][0],
            hidden_dim=hidden_dim,
            nheads=nheads,
            num_queries=shapes["query_embed.weight"][0],
            pre_norm="transformer.encoder.norm.weight" in shapes,
            masks=masks,
            num_classes=shapes["class_embed.bias"][0] - 1,
        )
    except (KeyError, IndexError) as error:
        raise InputError(
            f"{source}: is not a DETR's weights ({error} is missing); give a DETR's checkpoint"
        ) from error
    if nheads < 1 or hidden_dim % nheads:
        raise InputError(
            f"{source}: its width of {hidden_dim} does not divide into {nheads} heads; give the "
            "--nheads that it was trained with"
        )
    if dilation and architecture.backbone in BASIC_BLOCKS:
        raise InputError(
            f"{source}: is of --backbone {architecture.backbone}, which has no dilation; leave "
            "--dilation out"
        )
    return architecture


def _backbone(shapes):
    blocks = tuple(_count(shapes, f"backbone.0.body.layer{stage}.") for stage in (1, 2, 3, 4))
    is_basic = "backbone.0.body.layer1.0.conv3.weight" not in shapes
    for name, depths in DEPTHS.items():
        if depths == blocks and (name in BASIC_BLOCKS) == is_basic:
            return name
    raise KeyError(f"a known backbone, with {blocks} blocks,")


def _norm(shapes):
    return "frozen" if "backbone.0.body.bn1.running_mean" in shapes else "group"


def _count(shapes, prefix):
    """The number of modules prefix0., prefix1., …"""
    numbers = [
        name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)
    ]
    return len(set(numbers))
