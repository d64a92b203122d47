"""Convert between the original's parameter names and those of `transformers`.

Source: `DetrForObjectDetection` and `DetrForSegmentation` of transformers. Checkpoint files use the
names from before version 5; version 5 may also use new ones. The backbone is timm's ResNet, which
has torchvision's names, or transformers' own.
"""

import re

import numpy as np

_LAYER = {
    "self_attn.": "self_attn.",
    "self_attn_layer_norm.": "norm1.",
    "fc1.": "linear1.",
    "fc2.": "linear2.",
}
_LAYERS = {
    "encoder": {**_LAYER, "final_layer_norm.": "norm2."},
    "decoder": {
        **_LAYER,
        "encoder_attn.": "multihead_attn.",
        "encoder_attn_layer_norm.": "norm2.",
        "final_layer_norm.": "norm3.",
    },
}
# Prefixes of transformers' names and of the original's; # stands for a layer's number.
_NAMES = {
    "model.backbone.conv_encoder.model.": "backbone.0.body.",
    "model.position_embedding.row_embeddings.": "backbone.1.row_embed.",
    "model.position_embedding.column_embeddings.": "backbone.1.col_embed.",
    "model.input_projection.": "input_proj.",
    "model.query_position_embeddings.": "query_embed.",
    "model.decoder.layernorm.": "transformer.decoder.norm.",
    "class_labels_classifier.": "class_embed.",
    "bbox_predictor.": "bbox_embed.",
    "mask_head.": "mask_head.",
    "bbox_attention.": "bbox_attention.",
    **{
        f"model.{part}.layers.#.{theirs}": f"transformer.{part}.layers.#.{ours}"
        for part, names in _LAYERS.items()
        for theirs, ours in names.items()
    },
}
# Substrings of version 5's names -> their equivalents in earlier versions.
_NEW_NAMES = {
    "model.backbone.model.": "model.backbone.conv_encoder.model.",
    "model.backbone.position_embedding.": "model.position_embedding.",
    "_attn.o_proj.": "_attn.out_proj.",
    ".mlp.fc": ".fc",
    "bbox_attention.q_proj.": "bbox_attention.q_linear.",
    "bbox_attention.k_proj.": "bbox_attention.k_linear.",
    **{f"mask_head.conv{i}.conv.": f"mask_head.lay{i}." for i in (1, 2)},
    **{f"mask_head.conv{i}.norm.": f"mask_head.gn{i}." for i in (1, 2)},
    **{f"mask_head.fpn_stages.{i}.fpn_adapter.": f"mask_head.adapter{i + 1}." for i in range(3)},
    **{f"mask_head.fpn_stages.{i}.refine.conv.": f"mask_head.lay{i + 3}." for i in range(3)},
    **{f"mask_head.fpn_stages.{i}.refine.norm.": f"mask_head.gn{i + 3}." for i in range(3)},
    "mask_head.output_conv.": "mask_head.out_lay.",
}
# Substrings of transformers' ResNet names -> their equivalents in torchvision and timm.
_RESNET_NAMES = {
    "model._backbone.": "model.",
    "embedder.embedder.convolution.": "conv1.",
    "embedder.embedder.normalization.": "bn1.",
    "shortcut.convolution.": "downsample.0.",
    "shortcut.normalization.": "downsample.1.",
    **{f"encoder.stages.{i}.layers.": f"layer{i + 1}." for i in range(4)},
    **{f".layer.{i}.convolution.": f".conv{i + 1}." for i in range(3)},
    **{f".layer.{i}.normalization.": f".bn{i + 1}." for i in range(3)},
}


def is_huggingface(state):
    """Return whether a state dict has transformers' names."""
    return any("class_labels_classifier." in name for name in state)


def from_huggingface(state):
    """Return a state dict with the original's names; unknown names are kept.

    state: name -> array, of transformers. Separate projections of queries, keys and values become
    one array, as in PyTorch's `nn.MultiheadAttention`.
    """
    renamed, projections = {}, {}
    for name, array in state.items():
        ours = name
        for new, old in {**_NEW_NAMES, **_RESNET_NAMES}.items():
            ours = ours.replace(new, old)
        ours = _replace_prefix(ours, _NAMES) or name
        part = re.fullmatch(r"(.*layers\.\d+\.\w+_attn\.)([qkv])_proj\.(weight|bias)", ours)
        if part:
            projections.setdefault(f"{part[1]}in_proj_{part[3]}", {})[part[2]] = name
        else:
            renamed[ours] = array
    for ours, names in projections.items():
        arrays = [state[names[letter]] for letter in "qkv" if letter in names]
        if len(arrays) == 3 and len({array.shape for array in arrays}) == 1 and arrays[0].ndim:
            renamed[ours] = np.concatenate(arrays)
        else:  # keep their names, so that the strict loading lists them
            renamed.update({name: state[name] for name in names.values()})
    return renamed


def to_huggingface(state):
    """Return a state dict with the names that transformers' files have in all versions."""
    their_names = {ours: theirs for theirs, ours in _NAMES.items()}
    renamed = {}
    for name, array in state.items():
        theirs = _replace_prefix(name, their_names)
        if ".in_proj_" in theirs:
            for letter, rows in zip("qkv", np.split(array, 3)):
                renamed[theirs.replace(".in_proj_", f".{letter}_proj.")] = rows
        else:
            renamed[theirs] = array
    return renamed


def _replace_prefix(name, prefixes):
    """Return the name with its prefix, after `detr.`, replaced; None if no prefix matches."""
    detr = "detr." if name.startswith("detr.") else ""
    layer = re.search(r"coder\.layers\.(\d+)", name)
    number = layer[1] if layer else ""
    rest = name.removeprefix("detr.").replace(f"coder.layers.{number}.", "coder.layers.#.", 1)
    for old, new in prefixes.items():
        if rest.startswith(old):
            return detr + new.replace("#", number) + rest.removeprefix(old)
    return None
