"""Build DETR's inference graph in ONNX from a state dict.

Tensors are batch first and named after the modules.
"""

import json
import math

import numpy as np
from onnx import ModelProto, TensorProto

from models.architecture import BASIC_BLOCK_BACKBONES, DEPTHS, Architecture

from .graph import EPSILON, Graph


def export_detr(
    state: dict[str, np.ndarray],
    architecture: Architecture,
    classes: dict[int, str],
    opset: int,
    size: tuple[int, int] | None = None,
) -> ModelProto:
    """Build the ONNX model of a DETR, with or without masks.

    classes: id -> name, stored as JSON in the file's metadata under `classes`; size: (height,
    width) of the images, None for any.
    Inputs: images float32 [B, 3, H, W] and mask bool [B, H, W], True on padding. Outputs: logits
    [B, Q, K + 1], boxes [B, Q, 4], cxcywh in 0..1, and masks [B, Q, H / 4, W / 4], logits.
    """
    weights = {name.removeprefix("detr."): np.float32(value) for name, value in state.items()}
    graph = Graph(weights, architecture)
    features = backbone(graph, "images")
    with graph.scope("mask"):
        mask = graph.resize_nearest("mask", features[-1], [(1, 2), (2, 3)])
        attn_mask = graph.reshape(mask, 0, 1, 1, -1)
        # Added to attention scores: -inf on padding.
        attn_mask = graph.add("Where", attn_mask, graph.constant(-np.inf), graph.constant(0.0))
    pos = position_encoding(graph, mask, features[-1])
    with graph.scope("input_proj"):
        image = graph.conv(features[-1], "input_proj")
        src = to_sequence(graph, image)
    memory = encoder(graph, src, attn_mask, pos)
    hs = decoder(graph, memory, attn_mask, pos)
    outputs = {"logits": class_embed(graph, hs), "boxes": bbox_embed(graph, hs)}
    dims = {"logits": [architecture.num_classes + 1], "boxes": [4]}
    if architecture.masks:
        attention_maps = bbox_attention(graph, hs, memory, attn_mask, features[-1])
        outputs["masks"] = mask_head(graph, image, attention_maps, features[2::-1])
        dims["masks"] = ["mask_height", "mask_width"]
    for name, value in outputs.items():
        graph.rename(value, name)
    height, width = size or ("height", "width")
    return graph.build_model(
        {
            "images": (TensorProto.FLOAT, ["batch", 3, height, width]),
            "mask": (TensorProto.BOOL, ["batch", height, width]),
        },
        {
            name: (TensorProto.FLOAT, ["batch", architecture.num_queries, *dims[name]])
            for name in outputs
        },
        opset,
        {"classes": json.dumps(classes, ensure_ascii=False)},
    )


# ---- backbone


def backbone(graph, images):
    """[B, 3, H, W] -> the feature maps of the four stages, the last one [B, C, h, w]"""
    with graph.scope("backbone"):
        with graph.scope("stem"):
            x = conv_norm(graph, images, "backbone.0.body", "conv1", "bn1", stride=2, kernel=7)
            x = graph.add("Relu", x)
            x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        features = []
        for stage, depth in enumerate(DEPTHS[graph.architecture.backbone], start=1):
            for i in range(depth):
                with graph.scope(f"layer{stage}.{i}"):
                    x = block(graph, x, stage, i)
            features.append(x)
    return features


def block(graph, x, stage, i):
    """Add a basic or bottleneck block (see models/backbone.py)."""
    stride = 2 if stage > 1 and i == 0 else 1
    dilation = 1
    if stage == 4 and graph.architecture.backbone == "tiny":
        stride = 1
    if stage == 4 and graph.architecture.dilation:
        stride, dilation = 1, 1 if i == 0 else 2
    prefix = f"backbone.0.body.layer{stage}.{i}"
    shortcut = x
    if f"{prefix}.downsample.0.weight" in graph.weights:
        with graph.scope("downsample"):
            shortcut = conv_norm(graph, x, prefix, "downsample.0", "downsample.1", stride)
    if graph.architecture.backbone in BASIC_BLOCK_BACKBONES:
        kernels = [(3, stride, 1), (3, 1, 1)]
    else:
        kernels = [(1, 1, 1), (3, stride, dilation), (1, 1, 1)]
    for i, (kernel, stride, dilation) in enumerate(kernels, start=1):
        x = conv_norm(graph, x, prefix, f"conv{i}", f"bn{i}", stride, kernel, dilation)
        if i == len(kernels):
            x = graph.add("Add", x, shortcut)
        x = graph.add("Relu", x)
    return x


