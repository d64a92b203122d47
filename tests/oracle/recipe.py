"""Weights and batches that both interpreters make from names and seeds, identical bit for bit.

NumPy only: the original's interpreter imports this file too. Nothing large has to be stored.
"""

import math
import zlib

import numpy as np

RESNET18 = {"backbone": "resnet18"}
MASKS = {"backbone": "resnet50", "masks": True, "enc_layers": 1, "dec_layers": 1}
# name -> flags that differ from the small base configuration
CASES = {
    "resnet18": RESNET18,
    "resnet50": {"backbone": "resnet50"},
    "resnet50-dc5": {"backbone": "resnet50", "dilation": True},
    "resnet101": {"backbone": "resnet101"},
    "learned": {**RESNET18, "position_embedding": "learned"},
    "pre-norm": {**RESNET18, "pre_norm": True},
    "pre-norm-learned": {**RESNET18, "pre_norm": True, "position_embedding": "learned"},
    "group-norm": {**RESNET18, "backbone_norm": "group"},
    "tiny": {"backbone": "tiny", "backbone_norm": "batch"},
    "masks": {**MASKS, "dec_layers": 2, "num_queries": 20},
    "masks-frozen": {**MASKS, "frozen_weights": "box.pkl", "num_queries": 12},
    "masks-no-objects": {**MASKS, "num_queries": 7},
    "panoptic": {**MASKS, "dataset_file": "coco_panoptic", "num_queries": 30},
    "no-objects": RESNET18,
    "one-layer": {**RESNET18, "dec_layers": 1, "enc_layers": 0},
    "more-objects-than-queries": {**RESNET18, "num_queries": 5},
}
# (height, width) of the images of a batch, and their numbers of objects
SIZES = {"default": ((160, 224), (128, 250)), "resnet50": ((201, 333), (256, 190), (64, 64))}
SMALL = ((64, 96), (80, 64), (33, 70))
OBJECTS = {
    "default": (3, 0),
    "no-objects": (0, 0),
    "masks-no-objects": (0, 0),
    "resnet50": (7, 1, 0),
    "more-objects-than-queries": (12, 2),
}
# Training multiplies rounding errors. At the original's learning rate the original itself, started
# 1e-7 away, is 1e-2 off after 10 steps from these weights; at 1e-5 (resnet50) 2e-3 after 20. Hence
# a small rate, and two batches in turn.
TRAINING = {"lr": 2e-6, "lr_backbone": 2e-7}
TRAINING_BATCHES = 2
# Biases of the backbone are far from 0, so that rounding decides few signs before a ReLU.
RELU_BIAS = 2.5


def flags(case):
    """Return the flags of the original's main.py for a case, with dropout 0."""
    base = dict(
        weight_decay=1e-4,
        clip_max_norm=0.1,
        lr_drop=200,
        dilation=False,
        backbone_norm="frozen",
        position_embedding="sine",
        enc_layers=6,
        dec_layers=6,
        dim_feedforward=2048,
        hidden_dim=256,
        dropout=0.0,
        nheads=8,
        num_queries=100,
        pre_norm=False,
        masks=False,
        aux_loss=True,
        frozen_weights=None,
        set_cost_class=1,
        set_cost_bbox=5,
        set_cost_giou=2,
        mask_loss_coef=1,
        dice_loss_coef=1,
        bbox_loss_coef=5,
        giou_loss_coef=2,
        eos_coef=0.1,
        dataset_file="coco",
        device="cpu",
        seed=42,
        **TRAINING,
    )
    return {**base, **CASES[case]}


def make_weights(shapes, relu_bias=RELU_BIAS):
    """Return name -> float32 array for name -> shape, with activations as large as after training.

    Larger ones would saturate the attention, and rounding errors would hide or fake differences.
    """
    return {name: _weight(name, tuple(shape), shapes, relu_bias) for name, shape in shapes.items()}


def make_detector(shapes):
    """Return weights as make_weights does, whose detections differ between queries and images.

    In a random DETR attention is near its mean, which makes all queries alike: here positions keep
    their differences through the encoder, and the decoder's attention is sharp.
    """
    weights = make_weights(shapes, relu_bias=0.1)
    for name, weight in weights.items():
        if name.endswith("input_proj.weight"):
            weights[name] = 4 * (weight - weight.mean(1, keepdims=True, dtype=np.float32))
        if name.endswith("query_embed.weight"):
            weight *= 4
        if "self_attn.out_proj" in name:
            weight *= np.float32(0.1)
        if "decoder" in name and "in_proj_weight" in name:
            weight[: 2 * weight.shape[1]] *= 3
        if "multihead_attn.out_proj" in name:
            weight *= 3
        if name == "bbox_attention.q_linear.weight":
            weight *= 10
    return weights


def make_panoptic_detector(shapes):
    """Return weights as make_detector does, with confident classes, things and stuff, and masks.

    The part of a mask that comes from the image alone is the same for all queries; if it is strong,
    rounding decides which mask wins a pixel.
    """
    weights = make_detector(shapes)
    weights["detr.class_embed.weight"] = 4 * np.roll(weights["detr.class_embed.weight"], 30, axis=0)
    weights["detr.class_embed.bias"][201:250] = -1000  # the original's map of things ends there
    weights["bbox_attention.q_linear.weight"] *= np.float32(0.2)
    weights["mask_head.lay1.weight"][:, :256] *= np.float32(0.02)
    for i in (1, 2, 3):
        weights[f"mask_head.adapter{i}.weight"] *= np.float32(0.02)
    return weights


