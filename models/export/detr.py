"""DETR as an ONNX graph: the computation of models/detr.py in evaluation, from the weights alone.

The names of values follow those of the modules. Values are batch first, as there.
"""

import json
import math

import numpy as np
from onnx import TensorProto

from models.architecture import BASIC_BLOCKS, DEPTHS

from .graph import EPSILON, Graph


def export_detr(state, architecture, classes, opset, size=None):
    """The onnx.ModelProto of a DETR, or of a DETR with masks.

    state: name -> array; architecture: weights.architecture.Architecture; classes: dictionary id ->
    name, kept as JSON in the file's metadata under `classes`; size: (height, width) of the images,
    None for any.
    The file has the inputs images float32 [B, 3, H, W] and mask bool [B, H, W], True on padding,
    and the outputs logits [B, Q, K + 1], boxes [B, Q, 4], cxcywh in 0..1, and with masks masks [B,
    Q, H / 4, W / 4], logits.
    """
    weights = {name.removeprefix("detr."): np.float32(value) for name, value in state.items()}
    graph = Graph(weights)
    maps = backbone(graph, "images", architecture)
    with graph.scope("mask"):
        mask = graph.resize_nearest("mask", maps[-1], [(1, 2), (2, 3)])
        ignored = graph.reshape(mask, 0, 1, 1, -1)
        # Added to the scores of attention: minus infinity on padding.
        ignored = graph.add("Where", ignored, graph.constant(-np.inf), graph.constant(0.0))
    pos = position_encoding(graph, mask, maps[-1], architecture)
    with graph.scope("input_proj"):
        image = graph.conv(maps[-1], "input_proj")
        src = to_sequence(graph, image)
    memory = encoder(graph, src, ignored, pos, architecture)
    hs = decoder(graph, memory, ignored, pos, architecture)
    outputs = {"logits": class_embed(graph, hs), "boxes": bbox_embed(graph, hs)}
    sides = {"logits": [architecture.num_queries, architecture.num_classes + 1]}
    sides["boxes"] = [architecture.num_queries, 4]
    if architecture.masks:
        attention = bbox_attention(graph, hs, memory, ignored, maps[-1], architecture)
        outputs["masks"] = mask_head(graph, image, attention, maps[2::-1], architecture)
        sides["masks"] = [architecture.num_queries, "mask_height", "mask_width"]
    for name, value in outputs.items():
        graph.rename(value, name)
    height, width = size or ("height", "width")
    return graph.model(
        {
            "images": (TensorProto.FLOAT, ["batch", 3, height, width]),
            "mask": (TensorProto.BOOL, ["batch", height, width]),
        },
        {name: (TensorProto.FLOAT, ["batch", *sides[name]]) for name in outputs},
        opset,
        {"classes": json.dumps(classes, ensure_ascii=False)},
    )


# ---- backbone


def backbone(graph, images, architecture):
    """[B, 3, H, W] -> the maps of the four stages, the last one [B, C, h, w]."""
    with graph.scope("backbone"):
        with graph.scope("stem"):
            x = conv_norm(graph, images, "backbone.0.body", "conv1", "bn1", stride=2, kernel=7)
            x = graph.add("Relu", x)
            x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        maps = []
        for stage, depth in enumerate(DEPTHS[architecture.backbone], start=1):
            for number in range(depth):
                with graph.scope(f"layer{stage}.{number}"):
                    x = block(graph, x, stage, number, architecture)
            maps.append(x)
    return maps


def block(graph, x, stage, number, architecture):
    """A basic block of two convolutions, or a bottleneck of three (see models/backbone.py)."""
    stride = 2 if stage > 1 and number == 0 else 1
    dilation = 1
    if stage == 4 and architecture.backbone == "tiny":
        stride = 1
    if stage == 4 and architecture.dilation:
        stride, dilation = 1, 1 if number == 0 else 2
    place = f"backbone.0.body.layer{stage}.{number}"
    shortcut = x
    if f"{place}.downsample.0.weight" in graph.weights:
        with graph.scope("downsample"):
            shortcut = conv_norm(graph, x, place, "downsample.0", "downsample.1", stride)
    if architecture.backbone in BASIC_BLOCKS:
        kernels = [(3, stride, 1), (3, 1, 1)]
    else:
        kernels = [(1, 1, 1), (3, stride, dilation), (1, 1, 1)]
    for i, (kernel, stride, dilation) in enumerate(kernels, start=1):
        x = conv_norm(graph, x, place, f"conv{i}", f"bn{i}", stride, kernel, dilation)
        if i == len(kernels):
            x = graph.add("Add", x, shortcut)
        x = graph.add("Relu", x)
    return x


