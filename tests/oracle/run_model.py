"""Run the original model on the recipe's weights and batches, in its own interpreter:

    ORACLE_PYTHON tests/oracle/run_model.py [--steps N | --attention | --init] CASE OUT.npz

OUT.npz holds logits and boxes of every decoder layer, `match/LAYER/IMAGE`, `loss/NAME`, `scores`,
`labels`, `pixels` of the postprocessor, and `grad/BATCH/PARAMETER` of three small batches.
--steps: `losses` [N] and BatchNorm's statistics. --attention: `encoder` [B, N, N] and `decoder`
[B, Q, N]. --init: of each tensor before weights are loaded `NAME/shape`, and `NAME/figures`: mean,
standard deviation, minimum and maximum.
"""

import argparse
import os
import sys
from pathlib import Path

import detr.models.backbone
import detr.models.detr
import numpy as np
import torch
import torch.distributed
from detr.models import build_model
from detr.util.misc import nested_tensor_from_tensor_list

sys.path.insert(0, str(Path(__file__).parent))
import recipe  # noqa: E402
from backbones import build_backbone  # noqa: E402

THEIR_BACKBONE = detr.models.detr.build_backbone
detr.models.backbone.is_main_process = lambda: False  # no download of ImageNet weights


def build_with(args):
    detr.models.detr.build_backbone = (
        THEIR_BACKBONE if args.backbone_norm == "frozen" else build_backbone
    )
    return build_model(args)


def load_weights(model, weights):
    """Load name -> array."""
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})


def build(case, make_weights=recipe.make_weights):
    model, criterion, postprocessors = build_with(argparse.Namespace(**recipe.flags(case)))
    load_weights(model, make_weights({name: p.shape for name, p in model.state_dict().items()}))
    return model, criterion, postprocessors


def to_torch(images, targets):
    samples = nested_tensor_from_tensor_list([torch.from_numpy(image) for image in images])
    return samples, [{k: torch.from_numpy(v) for k, v in target.items()} for target in targets]


def weighted_loss(criterion, losses):
    """Return the total loss as the original's engine does: auxiliary layers have no mask losses."""
    weights = criterion.weight_dict.items()
    return sum(losses[name] * weight for name, weight in weights if name in losses)


def compare(case):
    model, criterion, postprocessors = build(case)
    model.train()  # dropout is 0; BatchNorm, if not frozen, is compared as it trains
    images, host_targets = recipe.make_batch(case)
    samples, targets = to_torch(images, host_targets)
    outputs = model(samples)
    layers = [*outputs.get("aux_outputs", []), outputs]
    out = {
        "logits": np.stack([layer["pred_logits"].detach() for layer in layers]),
        "boxes": np.stack([layer["pred_boxes"].detach() for layer in layers]),
    }
    for i, layer in enumerate(layers):
        for j, (query, obj) in enumerate(criterion.matcher(layer, targets)):
            out[f"match/{i}/{j}"] = np.stack([query, obj])
    if "pred_masks" in outputs:
        out["masks"] = outputs["pred_masks"].detach().numpy()
    losses = criterion(outputs, targets)
    out.update({f"loss/{name}": float(value) for name, value in losses.items()})
    sizes = torch.tensor([image.shape[1:] for image in images]) * 2 + 1
    results = postprocessors["bbox"](outputs, sizes)
    for key, name in (("scores", "scores"), ("labels", "labels"), ("boxes", "pixels")):
        out[name] = np.stack([result[key].detach() for result in results])
    for seed in range(3):
        model.zero_grad()
        samples, targets = to_torch(*recipe.make_batch(case, seed, small=True))
        weighted_loss(criterion, criterion(model(samples), targets)).backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                out[f"grad/{seed}/{name}"] = p.grad.numpy().copy()
    return out


def attention(case):
    """Return the attention of the last layers, the mean over the heads."""
    model, _, _ = build(case)
    model.eval()
    attention = {}
    for name, module in (
        ("encoder", model.transformer.encoder.layers[-1].self_attn),
        ("decoder", model.transformer.decoder.layers[-1].multihead_attn),
    ):
        module.register_forward_hook(
            lambda _module, _inputs, result, name=name: attention.update(
                {name: result[1].detach().numpy()}
            )
        )
    with torch.no_grad():
        model(to_torch(*recipe.make_batch(case))[0])
    return attention


def describe_init(case):
    torch.manual_seed(42)
    model, _, _ = build_model(argparse.Namespace(**recipe.flags(case)))
    out = {}
    for name, tensor in model.state_dict().items():
        values = tensor.double().numpy()
        out[f"{name}/shape"] = np.array(values.shape)
        out[f"{name}/figures"] = np.array([values.mean(), values.std(), values.min(), values.max()])
    return out


def build_optimizer(model, args):
    """Build AdamW as the original's main.py does, the backbone with its own learning rate."""
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for name, p in trainable if "backbone" not in name]},
            {"params": [p for name, p in trainable if "backbone" in name], "lr": args.lr_backbone},
        ],
        lr=args.lr,
        weight_decay=args.weight_decay,
    )


def join_processes(rank, options):
    """Join the process group (gloo) of options.processes processes on options.port."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(options.port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=options.processes)
    torch.set_num_threads(1)


def train_step(model, criterion, optimizer, batch, max_norm):
    """Take a training step as the original's engine does; return the losses."""
    samples, targets = to_torch(*batch)
    losses = criterion(model(samples), targets)
    optimizer.zero_grad()
    weighted_loss(criterion, losses).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return losses


def train(case, steps):
    args = argparse.Namespace(**recipe.flags(case))
    model, criterion, _ = build(case)
    model.train()
    optimizer = build_optimizer(model, args)
    values = []
    for step in range(steps):
        batch = recipe.make_batch(case, step % recipe.TRAINING_BATCHES)
        losses = train_step(model, criterion, optimizer, batch, args.clip_max_norm)
        values.append(weighted_loss(criterion, losses).item())
    statistics = {name: b.numpy() for name, b in model.named_buffers() if "running" in name}
    return {"losses": np.array(values), **statistics}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("case")
    parser.add_argument("out")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--attention", action="store_true")
    parser.add_argument("--init", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.steps:
        result = train(options.case, options.steps)
    else:
        run = attention if options.attention else describe_init if options.init else compare
        result = run(options.case)
    np.savez(options.out, **result)
