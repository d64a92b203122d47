"""Save and run transformers' DETR with random weights, in the original's interpreter:

    ORACLE_PYTHON tests/oracle/run_huggingface.py make CASE FORM FOLDER
    ORACLE_PYTHON tests/oracle/run_huggingface.py run FOLDER BATCH.npz OUT.npz

make writes a model as `save_pretrained` does, or in another form that users have. run loads a
folder, in which no weight may be missing or unexpected, and writes logits, boxes and masks for
images [B, 3, H, W] and mask [B, H, W], True on padding.
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import DetrConfig, DetrForObjectDetection, DetrForSegmentation, ResNetConfig

SMALL = {"encoder_layers": 1, "decoder_layers": 2, "num_queries": 20}
NAMES = {0: "ballon", 1: "N/A", 2: "自行车"}
CASES = {
    "r50": {"num_labels": 91},
    "r50-dc5": {"num_labels": 91, "dilation": True},
    "r101": {"num_labels": 91, "backbone": "resnet101"},
    "r50-panoptic": {"num_labels": 250},
    "three-classes": {"id2label": NAMES, **SMALL},
    "learned": {"num_labels": 5, "position_embedding_type": "learned", **SMALL},
    "own-resnet": {
        "num_labels": 91,
        "backbone_config": ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"]),
        **SMALL,
    },
    "masks": {"num_labels": 5, **SMALL},
}


def build(case):
    torch.manual_seed(0)
    config = DetrConfig(use_pretrained_backbone=False, **CASES[case])
    kind = DetrForSegmentation if case in ("r50-panoptic", "masks") else DetrForObjectDetection
    model = kind(config).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            randomize(name, value)
    return model


def randomize(name, value):
    """Fill a weight as in a trained model: statistics and biases are not 0 or 1, residual branches
    are small, and queries differ.
    """
    noise = torch.rand_like(value) * 2 - 1 if value.is_floating_point() else 0
    if name.endswith("running_var"):
        value.copy_(1 + 0.5 * noise)
    elif name.endswith(("running_mean", "bias")):
        value.copy_(0.1 * noise)
    elif name.endswith(("bn3.weight", "layer.2.normalization.weight")):
        value.copy_(0.25 * (1 + 0.2 * noise))
    elif value.ndim == 1 and value.is_floating_point():
        value.copy_(1 + 0.2 * noise)
    elif name.endswith("query_position_embeddings.weight"):
        value.copy_(2 * noise)
    elif name.endswith("weight") and value.ndim == 2 and "position_embedding" not in name:
        sharp = 3 if "decoder" in name and name.endswith(("q_proj.weight", "k_proj.weight")) else 1
        value.copy_(sharp * math.sqrt(6 / sum(value.shape)) * noise)


def make(case, form, folder):
    model = build(case)
    folder = Path(folder)
    if form in ("safetensors", "sharded"):
        model.save_pretrained(folder, max_shard_size="30MB" if form == "sharded" else "5GB")
        assert (folder / "model.safetensors.index.json").exists() == (form == "sharded")
        return
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if form == "bin":
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        state = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@torch.no_grad()
def run(folder, batch, out):
    with np.load(batch) as data:
        images, mask = torch.from_numpy(data["images"]), torch.from_numpy(data["mask"])
    has_masks = "DetrForSegmentation" in (Path(folder) / "config.json").read_text()
    kind = DetrForSegmentation if has_masks else DetrForObjectDetection
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    mismatches = {name: value for name, value in report.items() if value}
    assert not mismatches, mismatches
    outputs = model.eval()(pixel_values=images, pixel_mask=(~mask).long())
    arrays = {"logits": outputs.logits, "boxes": outputs.pred_boxes}
    if has_masks:
        arrays["masks"] = outputs.pred_masks
    np.savez(out, **{name: value.numpy() for name, value in arrays.items()})


if __name__ == "__main__":
    {"make": make, "run": run}[sys.argv[1]](*sys.argv[2:])
