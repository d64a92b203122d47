"""Compute names and shapes of a model's weights without building it (no Jittor, no compiler)."""

from models.architecture import (
    BASIC_BLOCK_BACKBONES,
    DEPTHS,
    MAX_LEARNED_POSITIONS,
    get_stage_channels,
)
from util.errors import InputError

from .mismatches import find_mismatches


def check_weights(state, architecture, source):
    """Raise InputError, which names source, if weights are missing, unexpected or mismatched."""
    if problems := find_mismatches(get_weight_shapes(architecture), state):
        raise InputError(f"{source}: not the weights of a DETR: {'; '.join(problems)}")


def get_weight_shapes(architecture):
    """Return the name -> shape of each weight of an Architecture."""
    width, channels = architecture.hidden_dim, get_stage_channels(architecture.backbone)
    shapes = {
        **_transformer(architecture),
        **_layer("class_embed", architecture.num_classes + 1, width),
        **_layer("bbox_embed.layers.0", width, width),
        **_layer("bbox_embed.layers.1", width, width),
        **_layer("bbox_embed.layers.2", 4, width),
        "query_embed.weight": (architecture.num_queries, width),
        **_layer("input_proj", width, channels[-1], 1, 1),
        **_backbone(architecture),
    }
    if architecture.position_embedding == "learned":
        for name in ("row_embed", "col_embed"):
            shapes[f"backbone.1.{name}.weight"] = (MAX_LEARNED_POSITIONS, width // 2)
    if not architecture.masks:
        return shapes
    return {**{f"detr.{name}": shape for name, shape in shapes.items()}, **_mask_head(architecture)}


def _layer(name, outputs, *rest):
    """Return the shapes of a layer's weight [outputs, *rest] and bias [outputs]."""
    return {f"{name}.weight": (outputs, *rest), f"{name}.bias": (outputs,)}


def _transformer(architecture):
    width, hidden, shapes = architecture.hidden_dim, architecture.dim_feedforward, {}
    for part, layers, attentions in (
        ("encoder", architecture.enc_layers, ["self_attn"]),
        ("decoder", architecture.dec_layers, ["self_attn", "multihead_attn"]),
    ):
        for prefix in (f"transformer.{part}.layers.{number}" for number in range(layers)):
            for attention in attentions:
                shapes[f"{prefix}.{attention}.in_proj_weight"] = (3 * width, width)
                shapes[f"{prefix}.{attention}.in_proj_bias"] = (3 * width,)
                shapes |= _layer(f"{prefix}.{attention}.out_proj", width, width)
            shapes |= _layer(f"{prefix}.linear1", hidden, width)
            shapes |= _layer(f"{prefix}.linear2", width, hidden)
            for norm in range(1, len(attentions) + 2):
                shapes |= _layer(f"{prefix}.norm{norm}", width)
    if architecture.pre_norm:
        shapes |= _layer("transformer.encoder.norm", width)
    return shapes | _layer("transformer.decoder.norm", width)


def _backbone(architecture):
    is_basic = architecture.backbone in BASIC_BLOCK_BACKBONES
    shapes = {}

    def add(prefix, conv, norm, outputs, inputs, kernel):
        shapes[f"{prefix}.{conv}.weight"] = (outputs, inputs, kernel, kernel)
        shapes.update(_layer(f"{prefix}.{norm}", outputs))
        if architecture.backbone_norm != "group":
            shapes[f"{prefix}.{norm}.running_mean"] = (outputs,)
            shapes[f"{prefix}.{norm}.running_var"] = (outputs,)

    inputs = 16 if architecture.backbone == "tiny" else 64
    add("backbone.0.body", "conv1", "bn1", inputs, 3, 7)
    depths, channels = DEPTHS[architecture.backbone], get_stage_channels(architecture.backbone)
    for stage, (depth, outputs) in enumerate(zip(depths, channels), start=1):
        inner = outputs // 4
        for number in range(depth):
            prefix = f"backbone.0.body.layer{stage}.{number}"
            if number == 0 and inputs != outputs:
                add(prefix, "downsample.0", "downsample.1", outputs, inputs, 1)
            if is_basic:
                convolutions = [(outputs, inputs, 3), (outputs, outputs, 3)]
            else:
                convolutions = [(inner, inputs, 1), (inner, inner, 3), (outputs, inner, 1)]
            for i, sizes in enumerate(convolutions, start=1):
                add(prefix, f"conv{i}", f"bn{i}", *sizes)
            inputs = outputs
    return shapes


def _mask_head(architecture):
    width = architecture.hidden_dim
    dim = width + architecture.nheads
    dims = [dim, dim, width // 2, width // 4, width // 8, width // 16]
    shapes = {
        **_layer("bbox_attention.q_linear", width, width),
        **_layer("bbox_attention.k_linear", width, width),
        **_layer("mask_head.out_lay", 1, dims[-1], 3, 3),
    }
    for i in range(1, 6):
        shapes |= _layer(f"mask_head.lay{i}", dims[i], dims[i - 1], 3, 3)
        shapes |= _layer(f"mask_head.gn{i}", dims[i])
    for i, channels in enumerate(get_stage_channels(architecture.backbone)[2::-1], start=1):
        shapes |= _layer(f"mask_head.adapter{i}", dims[i + 1], channels, 1, 1)
    return shapes
