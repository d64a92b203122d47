"""Weights and batches that both interpreters make for themselves, bit by bit the same, from names
and seeds.

NumPy only: the original's interpreter imports this file too. Nothing large has to be stored or
sent.
"""

import math
import zlib

import numpy as np

# name -> flags that differ from the small base configuration
CASES = {
    "resnet18": {"backbone": "resnet18"},
    "resnet50": {"backbone": "resnet50"},
    "resnet50-dc5": {"backbone": "resnet50", "dilation": True},
    "resnet101": {"backbone": "resnet101"},
    "learned": {"backbone": "resnet18", "position_embedding": "learned"},
    "pre-norm": {"backbone": "resnet18", "pre_norm": True},
    "pre-norm-learned": {"backbone": "resnet18", "pre_norm": True, "position_embedding": "learned"},
    "group-norm": {"backbone": "resnet18", "backbone_norm": "group"},
    "tiny": {"backbone": "tiny", "backbone_norm": "batch"},
    "masks": {
        "backbone": "resnet50",
        "masks": True,
        "enc_layers": 1,
        "dec_layers": 2,
        "num_queries": 20,
    },
    "masks-frozen": {
        "backbone": "resnet50",
        "masks": True,
        "frozen_weights": "box.pkl",
        "enc_layers": 1,
        "dec_layers": 1,
        "num_queries": 12,
    },
    "masks-no-objects": {
        "backbone": "resnet50",
        "masks": True,
        "enc_layers": 1,
        "dec_layers": 1,
        "num_queries": 7,
    },
    "panoptic": {
        "backbone": "resnet50",
        "masks": True,
        "dataset_file": "coco_panoptic",
        "enc_layers": 1,
        "dec_layers": 1,
        "num_queries": 30,
    },
    "no-objects": {"backbone": "resnet18"},
    "one-layer": {"backbone": "resnet18", "dec_layers": 1, "enc_layers": 0},
    "more-objects-than-queries": {"backbone": "resnet18", "num_queries": 5},
}
# sizes (height, width) of the images of a batch and their numbers of objects
SIZES = {"default": ((160, 224), (128, 250)), "resnet50": ((201, 333), (256, 190), (64, 64))}
SMALL = ((64, 96), (80, 64), (33, 70))
OBJECTS = {
    "default": (3, 0),
    "no-objects": (0, 0),
    "masks-no-objects": (0, 0),
    "resnet50": (7, 1, 0),
    "more-objects-than-queries": (12, 2),
}


def flags(case):
    """The flags of the original's main.py for a case, with dropout 0 and the original's sizes."""
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


# Biases of the backbone are far from 0, so that rounding decides the sign of few units before a
# ReLU.
RELU_BIAS = 2.5


# Training multiplies rounding errors. At the original's learning rate the original itself, started
# 1e-7 away, is 1e-2 off after 10 steps of the recipe's random weights; at 1e-5 (resnet50) it is
# 2e-3 off after 20. Hence a small rate, and two batches in turn.
TRAINING = {"lr": 2e-6, "lr_backbone": 2e-7}
TRAINING_BATCHES = 2


def make_weights(shapes, relu_bias=RELU_BIAS):
    """name -> float32 array for name -> shape, scaled so that activations keep the size they have
    in a trained model.

    (Large ones would saturate the attention, and rounding errors would hide or fake differences.)
    """
    return {name: _weight(name, tuple(shape), shapes, relu_bias) for name, shape in shapes.items()}


def make_detector(shapes):
    """As make_weights, but detections differ from query to query and image to image, in scores,
    classes and boxes.

    Attention near its mean makes all queries of a random DETR alike: here places keep their
    differences through the encoder, and the decoder looks sharply.
    """
    weights = make_weights(shapes, relu_bias=0.1)
    for name in weights:
        if name.endswith("input_proj.weight"):
            weights[name] = 4 * (
                weights[name] - weights[name].mean(1, keepdims=True, dtype=np.float32)
            )
        if name.endswith("query_embed.weight"):
            weights[name] *= 4
        if "self_attn.out_proj" in name:
            weights[name] *= np.float32(0.1)
        if "decoder" in name and "in_proj_weight" in name:
            weights[name][: 2 * weights[name].shape[1]] *= 3
        if "multihead_attn.out_proj" in name:
            weights[name] *= 3
        if name == "bbox_attention.q_linear.weight":
            weights[name] *= 10
    return weights