def conv_norm(graph, x, place, conv, norm, stride=1, kernel=1, dilation=1):
    """A convolution and its normalisation; BatchNorm becomes part of the convolution.

    place: what the names of the weights begin with.
    """
    conv, norm = f"{place}.{conv}", f"{place}.{norm}"
    padding = kernel // 2 * dilation
    options = dict(
        kernel_shape=[kernel] * 2,
        strides=[stride] * 2,
        pads=[padding] * 4,
        dilations=[dilation] * 2,
    )
    weights = graph.weights
    if f"{norm}.running_var" not in weights:
        groups = min(32, len(weights[f"{norm}.weight"]) // 2)
        return graph.group_norm(graph.conv(x, conv, **options), norm, groups)
    scale = weights[f"{norm}.weight"] / np.sqrt(
        weights[f"{norm}.running_var"] + np.float32(EPSILON)
    )
    bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    weight = weights[f"{conv}.weight"] * scale.reshape(-1, 1, 1, 1)
    return graph.conv(x, conv, weight, bias, **options)


# ---- position encoding


def position_encoding(graph, mask, like, architecture):
    """mask [B, h, w], like: a map [B, _, h, w] -> [B, h * w, C]"""
    with graph.scope("position_encoding"):
        if architecture.position_embedding == "learned":
            return learned_encoding(graph, like)
        return sine_encoding(graph, mask, architecture.hidden_dim // 2)


def sine_encoding(graph, mask, features):
    """features: of y and of x each."""
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
    both = graph.add("Concat", *parts, axis=3)
    return graph.add("Reshape", both, graph.shape(graph.side(mask, 0), -1, 2 * features))


def learned_encoding(graph, like):
    batch, height, width = (graph.side(like, axis) for axis in (0, 2, 3))
    parts = []
    for name, length, new_axis in (("col", width, 0), ("row", height, 1)):
        table = graph.weight(f"backbone.1.{name}_embed.weight")
        start, axis = graph.constant([0]), graph.constant([0])
        vectors = graph.add("Slice", table, start, length, axis)
        features = graph.weights[f"backbone.1.{name}_embed.weight"].shape[1]
        vectors = graph.add("Unsqueeze", vectors, graph.constant([new_axis]))
        parts.append(graph.add("Expand", vectors, graph.shape(height, width, features)))
    both = graph.add("Concat", *parts, axis=2)
    return graph.add("Expand", graph.reshape(both, 1, -1, 2 * features), graph.shape(batch, 1, 1))


# ---- transformer


def to_sequence(graph, x):
    """[B, C, h, w] -> [B, h * w, C]"""
    return graph.add("Transpose", graph.reshape(x, 0, 0, -1), perm=[0, 2, 1])


def encoder(graph, x, ignored, pos, architecture):
    """x, pos [B, N, C], ignored [B, 1, 1, N] -> memory [B, N, C]"""
    with graph.scope("encoder"):
        for number in range(architecture.enc_layers):
            place = f"transformer.encoder.layers.{number}"
            with graph.scope(f"layers.{number}"):

                def attend(x):
                    positioned = graph.add("Add", x, pos)
                    name = f"{place}.self_attn"
                    return attention(graph, positioned, positioned, x, ignored, name, architecture)

                x = residual(graph, x, attend, f"{place}.norm1", architecture)
                x = residual(graph, x, feed_forward(graph, place), f"{place}.norm2", architecture)
        if architecture.pre_norm:
            x = graph.layer_norm(x, "transformer.encoder.norm")
    return x


def decoder(graph, memory, ignored, pos, architecture):
    """memory, pos [B, N, C], ignored [B, 1, 1, N] -> the last layer's output [B, Q, C]"""
    with graph.scope("decoder"):
        batch = graph.side(memory, 0)
        shape = graph.shape(batch, architecture.num_queries, architecture.hidden_dim)
        query_pos = graph.add("Expand", graph.weight("query_embed.weight"), shape)
        x = graph.add("Expand", graph.constant(0.0), shape)
        keys = graph.add("Add", memory, pos)
        for number in range(architecture.dec_layers):
            place = f"transformer.decoder.layers.{number}"
            with graph.scope(f"layers.{number}"):

                def attend_queries(x):
                    q = graph.add("Add", x, query_pos)
                    return attention(graph, q, q, x, None, f"{place}.self_attn", architecture)

                def attend_memory(x):
                    q = graph.add("Add", x, query_pos)
                    name = f"{place}.multihead_attn"
                    return attention(graph, q, keys, memory, ignored, name, architecture)

                x = residual(graph, x, attend_queries, f"{place}.norm1", architecture)
                x = residual(graph, x, attend_memory, f"{place}.norm2", architecture)
                x = residual(graph, x, feed_forward(graph, place), f"{place}.norm3", architecture)
        return graph.layer_norm(x, "transformer.decoder.norm")


def residual(graph, x, function, norm, architecture):
    """x plus function of it, normalised after that, or with --pre_norm before the function."""
    with graph.scope(norm.split(".")[-1]):
        if architecture.pre_norm:
            return graph.add("Add", x, function(graph.layer_norm(x, norm)))
        return graph.layer_norm(graph.add("Add", x, function(x)), norm)


def feed_forward(graph, place):
    def function(x):
        hidden = graph.add("Relu", graph.linear(x, f"{place}.linear1"))
        return graph.linear(hidden, f"{place}.linear2")

    return function


def attention(graph, query, key, value, ignored, name, architecture):
    """Scaled dot-product attention: query [B, N, C], key and value [B, M, C] -> [B, N, C].

    ignored: [B, 1, 1, M] to add to the scores, or None; name: of the weights.
    """
    dim, heads = architecture.hidden_dim, architecture.nheads
    with graph.scope(name.split(".")[-1]):
        projected = []
        for i, (x, order) in enumerate(
            ((query, [0, 2, 1, 3]), (key, [0, 2, 3, 1]), (value, [0, 2, 1, 3]))
        ):
            rows = i * dim, (i + 1) * dim
            x = graph.affine(x, f"{name}.in_proj_weight", f"{name}.in_proj_bias", rows)
            x = graph.reshape(x, 0, -1, heads, dim // heads)
            projected.append(graph.add("Transpose", x, perm=order))
        q, k, v = projected
        q = graph.add("Div", q, graph.constant(math.sqrt(dim // heads)))
        scores = graph.add("MatMul", q, k)
        if ignored is not None:
            scores = graph.add("Add", scores, ignored)
        found = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), v)
        found = graph.reshape(graph.add("Transpose", found, perm=[0, 2, 1, 3]), 0, -1, dim)
        return graph.linear(found, f"{name}.out_proj")


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


def bbox_attention(graph, hs, memory, ignored, like, architecture):
    """Where each query looks: hs [B, Q, C], memory [B, N, C] -> [B * Q, heads, h, w].

    The softmax of a query goes over all heads at once. like: a map [B, _, h, w].
    """
    dim, heads = architecture.hidden_dim, architecture.nheads
    width = dim // heads
    with graph.scope("bbox_attention"):
        q = graph.linear(hs, "bbox_attention.q_linear")
        q = graph.add("Mul", q, graph.constant(width**-0.5))
        q = graph.add("Transpose", graph.reshape(q, 0, -1, heads, width), perm=[0, 2, 1, 3])
        k = graph.linear(memory, "bbox_attention.k_linear")
        k = graph.add("Transpose", graph.reshape(k, 0, -1, heads, width), perm=[0, 2, 3, 1])
        scores = graph.add("Add", graph.add("MatMul", q, k), ignored)
        scores = graph.add("Transpose", scores, perm=[0, 2, 1, 3])
        weights = graph.add("Softmax", graph.reshape(scores, 0, 0, -1), axis=-1)
        return graph.reshape(weights, -1, heads, graph.side(like, 2), graph.side(like, 3))


def mask_head(graph, image, attention, maps, architecture):
    """The mask of each query, logits.

    image [B, C, h, w], attention [B * Q, heads, h, w], maps: of the backbone, smallest first
    -> [B, Q, H / 4, W / 4]
    """
    queries, dim = architecture.num_queries, architecture.hidden_dim
    around = dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    def add(x, features):
        """x [B * Q, C, h, w] resized to features [B, C, H, W], plus those of its image."""
        x = graph.resize_nearest(x, features, [(2, 2), (3, 3)])
        sides = [graph.side(features, axis) for axis in (1, 2, 3)]
        of_images = graph.reshape(x, -1, queries, *sides)
        features = graph.add("Unsqueeze", features, graph.constant([1]))
        return graph.reshape(graph.add("Add", of_images, features), -1, *sides)

    with graph.scope("mask_head"):
        # lay1 of image and attention side by side is the sum of two convolutions; that of the image
        # is the same for all queries.
        weight = graph.weights["mask_head.lay1.weight"]
        parts = []
        for name, x, part in (
            ("image", image, weight[:, :dim]),
            ("maps", attention, weight[:, dim:]),
        ):
            inputs = [x, graph.weight(f"mask_head.lay1.weight.{name}", part)]
            if name == "image":
                inputs.append(graph.weight("mask_head.lay1.bias"))
            parts.append(graph.add("Conv", *inputs, **around))
        x = add(parts[1], parts[0])
        for number in range(1, 6):
            with graph.scope(f"lay{number}"):
                if number > 2:
                    stage = graph.conv(maps[number - 3], f"mask_head.adapter{number - 2}")
                    x = add(x, stage)
                if number > 1:
                    x = graph.conv(x, f"mask_head.lay{number}", **around)
                x = graph.add("Relu", graph.group_norm(x, f"mask_head.gn{number}", 8))
        x = graph.conv(x, "mask_head.out_lay", **around)
        return graph.reshape(x, -1, queries, graph.side(x, 2), graph.side(x, 3))
