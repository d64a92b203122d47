"""The names of DETR's weights in `transformers`, and the original's for them.

Source: `DetrForObjectDetection` and `DetrForSegmentation` of transformers. Its files have the names
of its versions before 5; version 5 also has others. The backbone is timm's ResNet, whose names are
torchvision's, or transformers' own.
"""

import re

import numpy as np

# transformers' names and the original's. Where the original's has several, the first is written.
_TRANSFORMER = {
    "self_attn.out_proj": "self_attn.out_proj",
    "self_attn.o_proj": "self_attn.out_proj",
    "encoder_attn.out_proj": "multihead_attn.out_proj",
    "encoder_attn.o_proj": "multihead_attn.out_proj",
    "self_attn_layer_norm": "norm1",
    "encoder_attn_layer_norm": "norm2",
    "fc1": "linear1",
    "mlp.fc1": "linear1",
    "fc2": "linear2",
    "mlp.fc2": "linear2",
}
_ATTENTIONS = {"self_attn": "self_attn", "encoder_attn": "multihead_attn"}
_LAST_NORM = {"encoder": "norm2", "decoder": "norm3"}
_HEADS = {
    "model.input_projection.": "input_proj.",
    "model.query_position_embeddings.": "query_embed.",
    "model.position_embedding.row_embeddings.": "backbone.1.row_embed.",
    "model.position_embedding.column_embeddings.": "backbone.1.col_embed.",
    "model.backbone.position_embedding.row_embeddings.": "backbone.1.row_embed.",
    "model.backbone.position_embedding.column_embeddings.": "backbone.1.col_embed.",
    "model.decoder.layernorm.": "transformer.decoder.norm.",
    "class_labels_classifier.": "class_embed.",
    "bbox_predictor.": "bbox_embed.",
    "model.backbone.conv_encoder.model.": "backbone.0.body.",
    "model.backbone.model.": "backbone.0.body.",
}
_MASKS = {
    "bbox_attention.q_proj.": "bbox_attention.q_linear.",
    "bbox_attention.k_proj.": "bbox_attention.k_linear.",
    "mask_head.conv1.conv.": "mask_head.lay1.",
    "mask_head.conv1.norm.": "mask_head.gn1.",
    "mask_head.conv2.conv.": "mask_head.lay2.",
    "mask_head.conv2.norm.": "mask_head.gn2.",
    "mask_head.fpn_stages.0.fpn_adapter.": "mask_head.adapter1.",
    "mask_head.fpn_stages.0.refine.conv.": "mask_head.lay3.",
    "mask_head.fpn_stages.0.refine.norm.": "mask_head.gn3.",
    "mask_head.fpn_stages.1.fpn_adapter.": "mask_head.adapter2.",
    "mask_head.fpn_stages.1.refine.conv.": "mask_head.lay4.",
    "mask_head.fpn_stages.1.refine.norm.": "mask_head.gn4.",
    "mask_head.fpn_stages.2.fpn_adapter.": "mask_head.adapter3.",
    "mask_head.fpn_stages.2.refine.conv.": "mask_head.lay5.",
    "mask_head.fpn_stages.2.refine.norm.": "mask_head.gn5.",
    "mask_head.output_conv.": "mask_head.out_lay.",
}


def is_of_huggingface(state):
    """Whether a state dict has transformers' names."""
    return any("class_labels_classifier." in name for name in state)


def from_huggingface(state):
    """A state dict with the original's names. What has no counterpart keeps its name.

    state: name -> array, of transformers. Separate projections of queries, keys and values become
    one array, as in PyTorch's `nn.MultiheadAttention`.
    """
    found, parts = {}, {}
    for name, array in state.items():
        projection = re.fullmatch(r"(.*layers\.\d+\.\w+_attn)\.([qkv])_proj\.(weight|bias)", name)
        if projection:
            attention, letter, kind = projection.groups()
            parts.setdefault((attention, kind), {})[letter] = array
        else:
            found[_our_name(name)] = array
    for (attention, kind), arrays in parts.items():
        shapes = {array.shape for array in arrays.values()}
        if len(arrays) == 3 and len(shapes) == 1 and () not in shapes:
            name = f"{_our_name(attention + '.')}in_proj_{kind}"
            found[name] = np.concatenate([arrays[letter] for letter in "qkv"])
        else:  # the names stay, so that the loading lists them
            found.update({f"{attention}.{x}_proj.{kind}": array for x, array in arrays.items()})
    return found


