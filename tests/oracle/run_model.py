"""Runs the original model on the recipe's weights and batches. Its own interpreter runs this file:

    ORACLE_PYTHON tests/oracle/run_model.py [--steps N | --attention] CASE OUT.npz

OUT.npz holds, without --steps: logits and boxes of every decoder layer, `match/LAYER/IMAGE`,
`loss/NAME`, `scores`, `labels`, `pixels` of the postprocessor, and `grad/BATCH/PARAMETER` for three
small batches. With --steps: `losses` [N]. With --attention: `encoder` [B, N, N] and `decoder` [B,
Q, N].
"""

import argparse
import sys
from pathlib import Path

import detr.models.backbone
import detr.models.detr
import numpy as np
import torch
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


def build(case):
    model, criterion, postprocessors = build_with(argparse.Namespace(**recipe.flags(case)))
    weights = recipe.make_weights({name: p.shape for name, p in model.state_dict().items()})
    model.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
    return model, criterion, postprocessors


def to_torch(images, targets, dtype=torch.float32):
    """dtype: of the images and the boxes."""
    samples = nested_tensor_from_tensor_list([torch.from_numpy(image) for image in images])
    samples.tensors = samples.tensors.to(dtype)
    targets = [{k: torch.from_numpy(v) for k, v in target.items()} for target in targets]
    return samples, [{**target, "boxes": target["boxes"].to(dtype)} for target in targets]


def weighted_loss(criterion, losses):
    # as the original's engine: weights of losses that there are not (masks of auxiliary layers) are
    # passed over
    return sum(
        losses[name] * weight for name, weight in criterion.weight_dict.items() if name in losses
    )


def compare(case):
    model, criterion, postprocessors = build(case)
    model.train()  # dropout is 0; BatchNorm, where it is not frozen, is compared as it trains
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
        out.update(
            {
                f"grad/{seed}/{name}": p.grad.numpy().copy()
                for name, p in model.named_parameters()
                if p.grad is not None
            }
        )
    return out


def attention(case):
    """Where the last layers look, as PyTorch's attention returns it beside its result: the mean
    over the heads.
    """
    model, _, _ = build(case)
    model.eval()
    seen = {}
    for name, module in (
        ("encoder", model.transformer.encoder.layers[-1].self_attn),
        ("decoder", model.transformer.decoder.layers[-1].multihead_attn),
    ):
        module.register_forward_hook(
            lambda _module, _inputs, result, name=name: seen.update(
                {name: result[1].detach().numpy()}
            )
        )
    with torch.no_grad():
        model(to_torch(*recipe.make_batch(case))[0])
    return seen


def build_optimizer(model, args):
    """AdamW as the original's main.py makes it, the backbone with its own learning rate."""
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for name, p in trainable if "backbone" not in name]},
            {"params": [p for name, p in trainable if "backbone" in name], "lr": args.lr_backbone},
        ],
        lr=args.lr,
        weight_decay=args.weight_decay,
    )


def train(case, steps):
    """Training steps as the original's engine takes them."""
    args = argparse.Namespace(**recipe.flags(case))
    model, criterion, _ = build(case)
    model.train()
    optimizer = build_optimizer(model, args)
    values = []
    for step in range(steps):
        samples, targets = to_torch(*recipe.make_batch(case, step % recipe.TRAINING_BATCHES))
        loss = weighted_loss(criterion, criterion(model(samples), targets))
        values.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip_max_norm)
        optimizer.step()
    return {
        "losses": np.array(values),
        **{name: value.numpy() for name, value in model.named_buffers() if "running" in name},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("case")
    parser.add_argument("out")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--attention", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.attention:
        result = attention(options.case)
    else:
        result = train(options.case, options.steps) if options.steps else compare(options.case)
    np.savez(options.out, **result)
