"""The names and shapes of a model's weights, from its Architecture alone, without Jittor."""

from models.architecture import BASIC_BLOCKS, DEPTHS, LEARNED_CELLS, stage_channels
from util.errors import InputError

from .mismatches import find_mismatches


def check_weights(state, architecture, source):
    """Raises InputError, which names source and the weights, for a state dict that is not all of a
    model, or more.

    state: name -> array; architecture: architecture.Architecture.
    """
    if problems := find_mismatches(weight_shapes(architecture), state):
        raise InputError(f"{source}: is not a DETR's weights: {'; '.join(problems)}")


def weight_shapes(architecture):
    """Name -> shape of each weight of the model of an Architecture."""
    width, widths = architecture.hidden_dim, stage_channels(architecture.backbone)
    detr = {
        **transformer(architecture),
        **linear("class_embed", width, architecture.num_classes + 1),
        **linear("bbox_embed.layers.0", width, width),
        **linear("bbox_embed.layers.1", width, width),
        **linear("bbox_embed.layers.2", width, 4),
        "query_embed.weight": (architecture.num_queries, width),
        **conv("input_proj", widths[-1], width, 1),
        **backbone(architecture),
    }
    if architecture.position_embedding == "learned":
        for name in ("row_embed", "col_embed"):
            detr[f"backbone.1.{name}.weight"] = (LEARNED_CELLS, width // 2)
    if not architecture.masks:
        return detr
    return {**{f"detr.{name}": shape for name, shape in detr.items()}, **mask_head(architecture)}


def linear(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def conv(name, inputs, outputs, kernel):
    return {f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (outputs,)}


def transformer(architecture):
    width, shapes = architecture.hidden_dim, {}
    for part, layers, attentions in (
        ("encoder", architecture.enc_layers, ["self_attn"]),
        ("decoder", architecture.dec_layers, ["self_attn", "multihead_attn"]),
    ):
        for number in range(layers):
            layer = f"transformer.{part}.layers.{number}"
            for attention in attentions:
                shapes[f"{layer}.{attention}.in_proj_weight"] = (3 * width, width)
                shapes[f"{layer}.{attention}.in_proj_bias"] = (3 * width,)
                shapes.update(linear(f"{layer}.{attention}.out_proj", width, width))
            shapes.update(linear(f"{layer}.linear1", width, architecture.dim_feedforward))
            shapes.update(linear(f"{layer}.linear2", architecture.dim_feedforward, width))
            for norm_number in range(1, len(attentions) + 2):
                shapes.update(norm(f"{layer}.norm{norm_number}", width))
    if architecture.pre_norm:
        shapes.update(norm("transformer.encoder.norm", width))
    return {**shapes, **norm("transformer.decoder.norm", width)}


def backbone(architecture):
    is_basic = architecture.backbone in BASIC_BLOCKS
    widths, shapes = stage_channels(architecture.backbone), {}
    stem = 16 if architecture.backbone == "tiny" else 64

    def conv_norm(place, conv_name, norm_name, inputs, outputs, kernel):
        shapes[f"{place}.{conv_name}.weight"] = (outputs, inputs, kernel, kernel)
        shapes.update(norm(f"{place}.{norm_name}", outputs))
        if architecture.backbone_norm != "group":
            shapes[f"{place}.{norm_name}.running_mean"] = (outputs,)
            shapes[f"{place}.{norm_name}.running_var"] = (outputs,)

    body = "backbone.0.body"
    conv_norm(body, "conv1", "bn1", 3, stem, 7)
    inputs = stem
    for stage, depth in enumerate(DEPTHS[architecture.backbone]):
        outputs, inner = widths[stage], widths[stage] // 4
        for number in range(depth):
            place = f"{body}.layer{stage + 1}.{number}"
            if number == 0 and inputs != outputs:
                conv_norm(place, "downsample.0", "downsample.1", inputs, outputs, 1)
            if is_basic:
                convolutions = [(inputs, outputs, 3), (outputs, outputs, 3)]
            else:
                convolutions = [(inputs, inner, 1), (inner, inner, 3), (inner, outputs, 1)]
            for i, sizes in enumerate(convolutions, start=1):
                conv_norm(place, f"conv{i}", f"bn{i}", *sizes)
            inputs = outputs
    return shapes


def mask_head(architecture):
    width, heads = architecture.hidden_dim, architecture.nheads
    widths = [width + heads, width + heads, width // 2, width // 4, width // 8, width // 16]
    shapes = {
        **linear("bbox_attention.q_linear", width, width),
        **linear("bbox_attention.k_linear", width, width),
        **conv("mask_head.out_lay", widths[-1], 1, 3),
    }
    for number in range(1, 6):
        shapes.update(conv(f"mask_head.lay{number}", widths[number - 1], widths[number], 3))
        shapes.update(norm(f"mask_head.gn{number}", widths[number]))
    stages = stage_channels(architecture.backbone)[2::-1]
    for number, (stage, outputs) in enumerate(zip(stages, widths[2:]), start=1):
        shapes.update(conv(f"mask_head.adapter{number}", stage, outputs, 1))
    return shapes
