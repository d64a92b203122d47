"""Our side of the comparison with the original: the same results, under the same names, as
oracle/run_model.py.
"""

import argparse

import numpy as np
import recipe
import tiny

from arguments import get_args_parser
from models.attention import record_attention
from models.weights.model import load_model_state
from util.backend import jt
from util.misc import nested_tensor_from_arrays
from util.optim import build_optimizer


def arguments(case):
    return argparse.Namespace(**{**vars(get_args_parser().parse_args([])), **recipe.flags(case)})


def build(case):
    args = arguments(case)
    model, criterion, postprocessors = tiny.build(args)
    weights = recipe.make_weights({name: tuple(p.shape) for name, p in model.state_dict().items()})
    load_model_state(model, weights, "the recipe")
    return args, model, criterion, postprocessors


def loss_of(model, criterion, images, targets, num_boxes=None):
    outputs = model(nested_tensor_from_arrays(images).to_jittor())
    losses = criterion(outputs, targets, num_boxes)
    return sum(losses[name] * weight for name, weight in criterion.weight_dict.items())


def compare(case):
    """Outputs of every layer, matching, losses, gradients and detections for the case's batch."""
    _, model, criterion, postprocessors = build(case)
    model.train()  # dropout is 0; `eval` would stop the gradients
    images, targets = recipe.make_batch(case)
    outputs = model(nested_tensor_from_arrays(images).to_jittor())
    layers = [*outputs.get("aux_outputs", []), outputs]
    out = {
        "logits": np.stack([layer["pred_logits"].numpy() for layer in layers]),
        "boxes": np.stack([layer["pred_boxes"].numpy() for layer in layers]),
    }
    for i, pairs in enumerate(criterion.matcher(out["logits"], out["boxes"], targets)):
        for j, (query, obj) in enumerate(pairs):
            out[f"match/{i}/{j}"] = np.stack([query, obj])
    if "pred_masks" in outputs:
        out["masks"] = outputs["pred_masks"].numpy()
    losses = criterion(outputs, targets)
    out.update({f"loss/{name}": float(value) for name, value in losses.items()})
    results = postprocessors["bbox"](
        outputs, [(image.shape[1] * 2 + 1, image.shape[2] * 2 + 1) for image in images]
    )
    for key, name in (("scores", "scores"), ("labels", "labels"), ("boxes", "pixels")):
        out[name] = np.stack([result[key] for result in results])
    trainable = {name: p for name, p in model.named_parameters() if not p.is_stop_grad()}
    for seed in range(3):
        loss = loss_of(model, criterion, *recipe.make_batch(case, seed, small=True))
        out.update(
            {
                f"grad/{seed}/{name}": g.numpy()
                for name, g in zip(trainable, jt.grad(loss, list(trainable.values())))
            }
        )
    return out


def run(model, samples):
    """Return logits, boxes and, if there are any, masks of a NestedTensor of arrays, as arrays."""
    model.eval()
    with jt.no_grad():
        outputs = model(samples.to_jittor())
    names = [name for name in outputs if name.startswith("pred_")]
    return {name.removeprefix("pred_"): outputs[name].numpy() for name in names}


def gradient_distances(theirs, mine):
    """name -> relative L2 distance of a parameter's gradient: the smallest of three batches.

    theirs, mine: what `compare` returns, of the original or of another device.

    A unit whose sign before a ReLU is decided by rounding changes the gradient of everything below
    it, on either side; an error of ours shows in every batch. Where the true gradient is zero (the
    first decoder layer attends over equal values) there are only rounding errors to compare: those
    must be small beside the whole gradient.
    """
    total = np.sqrt(
        sum(np.sum(np.square(theirs[name])) for name in theirs if name.startswith("grad/0/"))
    )
    distances = {}
    for name in (n[len("grad/0/") :] for n in theirs if n.startswith("grad/0/")):
        norms = [np.linalg.norm(theirs[f"grad/{i}/{name}"]) for i in range(3)]
        differences = [
            np.linalg.norm(mine[f"grad/{i}/{name}"] - theirs[f"grad/{i}/{name}"]) for i in range(3)
        ]
        if norms[0] < 1e-6 * total:
            assert differences[0] < 1e-6 * total, name
        else:
            distances[name] = min(d / n for d, n in zip(differences, norms))
    return distances


def attention(case):
    """Where the last layers look, for the case's batch."""
    _, model, _, _ = build(case)
    model.eval()
    with jt.no_grad(), record_attention(model.transformer) as seen:
        model(nested_tensor_from_arrays(recipe.make_batch(case)[0]).to_jittor())[
            "pred_boxes"
        ].sync()
    return seen


def train(case, steps):
    """The loss at each of `steps` training steps, taken as engine.py takes them, and then the
    statistics of BatchNorm.
    """
    args, model, criterion, _ = build(case)
    model.train()
    optimizer = build_optimizer(model, args)
    values = []
    for step in range(steps):
        loss = loss_of(model, criterion, *recipe.make_batch(case, step % recipe.TRAINING_BATCHES))
        values.append(loss.item())
        optimizer.backward(loss)
        optimizer.clip_grad_norm(args.clip_max_norm)
        optimizer.step()
    return {
        "losses": np.array(values),
        **{name: p.numpy() for name, p in model.named_parameters() if "running" in name},
    }