def make_panoptic_detector(shapes):
    """As make_detector, sure of its classes, some of them things and some stuff, and with masks
    that differ.

    What comes from the image alone is the same in the masks of all queries; where it is strong,
    rounding decides which mask wins a pixel.
    """
    weights = make_detector(shapes)
    weights["detr.class_embed.weight"] = 4 * np.roll(weights["detr.class_embed.weight"], 30, axis=0)
    # The original knows no further whether they are things.
    weights["detr.class_embed.bias"][201:250] = -1000
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
            u[:, 256:] *= (
                1000  # attention maps are small beside the image; masks should depend on them
            )
        u = math.sqrt((1 if name.endswith("input_proj.weight") else 6) / np.prod(shape[1:])) * u
    elif len(shape) == 2:
        # Scores that spread as a trained model's do: with nearly equal ones, rounding would decide
        # their order.
        u = math.sqrt(6 / sum(shape)) * u * (4 if name.endswith("class_embed.weight") else 1)
    elif name.endswith("bias"):
        u = np.sign(u) * (relu_bias + 0.5 * np.abs(u)) if "body" in name else 0.1 * u
    else:
        u = _norm_scale(name, names) * (1 + 0.2 * u)
    return np.ascontiguousarray(u, np.float32)


def _norm_scale(name, names):
    """Residual branches are small beside the main one: the sum over all blocks must not grow."""
    if "downsample" in name or name.endswith("body.bn1.weight"):
        return 0.5
    last_of_block = name.endswith("bn3.weight") or (
        name.endswith("bn2.weight") and name.replace("bn2", "bn3") not in names
    )
    return 0.25 if last_of_block else 1


def make_batch(case, seed=0, small=False):
    """images: list of float32 [3, h, w]; targets: list of dictionaries labels int64 [n], boxes
    float32 [n, 4] cxcywh, masks bool [n, h, w], ellipses in the boxes.
    """
    sizes = SMALL if small else SIZES.get(case, SIZES["default"])
    rng = np.random.default_rng([seed, zlib.crc32(case.encode())])
    images, targets = [], []
    counts = OBJECTS.get(case, OBJECTS["default"])
    for (h, w), n in zip(sizes, counts):
        coarse = rng.random((3, -(-h // 8), -(-w // 8))) * 4 - 2
        image = np.kron(coarse, np.ones((1, 8, 8)))[:, :h, :w] + rng.random((3, h, w)) - 0.5
        images.append(np.ascontiguousarray(image, np.float32))
        size = 0.05 + 0.5 * rng.random((n, 2))
        centre = size / 2 + (1 - size) * rng.random((n, 2))
        y, x = np.mgrid[:h, :w] / np.array([h, w]).reshape(2, 1, 1)
        ellipses = [
            ((x - cx) / sx) ** 2 + ((y - cy) / sy) ** 2 < 0.25
            for (cx, cy), (sx, sy) in zip(centre, size)
        ]
        targets.append(
            {
                "labels": rng.integers(1, 91, n).astype(np.int64),
                "boxes": np.concatenate([centre, size], 1).astype(np.float32).reshape(n, 4),
                "masks": np.array(ellipses, bool).reshape(n, h, w),
            }
        )
    return images, targets


def make_share(seed, rank, batch_size):
    """The batch of one of several processes, as make_batch's: images of one size, and another
    number of objects for each process, none for the first.
    """
    rng = np.random.default_rng([seed, rank, batch_size])
    images, targets = [], []
    for image in range(batch_size):
        coarse = rng.random((3, 8, 12)) * 4 - 2
        images.append(
            np.ascontiguousarray(
                np.kron(coarse, np.ones((1, 8, 8))) + rng.random((3, 64, 96)) - 0.5, np.float32
            )
        )
        n = rank * (2 + image)
        size = 0.05 + 0.5 * rng.random((n, 2))
        centre = size / 2 + (1 - size) * rng.random((n, 2))
        targets.append(
            {
                "labels": rng.integers(1, 91, n).astype(np.int64),
                "boxes": np.concatenate([centre, size], 1).astype(np.float32).reshape(n, 4),
            }
        )
    return images, targets


def make_panoptic_outputs(images=4, queries=30):
    """What a model with masks returns: blobs at places of their own, most with a class it is sure
    of, some of them stuff.

    Returns ({"pred_logits" [B, Q, 251], "pred_boxes" [B, Q, 4], "pred_masks" [B, Q, h, w]},
    float32; sizes in the batch and wanted sizes, int64 [B, 2]).
    """
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:50, :67]
    logits = rng.normal(0, 1, (images, queries, 251))
    classes = rng.choice([1, 2, 17, 90, 95, 120, 249, 250], (images, queries))
    np.put_along_axis(logits, classes[:, :, None], rng.uniform(5, 14, (images, queries, 1)), axis=2)
    centre, size = (
        rng.uniform(0, 1, (images, queries, 2, 1, 1)),
        rng.uniform(0.05, 0.3, (images, queries, 2, 1, 1)),
    )
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