def conv_norm(graph, x, prefix, conv, norm, stride=1, kernel=1, dilation=1):
    """Add a convolution and its normalization; BatchNorm is folded into the convolution.

    prefix: prefix of the weight names.
    """
    conv, norm = f"{prefix}.{conv}", f"{prefix}.{norm}"
    pads = [kernel // 2 * dilation] * 4
    attributes = dict(
        kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads, dilations=[dilation] * 2
    )
    weights = graph.weights
    if f"{norm}.running_var" not in weights:
        groups = min(32, len(weights[f"{norm}.weight"]) // 2)
        return graph.group_norm(graph.conv(x, conv, **attributes), norm, groups)
    deviation = np.sqrt(weights[f"{norm}.running_var"] + np.float32(EPSILON))
    scale = weights[f"{norm}.weight"] / deviation
    bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    weight = weights[f"{conv}.weight"] * scale.reshape(-1, 1, 1, 1)
    return graph.conv(x, conv, weight, bias, **attributes)


# ---- position encoding


def position_encoding(graph, mask, like):
    """mask [B, h, w], like: a feature map [B, _, h, w] -> [B, h * w, C]"""
    with graph.scope("position_encoding"):
        if graph.architecture.position_embedding == "learned":
            return learned_encoding(graph, like)
        return sine_encoding(graph, mask, graph.architecture.hidden_dim // 2)


def sine_encoding(graph, mask, features):
    """Add the sine encoding. features: number of features per axis."""
    not_mask = graph.add("Cast", graph.add("Not", mask), to=TensorProto.FLOAT)
    exponent = np.arange(features // 2, dtype=np.float32) * np.float32(2 / features)
    wavelength = graph.weight("wavelength", np.float32(10000) ** exponent)
    parts = []
    for axis in (1, 2):
        position = graph.add("CumSum", not_mask, graph.constant(axis))
        cells = graph.add("ReduceSum", not_mask, graph.constant([axis]), keepdims=1)
        position = graph.add("Div", position, graph.add("Add", cells, graph.constant(1e-6)))
        position = graph.add("Mul", position, graph.constant(2 * math.pi))
        position = graph.add("Unsqueeze", position, graph.constant([3]))
        angle = graph.add("Div", position, wavelength)
        pair = [
            graph.add("Unsqueeze", graph.add(wave, angle), graph.constant([4]))
            for wave in ("Sin", "Cos")
        ]
        parts.append(graph.reshape(graph.add("Concat", *pair, axis=4), 0, 0, 0, features))
    encoding = graph.add("Concat", *parts, axis=3)
    return graph.add("Reshape", encoding, graph.shape(graph.dim(mask, 0), -1, 2 * features))


def learned_encoding(graph, like):
    batch, height, width = (graph.dim(like, axis) for axis in (0, 2, 3))
    parts = []
    for name, length, new_axis in (("col", width, 0), ("row", height, 1)):
        table = graph.weight(f"backbone.1.{name}_embed.weight")
        start, axis = graph.constant([0]), graph.constant([0])
        vectors = graph.add("Slice", table, start, length, axis)
        features = graph.weights[f"backbone.1.{name}_embed.weight"].shape[1]
        vectors = graph.add("Unsqueeze", vectors, graph.constant([new_axis]))
        parts.append(graph.add("Expand", vectors, graph.shape(height, width, features)))
    encoding = graph.add("Concat", *parts, axis=2)
    encoding = graph.reshape(encoding, 1, -1, 2 * features)
    return graph.add("Expand", encoding, graph.shape(batch, 1, 1))


# ---- transformer


def to_sequence(graph, x):
    """[B, C, h, w] -> [B, h * w, C]"""
    return graph.add("Transpose", graph.reshape(x, 0, 0, -1), perm=[0, 2, 1])


def encoder(graph, x, attn_mask, pos):
    """x, pos [B, N, C], attn_mask [B, 1, 1, N] -> memory [B, N, C]"""
    with graph.scope("encoder"):
        for i in range(graph.architecture.enc_layers):
            prefix = f"transformer.encoder.layers.{i}"
            with graph.scope(f"layers.{i}"):
                x = residual(graph, x, prefix, "norm1", attention, "self_attn", pos, attn_mask)
                x = residual(graph, x, prefix, "norm2", feed_forward)
        if graph.architecture.pre_norm:
            x = graph.layer_norm(x, "transformer.encoder.norm")
    return x


def decoder(graph, memory, attn_mask, pos):
    """memory, pos [B, N, C], attn_mask [B, 1, 1, N] -> the last layer's output [B, Q, C]"""
    with graph.scope("decoder"):
        dims = graph.architecture.num_queries, graph.architecture.hidden_dim
        shape = graph.shape(graph.dim(memory, 0), *dims)
        query_pos = graph.add("Expand", graph.weight("query_embed.weight"), shape)
        x = graph.add("Expand", graph.constant(0.0), shape)
        cross = ("multihead_attn", query_pos, attn_mask, (graph.add("Add", memory, pos), memory))
        for i in range(graph.architecture.dec_layers):
            prefix = f"transformer.decoder.layers.{i}"
            with graph.scope(f"layers.{i}"):
                x = residual(graph, x, prefix, "norm1", attention, "self_attn", query_pos)
                x = residual(graph, x, prefix, "norm2", attention, *cross)
                x = residual(graph, x, prefix, "norm3", feed_forward)
        return graph.layer_norm(x, "transformer.decoder.norm")


def residual(graph, x, prefix, norm, sublayer, *args):
    """Add a residual branch, with pre-norm or post-norm as the model has.

    prefix: prefix of the weight names; args: further arguments of sublayer.
    """
    with graph.scope(norm):
        norm = f"{prefix}.{norm}"
        if graph.architecture.pre_norm:
            return graph.add("Add", x, sublayer(graph, graph.layer_norm(x, norm), prefix, *args))
        return graph.layer_norm(graph.add("Add", x, sublayer(graph, x, prefix, *args)), norm)


def feed_forward(graph, x, prefix):
    hidden = graph.add("Relu", graph.linear(x, f"{prefix}.linear1"))
    return graph.linear(hidden, f"{prefix}.linear2")


def attention(graph, x, prefix, name, pos, attn_mask=None, memory=None):
    """Add self-attention over x [B, N, C], or cross-attention from x to memory -> [B, N, C].

    pos: added to the queries, and to the keys of self-attention; attn_mask: [B, 1, 1, M], added to
    the scores; memory: keys and values, [B, M, C] each.
    """
    dim, heads = graph.architecture.hidden_dim, graph.architecture.nheads
    query = graph.add("Add", x, pos)
    key, value = memory or (query, x)
    with graph.scope(name):
        name, projected = f"{prefix}.{name}", []
        inputs = (query, [0, 2, 1, 3]), (key, [0, 2, 3, 1]), (value, [0, 2, 1, 3])
        for i, (x, order) in enumerate(inputs):
            rows = i * dim, (i + 1) * dim
            x = graph.affine(x, f"{name}.in_proj_weight", f"{name}.in_proj_bias", rows)
            x = graph.reshape(x, 0, -1, heads, dim // heads)
            projected.append(graph.add("Transpose", x, perm=order))
        q, k, v = projected
        q = graph.add("Div", q, graph.constant(math.sqrt(dim // heads)))
        scores = graph.add("MatMul", q, k)
        if attn_mask:
            scores = graph.add("Add", scores, attn_mask)
        x = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), v)
        x = graph.reshape(graph.add("Transpose", x, perm=[0, 2, 1, 3]), 0, -1, dim)
        return graph.linear(x, f"{name}.out_proj")


# ---- heads


def class_embed(graph, hs):
    with graph.scope("class_embed"):
        return graph.linear(hs, "class_embed")


def bbox_embed(graph, hs):
    with graph.scope("bbox_embed"):
        x = hs
        for layer in range(2):
            x = graph.add("Relu", graph.linear(x, f"bbox_embed.layers.{layer}"))
        return graph.add("Sigmoid", graph.linear(x, "bbox_embed.layers.2"))


def bbox_attention(graph, hs, memory, attn_mask, like):
    """Compute the attention maps of each query.

    hs [B, Q, C], memory [B, N, C] -> [B * Q, heads, h, w]

    The softmax is taken over all heads of a query jointly. like: a feature map [B, _, h, w].
    """
    heads = graph.architecture.nheads
    head_dim = graph.architecture.hidden_dim // heads
    with graph.scope("bbox_attention"):
        q = graph.linear(hs, "bbox_attention.q_linear")
        q = graph.add("Mul", q, graph.constant(head_dim**-0.5))
        q = graph.add("Transpose", graph.reshape(q, 0, -1, heads, head_dim), perm=[0, 2, 1, 3])
        k = graph.linear(memory, "bbox_attention.k_linear")
        k = graph.add("Transpose", graph.reshape(k, 0, -1, heads, head_dim), perm=[0, 2, 3, 1])
        scores = graph.add("Add", graph.add("MatMul", q, k), attn_mask)
        scores = graph.add("Transpose", scores, perm=[0, 2, 1, 3])
        weights = graph.add("Softmax", graph.reshape(scores, 0, 0, -1), axis=-1)
        return graph.reshape(weights, -1, heads, graph.dim(like, 2), graph.dim(like, 3))


def mask_head(graph, image, attention_maps, features):
    """Predict the mask logits of each query.

    image [B, C, h, w], attention_maps [B * Q, heads, h, w], features: of the backbone, smallest map
    first -> [B, Q, H / 4, W / 4]
    """
    queries, dim = graph.architecture.num_queries, graph.architecture.hidden_dim
    conv_3x3 = dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    def resize_and_add(x, features):
        """Resize x [B * Q, C, h, w] to features [B, C, H, W] and add those of its image."""
        x = graph.resize_nearest(x, features, [(2, 2), (3, 3)])
        dims = [graph.dim(features, axis) for axis in (1, 2, 3)]
        x = graph.reshape(x, -1, queries, *dims)
        features = graph.add("Unsqueeze", features, graph.constant([1]))
        return graph.reshape(graph.add("Add", x, features), -1, *dims)

    with graph.scope("mask_head"):
        # lay1 of the concatenated input is a sum of two convolutions; the image's is the same for
        # all queries.
        weight = graph.weights["mask_head.lay1.weight"]
        of_image = graph.weight("mask_head.lay1.weight.image", weight[:, :dim])
        bias = graph.weight("mask_head.lay1.bias")
        image = graph.add("Conv", image, of_image, bias, **conv_3x3)
        of_maps = graph.weight("mask_head.lay1.weight.maps", weight[:, dim:])
        x = resize_and_add(graph.add("Conv", attention_maps, of_maps, **conv_3x3), image)
        for i in range(1, 6):
            with graph.scope(f"lay{i}"):
                if i > 2:
                    stage = graph.conv(features[i - 3], f"mask_head.adapter{i - 2}")
                    x = resize_and_add(x, stage)
                if i > 1:
                    x = graph.conv(x, f"mask_head.lay{i}", **conv_3x3)
                x = graph.add("Relu", graph.group_norm(x, f"mask_head.gn{i}", 8))
        x = graph.conv(x, "mask_head.out_lay", **conv_3x3)
        return graph.reshape(x, -1, queries, graph.dim(x, 2), graph.dim(x, 3))