def to_huggingface(state):
    """A state dict with transformers' names, as its versions before 5 and all files have them."""
    heads = {ours: theirs for theirs, ours in reversed(_HEADS.items())}
    found = {}
    for name, array in state.items():
        prefix = "detr." if name.startswith("detr.") else ""
        rest = name.removeprefix("detr.")
        if name.startswith(("mask_head.", "bbox_attention.")):
            found[name] = array
            continue
        if layer := re.fullmatch(r"transformer\.(encoder|decoder)\.layers\.(\d+)\.(.*)", rest):
            part, number, inner = layer.groups()
            place = f"{prefix}model.{part}.layers.{number}."
            found.update({place + end: value for end, value in _layer(inner, part, array)})
            continue
        for ours, theirs in heads.items():
            if rest.startswith(ours):
                found[prefix + theirs + rest.removeprefix(ours)] = array
    return found


def _layer(name, part, array):
    """Yields transformers' names and arrays for one of a layer's weights."""
    attentions = {ours: theirs for theirs, ours in _ATTENTIONS.items()}
    module, _, kind = name.rpartition(".")
    if kind.startswith("in_proj_"):
        for letter, rows in zip("qkv", np.split(array, 3)):
            yield f"{attentions[module]}.{letter}_proj.{kind.removeprefix('in_proj_')}", rows
        return
    names = {ours: theirs for theirs, ours in reversed(_TRANSFORMER.items())}
    names[_LAST_NORM[part]] = "final_layer_norm"
    yield f"{names[module]}.{kind}", array


def _our_name(name):
    """The original's name for one of transformers', or the name itself."""
    for theirs, ours in _MASKS.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    prefix = "detr." if name.startswith("detr.") else ""
    rest = name.removeprefix("detr.")
    if layer := re.fullmatch(r"model\.(encoder|decoder)\.layers\.(\d+)\.(.*)\.(\w*)", rest):
        part, number, module, kind = layer.groups()
        names = {**_TRANSFORMER, **_ATTENTIONS, "final_layer_norm": _LAST_NORM[part]}
        if module not in names:
            return name
        return f"{prefix}transformer.{part}.layers.{number}.{names[module]}.{kind}"
    for theirs, ours in _HEADS.items():
        if rest.startswith(theirs):
            end = rest.removeprefix(theirs)
            return prefix + ours + (_torchvision_name(end) if "body." in ours else end)
    return name


def _torchvision_name(name):
    """The name that torchvision and timm have for a weight of transformers' own ResNet."""
    name = name.removeprefix("_backbone.")
    name = name.replace("embedder.embedder.convolution.", "conv1.")
    name = name.replace("embedder.embedder.normalization.", "bn1.")
    block = re.fullmatch(r"encoder\.stages\.(\d)\.layers\.(\d+)\.(.*)\.(\w+)", name)
    if block is None:
        return name
    stage, number, module, kind = block.groups()
    place = f"layer{int(stage) + 1}.{number}"
    if module in ("shortcut.convolution", "shortcut.normalization"):
        return f"{place}.downsample.{int(module.endswith('normalization'))}.{kind}"
    layer, _, what = module.removeprefix("layer.").partition(".")
    if layer not in ("0", "1", "2") or what not in ("convolution", "normalization"):
        return name
    return f"{place}.{'conv' if what == 'convolution' else 'bn'}{int(layer) + 1}.{kind}"