def _weight(name, shape, names, relu_bias):
    u = np.random.default_rng(zlib.crc32(name.encode())).random(shape, dtype=np.float64) * 2 - 1
    if name.endswith("running_var"):
        u = 1 + 0.5 * u
    elif name.endswith("running_mean"):
        u = 0.1 * u
    elif "embed.weight" in name and "class" not in name:
        u = math.sqrt(3) * u
    elif len(shape) == 4:
        if name == "mask_head.lay1.weight":
            u[:, 256:] *= 1000  # attention maps are small, and masks should depend on them
        u = math.sqrt((1 if name.endswith("input_proj.weight") else 6) / np.prod(shape[1:])) * u
    elif len(shape) == 2:
        # Scores spread as after training; if they were nearly equal, rounding would order them.
        u = math.sqrt(6 / sum(shape)) * u * (4 if name.endswith("class_embed.weight") else 1)
    elif name.endswith("bias"):
        u = np.sign(u) * (relu_bias + 0.5 * np.abs(u)) if "body" in name else 0.1 * u
    else:
        u = _norm_scale(name, names) * (1 + 0.2 * u)
    return np.ascontiguousarray(u, np.float32)


def _norm_scale(name, names):
    """Return a small scale for residual branches: the sum over all blocks must not grow."""
    if "downsample" in name or name.endswith("body.bn1.weight"):
        return 0.5
    last_of_block = name.endswith("bn3.weight") or (
        name.endswith("bn2.weight") and name.replace("bn2", "bn3") not in names
    )
    return 0.25 if last_of_block else 1


def _make_image(rng, height, width):
    coarse = rng.random((3, -(-height // 8), -(-width // 8))) * 4 - 2
    image = np.kron(coarse, np.ones((1, 8, 8)))[:, :height, :width]
    return np.ascontiguousarray(image + rng.random((3, height, width)) - 0.5, np.float32)


def _make_boxes(rng, n):
    """Return centres and sizes of n boxes inside the image, float64 [n, 2] each."""
    size = 0.05 + 0.5 * rng.random((n, 2))
    return size / 2 + (1 - size) * rng.random((n, 2)), size


def _make_target(rng, centre, size):
    boxes = np.concatenate([centre, size], 1).astype(np.float32)
    return {"labels": rng.integers(1, 91, len(boxes)).astype(np.int64), "boxes": boxes}


def make_batch(case, seed=0, small=False):
    """Return the images and targets of a case: list of float32 [3, h, w], and dictionaries of
    labels int64 [n], boxes float32 [n, 4] cxcywh, and masks bool [n, h, w], ellipses in the boxes.
    """
    sizes = SMALL if small else SIZES.get(case, SIZES["default"])
    counts = OBJECTS.get(case, OBJECTS["default"])
    rng = np.random.default_rng([seed, zlib.crc32(case.encode())])
    images, targets = [], []
    for (h, w), n in zip(sizes, counts):
        images.append(_make_image(rng, h, w))
        centre, size = _make_boxes(rng, n)
        y, x = np.mgrid[:h, :w] / np.array([h, w]).reshape(2, 1, 1)
        ellipses = [
            ((x - cx) / sx) ** 2 + ((y - cy) / sy) ** 2 < 0.25
            for (cx, cy), (sx, sy) in zip(centre, size)
        ]
        target = _make_target(rng, centre, size)
        targets.append({**target, "masks": np.array(ellipses, bool).reshape(n, h, w)})
    return images, targets


def make_share(seed, rank, batch_size):
    """Return the batch of one process as make_batch does, without masks.

    All images have one size; the number of objects differs between ranks, none for rank 0.
    """
    rng = np.random.default_rng([seed, rank, batch_size])
    images, targets = [], []
    for i in range(batch_size):
        images.append(_make_image(rng, 64, 96))
        targets.append(_make_target(rng, *_make_boxes(rng, rank * (2 + i))))
    return images, targets


def make_panoptic_outputs(images=4, queries=30):
    """Return outputs of a model with masks: blobs, most of a confident class, some of them stuff.

    Returns {"pred_logits" [B, Q, 251], "pred_boxes" [B, Q, 4], "pred_masks" [B, Q, h, w]}, float32;
    sizes in the batch and target sizes, int64 [B, 2].
    """
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:50, :67]
    logits = rng.normal(0, 1, (images, queries, 251))
    classes = rng.choice([1, 2, 17, 90, 95, 120, 249, 250], (images, queries))
    np.put_along_axis(logits, classes[:, :, None], rng.uniform(5, 14, (images, queries, 1)), axis=2)
    centre = rng.uniform(0, 1, (images, queries, 2, 1, 1))
    size = rng.uniform(0.05, 0.3, (images, queries, 2, 1, 1))
    distance = ((y / 50 - centre[:, :, 0]) / size[:, :, 0]) ** 2 + (
        (x / 67 - centre[:, :, 1]) / size[:, :, 1]
    ) ** 2
    outputs = {
        "pred_logits": logits,
        "pred_boxes": rng.uniform(0.2, 0.8, (images, queries, 4)),
        "pred_masks": 4 - distance,
    }
    sizes = np.array([[200, 267], [180, 240], [200, 150], [133, 200]])[:images]
    target_sizes = np.array([[100, 131], [270, 360], [400, 300], [133, 200]])[:images]
    return {name: array.astype(np.float32) for name, array in outputs.items()}, sizes, target_sizes
